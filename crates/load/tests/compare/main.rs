//! Comparisons of records, on made-up measurements whose truth is known.

mod cases;
mod hostile;
mod runs;
mod simulation;

use std::collections::BTreeMap;

use dormouse_load::compare::{Change, CompareConfig, Comparison, Metric, compare};
use dormouse_load::{ClientStats, FORMAT, Histogram, Machine, Record, Run, Slice};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Normal};

const SLICE_US: u64 = 1_000_000;

/// A made-up target: log-normal latency around a median that wanders from slice to slice.
#[derive(Debug, Clone, Copy)]
struct Target {
    median_us: f64,
    /// How far the median wanders, as a share.
    wander: f64,
    /// How much of the last slice's distance is left in the next one.
    memory: f64,
    slices: usize,
    per_slice: u64,
    failed: f64,
}

const STEADY: Target = Target {
    median_us: 300.0,
    wander: 0.05,
    memory: 0.0,
    slices: 60,
    per_slice: 100,
    failed: 0.0,
};

/// The target's measured slices, after one of warm-up that was far slower.
fn slices(target: Target, seed: u64) -> Vec<Slice> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let normal = Normal::new(0.0, 1.0).unwrap();
    let mut warmup = Slice {
        is_warmup: true,
        ..Slice::default()
    };
    (0..500).for_each(|_| warmup.latency.record_us(60_000));
    let mut distance: f64 = normal.sample(&mut rng);
    let measured = (0..target.slices).map(|_| {
        let fresh = (1.0 - target.memory * target.memory).sqrt();
        distance = target.memory * distance + fresh * normal.sample(&mut rng);
        let median_us = target.median_us * (target.wander * distance).exp();
        let mut slice = Slice {
            offered: target.per_slice,
            ..Slice::default()
        };
        for _ in 0..target.per_slice {
            if target.failed > 0.0 && rng.random::<f64>() < target.failed {
                slice.failed += 1;
            } else {
                let spread: f64 = normal.sample(&mut rng);
                slice
                    .latency
                    .record_us((median_us * (0.4 * spread).exp()) as u64);
                slice.arrived += 1;
            }
        }
        slice
    });
    let measured: Vec<Slice> = measured.collect();
    [warmup].into_iter().chain(measured).collect()
}

/// A run of such slices, the first one of which is the warm-up.
fn run(name: &str, slices: Vec<Slice>) -> Run {
    let mut latency = Histogram::default();
    let measured = || slices.iter().filter(|slice| !slice.is_warmup);
    measured().for_each(|slice| latency.add(&slice.latency));
    let measured_us = measured().count() as u64 * SLICE_US;
    Run {
        name: name.to_owned(),
        pattern: "open loop, poisson, 100/s".to_owned(),
        is_open: true,
        warmup_us: SLICE_US,
        measured_us,
        interrupted: false,
        capacity_per_s: None,
        offered: measured().map(|slice| slice.offered).sum(),
        answered: latency.count(),
        answered_in_time: measured().map(|slice| slice.arrived).sum(),
        failed: measured().map(|slice| slice.failed).sum(),
        body_bytes: 0,
        service: latency.clone(),
        latency,
        failures: Histogram::default(),
        errors: BTreeMap::new(),
        statuses: BTreeMap::new(),
        starts: BTreeMap::new(),
        requests: BTreeMap::new(),
        stages: BTreeMap::new(),
        breakdown: Vec::new(),
        findings: Vec::new(),
        slices,
        slice_us: SLICE_US,
        client: ClientStats {
            threads: 1,
            connections: 10,
            opened: 10,
            lag: Histogram::default(),
            waited: 0,
            cpu_us: 1,
            busiest_thread: 0.1,
            cpu_percent_per_1000_per_s: 1.0,
            limits: Vec::new(),
        },
    }
}

fn record(title: &str, runs: Vec<Run>) -> Record {
    Record {
        format: FORMAT.to_owned(),
        title: title.to_owned(),
        target: "http://127.0.0.1:8080".to_owned(),
        machine: Machine {
            cpu: "A CPU".to_owned(),
            cores: 2,
            memory_bytes: 8 << 30,
            kernel: "6.1".to_owned(),
            load: 0.0,
            version: "0.1.0".to_owned(),
            optimised: true,
        },
        began_unix_ms: 1,
        runs,
    }
}

/// A record of a single run.
fn measured(target: Target, seed: u64) -> Record {
    record("made up", vec![run("steady", slices(target, seed))])
}

/// As few resamples as tests can do with.
fn config(metrics: &[Metric]) -> CompareConfig {
    CompareConfig {
        metrics: metrics.to_vec(),
        resamples: 400,
        ..CompareConfig::default()
    }
}

/// The only change of the only run.
fn change(base: &Record, new: &Record, metric: Metric) -> Change {
    let comparison: Comparison = compare(base, new, &config(&[metric])).unwrap();
    assert_eq!(comparison.runs.len(), 1);
    assert_eq!(comparison.runs[0].changes.len(), 1);
    comparison.runs[0].changes[0].clone()
}
