//! What a comparison says, warns of and keeps.

use super::*;
use dormouse_load::compare::{FORMAT, Verdict};

#[test]
fn values_are_those_of_the_record() {
    let target = Target {
        failed: 0.02,
        per_slice: 200,
        ..STEADY
    };
    let (base, new) = (measured(target, 1), measured(target, 2));
    let comparison = compare(&base, &new, &config(&Metric::ALL)).unwrap();
    for (side, run) in [(0, &base.runs[0]), (1, &new.runs[0])] {
        let close = |metric: Metric, of_run: f64| {
            let mut changes = comparison.runs[0].changes.iter();
            let change = changes.find(|change| change.metric == metric).unwrap();
            let value = [change.base, change.new][side].unwrap();
            assert!((value / of_run - 1.0).abs() < 0.002, "{change:?} {of_run}");
        };
        close(Metric::P50, run.latency.quantile_us(0.5) as f64);
        close(Metric::P90, run.latency.quantile_us(0.9) as f64);
        close(Metric::P99, run.latency.quantile_us(0.99) as f64);
        close(Metric::P999, run.latency.quantile_us(0.999) as f64);
        close(Metric::Mean, run.latency.mean_us());
        close(Metric::Failed, run.failed_share());
        close(Metric::Throughput, run.achieved_per_s());
    }
    for change in &comparison.runs[0].changes {
        let ([low, high], middle) = (change.interval.unwrap(), change.change.unwrap());
        assert!(low <= middle && middle <= high, "{change:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_and_json_keeps_it() {
    let (base, new) = (measured(STEADY, 1), measured(STEADY, 2));
    let config = config(&Metric::ALL);
    let comparison = compare(&base, &new, &config).unwrap();
    assert_eq!(compare(&base, &new, &config).unwrap(), comparison);
    let json = serde_json::to_value(&comparison).unwrap();
    assert_eq!(json["format"], FORMAT);
    assert_eq!(json["runs"][0]["changes"][3]["metric"], "p99.9");
    assert_eq!(json["runs"][0]["changes"][3]["verdict"], "not-comparable");
    assert_eq!(
        serde_json::from_value::<Comparison>(json).unwrap(),
        comparison
    );
    let other = CompareConfig { seed: 2, ..config };
    assert_ne!(compare(&base, &new, &other).unwrap().runs, comparison.runs);
}

#[test]
fn what_else_is_compared_changes_no_number() {
    let (one, other) = (slices(STEADY, 1), slices(STEADY, 2));
    let single = compare(
        &record("base", vec![run("b", one.clone())]),
        &record("new", vec![run("b", other.clone())]),
        &config(&[Metric::P50]),
    );
    let with_more = compare(
        &record("base", vec![run("a", other.clone()), run("b", one.clone())]),
        &record("new", vec![run("a", one), run("b", other)]),
        &config(&[Metric::Mean, Metric::P50]),
    );
    let (single, with_more) = (single.unwrap(), with_more.unwrap());
    assert_eq!(single.runs[0].changes[0], with_more.runs[1].changes[1]);
}

#[test]
fn too_little_is_not_judged() {
    // p99.9 needs 10 000 answers and there are 6000; p99 needs 1000.
    let (base, new) = (measured(STEADY, 1), measured(STEADY, 2));
    let found = change(&base, &new, Metric::P999);
    assert_eq!(found.verdict, Verdict::NotComparable);
    assert_eq!(found.interval, None);
    let reason = found.reason.unwrap();
    assert!(
        reason.contains("6000 good answers") && reason.contains("10000 are needed"),
        "{reason}"
    );
    assert!(change(&base, &new, Metric::P99).interval.is_some());
    let short = Target {
        slices: 9,
        ..STEADY
    };
    let found = change(&base, &measured(short, 3), Metric::P50);
    assert_eq!(found.verdict, Verdict::NotComparable);
    let reason = found.reason.unwrap();
    assert!(reason.starts_with("new has 9 slices"), "{reason}");
}

#[test]
fn a_target_that_answers_nothing_any_more_is_a_regression() {
    let dead = Target {
        failed: 1.0,
        ..STEADY
    };
    let comparison = compare(
        &measured(STEADY, 1),
        &measured(dead, 2),
        &CompareConfig::default(),
    )
    .unwrap();
    let verdicts: Vec<Verdict> = comparison.runs[0]
        .changes
        .iter()
        .map(|change| change.verdict)
        .collect();
    let (none, worse) = (Verdict::NotComparable, Verdict::Worse);
    assert_eq!(verdicts, [none, none, worse, worse]);
    assert!(comparison.is_regression());
}

#[test]
fn time_without_requests_at_the_end_counts_for_throughput() {
    // A closed loop whose target hangs sends nothing more, so that slices are missing.
    let mut hanging = measured(STEADY, 2);
    hanging.runs[0].measured_us *= 2;
    let found = change(&measured(STEADY, 1), &hanging, Metric::Throughput);
    let change = found.change.unwrap();
    assert!((-0.52..-0.48).contains(&change), "{found:?}");
    assert!(found.interval.unwrap()[1] < 0.0, "{found:?}");
}

#[test]
fn answers_after_the_end_are_no_throughput() {
    let mut late = measured(STEADY, 1);
    late.runs[0].slices.last_mut().unwrap().arrived += 100_000;
    let found = change(&measured(STEADY, 1), &late, Metric::Throughput);
    assert_eq!((found.change, found.verdict), (Some(0.0), Verdict::Same));
}

#[test]
fn what_makes_it_worth_less_is_said() {
    let base = measured(STEADY, 1);
    let clean = compare(&base, &base, &config(&[Metric::P50])).unwrap();
    assert!(clean.warnings.is_empty() && clean.runs[0].warnings.is_empty());
    let mut new = measured(STEADY, 1);
    new.machine.cpu = "Another CPU".to_owned();
    new.machine.optimised = false;
    let run = &mut new.runs[0];
    run.name = "other".to_owned();
    run.pattern = "closed loop, 4 at once".to_owned();
    run.is_open = false;
    run.warmup_us = 0;
    run.interrupted = true;
    run.failed = 7;
    run.client.limits = vec!["one thread had no CPU left".to_owned()];
    let found = compare(&base, &new, &config(&[Metric::P50])).unwrap();
    assert_eq!(found.warnings.len(), 2, "{:#?}", found.warnings);
    assert!(found.warnings[0].contains("Another CPU, 2 cores"));
    assert!(found.warnings[1].starts_with("new: this is a debug build"));
    let warnings = &found.runs[0].warnings;
    for (place, part) in [
        "different names",
        "closed loop, 4 at once",
        "different things",
        "(1.0 s and 0.0 s)",
        "new was interrupted",
        "one thread had no CPU left",
        "7 requests of new failed",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(warnings[place].contains(part), "{part}: {warnings:#?}");
    }
    assert_eq!(warnings.len(), 7);
    // Rates are compared where both were chosen.
    let mut faster = measured(STEADY, 1);
    faster.runs[0].offered *= 2;
    let found = compare(&base, &faster, &config(&[Metric::P50])).unwrap();
    assert!(found.runs[0].warnings[0].contains("100.0 and 200.0 requests per second"));
}

#[test]
fn a_table_for_people() {
    let slower = Target {
        median_us: STEADY.median_us * 1.5,
        ..STEADY
    };
    let metrics = [
        Metric::P50,
        Metric::P999,
        Metric::Throughput,
        Metric::Failed,
    ];
    let (base, new) = (slices(STEADY, 1), slices(slower, 2));
    let base = record("before", vec![run("hello", base.clone()), run("old", base)]);
    let new = record("after", vec![run("hello", new.clone()), run("new", new)]);
    let text = compare(&base, &new, &config(&metrics)).unwrap().to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "base: before (http://127.0.0.1:8080)");
    assert_eq!(lines[1], "new:  after (http://127.0.0.1:8080)");
    let header: Vec<&str> = lines[3].split_whitespace().collect();
    let names = [
        "RUN", "METRIC", "BASE", "NEW", "CHANGE", "INTERVAL", "VERDICT",
    ];
    assert_eq!(header, names);
    assert!(
        lines[4].starts_with("hello") && lines[4].ends_with("worse"),
        "{text}"
    );
    assert!(
        lines[4].contains(" µs ") && lines[4].contains('…'),
        "{text}"
    );
    assert!(
        lines[5].contains("p99.9") && lines[5].ends_with("not comparable"),
        "{text}"
    );
    assert!(
        lines[6].contains("100/s") && lines[6].ends_with("same"),
        "{text}"
    );
    assert!(lines[7].contains("+0.00…+0.00 points"), "{text}");
    assert!(
        text.contains("\n- hello: p99.9 is not comparable: base has 6000"),
        "{text}"
    );
    assert!(
        text.contains("\n- only in base: old\n- only in new: new\n"),
        "{text}"
    );
    let sum = "\n1 worse, 0 better, 2 same, 0 unclear, 1 not comparable\n";
    assert!(text.ends_with(sum), "{text}");
    assert!(lines.iter().all(|line| *line == line.trim_end()), "{text}");
}

#[test]
fn metrics_have_names() {
    for metric in Metric::ALL {
        assert_eq!(metric.to_string().parse::<Metric>().unwrap(), metric);
        assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
    }
    let error = "p75".parse::<Metric>().unwrap_err().to_string();
    assert!(
        error.contains("\"p75\"") && error.contains("p50, p90, p99, p99.9"),
        "{error}"
    );
}

#[test]
fn values_that_are_not_allowed_are_refused() {
    let record = measured(STEADY, 1);
    let default = CompareConfig::default;
    for (name, config) in [
        (
            "confidence",
            CompareConfig {
                confidence: 1.0,
                ..default()
            },
        ),
        (
            "confidence",
            CompareConfig {
                confidence: f64::NAN,
                ..default()
            },
        ),
        (
            "resamples",
            CompareConfig {
                resamples: 99,
                ..default()
            },
        ),
        (
            "threshold",
            CompareConfig {
                threshold: -0.1,
                ..default()
            },
        ),
        (
            "failed_threshold",
            CompareConfig {
                failed_threshold: f64::INFINITY,
                ..default()
            },
        ),
        (
            "min_slices",
            CompareConfig {
                min_slices: 3,
                ..default()
            },
        ),
        (
            "metrics",
            CompareConfig {
                metrics: Vec::new(),
                ..default()
            },
        ),
    ] {
        let error = compare(&record, &record, &config).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{name} of a comparison is ")),
            "{error}"
        );
    }
}
