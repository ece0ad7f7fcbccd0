//! Three hundred invocations of each sample, some in parallel: every answer is right, and every
//! clone is one of its own.

use std::collections::HashSet;
use std::sync::Mutex;

use dormouse_tests::{Client, Reply, Server, in_parallel, unix_ms};

const INVOCATIONS: usize = 300;
const AT_ONCE: usize = 8;
/// For what is about answers, not about how soon they come: a guest that starts a thread or copies a large
/// body takes seconds where others have the cores.
const PATIENT: &str = "?timeout_ms=60000";

/// The guest's clock may differ by that from the host's: the bound.
const CLOCK_MS: u64 = 100;

#[test]
fn hello_greets_everybody() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("hello");
    in_parallel(INVOCATIONS, AT_ONCE, |_| {
        let reply = server.client().invoke("hello", "/").ok();
        assert_eq!(reply.text(), "Hello from Dormouse!\n");
    });
}

#[test]
fn wordfreq_knows_its_words_and_no_others() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("wordfreq");
    let client = server.client();
    let words = client.invoke("wordfreq", "/words").ok().json();
    assert_eq!(words["words"], 10_000);

    let top = client.invoke("wordfreq", "/top?n=1000").ok().json();
    let top = top.as_array().expect("a list");
    assert_eq!(top.len(), 1000);
    for (rank, word) in (1u64..).zip(top) {
        assert_eq!(word["rank"], rank);
    }
    let count = |at: usize| top[at]["count"].as_u64().expect("a count");
    assert!((1..1000).all(|at| count(at - 1) >= count(at)));

    in_parallel(INVOCATIONS, AT_ONCE, |number| {
        // The vocabulary is made of syllables from "ba" to "zo".
        let unknown = ["", "dormouse", "zzz", "BABE", "b%C3%BCro", "babebabe"];
        if number % 5 == 0 {
            let word = unknown[number / 5 % unknown.len()];
            let reply = client.invoke("wordfreq", &format!("/?word={word}"));
            assert_eq!(reply.status, 404, "{word}");
            assert_eq!(reply.text(), "no such word\n");
        } else {
            let known = &top[number * 3 % top.len()];
            let word = known["word"].as_str().expect("a word");
            let reply = client.invoke("wordfreq", &format!("/?word={word}"));
            assert_eq!(&reply.ok().json(), known);
        }
    });
    let first_word = client.invoke("wordfreq", "/?word=babe").ok().json();
    assert!(first_word["count"].as_u64() >= Some(1));
}

#[test]
fn every_whoami_is_somebody_else_and_knows_the_time() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy_as("whoami", "whoami", PATIENT);
    let seen = Mutex::new(Seen::default());
    in_parallel(INVOCATIONS, AT_ONCE, |number| {
        // The kernel's own randomness takes a thread in the guest: dear, so not always.
        let target = if number % 10 == 0 { "/?kernel=1" } else { "/" };
        let who = Who::ask(server.client(), target);
        seen.lock().expect("no panic").add(&who);
    });
}

/// What no two clones may share.
#[derive(Default)]
struct Seen {
    random: HashSet<String>,
    kernel_random: HashSet<String>,
    generations: HashSet<u64>,
}

impl Seen {
    fn add(&mut self, who: &Who) {
        let new = self.random.insert(who.random.clone());
        assert!(new, "shared random bytes: {who:?}");
        let new = self.generations.insert(who.generation);
        assert!(new, "a shared generation: {who:?}");
        if let Some(random) = &who.kernel_random {
            let new = self.kernel_random.insert(random.clone());
            assert!(new, "shared bytes from the kernel: {who:?}");
        }
    }
}

/// One answer of whoami that passed the checks that every one must pass.
#[derive(Debug)]
struct Who {
    random: String,
    kernel_random: Option<String>,
    generation: u64,
}

impl Who {
    #[track_caller]
    fn ask(client: &Client, target: &str) -> Self {
        let before = unix_ms();
        let reply = client.invoke("whoami", target).ok();
        let after = unix_ms();
        let json = reply.json();
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        let number = |name: &str| json[name].as_u64().expect(name);
        assert_eq!(number("requests"), 1, "not the first request: {json}");
        let time = number("real_time_unix_ms");
        assert!(
            (before - CLOCK_MS..=after + CLOCK_MS).contains(&time),
            "{time} is not between {before} and {after}"
        );
        Self {
            random: text("random").expect("random bytes"),
            kernel_random: text("kernel_random"),
            generation: number("generation"),
        }
    }
}

#[test]
fn sleep_thread_and_print_work_after_every_kind_of_start() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy_as("whoami", "whoami", PATIENT);
    // The first runs are learned from. A thread of its own gets a stack of its own, so page tables
    // change: such a clone is never rolled back. Others are.
    for _ in 0..6 {
        assert_eq!(can_do_everything(server.client(), true), "restored");
    }
    let starts: Vec<String> = (0..12)
        .map(|_| can_do_everything(server.client(), false))
        .collect();
    assert!(
        starts.iter().any(|start| start == "rolled-back"),
        "{starts:?}"
    );
    // After a clone that was rolled back, too.
    can_do_everything(server.client(), true);
    let Some(after_a_copy) = Server::over(server.store()) else {
        return;
    };
    assert_eq!(can_do_everything(after_a_copy.client(), true), "restored");
}

#[track_caller]
fn can_do_everything(client: &Client, has_thread: bool) -> String {
    let before = unix_ms();
    let reply = client
        .invoke(
            "whoami",
            if has_thread {
                "/?sleep_ms=50&print=1&thread=1"
            } else {
                "/?sleep_ms=50&print=1"
            },
        )
        .ok();
    assert!(unix_ms() - before >= 50, "the sleep was no sleep");
    let json = reply.json();
    if has_thread {
        assert_eq!(json["thread"], 42);
    }
    assert_eq!(json["printed"], true);
    assert_eq!(json["requests"], 1);
    reply.header("x-start-type").to_owned()
}

#[test]
fn monotonic_time_goes_on_from_clone_to_clone() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy_as("whoami", "whoami", PATIENT);
    let monotonic = || {
        let json = server.client().invoke("whoami", "/").ok().json();
        json["monotonic_ns"].as_u64().expect("a time")
    };
    let times: Vec<u64> = (0..20).map(|_| monotonic()).collect();
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
}

#[test]
fn echo_is_byte_exact_at_every_size() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy_as("echo", "echo", PATIENT);
    let sizes = [0, 1, 4095, 4096, 4097, 1 << 20, 6 << 20];
    for size in sizes {
        echoes(server.client(), size);
    }
    // The small ones often and at once; the large ones among them now and then.
    in_parallel(INVOCATIONS, AT_ONCE, |number| {
        let size = if number % 50 == 49 {
            6 << 20
        } else {
            sizes[number % 5]
        };
        echoes(server.client(), size);
    });

    let reply = server
        .client()
        .post("echo", "/", &vec![b'x'; (6 << 20) + 1]);
    let problem = reply.problem();
    assert_eq!(problem.kind(), (413, "too-large"));
    assert!(problem.detail.contains("6291456"), "{}", problem.detail);
    echoes(server.client(), 1);
}

#[track_caller]
fn echoes(client: &Client, size: usize) {
    let mut body = vec![0; size];
    getrandom::fill(&mut body).expect("random bytes");
    let reply: Reply = client
        .send(
            "POST",
            "/v1/functions/echo/invoke/a/b?c=d",
            &[
                ("content-type", b"application/x-dormouse"),
                ("x-raw", b"\xff\xfe"),
            ],
            &body,
        )
        .ok();
    assert!(reply.body == body, "{size} bytes came back changed");
    assert_eq!(reply.header("content-type"), "application/x-dormouse");
    assert_eq!(reply.header("x-echo-method"), "POST");
    assert_eq!(reply.header("x-echo-target"), "/a/b?c=d");
    assert_eq!(reply.headers["x-echo-x-raw"].as_bytes(), b"\xff\xfe");
}
