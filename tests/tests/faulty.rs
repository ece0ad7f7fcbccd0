//! Every way to fail has its documented answer, harms nobody else, and the next invocation works.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dormouse_tests::{Client, Server, in_parallel};

/// What a function may take in these tests; nothing that fails at once may come near it.
const TIMEOUT: Duration = Duration::from_secs(40);
/// What it may take where the time-out itself is tested; what is fine takes far less.
const SHORT_TIMEOUT_MS: u64 = 2000;

/// Path, status and code of the failures that are found at once.
const AT_ONCE: &[(&str, u16, &str)] = &[
    ("/panic", 502, "function-exited"),
    ("/exit", 502, "function-exited"),
    ("/exit?code=3", 502, "function-exited"),
    ("/oom", 502, "out-of-memory"),
    ("/stack-overflow", 502, "function-crashed"),
    ("/write-unmapped", 502, "function-crashed"),
    ("/invalid-opcode", 502, "function-crashed"),
    ("/triple-fault", 502, "function-crashed"),
    ("/bad-hypercall", 502, "function-crashed"),
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
fn a_crash_says_where_it_was_and_what_the_registers_held() {
    let Some(server) = server_with_faulty() else {
        return;
    };
    for (path, kind, registers) in [
        ("/invalid-opcode", "exception", &["rip", "rsp"][..]),
        ("/write-unmapped", "exception", &["rip", "rsp", "cr2"]),
        ("/triple-fault", "triple-fault", &["rip", "r15", "cr3"]),
        ("/bad-hypercall", "hypercall", &["rip", "rdi", "rdx"]),
    ] {
        let reply = server.client().invoke("faulty", path);
        assert_eq!(reply.problem().code, "function-crashed");
        let document = reply.json();
        assert_eq!(document["crash"], kind, "{document}");
        let symbol = document["symbol"].as_str().unwrap_or_default();
        assert!(symbol.contains("::"), "{document}");
        for register in registers {
            let value = document["registers"][register].as_str().unwrap_or_default();
            let digits = value.strip_prefix("0x").unwrap_or_default();
            assert!(
                u64::from_str_radix(digits, 16).is_ok(),
                "{register}: {document}"
            );
        }
    }
    let write = server.client().invoke("faulty", "/write-unmapped").json();
    assert_eq!(write["registers"]["cr2"], "0x700000000000");
    let detail = server.client().invoke("faulty", "/oom").problem().detail;
    assert!(detail.contains("67108864 bytes"), "{detail}");
}

#[test]
fn a_function_that_does_nothing_but_crash_rests_and_is_tried_again() {
    /// How many crashes are a loop: `api/errors.md`, `crash-loop`.
    const CRASHES: usize = 10;
    let Some(server) = server_with_faulty() else {
        return;
    };
    server.deploy("hello");
    let client = server.client();
    // Each one that is let through makes the next rest longer, so one is refused however slow this is.
    let refused = (0..3 * CRASHES).find_map(|crashes| {
        let reply = client.invoke("faulty", "/exit?code=3");
        if reply.status == 502 {
            return None;
        }
        assert!(crashes >= CRASHES, "refused after {crashes} crashes");
        Some(reply)
    });
    let refused = refused.expect("it is refused at last");
    assert_eq!(refused.problem().kind(), (503, "crash-loop"));
    let wait = refused.header("retry-after").parse().unwrap();
    assert!(wait >= 1, "{wait}");
    let other = client.invoke("hello", "/").ok();
    assert_eq!(other.text(), "Hello from Dormouse!\n");

    thread::sleep(Duration::from_secs(wait));
    is_fine(client, "faulty");
    // A function that answers is not to blame for the requests that it fails on.
    for _ in 0..2 * CRASHES {
        fails(client, "faulty", ("/exit?code=3", 502, "function-exited"));
    }
    let metrics = client.get("/metrics").ok().text();
    let found = "dormouse_crash_loops_total{function=\"faulty\"} 1\n";
    assert!(metrics.contains(found), "{metrics}");
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
