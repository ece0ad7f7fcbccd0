//! Tokens, from the command that makes them to the function that never sees them.

use std::path::Path;

use dormouse_tests::{Dormouse, Reply, Serving, eventually, files_below, image};

/// Makes a token by command.
#[track_caller]
fn create(dormouse: &Dormouse, file: &str, name: &str, more: &[&str]) -> String {
    let line = [&["token", "create", name, "--tokens", file], more].concat();
    let made = dormouse.json(&line);
    assert_eq!(made["name"], name);
    made["token"].as_str().expect("a token").to_owned()
}

fn send(serving: &Serving, method: &str, path: &str, secret: &str, body: &[u8]) -> Reply {
    let bearer = format!("Bearer {secret}");
    let headers: [(&str, &[u8]); 1] = [("authorization", bearer.as_bytes())];
    serving.client().send(method, path, &headers, body)
}

#[track_caller]
fn holds_none_of(file: &Path, secrets: &[&str]) {
    let bytes = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    for secret in secrets {
        let found = text.lines().find(|line| line.contains(secret));
        assert_eq!(found, None, "{secret} in {}", file.display());
    }
}

const ECHO: &str = "/v1/functions/echo/invoke/";
const IN_BODY: &str = "what-stands-in-the-body";

#[test]
fn tokens_open_what_they_are_for_until_they_are_removed_and_are_seen_nowhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    let Some(dormouse) = Dormouse::over(&store) else {
        return;
    };
    let tokens = folder.path().join("tokens");
    let file = tokens.to_str().expect("a path of text");
    let ci = create(&dormouse, file, "ci", &["--scope", "deploy"]);
    let app = ["--scope", "invoke", "--function", "ech?", "--expires", "1d"];
    let app = create(&dormouse, file, "app", &app);
    let ops = create(&dormouse, file, "ops", &["--scope", "admin"]);
    let listed = dormouse.json(&["token", "ls", "--tokens", file]);
    assert_eq!(listed.as_array().map(Vec::len), Some(3));

    let log = folder.path().join("log");
    let serving = dormouse.serve_logged(&["--tokens", file], &log);
    let echo = folder.path().join("echo.img");
    std::fs::write(&echo, image("echo")).expect("a file");
    let deploy = ["deploy", "echo", echo.to_str().expect("a path of text")];
    for (token, words) in [(None, "wants a token"), (Some(&*app), "scope deploy")] {
        let refused = serving.run_with_token(token, &deploy);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.error().contains(words), "{}", refused.stderr);
        assert!(!refused.stderr.contains(&app), "the token");
    }
    let deployed = serving.run_with_token(Some(&ci), &deploy);
    assert!(!deployed.stderr.contains(&ci), "the token");
    let _ = deployed.ok();

    let body = IN_BODY.as_bytes();
    let reply = send(&serving, "POST", ECHO, &app, body).ok();
    assert_eq!(reply.body, body);
    assert_eq!(reply.header("x-echo-authorization"), "");
    let invoke = ["invoke", "echo", "--data", IN_BODY];
    let printed = serving.run_with_token(Some(&app), &invoke);
    assert!(!printed.stderr.contains(&app), "the token");
    assert_eq!(printed.ok(), body);
    for (path, token, kind) in [
        (ECHO, &ci, (403, "forbidden")),
        ("/v1/functions/f/invoke", &app, (403, "forbidden")),
        ("/v1/functions", &app, (403, "forbidden")),
        ("/metrics", &ci, (403, "forbidden")),
    ] {
        let reply = send(&serving, "GET", path, token, b"");
        assert_eq!(reply.problem().kind(), kind, "{path}");
    }
    let _ = send(&serving, "GET", "/metrics", &ops, b"").ok();
    let reply = serving.client().get("/metrics").problem();
    assert_eq!(reply.kind(), (401, "unauthenticated"));

    let removed = dormouse.json(&["token", "rm", "app", "--tokens", file]);
    assert_eq!(removed["removed"][0], "app");
    eventually("the token is forgotten", || {
        send(&serving, "POST", ECHO, &app, body).status == 401
    });
    let _ = send(&serving, "GET", ECHO, &ops, b"").ok();
    drop(serving);

    let logged = std::fs::read_to_string(&log).expect("a log");
    for said in [
        "let through",
        "request_id",
        "the tokens file was read again",
    ] {
        assert!(logged.contains(said), "{said} is not in the log");
    }
    holds_none_of(&log, &[&ci, &app, &ops, IN_BODY]);
    holds_none_of(&tokens, &[&ci, &app, &ops]);
    for file in files_below(&store) {
        holds_none_of(&file, &[&ci, &app, &ops]);
    }

    // Where no token is needed, one that comes all the same does not reach the function either.
    let open = dormouse.serve();
    let reply = send(&open, "POST", ECHO, &ops, body).ok();
    assert_eq!(reply.header("x-echo-authorization"), "");
    let headers: [(&str, &[u8]); 1] = [("authorization", b"Basic YTpi")];
    let reply = open.client().send("POST", ECHO, &headers, body).ok();
    assert_eq!(reply.header("x-echo-authorization"), "Basic YTpi");

    // Nor does it answer to a web page that has a name of its own for this machine.
    let headers: [(&str, &[u8]); 1] = [("host", b"page.example")];
    let reply = open.client().send("POST", ECHO, &headers, body).problem();
    assert_eq!(reply.kind(), (403, "forbidden"), "{reply:?}");
    let insecure = dormouse.serve_with(&["--insecure-no-tokens"]);
    let _ = insecure.client().send("POST", ECHO, &headers, body).ok();
}
