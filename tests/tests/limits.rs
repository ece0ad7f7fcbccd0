//! How much runs at once, who waits, and what happens to those that wait too long or go away.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use dormouse_pool::PoolConfig;
use dormouse_tests::{Client, Reply, Server, Setup, eventually, image};

/// Longer than what is done while a request runs takes, on however slow a host.
const LONG_MS: u64 = 5000;

fn with_pool(pool: PoolConfig) -> Option<Server> {
    Server::with(Setup {
        pool,
        ..Setup::default()
    })
}

#[track_caller]
fn sleeps(client: &Client, function: &str, ms: u64) {
    let reply = client.invoke(function, &format!("/?sleep_ms={ms}")).ok();
    assert_eq!(reply.json()["requests"], 1);
}

/// The most that ran at once while `count` requests for each function were answered.
fn most_at_once(server: &Server, functions: &[&str], count: usize) -> u64 {
    thread::scope(|scope| {
        let requests: Vec<_> = functions
            .iter()
            .flat_map(|function| std::iter::repeat_n(*function, count))
            .map(|function| scope.spawn(move || sleeps(server.client(), function, 200)))
            .collect();
        let mut most = 0;
        while requests.iter().any(|request| !request.is_finished()) {
            // The functions are counted one after the other, and one may end and another begin in between:
            // what is so is so at a second look.
            most = most.max(server.stats().running.min(server.stats().running));
            thread::sleep(Duration::from_millis(1));
        }
        for request in requests {
            request.join().expect("every request is answered");
        }
        most
    })
}

#[test]
fn a_function_runs_as_often_as_it_may_and_no_more() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy_as("narrow", "whoami", "?concurrency=2");
    assert_eq!(most_at_once(&server, &["narrow"], 8), 2);
}

#[test]
fn all_functions_together_run_as_often_as_they_may_and_no_more() {
    let Some(server) = with_pool(PoolConfig {
        max_concurrency: 3,
        ..PoolConfig::default()
    }) else {
        return;
    };
    server.deploy_as("one", "whoami", "");
    server.deploy_as("two", "whoami", "");
    assert_eq!(most_at_once(&server, &["one", "two"], 6), 3);
}

/// Fills the one place of `whoami` and one place of its queue, and sends one request more.
fn one_too_many(server: &Server) -> Reply {
    server.deploy_as("whoami", "whoami", "?concurrency=1");
    thread::scope(|scope| {
        scope.spawn(|| sleeps(server.client(), "whoami", LONG_MS));
        eventually("one runs", || server.stats().running == 1);
        let waiting = scope.spawn(|| server.client().invoke("whoami", "/"));
        eventually("one waits", || server.stats().waiting == 1);
        let refused = server.client().invoke("whoami", "/");
        let _ = waiting.join().expect("it is answered");
        refused
    })
}

#[track_caller]
fn says_when_to_come_back(reply: &Reply) {
    let seconds: u64 = reply.header("retry-after").parse().expect("whole seconds");
    assert!(seconds >= 1);
}

#[test]
fn a_full_queue_refuses() {
    let Some(server) = with_pool(PoolConfig {
        max_queue: 1,
        ..PoolConfig::default()
    }) else {
        return;
    };
    let refused = one_too_many(&server);
    assert_eq!(refused.problem().kind(), (429, "queue-full"));
    says_when_to_come_back(&refused);
    sleeps(server.client(), "whoami", 0);
}

#[test]
fn who_waits_too_long_is_refused() {
    let Some(server) = with_pool(PoolConfig {
        queue_timeout: Duration::from_millis(100),
        ..PoolConfig::default()
    }) else {
        return;
    };
    server.deploy_as("whoami", "whoami", "?concurrency=1");
    thread::scope(|scope| {
        scope.spawn(|| sleeps(server.client(), "whoami", LONG_MS));
        eventually("one runs", || server.stats().running == 1);
        let refused = server.client().invoke("whoami", "/");
        assert_eq!(refused.problem().kind(), (503, "queue-timeout"));
        says_when_to_come_back(&refused);
    });
    assert_eq!(server.stats().waiting, 0);
    // Its place is free again only some time after the answer.
    at_rest(&server);
    sleeps(server.client(), "whoami", 0);
}

#[test]
fn while_the_host_has_no_memory_to_spare_nothing_starts() {
    let Some(server) = with_pool(PoolConfig {
        // No host has as much.
        memory_floor_bytes: u64::MAX,
        queue_timeout: Duration::from_millis(100),
        ..PoolConfig::default()
    }) else {
        return;
    };
    let refused = server.client().put("whoami", "", &image("whoami"));
    let problem = refused.problem();
    assert_eq!(problem.kind(), (503, "over-budget"));
    assert!(problem.detail.contains("--memory-floor"), "{problem:?}");
    says_when_to_come_back(&refused);
    let _ = server.client().get("/readyz").ok();
    let metrics = server.client().get("/metrics").ok().text();
    for line in [
        "dormouse_memory_low 1",
        "dormouse_memory_refusals_total{reason=\"floor\"} 1",
        "dormouse_memory_refusals_total{reason=\"budget\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
    }
}

#[test]
fn only_so_many_deployments_at_a_time() {
    let Some(server) = with_pool(PoolConfig {
        max_deploys: 1,
        ..PoolConfig::default()
    }) else {
        return;
    };
    let image = image("whoami");
    thread::scope(|scope| {
        let deploys: Vec<_> = (0..6)
            .map(|number| {
                let image = &image;
                let name = format!("f{number}");
                let client = server.new_client();
                scope.spawn(move || client.put(&name, "", image))
            })
            .collect();
        let mut replies: Vec<_> = deploys
            .into_iter()
            .map(|deploy| deploy.join().expect("a reply"))
            .collect();
        replies.sort_by_key(|reply| reply.status);
        assert_eq!(replies.remove(0).status, 201);
        let refused: Vec<_> = replies.iter().filter(|r| r.status != 201).collect();
        assert!(!refused.is_empty(), "all were deployed at once");
        for reply in refused {
            assert_eq!(reply.problem().kind(), (429, "queue-full"));
            says_when_to_come_back(reply);
        }
    });
    server.deploy("whoami");
}

/// How long the request waited until an instance was in hand, in milliseconds.
fn queued_ms(reply: &Reply) -> f64 {
    let timing = reply.header("server-timing");
    let queue = timing
        .split(", ")
        .find_map(|metric| metric.strip_prefix("queue;dur="));
    queue.and_then(|ms| ms.parse().ok()).expect("a duration")
}

fn median_ms(mut ms: Vec<f64>) -> f64 {
    ms.sort_by(f64::total_cmp);
    ms[ms.len() / 2]
}

/// One function floods the pool; another, which asks for one thing at a time, waits for no longer than
/// it takes until a place is free. Before and after, the flood has all places to itself.
#[test]
fn a_flood_of_one_function_does_not_keep_others_waiting() {
    const FLOOD: usize = 200;
    const PLACES: usize = 4;
    const OTHERS: usize = 10;
    let Some(server) = with_pool(PoolConfig {
        max_concurrency: PLACES,
        queue_timeout: Duration::from_secs(100),
        ..PoolConfig::default()
    }) else {
        return;
    };
    server.deploy_as("flood", "whoami", "?concurrency=64");
    server.deploy("whoami");
    for function in ["flood", "whoami"] {
        sleeps(server.client(), function, 0);
    }
    let wait = |function: &str, ms: u64| {
        let reply = server
            .client()
            .invoke(function, &format!("/?sleep_ms={ms}"));
        queued_ms(&reply.ok())
    };
    let begun = Instant::now();
    let (flood, others) = thread::scope(|scope| {
        let flood: Vec<_> = (0..FLOOD)
            .map(|_| scope.spawn(|| wait("flood", 100)))
            .collect();
        eventually("the flood has all places and waits", || {
            let stats = server.stats();
            stats.running == PLACES as u64 && stats.waiting as usize > FLOOD / 2
        });
        let others: Vec<_> = (0..OTHERS).map(|_| wait("whoami", 0)).collect();
        assert!(
            server.stats().waiting as usize > FLOOD / 4,
            "the flood was over before the others were served"
        );
        let flood: Vec<_> = flood
            .into_iter()
            .map(|request| request.join().expect("every request is answered"))
            .collect();
        (flood, others)
    });
    // As the flood sees it: so long a place is taken, with all that comes after an answer.
    let service_ms = begun.elapsed().as_secs_f64() * 1e3 * PLACES as f64 / FLOOD as f64;
    let (flood_ms, others_ms) = (median_ms(flood), median_ms(others));
    println!(
        "a place is taken for {service_ms:.0} ms; waits: {flood_ms:.0} ms in the flood, {others_ms:.0} ms beside it"
    );
    assert!(
        others_ms < 3.0 * service_ms,
        "{others_ms} ms for the others, {service_ms} ms for each of the flood"
    );
    assert!(
        flood_ms > 5.0 * service_ms,
        "the flood waited for {flood_ms} ms only, which was none"
    );
}

/// Sends a request and goes away without waiting for the reply, as soon as `when` holds.
fn goes_away(server: &Server, target: &str, when: impl FnMut() -> bool) {
    let address = server.client().url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).expect("a connection");
    let request =
        format!("GET /v1/functions/whoami/invoke{target} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is sent");
    eventually("the request has come that far", when);
}

fn at_rest(server: &Server) {
    eventually("nothing runs", || {
        let stats = server.stats();
        (stats.running, stats.waiting) == (0, 0)
    });
}

#[test]
fn a_client_that_goes_away_takes_no_instance_with_it() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy_as("whoami", "whoami", "?concurrency=1");
    sleeps(server.client(), "whoami", 0);
    let long = format!("/?sleep_ms={LONG_MS}");
    for _ in 0..3 {
        // What the last run touched is learnt after its reply.
        at_rest(&server);
        // One that runs, and one that waits behind it.
        goes_away(&server, &long, || server.stats().running == 1);
        goes_away(&server, "/", || server.stats().waiting == 1);
    }
    at_rest(&server);
    eventually("the instance is back", || server.stats().shells == 1);
    sleeps(server.client(), "whoami", 0);
}

#[test]
fn shutdown_finishes_what_runs_and_takes_nothing_new() {
    let Some(mut server) = Server::start() else {
        return;
    };
    server.deploy("whoami");
    let client = server.client().clone();
    thread::scope(|scope| {
        let running = scope.spawn(|| client.invoke("whoami", &format!("/?sleep_ms={LONG_MS}")));
        eventually("it runs", || server.stats().running == 1);
        server.begin_stop();
        let newcomer = server.new_client();
        eventually("new requests are refused", || {
            newcomer
                .try_send("GET", "/readyz", &[], b"")
                .is_none_or(|reply| reply.status == 503)
        });
        assert!(!running.is_finished(), "the server did not wait");
        let refused = newcomer.invoke("whoami", "/");
        assert_eq!(refused.problem().kind(), (503, "draining"));
        let finished = running.join().expect("it is answered");
        assert_eq!(finished.ok().json()["requests"], 1);
    });
    server.stop();
    assert!(
        client.try_send("GET", "/livez", &[], b"").is_none(),
        "it serves on"
    );
}

fn livez_takes(client: &Client) -> Duration {
    let begun = Instant::now();
    let _ = client.get("/livez").ok();
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Guests that spin take the processors, but never the runtime's only thread.
#[test]
fn guests_that_spin_do_not_block_the_runtime() {
    const SPIN: Duration = Duration::from_secs(10);
    let Some(server) = Server::with(Setup {
        workers: 1,
        ..Setup::default()
    }) else {
        return;
    };
    server.deploy_as(
        "spinning",
        "faulty",
        &format!("?timeout_ms={}", SPIN.as_millis()),
    );
    let client = server.client();
    let idle = median((0..50).map(|_| livez_takes(client)).collect());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let reply = client.invoke("spinning", "/spin");
                assert_eq!(reply.problem().kind(), (504, "function-timeout"));
            });
        }
        eventually("both spin", || server.stats().running == 2);
        // The guests share the processors with us; a runtime that waits for one takes all of SPIN. While
        // others want the processors too it may take another look.
        let bound = (idle * 50).min(SPIN / 16);
        let busy = loop {
            let busy = median((0..50).map(|_| livez_takes(client)).collect());
            if busy < bound || server.stats().running < 2 {
                break busy;
            }
        };
        assert_eq!(
            server.stats().running,
            2,
            "the replies came only after the guests"
        );
        assert!(
            busy < bound,
            "{busy:?} with spinning guests, {idle:?} without"
        );
    });
}
