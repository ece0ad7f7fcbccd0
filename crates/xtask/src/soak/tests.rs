//! What the soak takes for right and for wrong, and that it notices a server that answers wrongly.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use ureq::http::Method;

use super::chaos::{Chaos, Events};
use super::client::{Client, Failure, Reply};
use super::judge::{Judge, Outcome};
use super::load::{Load, Report};
use super::requests::{Asked, Expected, FAULTY, FUNCTIONS, Requests};
use super::{Isolation, unfulfilled};
use crate::functions;
use crate::repo::Repo;
use crate::server::Server;

fn judge() -> Judge {
    let codes = [
        ("queue-full", 429),
        ("crash-loop", 503),
        ("worker-lost", 503),
        ("function-crashed", 502),
        ("function-exited", 502),
        ("function-timeout", 504),
    ];
    Judge::new(BTreeMap::from(
        codes.map(|(code, status)| (code.to_owned(), status)),
    ))
}

fn asked(function: &str, expected: Expected) -> Asked {
    let place = FUNCTIONS.iter().position(|known| known.name == function);
    Asked {
        function: place.unwrap(),
        method: Method::GET,
        target: "/".to_owned(),
        body: Vec::new(),
        expected,
    }
}

fn exactly(text: &str) -> Expected {
    Expected::Exactly {
        status: 200,
        body: text.as_bytes().to_vec(),
    }
}

fn answer(status: u16, body: &str) -> Reply {
    Reply {
        status,
        body: body.as_bytes().to_vec(),
        ..Reply::default()
    }
}

fn error(status: u16, code: &str, has_retry_after: bool) -> Reply {
    Reply {
        status,
        error: Some(code.to_owned()),
        has_retry_after,
        body: format!("{{\"code\":\"{code}\"}}").into_bytes(),
    }
}

fn is_wrong(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Wrong(_))
}

fn now() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

#[test]
fn an_answer_is_right_to_the_byte() {
    let judge = judge();
    let hello = asked("hello", exactly("hi\n"));
    let of = |reply| judge.judge(&hello, now(), &Ok(reply));
    assert_eq!(of(answer(200, "hi\n")), Outcome::Answered);
    for reply in [
        answer(200, "hi"),
        answer(201, "hi\n"),
        answer(503, ""),
        error(502, "function-crashed", false),
    ] {
        assert!(is_wrong(&of(reply.clone())), "{reply:?}");
    }
    let broken = Err(Failure::Broken("reset".to_owned()));
    assert!(is_wrong(&judge.judge(&hello, now(), &broken)));
    let hung = judge.judge(&hello, now(), &Err(Failure::Hung));
    assert_eq!(hung, Outcome::Hung);
}

#[test]
fn a_refusal_is_right_where_it_is_as_documented() {
    let judge = judge();
    let hello = asked("hello", exactly("hi\n"));
    let of = |asked: &Asked, reply| judge.judge(asked, now(), &Ok(reply));
    let refused = |code: &str| Outcome::Refused(code.to_owned());
    assert_eq!(
        of(&hello, error(429, "queue-full", true)),
        refused("queue-full")
    );
    let mut other_words = error(429, "queue-full", true);
    other_words.body = b"{\"code\":\"internal\"}".to_vec();
    for reply in [
        error(429, "queue-full", false),
        error(503, "queue-full", true),
        error(503, "over-budget", true),
        other_words,
        error(503, "crash-loop", true),
    ] {
        assert!(is_wrong(&of(&hello, reply.clone())), "{reply:?}");
    }
    let faulty = asked(FAULTY, exactly("fine\n"));
    assert_eq!(
        of(&faulty, error(503, "crash-loop", true)),
        refused("crash-loop")
    );
}

#[test]
fn a_failure_is_right_where_it_was_asked_for() {
    let judge = judge();
    let of = |expected, code, status| {
        let reply = error(status, code, false);
        judge.judge(&asked(FAULTY, expected), now(), &Ok(reply))
    };
    let crash = || Expected::Fails("function-crashed");
    assert_eq!(of(crash(), "function-crashed", 502), Outcome::Failed);
    assert_eq!(of(crash(), "function-timeout", 504), Outcome::Failed);
    assert!(is_wrong(&of(crash(), "function-exited", 502)));
    let good = || exactly("fine\n");
    assert!(is_wrong(&of(good(), "function-crashed", 502)));
    assert!(is_wrong(&of(good(), "function-timeout", 504)));
    let fine = Ok(answer(200, "fine\n"));
    assert!(is_wrong(&judge.judge(
        &asked(FAULTY, crash()),
        now(),
        &fine
    )));
}

#[test]
fn a_request_is_lost_only_where_a_worker_was_killed() {
    let judge = judge();
    let hello = asked("hello", exactly("hi\n"));
    let lost = || Ok(error(503, "worker-lost", true));
    assert!(is_wrong(&judge.judge(&hello, now(), &lost())));
    let sent = now();
    judge.kills.begin();
    assert_eq!(judge.judge(&hello, sent, &lost()), Outcome::Lost);
    let later = (Instant::now() + Duration::from_secs(60), SystemTime::now());
    assert!(is_wrong(&judge.judge(&hello, later, &lost())));
}

#[test]
fn no_two_clones_may_be_the_same() {
    let judge = judge();
    let whoami = asked("whoami", Expected::Itself);
    let unix_ms = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_millis()
    };
    let of = |time_ms: u128, random: &str, generation: u64, requests: u64| {
        let body = format!(
            "{{\"real_time_unix_ms\":{time_ms},\"random\":\"{random}\",\
             \"generation\":{generation},\"requests\":{requests}}}"
        );
        judge.judge(&whoami, now(), &Ok(answer(200, &body)))
    };
    assert_eq!(of(unix_ms(), "a", 1, 1), Outcome::Answered);
    assert_eq!(of(unix_ms(), "b", 2, 1), Outcome::Answered);
    for (random, generation) in [("a", 3), ("c", 2)] {
        assert!(is_wrong(&of(unix_ms(), random, generation, 1)));
    }
    assert!(is_wrong(&of(unix_ms(), "d", 4, 2)), "used before");
    assert!(is_wrong(&of(unix_ms() - 60_000, "e", 5, 1)), "an old clock");
    assert!(is_wrong(&of(unix_ms() + 60_000, "f", 6, 1)), "a fast clock");
}

#[test]
fn a_soak_in_which_little_happened_says_nothing() {
    let mut report = Report::new().unwrap();
    for tally in &mut report.tallies {
        tally.asked = 10;
        tally.answered = 5;
        tally.refused = 4;
    }
    report.tallies[0].lost = 1;
    let events = Events {
        deployed: 1,
        functions_removed: 1,
        ..Events::default()
    };
    let of = |report: &Report, kills, isolation| {
        unfulfilled(report, &events, kills, isolation).join("\n")
    };
    assert_eq!(of(&report, 1, None), "");
    assert!(of(&report, 0, None).contains("no worker was found"));
    report.tallies[0].lost = 9;
    assert!(of(&report, 1, None).contains("9 requests were lost with 1 workers"));
    assert_eq!(of(&report, 2, None), "");
    report.tallies[0].lost = 0;
    assert_eq!(of(&report, 0, Some(Isolation::None)), "");
    report.tallies[1].answered = 0;
    assert!(of(&report, 1, None).contains("hello answered nothing"));
    let nothing = unfulfilled(&Report::new().unwrap(), &Events::default(), 1, None).join("\n");
    for what in ["was refused", "was published", "was removed"] {
        assert!(nothing.contains(what), "{nothing}");
    }
}

/// Under the names of the functions there are others, but for `wordfreq` and `hello`: every request
/// to these is answered rightly, and every one to the others is found to be wrong.
#[test]
fn a_server_that_answers_wrongly_is_noticed() {
    if std::env::var_os("DORMOUSE_TEST_NO_KVM").is_some_and(|value| value == "1") {
        eprintln!("skipped: DORMOUSE_TEST_NO_KVM=1 is set, and this test needs KVM");
        return;
    }
    let images = std::env::var_os("DORMOUSE_TEST_IMAGES").expect("set by `cargo xtask test`");
    let images = PathBuf::from(images);
    let repo = Repo::find();
    let dormouse = functions::dormouse(&repo, false).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let listen = ["--listen", "127.0.0.1:0"];
    let server = Server::start(&dormouse, folder.path(), listen, Stdio::null()).unwrap();
    let judge = Judge::read(&repo).unwrap();
    let chaos = Chaos {
        dormouse: &dormouse,
        images: &images,
        url: server.url(),
        store: server.store(),
        server: server.pid(),
        judge: &judge,
        is_over: AtomicBool::new(true),
        events: Mutex::default(),
    };
    let samples = ["hello", "hello", "wordfreq", "echo", "echo", "echo"];
    for (function, sample) in FUNCTIONS.iter().zip(samples) {
        assert!(chaos.deploy(function.name, sample, "").unwrap());
    }
    let patience = Duration::from_secs(60);
    let client = Client::new(server.url(), patience);
    let mut requests = Requests::new(1, &client).unwrap();
    let load = Load {
        url: server.url(),
        patience,
        judge: &judge,
    };
    let report = load.closed(&mut requests, Duration::from_secs(60)).unwrap();

    // It ends as soon as enough is known.
    let total = report.total();
    assert!(total.wrong >= 100, "{report:?}");
    for ((function, sample), tally) in FUNCTIONS.iter().zip(samples).zip(&report.tallies) {
        let name = function.name;
        let asked = tally.asked - tally.refused;
        assert!(asked > 0, "{name} was not asked");
        if name == sample {
            assert_eq!(tally.answered, asked, "{name}: {tally:?}");
        } else if name == "whoami" {
            // What others kept is nothing, and so is the echo of no body.
            assert!(tally.wrong > 0, "{name}: {tally:?}");
        } else {
            assert_eq!(tally.wrong, asked, "{name}: {tally:?}");
        }
    }
    server.stop().unwrap();
}
