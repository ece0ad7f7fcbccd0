//! The HTTP API with real functions behind it.

use dormouse_tests::{Client, Reply, Server, eventually, image};

#[test]
fn the_whole_request_reaches_the_function_and_its_answer_the_client() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("echo");
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND",
    ] {
        for target in [
            "",
            "/",
            "/a",
            "/a/b/",
            "//a//b",
            "/%2F%20?q=%26&r=a/b",
            "?only=query",
        ] {
            let path = format!("/v1/functions/echo/invoke{target}");
            let body: &[u8] = if method == "POST" { b"body" } else { b"" };
            let reply = server.client().send(method, &path, &[], body).ok();
            assert_eq!(reply.header("x-echo-method"), method);
            let seen = match target {
                "" => "/".to_owned(),
                query if query.starts_with('?') => format!("/{query}"),
                path => path.to_owned(),
            };
            assert_eq!(reply.header("x-echo-target"), seen, "{method} {target}");
            assert_eq!(reply.body, body);
        }
    }
}

#[test]
fn headers_come_back_as_often_and_in_the_bytes_they_were_sent() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("echo");
    let headers: [(&str, &[u8]); 6] = [
        ("x-many", b"1"),
        ("x-many", b"2"),
        ("x-raw", b"\x80\xff"),
        ("content-type", b"text/x-odd; charset=none"),
        ("cookie", b"a=1; b=2"),
        ("x-request-id", b"order 66"),
    ];
    let path = "/v1/functions/echo/invoke/";
    let reply = server.client().send("POST", path, &headers, b"x").ok();
    let many: Vec<_> = reply.headers.get_all("x-echo-x-many").iter().collect();
    assert_eq!(many, ["1", "2"]);
    assert_eq!(reply.headers["x-echo-x-raw"].as_bytes(), b"\x80\xff");
    assert_eq!(reply.header("content-type"), "text/x-odd; charset=none");
    assert_eq!(reply.header("x-echo-cookie"), "a=1; b=2");
    assert_eq!(reply.header("x-echo-x-request-id"), "order 66");
    assert_eq!(reply.header("x-request-id"), "order 66");
}

#[test]
fn a_reply_says_how_it_came_to_be() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("hello");
    server.deploy("echo");
    for name in ["hello", "echo"] {
        let reply = server.client().invoke(name, "/");
        assert_eq!(reply.header("x-start-type"), "restored");
        assert_eq!(reply.header("x-request-id").len(), 36);
        let timing = Timing::of(&reply);
        assert!(timing.run_ms > 0.0);
        assert!(timing.memory_ms > 0.0);
        assert!(timing.restore_ms >= timing.memory_ms);
        assert!((0.0..=timing.run_ms).contains(&timing.handler_ms));
        assert!(timing.queue_ms >= 0.0);
        // Some of the faults come while the request is written, before the run.
        assert!(timing.faults_ms <= timing.restore_ms + timing.run_ms);
    }
    let ids: Vec<_> = (0..2)
        .map(|_| {
            server
                .client()
                .get("/livez")
                .header("x-request-id")
                .to_owned()
        })
        .collect();
    assert_ne!(ids[0], ids[1]);
}

/// `Server-Timing: queue;dur=0.012, …, restore;dur=1.4, faults;dur=0.0;desc="3", …, run;dur=1.2`
struct Timing {
    queue_ms: f64,
    memory_ms: f64,
    restore_ms: f64,
    faults_ms: f64,
    handler_ms: f64,
    run_ms: f64,
}

impl Timing {
    #[track_caller]
    fn of(reply: &Reply) -> Self {
        let header = reply.header("server-timing");
        let ms = |name: &str| -> f64 {
            let start = format!("{name};dur=");
            let metric = header
                .split(", ")
                .find_map(|metric| metric.strip_prefix(&start));
            let metric = metric.unwrap_or_else(|| panic!("no {name}: {header}"));
            let (duration, description) = metric.split_once(";desc=").unwrap_or((metric, "\"0\""));
            let count = description.trim_matches('"');
            assert!(count.parse::<u64>().is_ok(), "{count}");
            duration.parse().expect("a number")
        };
        Self {
            queue_ms: ms("queue"),
            memory_ms: ms("memory"),
            restore_ms: ms("restore"),
            faults_ms: ms("faults"),
            handler_ms: ms("handler"),
            run_ms: ms("run"),
        }
    }
}

#[test]
fn metrics_count_what_happened() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("hello");
    server.deploy("faulty");
    let client = server.client();
    for _ in 0..5 {
        let _ = client.invoke("hello", "/").ok();
    }
    let _ = client.invoke("faulty", "/exit").problem();

    // What a first run touched is learnt after its reply.
    eventually("nothing runs", || server.stats().running == 0);

    let reply = client.get("/metrics").ok();
    assert!(
        reply
            .header("content-type")
            .starts_with("application/openmetrics-text")
    );
    let text = reply.text();
    assert!(text.ends_with("# EOF\n"));
    let samples: Vec<(&str, f64)> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (
                name,
                value
                    .parse()
                    .unwrap_or_else(|_| panic!("no number: {line}")),
            )
        })
        .collect();
    let value = |name: &str| {
        let sample = samples.iter().find(|sample| sample.0 == name);
        sample.unwrap_or_else(|| panic!("no {name} in\n{text}")).1
    };
    assert_eq!(
        value(r#"dormouse_invocations_total{function="hello"}"#),
        5.0
    );
    assert_eq!(value(r#"dormouse_failures_total{function="hello"}"#), 0.0);
    assert_eq!(value(r#"dormouse_failures_total{function="faulty"}"#), 1.0);
    assert_eq!(
        value(r#"dormouse_run_seconds_count{function="hello"}"#),
        5.0
    );
    assert_eq!(value("dormouse_running"), 0.0);
    assert!(value("dormouse_shells") >= 1.0);
}

#[track_caller]
fn snapshot_of(client: &Client, function: &str) -> String {
    let info = client.get(&format!("/v1/functions/{function}")).ok().json();
    assert_eq!(info["name"], function);
    info["snapshot"].as_str().expect("an id").to_owned()
}

#[test]
fn deploying_the_same_again_changes_nothing() {
    let Some(server) = Server::start() else {
        return;
    };
    let client = server.client();
    let first = server.deploy("hello");
    assert_eq!(first.header("location"), "/v1/functions/hello");
    assert_eq!(first.json()["created"], true);
    let snapshot = snapshot_of(client, "hello");

    let again = client.put("hello", "", &image("hello")).ok();
    assert_eq!(
        (again.status, again.json()["created"].clone()),
        (200, false.into())
    );
    assert_eq!(snapshot_of(client, "hello"), snapshot);

    server.deploy_as("hello", "hello", "?memory=32MiB");
    let other_options = snapshot_of(client, "hello");
    assert_ne!(other_options, snapshot);
    server.deploy_as("hello", "echo", "?memory=32MiB");
    assert_ne!(snapshot_of(client, "hello"), other_options);
    assert_eq!(
        client.post("hello", "/", b"now echo").ok().body,
        b"now echo"
    );
    assert_eq!(client.functions(), ["hello"]);
}

#[test]
fn a_function_that_is_removed_is_gone() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("hello");
    let client = server.client();
    let _ = client.invoke("hello", "/").ok();
    let remove = || client.send("DELETE", "/v1/functions/hello", &[], b"");
    assert_eq!(remove().status, 204);
    for reply in [
        remove(),
        client.get("/v1/functions/hello"),
        client.invoke("hello", "/"),
    ] {
        assert_eq!(reply.problem().kind(), (404, "unknown-function"));
    }
    assert!(client.functions().is_empty());
    server.deploy("hello");
    let _ = client.invoke("hello", "/").ok();
}

#[test]
fn options_are_kept_with_the_function() {
    let Some(server) = Server::start() else {
        return;
    };
    let options = "?arg=--fast&arg=a%20b&env=A=1&timeout_ms=4000&concurrency=3&base=0x11200000";
    server.deploy_as("hello", "hello", options);
    let info = server.client().get("/v1/functions/hello").ok().json();
    let config = &info["config"];
    assert_eq!(config["args"][1], "a b");
    assert_eq!(config["timeout_ms"], 4000);
    assert_eq!(config["base"], 0x1120_0000);
    let _ = server.client().invoke("hello", "/").ok();
}

#[test]
fn what_is_not_there_or_not_allowed_is_said() {
    let Some(server) = Server::start() else {
        return;
    };
    let client = server.client();
    for (method, path, status, code) in [
        ("GET", "/", 404, "unknown-route"),
        ("GET", "/v1/functions/none", 404, "unknown-function"),
        ("GET", "/v1/functions/none/invoke", 404, "unknown-function"),
        (
            "POST",
            "/v1/functions/none/invoke/a",
            404,
            "unknown-function",
        ),
        ("DELETE", "/v1/functions/none", 404, "unknown-function"),
        ("POST", "/v1/functions", 405, "method-not-allowed"),
        ("DELETE", "/livez", 405, "method-not-allowed"),
        ("GET", "/v1/functions/a%20b/invoke", 400, "bad-name"),
        ("PUT", "/v1/functions/f?colour=red", 400, "bad-option"),
    ] {
        let reply = client.send(method, path, &[], b"");
        assert_eq!(reply.problem().kind(), (status, code), "{method} {path}");
    }
    assert_eq!(client.get("/livez").status, 200);
    assert_eq!(client.get("/readyz").status, 200);
}
