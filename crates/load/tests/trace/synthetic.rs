//! Traces that are made up.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use dormouse_load::trace::{SampleConfig, Source, SyntheticConfig, Trace};

use crate::*;

/// Six hours of two thousand functions: large enough for statistics.
pub(crate) fn large() -> &'static Trace {
    static LARGE: OnceLock<Trace> = OnceLock::new();
    LARGE.get_or_init(|| {
        Trace::synthetic(&SyntheticConfig {
            functions: 2000,
            span: Duration::from_secs(6 * 3600),
            rate_per_s: 20.0,
            seed: 7,
        })
        .unwrap()
    })
}

/// Share of the invocations that the given share of the functions has, the first first. It may end
/// within a function.
pub(crate) fn share_of_top(trace: &Trace, share: f64) -> f64 {
    let counts = counts(trace);
    let mut left = counts.len() as f64 * share;
    let mut sum = 0.0;
    for count in counts {
        sum += count as f64 * left.clamp(0.0, 1.0);
        left -= 1.0;
    }
    sum / trace.invocations.len() as f64
}

#[test]
fn the_trace_in_the_repository_is_the_default_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/synthetic-10min.csv");
    let trace = Trace::synthetic(&SyntheticConfig::default()).unwrap();
    let mut text = Vec::new();
    trace.write_2021(&mut text).unwrap();
    let kept = fs::read(&path).unwrap();
    if kept != text {
        let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("synthetic-10min.csv");
        fs::write(&new, &text).unwrap();
        panic!("{} is now made as {}", path.display(), new.display());
    }
    assert!(kept.len() < 150 << 10);

    let (read, _) = Trace::open(&[path], &SampleConfig::default()).unwrap();
    assert_eq!(read.source, Source::Synthetic);
    assert_eq!(read.span, Duration::from_secs(600));
    assert!(
        (30..=60).contains(&read.functions.len()),
        "{}",
        read.functions.len()
    );
}

#[test]
fn a_trace_is_read_back_as_it_was_written() {
    let trace = Trace::synthetic(&SyntheticConfig::default()).unwrap();
    let mut text = Vec::new();
    trace.write_2021(&mut text).unwrap();
    let (back, stats) = read(text).unwrap();
    assert_eq!(stats.rows, trace.invocations.len() as u64);
    let events = |trace: &Trace| -> Vec<_> {
        let event = |i: &dormouse_load::trace::Invocation| {
            let name = trace.functions[i.function as usize].name.clone();
            assert!(name.starts_with("synthetic-"), "{name}");
            (i.at_us, name, i.duration_us)
        };
        let mut events: Vec<_> = trace.invocations.iter().map(event).collect();
        events.sort();
        events
    };
    assert_eq!(events(&back), events(&trace));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let config = SyntheticConfig::default();
    let other = SyntheticConfig {
        seed: config.seed + 1,
        ..config.clone()
    };
    let trace = Trace::synthetic(&config).unwrap();
    assert_eq!(Trace::synthetic(&config).unwrap(), trace);
    assert_ne!(
        Trace::synthetic(&other).unwrap().invocations,
        trace.invocations
    );
}

#[test]
fn invocations_are_in_order_within_the_span_and_as_many_as_asked_for() {
    let trace = large();
    assert!(trace.invocations.is_sorted());
    let end = trace.span.as_micros() as u64;
    assert!(trace.invocations.iter().all(|i| i.at_us < end));
    assert!(trace.invocations.iter().all(|i| i.duration_us >= 1000));
    assert!(
        trace
            .invocations
            .iter()
            .all(|i| i.duration_us <= 600_000_000)
    );
    let expected = 20.0 * trace.span.as_secs_f64();
    let found = trace.invocations.len() as f64;
    assert!((found - expected).abs() < 6.0 * expected.sqrt(), "{found}");
}

#[test]
fn few_functions_have_most_of_the_invocations() {
    // Log-normal with σ = 3.5: 1 − Φ(Φ⁻¹(0.9) − 3.5) = 98.7 %, 1 − Φ(Φ⁻¹(0.8) − 3.5) = 99.6 %,
    // less the timers' share of a tenth at most, which is spread evenly.
    let trace = large();
    for (share, expected) in [(0.1, 0.987), (0.2, 0.996)] {
        let found = share_of_top(trace, share);
        assert!(
            (expected - 0.1..=expected + 0.01).contains(&found),
            "{share}: {found}"
        );
    }
    // Most functions are rare: half of them come less than once an hour.
    let rare = counts(trace).into_iter().filter(|count| *count < 6).count();
    assert!(rare > 1000, "{rare}");
    // But no single one is all.
    assert!(share_of_top(trace, 1.0 / 2000.0) < 0.7);
}

#[test]
fn timers_fire_exactly_each_period() {
    let trace = large();
    let mut times: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for invocation in &trace.invocations {
        times
            .entry(invocation.function)
            .or_default()
            .push(invocation.at_us);
    }
    let is_timer = |f: &u32| trace.functions[*f as usize].trigger.as_deref() == Some("timer");
    let timers: Vec<_> = (0..2000).filter(is_timer).collect();
    let mut gaps = std::collections::BTreeSet::new();
    let mut fired = 0;
    for timer in &timers {
        let times = &times[timer];
        let gap = times[1] - times[0];
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == gap));
        assert!(times[0] < 1_000_000);
        fired += times.len();
        gaps.insert(gap / 1_000_000);
    }
    assert_eq!(gaps.into_iter().collect::<Vec<_>>(), [60, 300, 900, 3600]);
    // 16 % of the functions, or fewer so that they have a tenth of the invocations.
    assert!((200..=320).contains(&timers.len()), "{}", timers.len());
    let share = fired as f64 / trace.invocations.len() as f64;
    assert!((0.01..=0.11).contains(&share), "{share}");
}

#[test]
fn durations_are_of_a_heavy_tail_around_some_hundred_milliseconds() {
    for seed in 1..6 {
        let trace = Trace::synthetic(&SyntheticConfig {
            seed,
            ..SyntheticConfig::default()
        })
        .unwrap();
        let mut durations: Vec<_> = trace.invocations.iter().map(|i| i.duration_us).collect();
        durations.sort_unstable();
        let quantile = |share: f64| durations[(durations.len() as f64 * share) as usize];
        let median_ms = quantile(0.5) / 1000;
        assert!((300..=1500).contains(&median_ms), "{median_ms}");
        assert!(quantile(0.99) > 5 * quantile(0.5));
    }
    // Over functions, not invocations: median exp(-0.38) s, with σ = 2.36. Those that came often
    // enough for their median to be known within exp(3 × 0.5 × 1.25 / √20) = ×1.5.
    let trace = large();
    let mut durations = vec![Vec::new(); trace.functions.len()];
    for invocation in &trace.invocations {
        durations[invocation.function as usize].push(invocation.duration_us as f64 / 1e6);
    }
    let mut medians: Vec<f64> = durations
        .into_iter()
        .filter(|durations| durations.len() >= 20)
        .map(|mut durations| {
            durations.sort_by(f64::total_cmp);
            durations[durations.len() / 2]
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    assert!(medians.len() > 300, "{}", medians.len());
    let quantile = |share: f64| medians[(medians.len() as f64 * share) as usize];
    // Quantiles 16 %, 50 % and 84 % are one σ apart.
    for (share, sigmas) in [(0.16, -1.0_f64), (0.5, 0.0), (0.84, 1.0)] {
        let expected = (-0.38 + 2.36 * sigmas).exp();
        let ratio = quantile(share) / expected;
        assert!((1.0 / 1.5..1.5).contains(&ratio), "{share}: {ratio}");
    }
}

#[test]
fn memory_is_that_of_the_published_fit() {
    let trace = large();
    let mut memory: Vec<_> = trace
        .functions
        .iter()
        .map(|f| f.memory_mib as u64)
        .collect();
    memory.sort_unstable();
    // Burr: P(X ≤ x) = 1 − (1 + (x / λ)^c)^−k, in whole MiB.
    let below = |mib: f64| 1.0 - (1.0 + (mib / 107.083).powf(11.652)).powf(-0.221);
    for mib in [80_u64, 120, 140, 170, 250, 400] {
        let found = memory.iter().filter(|m| **m <= mib).count() as f64 / 2000.0;
        let expected = below(mib as f64 + 0.5);
        assert!(
            (found - expected).abs() < distance_by_chance(2000),
            "{mib}: {found}"
        );
    }
}

#[test]
fn a_day_has_a_curve_and_some_functions_burst() {
    let trace = Trace::synthetic(&SyntheticConfig {
        functions: 400,
        span: Duration::from_secs(86_400),
        rate_per_s: 5.0,
        seed: 3,
    })
    .unwrap();
    // The mean over the halves of 1 + 0.3 sin: 1 ± 0.6 / π.
    let noon = 43_200_000_000;
    let morning = trace.invocations.iter().filter(|i| i.at_us < noon).count() as f64;
    let ratio = morning / (trace.invocations.len() as f64 - morning);
    let expected = (1.0 + 0.191) / (1.0 - 0.191);
    assert!((ratio - expected).abs() < 0.2, "{ratio}");

    // Counts per minute of a Poisson process vary as much as their mean; bursts vary more.
    let mut bursty = 0;
    let mut steady = 0;
    let counts = counts(&trace);
    let frequent = (0..400_u32).filter(|f| {
        let function = &trace.functions[*f as usize];
        counts[*f as usize] > 1440 && function.trigger.as_deref() == Some("http")
    });
    for function in frequent {
        let mut minutes = vec![0.0; 1440];
        for i in trace.invocations.iter().filter(|i| i.function == function) {
            minutes[(i.at_us / 60_000_000) as usize] += 1.0;
        }
        let mean = minutes.iter().sum::<f64>() / 1440.0;
        let variance = minutes.iter().map(|n| (n - mean) * (n - mean)).sum::<f64>() / 1440.0;
        // The daily curve alone adds 0.045 × mean² to a variance of mean.
        if variance > 1.5 * (mean + 0.045 * mean * mean) {
            bursty += 1;
        } else {
            steady += 1;
        }
    }
    assert!(bursty > 0 && steady > 0, "{bursty} bursty, {steady} steady");
}
