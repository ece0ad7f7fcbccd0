//! Starts that a request chooses, over HTTP.

use dormouse_server::Limits;
use dormouse_tests::{Client, Dormouse, Reply, Server, Setup, eventually};

fn with_choice() -> Option<Server> {
    Server::with(Setup {
        limits: Limits {
            start_choice: true,
            ..Limits::default()
        },
        ..Setup::default()
    })
}

fn invoke(client: &Client, function: &str, start: &str) -> Reply {
    let path = format!("/v1/functions/{function}/invoke/");
    let headers = [("x-dormouse-start", start.as_bytes())];
    client.send("GET", &path, &headers, b"")
}

/// Whether `Server-Timing` has a stage.
fn has(reply: &Reply, stage: &str) -> bool {
    let begin = format!("{stage};dur=");
    let timing = reply.header("server-timing");
    timing.split(", ").any(|metric| metric.starts_with(&begin))
}

#[test]
fn a_request_gets_the_start_that_it_asks_for() {
    let Some(server) = with_choice() else {
        return;
    };
    server.deploy("hello");
    let client = server.client();
    for _ in 0..6 {
        let _ = client.invoke("hello", "/").ok();
        eventually("nothing runs", || server.stats().running == 0);
    }
    for (start, start_type, stages) in [
        ("rolled-back", "rolled-back", &[][..]),
        ("restored", "restored", &["clear"]),
        ("first", "restored", &["clear", "open"]),
        ("first-uncached", "restored", &["clear", "open"]),
        ("cold", "cold", &["boot"]),
    ] {
        eventually("nothing runs", || server.stats().running == 0);
        let reply = invoke(client, "hello", start).ok();
        assert_eq!(reply.header("x-start-type"), start_type, "{start}");
        assert_eq!(reply.text(), "Hello from Dormouse!\n", "{start}");
        for stage in ["clear", "open", "boot"] {
            let timing = reply.header("server-timing");
            let expected = stages.contains(&stage);
            assert_eq!(has(&reply, stage), expected, "{start}: {timing}");
        }
        assert!(has(&reply, "queue") && has(&reply, "run"), "{start}");
    }
}

#[test]
fn what_is_no_start_is_said_and_no_function_sees_what_was_asked() {
    let Some(server) = with_choice() else {
        return;
    };
    server.deploy("echo");
    let client = server.client();
    for start in ["", "warm", "Cold", "cold, first"] {
        let problem = invoke(client, "echo", start).problem();
        assert_eq!(problem.kind(), (400, "bad-option"), "{start}");
        assert!(problem.detail.contains("x-dormouse-start"), "{problem:?}");
        assert!(problem.detail.contains("first-uncached"), "{problem:?}");
    }
    for start in ["cold", "first-uncached", "first", "restored", "rolled-back"] {
        let reply = invoke(client, "echo", start).ok();
        assert_eq!(reply.header("x-echo-x-dormouse-start"), "", "{start}");
        assert_eq!(reply.header("x-echo-method"), "GET", "{start}");
    }
    let problem = invoke(client, "nobody", "cold").problem();
    assert_eq!(problem.kind(), (404, "unknown-function"));
}

#[test]
fn only_a_server_that_was_told_so_lets_requests_choose() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    dormouse.deploy_sample("hello");
    let usual = dormouse.serve();
    for start in ["cold", "rolled-back", "warm"] {
        let problem = invoke(usual.client(), "hello", start).problem();
        assert_eq!(problem.kind(), (403, "start-refused"), "{start}");
        assert!(problem.detail.contains("--start-choice"), "{problem:?}");
    }
    let reply = usual.client().invoke("hello", "/").ok();
    assert!(has(&reply, "open"), "{}", reply.header("server-timing"));
    drop(usual);
    let told = dormouse.serve_with(&["--start-choice"]);
    let reply = invoke(told.client(), "hello", "first-uncached").ok();
    assert_eq!(reply.header("x-start-type"), "restored");
    let help = dormouse.run(&["serve", "--help"]).ok();
    let help = String::from_utf8(help).expect("text");
    assert!(help.contains("--start-choice"), "{help}");
}
