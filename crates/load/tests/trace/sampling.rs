//! A sample has the shape of what it is a sample of.
//!
//! Seeds are fixed, so these tests always end the same. Bounds are of six standard deviations: a
//! sound sampler meets them with nearly any seed.

use std::time::Duration;

use dormouse_load::trace::{Invocation, SampleConfig, Source, Trace, TracedFunction};

use crate::synthetic::{large, share_of_top};
use crate::*;

const MINUTE_US: u64 = 60_000_000;
const SIGMAS: f64 = 6.0;

fn minutes(trace: &Trace) -> Vec<f64> {
    let mut minutes = vec![0.0; trace.span.as_secs() as usize / 60];
    for invocation in &trace.invocations {
        minutes[(invocation.at_us / MINUTE_US) as usize] += 1.0;
    }
    minutes
}

fn durations(trace: &Trace) -> Vec<u64> {
    trace.invocations.iter().map(|i| i.duration_us).collect()
}

/// Share of the invocations that take no longer.
fn share_below(sorted: &[u64], duration_us: u64) -> f64 {
    sorted.partition_point(|us| *us <= duration_us) as f64 / sorted.len() as f64
}

/// What happens, whatever the order of the functions.
fn events(trace: &Trace) -> Vec<(u64, u64, &str)> {
    let name = |i: &Invocation| trace.functions[i.function as usize].name.as_str();
    let event = |i: &Invocation| (i.at_us, i.duration_us, name(i));
    let mut events: Vec<_> = trace.invocations.iter().map(event).collect();
    events.sort_unstable();
    events
}

#[test]
fn all_of_a_trace_is_the_trace() {
    let trace = Trace::synthetic(&Default::default()).unwrap();
    let sample = trace.sample(&SampleConfig::default()).unwrap();
    assert_eq!(sample.span, trace.span);
    assert_eq!(events(&sample), events(&trace));
    let counts = counts(&sample);
    assert!(
        counts.is_sorted_by(|one, other| one >= other),
        "most popular first"
    );
}

#[test]
fn a_lower_rate_keeps_the_curve_the_durations_and_the_popularity() {
    let trace = large();
    let rate = trace.rate_per_s() / 4.0;
    let config = SampleConfig {
        rate_per_s: Some(rate),
        ..SampleConfig::default()
    };
    let sample = trace.sample(&config).unwrap();
    assert_eq!(sample.source, trace.source);
    let n = sample.invocations.len() as f64;
    let expected = rate * sample.span.as_secs_f64();
    assert!(
        (n - expected).abs() < SIGMAS * (expected * 0.75).sqrt(),
        "{n}"
    );

    // Each minute has Bin(c, 1/4) of its c invocations.
    let mut square = 0.0;
    let mut busy = 0.0;
    for (whole, found) in minutes(trace).into_iter().zip(minutes(&sample)) {
        let deviation = (found - whole / 4.0) / (whole * 0.1875).sqrt().max(1.0);
        assert!(deviation.abs() < SIGMAS, "{found} of {whole}");
        square += deviation * deviation;
        busy += 1.0;
    }
    // Their squares are of χ²: mean 1 and variance 2 each.
    assert!(
        (square - busy).abs() < SIGMAS * (2.0_f64 * busy).sqrt(),
        "{square} of {busy}"
    );

    let mut whole = durations(trace);
    whole.sort_unstable();
    // Durations are whole milliseconds: compared between them, not at the steps.
    let found = durations(&sample);
    for quantile in [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99] {
        let at = whole[(whole.len() as f64 * quantile) as usize];
        let mut sorted = found.clone();
        sorted.sort_unstable();
        let difference = share_below(&sorted, at) - share_below(&whole, at);
        assert!(
            difference.abs() < distance_by_chance(found.len()),
            "{quantile}: {difference}"
        );
    }
    // Each function has a binomial share, so that the sum's variance is at most that of one.
    let active = trace.sample(&SampleConfig::default()).unwrap();
    assert_eq!(sample.functions, active.functions);
    for share in [0.01, 0.05, 0.1, 0.2] {
        let (expected, found) = (share_of_top(&active, share), share_of_top(&sample, share));
        let deviation = (expected * (1.0 - expected) / n).sqrt();
        assert!(
            (found - expected).abs() < SIGMAS * deviation,
            "{share}: {found}, {expected}"
        );
    }
}

#[test]
fn fewer_functions_keep_the_popularity_but_for_chance() {
    // Only functions with invocations can be chosen, so shares are of those.
    let active = large().sample(&SampleConfig::default()).unwrap();
    for functions in [20, 50, 200, 1000] {
        let config = SampleConfig {
            functions: Some(functions),
            ..SampleConfig::default()
        };
        let sample = active.sample(&config).unwrap();
        assert_eq!(sample.functions.len(), functions);
        let n = sample.invocations.len() as f64;
        // The mean of a function is that of all.
        let scale = functions as f64 / active.functions.len() as f64;
        let expected = active.invocations.len() as f64 * scale;
        assert!(
            (n - expected).abs() < SIGMAS * expected.sqrt(),
            "{n}, {expected}"
        );
        for share in [0.1, 0.2, 0.5] {
            let (expected, found) = (share_of_top(&active, share), share_of_top(&sample, share));
            let deviation = (expected * (1.0 - expected) / n).sqrt();
            assert!(
                (found - expected).abs() < SIGMAS * deviation,
                "{functions} at {share}: {found}, {expected}"
            );
        }
    }
}

/// How far the shares per quarter of an hour are apart, and the distributions of the durations.
fn distances(trace: &Trace, sample: &Trace) -> (f64, f64) {
    let quarters = |trace: &Trace| -> Vec<f64> {
        let n = trace.invocations.len() as f64;
        let share = |part: &[f64]| part.iter().sum::<f64>() / n;
        minutes(trace).chunks(15).map(share).collect()
    };
    let (whole, found) = (quarters(trace), quarters(sample));
    let curve: f64 = whole.iter().zip(&found).map(|(a, b)| (a - b).abs()).sum();
    let mut whole = durations(trace);
    whole.sort_unstable();
    let times = distance(&durations(sample), |us| share_below(&whole, us));
    (curve / 2.0, times)
}

#[test]
fn fewer_functions_keep_the_curve_and_the_durations() {
    let trace = large();
    let config = SampleConfig {
        functions: Some(100),
        ..SampleConfig::default()
    };
    let (curve, times) = distances(trace, &trace.sample(&config).unwrap());
    // By chance alone the 24 quarters would be √(24 / (2π × 20 000)) = 0.014 apart.
    assert!(curve < 0.05, "{curve}");
    assert!(times < 0.1, "{times}");
}

#[test]
fn of_functions_of_like_popularity_those_are_chosen_that_are_together_like_all() {
    // By rank, functions take turns: in the first or in the second hour, short or long.
    let functions = (0..400).map(|rank| TracedFunction {
        app: "app".to_owned(),
        name: format!("f{rank}"),
        trigger: None,
        memory_mib: 0.0,
    });
    let mut invocations: Vec<_> = (0..400_u32)
        .flat_map(|rank| {
            let hour_us = u64::from(rank % 2) * 60 * MINUTE_US;
            let duration_us = if rank / 2 % 2 == 0 { 1_000_000 } else { 3_000 };
            let count = u64::from(1000 - rank);
            (0..count).map(move |number| Invocation {
                at_us: hour_us + number * 60 * MINUTE_US / count,
                function: rank,
                duration_us,
            })
        })
        .collect();
    invocations.sort_unstable();
    let trace = Trace {
        source: Source::Synthetic,
        span: Duration::from_secs(7200),
        functions: functions.collect(),
        invocations,
        capped: 0,
    };
    let config = SampleConfig {
        functions: Some(50),
        ..SampleConfig::default()
    };
    // The first of each eight would be all of one sort: in the first hour, and long.
    let sample = trace.sample(&config).unwrap();
    let share = |wanted: &dyn Fn(&Invocation) -> bool| {
        let found = sample.invocations.iter().filter(|i| wanted(i)).count();
        found as f64 / sample.invocations.len() as f64
    };
    let early = share(&|i| i.at_us < 60 * MINUTE_US);
    let long = share(&|i| i.duration_us == 1_000_000);
    // Half of one function of fifty either way, and chance: 40 000 × 0.8 invocations.
    assert!((early - 0.5).abs() < 0.02 + 0.017, "{early}");
    assert!((long - 0.5).abs() < 0.02 + 0.017, "{long}");
}

#[test]
fn nothing_is_ever_added() {
    let trace = large();
    let config = SampleConfig {
        functions: Some(30),
        rate_per_s: Some(0.2),
        ..SampleConfig::default()
    };
    let sample = trace.sample(&config).unwrap();
    let number = |name: &str| trace.functions.iter().position(|f| f.name == name).unwrap() as u32;
    let mut found: Vec<_> = sample
        .invocations
        .iter()
        .map(|i| Invocation {
            function: number(&sample.functions[i.function as usize].name),
            ..*i
        })
        .collect();
    found.sort_unstable();
    let mut whole = trace.invocations.iter();
    for invocation in &found {
        assert!(
            whole.any(|i| i == invocation),
            "{invocation:?} never happened"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_sample_and_another_the_same_functions() {
    let trace = Trace::synthetic(&Default::default()).unwrap();
    let config = SampleConfig {
        functions: Some(10),
        rate_per_s: Some(0.1),
        ..SampleConfig::default()
    };
    let sample = trace.sample(&config).unwrap();
    assert_eq!(trace.sample(&config).unwrap(), sample);
    let other = trace.sample(&SampleConfig { seed: 2, ..config }).unwrap();
    assert_ne!(other.invocations, sample.invocations);
    assert_eq!(other.functions, sample.functions);
}

#[test]
fn a_file_is_sampled_as_the_trace_in_it() {
    let trace = Trace::synthetic(&Default::default()).unwrap();
    let mut text = Vec::new();
    trace.write_2021(&mut text).unwrap();
    let files = Files::new();
    let path = files.add("synthetic.csv", text);
    let config = SampleConfig {
        rate_per_s: Some(1.0),
        start: Duration::from_secs(30),
        length: Some(Duration::from_secs(300)),
        ..SampleConfig::default()
    };
    let (sample, stats) = Trace::open(&[path], &config).unwrap();
    let expected = trace.sample(&config).unwrap();
    assert_eq!(sample.span, expected.span);
    assert_eq!(events(&sample), events(&expected));
    assert_eq!(stats.functions, expected.functions.len() as u64);
}

#[test]
fn windows_compression_and_the_longest_duration() {
    let text = format!(
        "{HEADER_2021}\
         a,f,11,1\n\
         a,f,31,11\n\
         a,g,80,0.5\n"
    );
    let (trace, _) = read(text).unwrap();
    let config = SampleConfig {
        start: Duration::from_secs(15),
        length: Some(Duration::from_secs(100)),
        compression: 10.0,
        max_duration: Some(Duration::from_secs(2)),
        ..SampleConfig::default()
    };
    let sample = trace.sample(&config).unwrap();
    let event = |at_us, function, duration_us| Invocation {
        at_us,
        function,
        duration_us,
    };
    assert_eq!(
        sample.invocations,
        [event(500_000, 0, 2_000_000), event(6_450_000, 1, 500_000)]
    );
    assert_eq!(sample.span, Duration::from_millis(10_000));
    assert_eq!(sample.capped, 1);
    assert_eq!(sample.rate_per_s(), 0.2);
    // To the end of the trace, if nothing is said.
    let config = SampleConfig {
        start: Duration::from_secs(15),
        ..SampleConfig::default()
    };
    assert_eq!(
        trace.sample(&config).unwrap().span,
        Duration::from_secs(105)
    );
}

#[test]
fn counts_of_2019_are_thinned_before_they_are_drawn() {
    let rows: [Row<'_>; 2] = [
        ("o,a,f,http", &[(1, "1000000000"), (700, "3000000000")]),
        ("o,a,g,http", &[(700, "1000000")]),
    ];
    let files = Files::new();
    let path = files.add("counts.csv", counts_2019(&rows));
    let config = SampleConfig {
        rate_per_s: Some(1.0),
        ..SampleConfig::default()
    };
    let (sample, stats) = Trace::open(&[path], &config).unwrap();
    let n = sample.invocations.len() as f64;
    assert!((n - 86_400.0).abs() < SIGMAS * 86_400_f64.sqrt(), "{n}");
    let first = sample
        .invocations
        .iter()
        .filter(|i| i.at_us < MINUTE_US)
        .count() as f64;
    assert!(
        (first / n - 0.25).abs() < SIGMAS * (0.1875 / n).sqrt(),
        "{first}"
    );
    assert_eq!(stats.functions, 2);
}
