//! The driver against a server whose delays, stalls and faults are known.

mod server;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dormouse_load::{
    Arrivals, Error, Histogram, Pattern, Plan, Rate, Request, Run, Stop, Target, run,
};
use server::Server;
use socket2::{Domain, Socket, Type};

fn even(rate: f64) -> Pattern {
    Pattern::Open(Arrivals::Rated {
        rate: Rate::Constant(rate),
        is_poisson: false,
    })
}

fn closed(concurrency: u32, requests: Option<u64>) -> Pattern {
    Pattern::Closed {
        concurrency,
        think: Duration::ZERO,
        requests,
    }
}

fn plan(target: &Target, path: &str, pattern: Pattern, seconds: f64) -> Plan {
    let request = Request::new("it", "GET", target, path, &[], Bytes::new()).unwrap();
    Plan {
        name: "run".to_owned(),
        pattern,
        requests: vec![request],
        weights: vec![1.0],
        warmup: Duration::ZERO,
        measured: Duration::from_secs_f64(seconds),
        connections: 64,
        threads: 1,
        // What no server that works needs, on however slow a host.
        timeout: Duration::from_secs(120),
        seed: 1,
    }
}

fn made(plan: Plan, target: &Target) -> Run {
    let run = run(plan, target, &Stop::default(), |_| {}).expect("a run");
    let errors: u64 = run.errors.values().map(|stats| stats.count).sum();
    assert_eq!(errors, run.failed, "{:?}", run.errors);
    assert_eq!(run.latency.count(), run.answered);
    assert_eq!(run.failures.count(), run.failed);
    assert_eq!(run.offered, run.answered + run.failed);
    let offered: u64 = run.slices.iter().map(|slice| slice.offered).sum();
    assert!(offered >= run.offered);
    run
}

/// Makes a run that answers all, and holds what the client measured against what the server saw.
fn held(plan: Plan, target: &Target, server: &Server) -> Run {
    let pattern = plan.pattern.clone();
    let from = Instant::now();
    let run = made(plan, target);
    let to = Instant::now();
    assert_eq!(run.failed, 0, "{:?}", run.errors);
    let around = server.around(from, to);
    let mut longest = Histogram::default();
    for (sent, done) in &around {
        longest.record(*done - *sent);
    }
    assert_eq!(run.service.count(), longest.count());
    for share in [0.5, 0.9, 0.99, 0.999, 1.0] {
        let service_us = run.service.quantile_us(share);
        let longest_us = longest.quantile_us(share);
        assert!(service_us <= longest_us, "{share}: {service_us} us");
        assert!(service_us <= run.latency.quantile_us(share), "{share}");
    }
    let all_s = run.latency.mean_us() * run.latency.count() as f64 / 1e6;
    let most_s = match pattern {
        // A client waits for one answer at a time.
        Pattern::Closed { concurrency, .. } => f64::from(concurrency) * (to - from).as_secs_f64(),
        // Each answer was there by `done`, and none was due earlier than if the run had begun at once.
        Pattern::Open(Arrivals::Rated {
            rate: Rate::Constant(rate),
            ..
        }) => {
            let done_s = around.iter().map(|(_, done)| (*done - from).as_secs_f64());
            let due_s = (0..run.offered).map(|number| number as f64 / rate);
            done_s.sum::<f64>() - due_s.sum::<f64>()
        }
        Pattern::Open(_) => unreachable!("no such run is held against the server"),
    };
    // Histograms are exact to three digits.
    assert!(all_s <= most_s * 1.001, "{all_s} s of {most_s} s");
    run
}

fn driven(path: &str, pattern: Pattern, seconds: f64) -> Run {
    let server = Server::start();
    let target = Target::parse(&server.url()).unwrap();
    held(plan(&target, path, pattern, seconds), &target, &server)
}

fn failed_by(path: &str) -> (String, String) {
    let server = Server::start();
    let target = Target::parse(&server.url()).unwrap();
    let mut plan = plan(&target, path, even(40.0), 0.5);
    // Where an answer comes, however late, it is no timeout.
    if path == "/hang" {
        plan.timeout = Duration::from_millis(300);
    }
    let run = made(plan, &target);
    assert_eq!((run.offered, run.failed), (20, 20), "{path}");
    let (kind, stats) = run.errors.first_key_value().expect("an error");
    assert_eq!(stats.count, 20, "{path}: {:?}", run.errors);
    (kind.clone(), stats.example.clone())
}

#[test]
fn an_open_loop_sends_what_was_meant_to_be_sent() {
    let run = driven("/", even(200.0), 2.0);
    assert_eq!((run.offered, run.answered), (400, 400));
    assert_eq!(run.errors.len(), 0);
    assert_eq!(run.starts["restored"].latency.count(), 400);
    assert_eq!(run.stages["run"].quantile_us(0.5), 1000);
    assert_eq!(run.statuses[&200], 400);
    assert_eq!(run.body_bytes, 400 * 5);
    assert!(
        run.is_open && run.pattern.contains("200/s"),
        "{}",
        run.pattern
    );
}

#[test]
fn a_stall_shows_in_the_requests_that_it_kept_waiting() {
    let server = Server::start();
    server.stall(200, Duration::from_secs(1));
    let target = Target::parse(&server.url()).unwrap();
    // With few connections: an honest client must not wait with the clock until one is free.
    let mut plan = plan(&target, "/stalling", even(100.0), 6.0);
    plan.connections = 4;
    let from = Instant::now();
    let run = held(plan, &target, &server);
    let to = Instant::now();
    assert_eq!(run.offered, 600);
    // One second in six was stalled: one in six waited for up to a second, evenly.
    let p999_ms = run.latency.quantile_us(0.999) / 1000;
    assert!(p999_ms >= 900, "{p999_ms}");
    let p92_ms = run.latency.quantile_us(1.0 - 0.5 / 6.0) / 1000;
    assert!(p92_ms >= 350, "{p92_ms}");
    // The time from sending hides most of it: four requests were on their way, all others were not.
    let slow = run.service.counts().filter(|(us, _)| *us > 300_000);
    let slow = slow.map(|(_, count)| count).sum::<u64>();
    let around = server.around(from, to);
    let seen = around
        .iter()
        .filter(|(sent, done)| *done - *sent > Duration::from_millis(299));
    assert!(slow <= seen.count() as u64, "{slow}");
    assert!(
        run.client
            .limits
            .iter()
            .any(|limit| limit.contains("connections"))
    );
    let told = &run.findings;
    assert!(
        told.iter()
            .any(|told| told.contains("No answer came between")),
        "{told:?}"
    );
}

#[test]
fn the_same_stall_is_found_by_service_times_where_there_are_connections() {
    let server = Server::start();
    server.stall(200, Duration::from_secs(1));
    let target = Target::parse(&server.url()).unwrap();
    let mut plan = plan(&target, "/stalling", even(100.0), 5.0);
    // One for each request.
    plan.connections = 500;
    let run = held(plan, &target, &server);
    let p999_ms = run.service.quantile_us(0.999) / 1000;
    assert!(p999_ms >= 900, "{p999_ms}");
    assert_eq!(run.client.waited, 0);
}

#[test]
fn a_known_delay_is_measured() {
    // Where one request follows the other, the server knows nearly to the microsecond what each took.
    for pattern in [even(50.0), closed(1, Some(50))] {
        let run = driven("/slow", pattern, 2.0);
        let p50_ms = run.latency.quantile_us(0.5) / 1000;
        assert!(p50_ms >= 30, "{p50_ms}");
        let mean_us = run.breakdown[0].mean_us;
        let parts: f64 = run.breakdown[0].parts.iter().map(|part| part.mean_us).sum();
        assert!((parts - mean_us).abs() < 2.0);
    }
}

#[test]
fn twice_the_capacity_is_seen_as_such_by_an_open_loop_only() {
    // One at a time, 10 ms each: 100 per second at most.
    let open = driven("/one-at-a-time", even(200.0), 2.0);
    assert_eq!(open.offered, 400);
    assert!(open.achieved_per_s() < 110.0, "{}", open.achieved_per_s());
    // The last ones wait for all before them.
    assert!(open.latency.max_us() > 1_000_000, "{:?}", open.latency);

    let closed = driven("/one-at-a-time", closed(2, None), 2.0);
    // Two wait for one answer each: `driven` has seen that all waited no longer together.
    assert!(
        closed.latency.quantile_us(0.5) < open.latency.quantile_us(0.5),
        "{:?}",
        closed.latency
    );
    assert!(closed.achieved_per_s() < 110.0);
}

#[test]
fn every_fault_has_its_kind() {
    for (path, kind) in [
        ("/full", "status-503/queue-full"),
        ("/hang", "timeout"),
        ("/garbage", "not-http"),
        ("/cut", "closed"),
        ("/close", "closed"),
        ("/reset", "reset"),
    ] {
        let (found, example) = failed_by(path);
        assert_eq!(found, kind, "{path}: {example}");
        assert!(!example.is_empty() && !example.contains('\n'), "{example}");
    }
}

#[test]
fn connections_that_the_target_ends_are_no_failures() {
    let unhurried = Pattern::Closed {
        concurrency: 2,
        think: Duration::from_millis(20),
        requests: Some(100),
    };
    let run = driven("/once", unhurried, 600.0);
    assert_eq!(run.answered, 100);
    assert_eq!(run.client.opened, 100);
}

#[test]
fn answers_that_are_not_as_expected_are_failures() {
    let server = Server::start();
    let target = Target::parse(&server.url()).unwrap();
    let mut wrong = plan(&target, "/", closed(1, Some(10)), 600.0);
    wrong.requests[0].expected_body = Some("elsewhere".into());
    let run = made(wrong, &target);
    assert_eq!(run.errors["wrong-answer"].count, 10);
    assert!(run.errors["wrong-answer"].example.contains("there"));
    let mut right = plan(&target, "/", closed(1, Some(10)), 600.0);
    right.requests[0].expected_body = Some("her".into());
    right.requests[0].expected_status = Some(200);
    assert_eq!(made(right, &target).failed, 0);
    let mut refused = plan(&target, "/full", closed(1, Some(10)), 600.0);
    refused.requests[0].expected_status = Some(503);
    assert_eq!(made(refused, &target).failed, 0);
}

#[test]
fn nobody_there_is_told_before_the_run() {
    // Bound, so that nobody else gets the port, and not listening.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let target = Target::parse(&format!("http://{address}")).unwrap();
    let plan = plan(&target, "/", even(10.0), 3600.0);
    let length = plan.measured;
    let begun = Instant::now();
    let error = run(plan, &target, &Stop::default(), |_| {}).unwrap_err();
    assert!(begun.elapsed() < length);
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn a_run_that_is_ended_keeps_what_it_has() {
    let server = Server::start();
    let target = Target::parse(&server.url()).unwrap();
    for (path, pattern) in [
        ("/", even(100.0)),
        ("/", closed(2, None)),
        ("/hang", even(10.0)),
    ] {
        let stop = Stop::default();
        let mut plan = plan(&target, path, pattern, 600.0);
        plan.timeout = Duration::from_secs(600);
        let length = plan.measured;
        let begun = Instant::now();
        let run = run(plan, &target, &stop, |progress| {
            if progress.offered > 5 && !stop.is_asked() {
                stop.ask();
            }
        })
        .unwrap();
        let elapsed = begun.elapsed();
        assert!(elapsed < length, "{path}");
        assert!(run.interrupted);
        assert!(run.offered > 5, "{path}: {}", run.offered);
        assert_eq!(run.offered, run.answered + run.failed);
        // Rates are over the time that there was.
        assert!(u128::from(run.measured_us) <= elapsed.as_micros());
        if path == "/hang" {
            assert_eq!(run.errors["unfinished"].count, run.failed);
        }
    }
}

#[test]
fn several_threads_send_what_one_would() {
    let server = Server::start();
    let target = Target::parse(&server.url()).unwrap();
    let mut plan = plan(&target, "/", even(300.0), 2.0);
    plan.threads = 3;
    let run = made(plan, &target);
    assert_eq!((run.offered, run.answered), (600, 600));
    assert_eq!(server.requests(), 600);
    let mut plan = self::plan(&target, "/", closed(5, Some(50)), 600.0);
    plan.threads = 2;
    assert_eq!(made(plan, &target).answered, 50);
    assert_eq!(server.requests(), 650);
}

#[test]
fn the_warm_up_is_sent_and_not_measured() {
    let server = Server::start();
    let target = Target::parse(&server.url()).unwrap();
    let mut plan = plan(&target, "/", even(100.0), 1.0);
    plan.warmup = Duration::from_secs(1);
    let run = made(plan, &target);
    assert_eq!((run.offered, server.requests()), (100, 200));
    assert_eq!(run.measured_us, 1_000_000);
}

#[test]
fn whoever_watches_is_told() {
    let server = Server::start();
    let target = Target::parse(&server.url()).unwrap();
    let mut told = Vec::new();
    let plan = plan(&target, "/", even(100.0), 600.0);
    // As long as it takes to be told of many.
    let stop = Stop::default();
    run(plan, &target, &stop, |progress| {
        told.push(progress.answered);
        if told.len() > 2 && progress.answered > 100 && !stop.is_asked() {
            stop.ask();
        }
    })
    .unwrap();
    assert!(told.len() >= 2, "{told:?}");
    assert!(told.is_sorted() && told.last() > Some(&100), "{told:?}");
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    let server = Server::start();
    let target = Target::parse(&server.url()).unwrap();
    let good = || plan(&target, "/", closed(2, None), 1.0);
    type Change = fn(&mut Plan);
    let wrong: [(&str, Change); 7] = [
        ("requests", |plan| plan.requests.clear()),
        ("duration", |plan| plan.measured = Duration::ZERO),
        ("timeout", |plan| plan.timeout = Duration::ZERO),
        ("threads", |plan| plan.threads = 0),
        ("connections", |plan| plan.connections = 0),
        ("concurrency", |plan| plan.pattern = closed(1000, None)),
        ("requests", |plan| plan.pattern = closed(1, Some(0))),
    ];
    for (setting, change) in wrong {
        let mut plan = good();
        change(&mut plan);
        let error = run(plan, &target, &Stop::default(), |_| {}).unwrap_err();
        assert!(error.to_string().contains(setting), "{error}");
    }
    let mut weightless = good();
    weightless.weights = vec![0.0];
    let error = run(weightless, &target, &Stop::default(), |_| {}).unwrap_err();
    assert!(error.to_string().starts_with("weight"), "{error}");
    for path in ["/a b", "/a\r\nb"] {
        assert!(Request::new("it", "GET", &target, path, &[], Bytes::new()).is_err());
    }
    let header = [("a b".to_owned(), String::new())];
    assert!(Request::new("it", "GET", &target, "/", &header, Bytes::new()).is_err());
    assert!(Request::new("it", "G T", &target, "/", &[], Bytes::new()).is_err());
}
