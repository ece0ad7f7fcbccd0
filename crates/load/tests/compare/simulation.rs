//! How often intervals and verdicts are right.

use super::*;
use dormouse_load::compare::Verdict;

/// Small runs, so that many of them can be made.
const SMALL: Target = Target {
    slices: 30,
    per_slice: 40,
    ..STEADY
};

/// In how many of 200 comparisons the interval has the true change in it, by metric.
fn coverage<const N: usize>(target: Target, metrics: [Metric; N]) -> [f64; N] {
    const ROUNDS: u32 = 200;
    let truth = 0.1;
    let slower = Target {
        median_us: target.median_us * (1.0 + truth),
        ..target
    };
    let config = CompareConfig {
        resamples: 200,
        ..config(&metrics)
    };
    let mut covered = [0; N];
    for round in 0..ROUNDS {
        let seed = u64::from(round) * 2;
        let (base, new) = (measured(target, seed), measured(slower, seed + 1));
        let comparison = compare(&base, &new, &config).unwrap();
        for (covered, change) in covered.iter_mut().zip(&comparison.runs[0].changes) {
            let [low, high] = change.interval.unwrap();
            *covered += u32::from((low..=high).contains(&truth));
        }
    }
    covered.map(|covered| f64::from(covered) / f64::from(ROUNDS))
}

#[test]
fn intervals_have_the_true_change_in_them() {
    for target in [
        SMALL,
        // A slow slice is followed by a slow one.
        Target {
            memory: 0.5,
            ..SMALL
        },
        // As few slices as are judged at all.
        Target {
            slices: 10,
            per_slice: 120,
            ..SMALL
        },
    ] {
        let shares = coverage(target, [Metric::P50, Metric::P99, Metric::Mean]);
        for share in shares {
            assert!(share >= 0.88, "{target:?}: {shares:?}");
        }
    }
}

#[test]
fn the_same_target_twice_is_no_regression() {
    let metrics = [Metric::P50, Metric::P99, Metric::Throughput, Metric::Failed];
    let target = Target {
        failed: 0.01,
        ..SMALL
    };
    let mut found = 0;
    for seed in 0..100 {
        let (base, new) = (measured(target, seed * 2), measured(target, seed * 2 + 1));
        let comparison = compare(&base, &new, &config(&metrics)).unwrap();
        found += u32::from(comparison.is_regression());
    }
    assert!(found <= 5, "{found} of 100");
}

#[test]
fn a_fifth_slower_is_worse_and_the_other_way_round_better() {
    let slower = Target {
        median_us: STEADY.median_us * 1.2,
        ..STEADY
    };
    for seed in 0..5 {
        let (base, new) = (measured(STEADY, seed * 2), measured(slower, seed * 2 + 1));
        for metric in [Metric::P50, Metric::P90, Metric::Mean] {
            let worse = change(&base, &new, metric);
            assert_eq!(worse.verdict, Verdict::Worse, "{seed}: {worse:?}");
            let better = change(&new, &base, metric);
            assert_eq!(better.verdict, Verdict::Better, "{seed}: {better:?}");
        }
    }
}

#[test]
fn a_change_below_the_threshold_is_the_same() {
    let target = Target {
        wander: 0.01,
        per_slice: 200,
        ..STEADY
    };
    let slower = Target {
        median_us: target.median_us * 1.02,
        ..target
    };
    let (base, new) = (measured(target, 1), measured(slower, 2));
    let found = change(&base, &new, Metric::P50);
    assert_eq!(found.verdict, Verdict::Same, "{found:?}");
    let strict = CompareConfig {
        threshold: 0.0,
        ..config(&[Metric::P50])
    };
    assert!(compare(&base, &new, &strict).unwrap().is_regression());
}

#[test]
fn a_stall_in_one_slice_is_unclear_and_in_many_worse() {
    let target = Target {
        slices: 60,
        per_slice: 200,
        ..STEADY
    };
    let base = measured(target, 1);
    let stalled = |places: &[usize]| {
        let mut slices = slices(target, 2);
        for &place in places {
            (0..60).for_each(|_| slices[place].latency.record_us(50_000));
        }
        record("made up", vec![run("steady", slices)])
    };
    let once = change(&base, &stalled(&[20]), Metric::P999);
    assert_eq!(once.verdict, Verdict::Unclear, "{once:?}");
    assert!(once.change.unwrap() > 10.0, "{once:?}");
    assert!(once.reason.unwrap().ends_with("measure for longer"));
    let often: Vec<usize> = (2..60).step_by(2).collect();
    let often = change(&base, &stalled(&often), Metric::P999);
    assert_eq!(often.verdict, Verdict::Worse, "{often:?}");
}

#[test]
fn more_failures_are_worse_whatever_the_good_answers_say() {
    let failing = Target {
        failed: 0.03,
        ..STEADY
    };
    let comparison = compare(
        &measured(STEADY, 1),
        &measured(failing, 2),
        &config(&[Metric::P50, Metric::Failed, Metric::Throughput]),
    )
    .unwrap();
    let changes = &comparison.runs[0].changes;
    assert_eq!(changes[1].verdict, Verdict::Worse, "{changes:?}");
    assert_ne!(changes[0].verdict, Verdict::Worse, "{changes:?}");
    assert_eq!(changes[2].verdict, Verdict::Same, "{changes:?}");
    assert!(comparison.is_regression());
    // A single burst may be chance.
    let mut burst = slices(STEADY, 3);
    burst[30].failed = 60;
    let burst = record("made up", vec![run("steady", burst)]);
    let found = change(&measured(STEADY, 1), &burst, Metric::Failed);
    assert_eq!(found.verdict, Verdict::Unclear, "{found:?}");
}

#[test]
fn fewer_answers_per_second_are_worse() {
    let fewer = Target {
        per_slice: 80,
        ..STEADY
    };
    let found = change(
        &measured(STEADY, 1),
        &measured(fewer, 2),
        Metric::Throughput,
    );
    assert_eq!(found.verdict, Verdict::Worse);
    assert!((found.change.unwrap() + 0.2).abs() < 1e-9, "{found:?}");
    let found = change(
        &measured(fewer, 2),
        &measured(STEADY, 1),
        Metric::Throughput,
    );
    assert_eq!(found.verdict, Verdict::Better);
}
