//! A record in which everything is filled, with names such as a hostile target would choose.

use std::collections::BTreeMap;

use dormouse_load::{
    Band, ClientStats, ErrorStats, FORMAT, Histogram, Machine, Part, Record, Run, Share, Slice,
};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use rand_distr::{Distribution, LogNormal};

pub(crate) const SCRIPT: &str = "<script>window.ran=1;alert(1)</script>";
pub(crate) const HANDLER: &str = "\"onload=\"window.ran=1\" x='";
pub(crate) const IMAGE: &str = "<img src=x onerror=window.ran=1>";
pub(crate) const CLOSING: &str = "</title></style></svg><script>window.ran=1</script>";

const WARM_SLICES: u64 = 4;
const SLICES: u64 = 64;
const SLICE_US: u64 = 500_000;

/// Two runs: one that went well, one that was too much for client and target.
pub(crate) fn record() -> Record {
    let mut fast = run("steady", 800, 0.0);
    fast.is_open = false;
    fast.pattern = "closed loop, 4 at once".to_owned();
    fast.findings = vec![
        "half of the answers took at most 0.4 ms, of which the handler took 0.18 ms".to_owned(),
        "the slowest 1 % waited 6.1 ms for a turn (queue): more came than could be answered"
            .to_owned(),
    ];
    let mut slow = run(SCRIPT, 1600, 0.03);
    slow.interrupted = true;
    slow.client.limits = vec![
        "the busiest of its threads used 97 % of a core".to_owned(),
        format!("requests were sent up to 41 ms late {HANDLER}"),
    ];
    slow.findings = vec![format!("named by the target: {IMAGE}")];
    slow.stages.insert(HANDLER.to_owned(), times([7, 9]));
    slow.starts.insert(IMAGE.to_owned(), share([900, 1200]));
    slow.requests.insert(HANDLER.to_owned(), share([900, 1200]));
    slow.errors = BTreeMap::from([
        (
            "timeout".to_owned(),
            error(37, 4_200_000, "no answer within 5 s"),
        ),
        (
            "status-503/queue-full".to_owned(),
            error(310, 3_900_000, CLOSING),
        ),
        (
            SCRIPT.to_owned(),
            error(2, 9_000_000, &format!("{} {}", IMAGE, "long ".repeat(80))),
        ),
    ]);
    slow.statuses = BTreeMap::from([(200, slow.answered), (503, 310)]);
    Record {
        format: FORMAT.to_owned(),
        title: format!("Open and closed loop {CLOSING}"),
        target: format!("http://127.0.0.1:8080/{HANDLER}"),
        machine: Machine {
            cpu: "AMD EPYC".to_owned(),
            cores: 2,
            memory_bytes: 24 << 30,
            kernel: "6.18.44".to_owned(),
            load: 1.5,
            version: "0.1.0".to_owned(),
            optimised: true,
        },
        began_unix_ms: 1_795_596_363_000,
        runs: vec![fast, slow],
    }
}

/// A run in which every member says something.
fn run(name: &str, rate: u64, fails: f64) -> Run {
    let mut random = ChaCha8Rng::seed_from_u64(rate);
    let usual = LogNormal::new(5.9 + rate as f64 / 4000.0, 0.25).unwrap();
    let queued = LogNormal::new(8.6, 0.6).unwrap();
    let [mut latency, mut service, mut failures, mut lag] = [(); 4].map(|()| Histogram::default());
    let mut starts = BTreeMap::from([
        ("restored", Share::default()),
        ("rolled-back", Share::default()),
    ]);
    let mut requests =
        BTreeMap::from([("hello", Share::default()), ("wordfreq", Share::default())]);
    let names = [
        "queue", "memory", "state", "restore", "faults", "handler", "run",
    ];
    let mut stages = names.map(|name| (name.to_owned(), Histogram::default()));
    let (mut slices, mut offered, mut failed) = (Vec::new(), 0, 0);
    for index in 0..SLICES {
        // A stall in the middle.
        let stalled = (40..44).contains(&index);
        let mut slice = Slice {
            is_warmup: index < WARM_SLICES,
            offered: rate / 2 + random.random_range(0..rate / 20),
            in_flight_max: if stalled { rate / 4 } else { 3 + index % 3 },
            ..Slice::default()
        };
        for _ in 0..slice.offered {
            let is_slow = stalled || random.random_bool(rate as f64 / 60_000.0);
            let served = usual.sample(&mut random) as u64;
            let waited = if is_slow {
                queued.sample(&mut random) as u64
            } else {
                4
            };
            if !slice.is_warmup && random.random_bool(fails) {
                slice.failed += 1;
                failures.record_us(waited + 5_000);
                continue;
            }
            slice.arrived += 1;
            slice.latency.record_us(served + waited);
            if slice.is_warmup {
                continue;
            }
            latency.record_us(served + waited);
            service.record_us(served);
            lag.record_us(waited / 50 + 3);
            let start = if is_slow { "restored" } else { "rolled-back" };
            starts
                .get_mut(start)
                .unwrap()
                .latency
                .record_us(served + waited);
            let request = if served.is_multiple_of(5) {
                "wordfreq"
            } else {
                "hello"
            };
            requests
                .get_mut(request)
                .unwrap()
                .latency
                .record_us(served + waited);
            for (place, (_, times)) in (1u64..).zip(&mut stages) {
                times.record_us(served * place / 40);
            }
        }
        if !slice.is_warmup {
            (offered, failed) = (offered + slice.offered, failed + slice.failed);
        }
        slices.push(slice);
    }
    requests.get_mut("hello").unwrap().failed = failed;
    let answered = latency.count();
    Run {
        name: name.to_owned(),
        pattern: format!("open loop, poisson, {rate}/s"),
        is_open: true,
        warmup_us: WARM_SLICES * SLICE_US,
        measured_us: (SLICES - WARM_SLICES) * SLICE_US,
        interrupted: false,
        capacity_per_s: Some(2150.5),
        offered,
        answered,
        answered_in_time: answered - 3,
        failed,
        body_bytes: answered * 21,
        breakdown: breakdown(&latency),
        latency,
        service,
        failures,
        errors: BTreeMap::new(),
        statuses: BTreeMap::from([(200, answered)]),
        starts: owned(starts),
        requests: owned(requests),
        stages: BTreeMap::from(stages),
        findings: Vec::new(),
        slices,
        slice_us: SLICE_US,
        client: ClientStats {
            threads: 1,
            connections: 64,
            opened: 64,
            lag,
            waited: 17,
            cpu_us: 9_250_000,
            busiest_thread: 0.5,
            cpu_percent_per_1000_per_s: 18.25,
            limits: Vec::new(),
        },
    }
}

fn breakdown(latency: &Histogram) -> Vec<Band> {
    let ends = [0.0, 0.5, 0.9, 0.99, 0.999, 1.0];
    let bands = ends.windows(2).zip([1.0, 1.3, 2.0, 14.0, 40.0]);
    bands
        .map(|(ends, slowness)| {
            let waits = slowness * slowness;
            let parts = [
                ("lag", 4.0 * slowness),
                ("connection", 1.0),
                ("queue", 12.0 * waits),
                ("memory", 22.0),
                ("state", 8.0),
                ("restore", 31.0),
                ("faults", 15.0 * slowness),
                ("handler", 180.0),
                ("run", 20.0),
                ("rest", 84.0),
            ];
            Band {
                from: ends[0],
                to: ends[1],
                count: (latency.count() as f64 * (ends[1] - ends[0])) as u64,
                mean_us: parts.iter().map(|(_, us)| us).sum(),
                parts: parts
                    .map(|(name, mean_us)| Part {
                        name: name.to_owned(),
                        mean_us,
                    })
                    .to_vec(),
            }
        })
        .collect()
}

/// The record's second run as it is when nothing at all was answered, or even sent.
pub(crate) fn nothing() -> Run {
    let empty = Histogram::default;
    Run {
        name: "nothing".to_owned(),
        warmup_us: 0,
        measured_us: 0,
        capacity_per_s: None,
        offered: 0,
        answered: 0,
        answered_in_time: 0,
        failed: 0,
        body_bytes: 0,
        latency: empty(),
        service: empty(),
        failures: empty(),
        errors: BTreeMap::new(),
        statuses: BTreeMap::new(),
        starts: BTreeMap::new(),
        requests: BTreeMap::new(),
        stages: BTreeMap::new(),
        breakdown: Vec::new(),
        findings: Vec::new(),
        slices: Vec::new(),
        slice_us: 0,
        ..run("nothing", 20, 0.0)
    }
}

fn owned(shares: BTreeMap<&str, Share>) -> BTreeMap<String, Share> {
    let shares = shares.into_iter();
    shares
        .map(|(name, share)| (name.to_owned(), share))
        .collect()
}

fn times(times_us: impl IntoIterator<Item = u64>) -> Histogram {
    let mut histogram = Histogram::default();
    times_us.into_iter().for_each(|us| histogram.record_us(us));
    histogram
}

fn share(times_us: impl IntoIterator<Item = u64>) -> Share {
    Share {
        failed: 1,
        latency: times(times_us),
    }
}

fn error(count: u64, first_at_us: u64, example: &str) -> ErrorStats {
    ErrorStats {
        count,
        first_at_us,
        example: example.to_owned(),
    }
}
