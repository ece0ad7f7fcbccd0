//! Every way to fail has its documented answer, harms nobody else, and the next invocation works.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dormouse_tests::{Client, Server, in_parallel};

/// What a function may take in these tests; nothing that fails at once may come near it.
const TIMEOUT: Duration = Duration::from_secs(8);
/// What it may take where the time-out itself is tested.
const SHORT_TIMEOUT_MS: u64 = 300;

/// Path, status and code of the failures that are found at once.
const AT_ONCE: &[(&str, u16, &str)] = &[
    ("/panic", 502, "function-exited"),
    ("/exit", 502, "function-exited"),
    ("/exit?code=3", 502, "function-exited"),
    ("/oom", 502, "function-exited"),
    ("/stack-overflow", 502, "function-crashed"),
    ("/write-unmapped", 502, "function-crashed"),
    ("/invalid-opcode", 502, "function-crashed"),
    ("/huge-answer", 502, "bad-answer"),
    ("/huge-head", 502, "bad-answer"),
    ("/bad-status", 502, "bad-answer"),
    ("/error", 502, "function-error"),
];

/// Those that only the time-out ends.
const IN_TIME: &[(&str, u16, &str)] = &[
    ("/spin", 504, "function-timeout"),
    ("/no-answer", 504, "function-timeout"),
];

fn server_with_faulty() -> Option<Server> {
    let server = Server::start()?;
    let options = format!("?timeout_ms={}", TIMEOUT.as_millis());
    server.deploy_as("faulty", "faulty", &options);
    let options = format!("?timeout_ms={SHORT_TIMEOUT_MS}");
    server.deploy_as("impatient", "faulty", &options);
    Some(server)
}

#[track_caller]
fn fails(client: &Client, function: &str, (path, status, code): (&str, u16, &str)) {
    let reply = client.invoke(function, path);
    assert_eq!(
        reply.problem().kind(),
        (status, code),
        "{path}: {}",
        reply.text()
    );
    let start = reply.header("x-start-type");
    assert!(
        ["restored", "rolled-back"].contains(&start),
        "{path}: {start}"
    );
}

#[track_caller]
fn is_fine(client: &Client, function: &str) {
    assert_eq!(client.invoke(function, "/").ok().text(), "fine\n");
}

#[test]
fn each_failure_has_its_code_and_the_next_invocation_works() {
    let Some(server) = server_with_faulty() else {
        return;
    };
    let client = server.client();
    for &failure in AT_ONCE {
        let begun = Instant::now();
        fails(client, "faulty", failure);
        let took = begun.elapsed();
        assert!(took < TIMEOUT / 4, "{failure:?} was found after {took:?}");
        is_fine(client, "faulty");
    }
    for &failure in IN_TIME {
        let begun = Instant::now();
        fails(client, "impatient", failure);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(SHORT_TIMEOUT_MS), "{took:?}");
        assert!(took < TIMEOUT, "{failure:?} was ended after {took:?}");
        is_fine(client, "impatient");
    }
    let stats = client.get("/v1/functions/impatient").ok().json();
    assert_eq!(stats["stats"]["timeouts"], IN_TIME.len());
}

#[test]
fn a_failure_says_what_happened() {
    let Some(server) = server_with_faulty() else {
        return;
    };
    let problem = |path| server.client().invoke("faulty", path).problem();
    assert!(problem("/panic").console.contains("a panic was asked for"));
    assert!(problem("/exit?code=3").detail.contains("code 3"));
    assert!(problem("/error").detail.contains("an error was asked for"));
    assert!(problem("/bad-status").detail.contains("99"));
    let crash = problem("/invalid-opcode").detail;
    assert!(crash.contains("::"), "no symbol: {crash}");
    let crash = problem("/write-unmapped").detail.to_lowercase();
    assert!(
        crash.contains("7000_0000_0000") || crash.contains("700000000000"),
        "{crash}"
    );
}

#[test]
fn failures_do_not_disturb_others() {
    let Some(server) = server_with_faulty() else {
        return;
    };
    server.deploy("hello");
    let done = AtomicBool::new(false);
    let greeted = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let reply = server.client().invoke("hello", "/");
                    assert_eq!(reply.ok().text(), "Hello from Dormouse!\n");
                    greeted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let failures = scope.spawn(|| {
            in_parallel(300, 6, |number| {
                // Times-out are rare: each takes a processor, or just time.
                if number % 50 == 0 {
                    fails(
                        server.client(),
                        "impatient",
                        IN_TIME[number / 50 % IN_TIME.len()],
                    );
                } else if number % 3 == 0 {
                    is_fine(server.client(), "faulty");
                } else {
                    fails(server.client(), "faulty", AT_ONCE[number % AT_ONCE.len()]);
                }
            });
        });
        let result = failures.join();
        done.store(true, Ordering::Relaxed);
        result.expect("all failed as they should");
    });
    assert!(greeted.into_inner() > 0);
    is_fine(server.client(), "faulty");
    is_fine(server.client(), "impatient");
}
