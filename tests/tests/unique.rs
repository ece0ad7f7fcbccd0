//! Clones of one snapshot differ where they must, and one that does not confirm that it does is not
//! heard. `docs/UNIQUENESS.md` says what is tested where.

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use dormouse_pool::PoolConfig;
use dormouse_tests::{Client, Server, Setup, in_parallel};
use serde_json::Value;

const CLONES: usize = 160;
const AT_ONCE: usize = 8;

/// What clones said, and by which kind of start each came to be.
#[derive(Default)]
struct Told {
    answers: Vec<Value>,
    starts: HashSet<String>,
}

impl Told {
    /// Asks many clones, many at once, beginning right after the snapshot.
    fn ask(client: &Client, function: &str, target: &str, clones: usize) -> Self {
        let told = Mutex::new(Self::default());
        in_parallel(clones, AT_ONCE, |_| {
            let reply = client.invoke(function, target).ok();
            let mut told = told.lock().expect("no panic");
            told.starts.insert(reply.header("x-start-type").to_owned());
            told.answers.push(reply.json());
        });
        told.into_inner().expect("no panic")
    }

    /// How many values of a member there are.
    #[track_caller]
    fn values(&self, member: &str) -> usize {
        let values = self.answers.iter().map(|answer| {
            let value = &answer[member];
            assert!(!value.is_null(), "no {member}: {answer}");
            value.to_string()
        });
        values.collect::<HashSet<_>>().len()
    }
}

#[test]
fn randomness_of_kernel_and_sdk_is_every_clones_own_restored_or_rolled_back() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("whoami");
    let told = Told::ask(server.client(), "whoami", "/?entropy=1", CLONES);
    for kind in ["restored", "rolled-back"] {
        assert!(told.starts.contains(kind), "{:?}", told.starts);
    }
    for member in ["entropy", "random", "generation"] {
        assert_eq!(told.values(member), CLONES, "shared by clones: {member}");
    }
}

#[test]
fn two_servers_over_one_snapshot_give_their_clones_nothing_in_common() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("whoami");
    let Some(other) = Server::over(server.store()) else {
        return;
    };
    let mut told = Told::ask(server.client(), "whoami", "/?entropy=1", CLONES);
    let others = Told::ask(other.client(), "whoami", "/?entropy=1", CLONES);
    told.answers.extend(others.answers);
    for member in ["entropy", "random", "generation"] {
        assert_eq!(told.values(member), 2 * CLONES, "shared: {member}");
    }
}

/// The policy for what a function draws before its snapshot: it stays, and the hook is the place to
/// draw anew.
#[test]
fn what_was_drawn_before_the_snapshot_is_shared_and_the_hook_draws_anew() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("twin");
    let told = Told::ask(server.client(), "twin", "/", CLONES);
    for member in ["kept_hash", "kept_random", "thread_hash"] {
        assert_eq!(told.values(member), 1, "{member}");
    }
    for member in ["hook_hash", "hook_random", "generation"] {
        assert_eq!(told.values(member), CLONES, "shared by clones: {member}");
    }
}

/// Time goes on while a snapshot lies there, and so do timers: what is due when a clone wakes up
/// fires then, and what is not fires when it is.
#[test]
fn timers_from_before_the_snapshot_fire_when_they_are_due() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("twin");
    let client = server.client();
    // The other threads run while the handler naps.
    let ask = || client.invoke("twin", "/?nap_ms=200").ok().json();
    let number = |answer: &Value, member: &str| answer[member].as_u64().expect("a number");
    let first = ask();
    let sleep_ms = number(&first, "sleep_ms");
    let mut answers = vec![first];
    while number(answers.last().expect("one"), "asleep_from_ms") < sleep_ms {
        thread::sleep(Duration::from_millis(50));
        answers.push(ask());
    }
    for answer in &answers {
        if number(answer, "asleep_to_ms") < sleep_ms {
            assert_eq!(answer["woke"], false, "too early: {answer}");
        } else if number(answer, "asleep_from_ms") >= sleep_ms {
            // It was due before the nap.
            assert_eq!(answer["woke"], true, "too late: {answer}");
        }
    }
    assert_eq!(answers.last().expect("one")["woke"], true);

    // A clone that is due in the middle of its own nap is woken in it.
    server.deploy_as("again", "twin", "");
    let slept_through = client
        .invoke("again", &format!("/?nap_ms={}", sleep_ms + 300))
        .ok()
        .json();
    assert_eq!(slept_through["woke"], true, "{slept_through}");
}

/// A guest without the SDK that confirms only when it is told to.
fn server_with_unconfirmed() -> Option<Server> {
    let server = Server::with(Setup {
        pool: PoolConfig {
            // Or one that is built again ahead could lie above the one that ran last.
            shells_ahead: 0,
            ..PoolConfig::default()
        },
        ..Setup::default()
    })?;
    server.deploy_as("unconfirmed", "unconfirmed", "?concurrency=1");
    Some(server)
}

#[test]
fn who_does_not_confirm_the_reseed_is_not_heard() {
    let Some(server) = server_with_unconfirmed() else {
        return;
    };
    let client = server.client();
    let say = |letter: &[u8]| client.post("unconfirmed", "/", letter);
    let answered = |start: &[&str]| {
        let reply = say(b"y").ok();
        assert_eq!(reply.text(), "answered\n");
        let started = reply.header("x-start-type");
        assert!(start.contains(&started), "{started}");
    };
    for _ in 0..6 {
        answered(&["restored", "rolled-back"]);
    }
    // Nothing, its generation, something false; and in a buffer, where it does not look.
    let long = vec![b'y'; 9000];
    for silent in [b"n".as_slice(), b"g", b"f", &long] {
        let reply = say(silent);
        assert!(!reply.text().contains("answered"), "{}", reply.text());
        let problem = reply.problem();
        assert_eq!(problem.kind(), (502, "unconfirmed-clone"));
        assert!(problem.detail.contains("dormouse-guest"), "{problem:?}");
        // Its clone is gone: the next request has another one.
        answered(&["restored"]);
    }
    let stats = client.get("/v1/functions/unconfirmed").ok().json();
    assert_eq!(stats["stats"]["failures"], 4);
}

#[test]
fn nothing_is_warmed_by_a_clone_that_does_not_confirm() {
    let Some(server) = server_with_unconfirmed() else {
        return;
    };
    let warm = |letter: &[u8]| {
        server
            .client()
            .send("POST", "/v1/functions/unconfirmed/warm?runs=2", &[], letter)
    };
    let problem = warm(b"n").problem();
    assert_eq!(problem.kind(), (502, "warm-failed"));
    assert!(problem.detail.contains("did not confirm"), "{problem:?}");
    assert_eq!(warm(b"y").ok().json()["runs"], 2);
}
