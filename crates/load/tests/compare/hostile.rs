//! Records that say anything never end in a panic.

use super::*;
use dormouse_load::compare::Verdict;
use proptest::prelude::*;

/// So many counts that sums of them do not fit.
fn huge() -> Histogram {
    let mut histogram = Histogram::default();
    [0, 1, 1000, u64::MAX]
        .into_iter()
        .for_each(|us| histogram.record_us(us));
    for _ in 0..70 {
        let copy = histogram.clone();
        histogram.add(&copy);
    }
    histogram
}

/// JSON has no NaN and no infinity.
fn assert_finite(comparison: &Comparison) {
    for change in comparison.runs.iter().flat_map(|run| &run.changes) {
        let single = [change.base, change.new, change.change]
            .into_iter()
            .flatten();
        let mut all = single.chain(change.interval.into_iter().flatten());
        assert!(all.all(f64::is_finite), "{change:?}");
    }
}

fn compared(base: &Record, new: &Record) -> Comparison {
    let config = CompareConfig {
        resamples: 100,
        ..config(&Metric::ALL)
    };
    let comparison = compare(base, new, &config).unwrap();
    assert!(!comparison.to_string().is_empty());
    assert_finite(&comparison);
    comparison
}

#[test]
fn nothing_at_all_is_not_comparable() {
    let empty = record("empty", vec![run("steady", Vec::new())]);
    let idle = record("idle", vec![run("steady", vec![Slice::default(); 50])]);
    for (base, new) in [
        (&empty, &empty),
        (&idle, &idle),
        (&empty, &idle),
        (&idle, &empty),
    ] {
        let comparison = compared(base, new);
        assert_eq!(comparison.count(Verdict::NotComparable), 7, "{comparison}");
        assert!(!comparison.is_regression());
    }
}

#[test]
fn answers_in_no_time_have_no_ratio() {
    let still = Target {
        median_us: 0.0,
        ..STEADY
    };
    let found = change(&measured(still, 1), &measured(STEADY, 2), Metric::P50);
    assert_eq!(found.verdict, Verdict::NotComparable, "{found:?}");
}

#[test]
fn huge_counts_are_compared() {
    let slice = Slice {
        offered: u64::MAX,
        failed: u64::MAX,
        arrived: u64::MAX,
        in_flight_max: u64::MAX,
        latency: huge(),
        is_warmup: false,
    };
    let mut huge = record("huge", vec![run("steady", vec![Slice::default()])]);
    let run = &mut huge.runs[0];
    run.slices = vec![slice; 20];
    (run.measured_us, run.warmup_us, run.slice_us) = (u64::MAX, u64::MAX, u64::MAX);
    (run.answered, run.failed, run.offered) = (u64::MAX, u64::MAX, u64::MAX);
    huge.machine.load = f64::NAN;
    compared(&huge, &huge);
    compared(&huge, &measured(STEADY, 1));
    compared(&measured(STEADY, 1), &huge);
}

#[test]
fn more_slices_than_are_kept_apart_are_put_together() {
    let long = Target {
        slices: 1100,
        per_slice: 6,
        ..STEADY
    };
    let mut base = measured(long, 1);
    let found = change(&base, &base, Metric::P50);
    assert_eq!(found.change, Some(0.0));
    let [low, high] = found.interval.unwrap();
    assert!(low < 0.0 && high > 0.0 && high - low < 0.1, "{found:?}");
    // A run of a second, that says that it went on for ever.
    base.runs[0].measured_us = u64::MAX;
    compared(&base, &base);
}

fn any_slice() -> impl Strategy<Value = Slice> {
    let number = prop_oneof![Just(0), Just(u64::MAX), 0..1000u64];
    let times = prop::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 0..20);
    (any::<bool>(), number.clone(), number.clone(), number, times).prop_map(
        |(is_warmup, offered, failed, arrived, times)| {
            let mut latency = Histogram::default();
            times.into_iter().for_each(|us| latency.record_us(us));
            Slice {
                is_warmup,
                offered,
                failed,
                arrived,
                in_flight_max: 0,
                latency,
            }
        },
    )
}

fn any_run() -> impl Strategy<Value = Run> {
    let time = || prop_oneof![Just(0), Just(1), Just(u64::MAX), 0..100_000_000u64];
    let slices = prop::collection::vec(any_slice(), 0..30);
    (slices, time(), time(), time()).prop_map(|(slices, warmup_us, measured_us, slice_us)| Run {
        slices,
        warmup_us,
        measured_us,
        slice_us,
        ..run("any", Vec::new())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_runs_are_compared(base in any_run(), new in any_run()) {
        let (base, new) = (record("base", vec![base]), record("new", vec![new]));
        let config = CompareConfig {
            min_beyond: 0,
            min_slices: 4,
            resamples: 100,
            ..config(&Metric::ALL)
        };
        let comparison = compare(&base, &new, &config).unwrap();
        assert_finite(&comparison);
    }
}
