//! `dormouse bench load` and its company, on a real Dormouse and with bad input.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use dormouse_tests::{Client, Dormouse, Server};
use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a record")).expect("JSON")
}

fn count(run: &Value, member: &str) -> u64 {
    run[member]
        .as_u64()
        .unwrap_or_else(|| panic!("{member}: {run:#}"))
}

fn start_count(run: &Value, start: &str) -> u64 {
    run["starts"][start]["latency"]["count"]
        .as_u64()
        .unwrap_or(0)
}

const SCENARIO: &str = r#"
title = "Small"
[functions]
hello = { image = "hello", copies = 2 }
[[request]]
name = "hello"
path = "/v1/functions/hello-{n}/invoke/"
copies = 2
expect_body = "Hello from Dormouse!"
[[run]]
name = "carried"
duration = "3s"
warmup = "500ms"
open = { arrivals = "poisson", of_capacity = 0.3 }
[[run]]
name = "closed"
closed = { concurrency = 2, requests = 40 }
"#;

#[test]
fn a_dormouse_of_its_own_is_loaded_and_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    let scenario = folder.path().join("small.toml");
    let (out, html) = (folder.path().join("a.json"), folder.path().join("a.html"));
    fs::write(&scenario, SCENARIO).expect("a file");
    let readme = folder.path().join("README.md");
    fs::write(
        &readme,
        "a\n<!-- load:begin -->\nstale-block\n<!-- load:end -->\nb\n",
    )
    .expect("a file");
    let arguments = [
        "load",
        text(&scenario),
        "--serve",
        "--out",
        text(&out),
        "--html",
        text(&html),
        "--readme",
        text(&readme),
    ];
    let table = String::from_utf8(dormouse.bench(&arguments).ok()).expect("text");
    assert!(
        table.contains("carried") && table.contains("p99"),
        "{table}"
    );

    let record = read(&out);
    let [carried, closed] = &record["runs"].as_array().expect("runs")[..] else {
        panic!("{record:#}");
    };
    assert_eq!(count(carried, "failed"), 0, "{:#}", carried["errors"]);
    assert!(carried["capacity_per_s"].as_f64() > Some(10.0));
    let answered = count(carried, "answered");
    assert_eq!(answered, count(carried, "offered"));
    let told = start_count(carried, "rolled-back") + start_count(carried, "restored");
    assert_eq!(told, answered, "{:#}", carried["starts"]);
    for stage in ["queue", "restore", "run"] {
        assert_eq!(carried["stages"][stage]["count"], answered, "{stage}");
    }
    assert_eq!(count(closed, "answered"), 40);
    assert!(
        fs::read_to_string(&html)
            .expect("a report")
            .contains("<svg")
    );
    let readme = fs::read_to_string(&readme).expect("a file");
    assert!(
        readme.contains("carried") && !readme.contains("stale-block"),
        "{readme}"
    );

    // The record says the same when it is shown again, and nothing changed against itself.
    let again = dormouse.bench(&["report", text(&out)]).ok();
    assert_eq!(String::from_utf8(again).expect("text"), table);
    let same = dormouse.bench(&["compare", text(&out), text(&out), "--format", "json"]);
    assert!(
        !String::from_utf8(same.ok())
            .expect("text")
            .contains("worse\"")
    );
}

#[test]
fn every_start_can_be_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    let scenario = folder.path().join("starts.toml");
    let text_of = r#"
title = "Starts"
[functions]
hello = { image = "hello" }
[[request]]
name = "hello"
path = "/v1/functions/hello/invoke/"
start = "rolled-back"
[[run]]
name = "unhurried"
duration = "10m"
closed = { concurrency = 1, think = "200ms", requests = 30 }
[matrix]
functions = ["hello"]
starts = ["cold", "first-uncached", "first", "restored", "rolled-back"]
requests = 3
how = { duration = "10m", timeout = "60s" }
"#;
    fs::write(&scenario, text_of).expect("a file");
    let out = folder.path().join("starts.json");
    let arguments = ["load", text(&scenario), "--serve", "--out", text(&out)];
    let _ = dormouse.bench(&arguments).ok();
    let record = read(&out);
    let runs = record["runs"].as_array().expect("runs");
    // In the first one a clone has the time to be rolled back before the next request comes; the
    // first few find those that were made ahead.
    for (run, (start, stage, least)) in runs.iter().zip([
        ("rolled-back", "run", 16),
        ("cold", "boot", 2),
        ("restored", "open", 2),
        ("restored", "open", 2),
        ("restored", "restore", 2),
    ]) {
        let name = &run["name"];
        assert_eq!(count(run, "failed"), 0, "{name}: {:#}", run["errors"]);
        // The first request may find the function in another state than those after it.
        let started = start_count(run, start);
        assert!(started >= least, "{name}: {:#}", run["starts"]);
        assert!(
            run["stages"][stage]["count"].as_u64() >= Some(least),
            "{name}: {stage}"
        );
    }
    let [.., at_once] = &runs[..] else {
        panic!("{record:#}");
    };
    // Nobody waits for a clone to be rolled back where another one is at hand.
    let told = start_count(at_once, "rolled-back") + start_count(at_once, "restored");
    assert_eq!((count(at_once, "failed"), told), (0, 3), "{at_once:#}");
    assert_eq!(runs.len(), 6);
}

/// How many times `/livez` was answered.
fn livez_answered(client: &Client) -> u64 {
    let metrics = client.get("/metrics").text();
    let row = metrics.lines().find_map(|line| {
        line.strip_prefix("dormouse_replies_total{route=\"/livez\",status=\"200\"} ")
    });
    row.map_or(0, |count| count.trim().parse().expect("a number"))
}

#[test]
fn a_run_that_is_interrupted_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let (Some(dormouse), Some(server)) = (Dormouse::over(folder.path()), Server::start()) else {
        return;
    };
    let out = folder.path().join("interrupted.json");
    let url = format!("{}/livez", server.client().url());
    let arguments = [
        "load",
        "--url",
        &url,
        "--rate",
        "50",
        "--duration",
        "10m",
        "--out",
        text(&out),
    ];
    let client = server.client();
    let ended = dormouse.bench_interrupted(&arguments, || livez_answered(client) > 100);
    assert!(ended.stderr.contains("ended early"), "{}", ended.stderr);
    let table = ended.ok();
    assert!(!table.is_empty());
    let run = &read(&out)["runs"][0];
    assert_eq!(run["interrupted"], true);
    assert!(count(run, "answered") > 20, "{run:#}");
}

#[test]
fn bad_input_is_told_in_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    // Bound, so that nobody else gets the port, and not listening.
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    bind(&socket, &any).expect("a port");
    let address = SocketAddr::try_from(getsockname(&socket).expect("an address"));
    let nobody = format!("http://{}/", address.expect("an address of IP"));
    let garbage = folder.path().join("garbage");
    fs::write(&garbage, b"\xff\xfe{").expect("a file");
    let garbage = text(&garbage);
    for (arguments, code, sentence) in [
        (vec!["load"], 2, "--url"),
        (vec!["load", "--url", "http://127.0.0.1/"], 2, "--rate"),
        (
            vec!["load", "--url", "https://h/", "--rate", "1"],
            2,
            "plain HTTP",
        ),
        (vec!["load", "--url", &nobody, "--rate", "0"], 2, "rate"),
        (
            vec!["load", "--url", &nobody, "--rate", "1"],
            69,
            "nothing answers",
        ),
        (
            vec!["load", "/nowhere.toml", "--serve"],
            65,
            "/nowhere.toml",
        ),
        (vec!["load", garbage, "--serve"], 65, "garbage"),
        (
            vec![
                "load",
                "--url",
                &nobody,
                "--rate",
                "1",
                "--out",
                "/nowhere/a.json",
            ],
            69,
            "/nowhere/a.json",
        ),
        (vec!["report", garbage], 65, "garbage"),
        (vec!["report", "/nowhere.json"], 66, "/nowhere.json"),
        (vec!["compare", garbage, garbage], 65, "garbage"),
        (vec!["trace", garbage], 65, "garbage"),
        (vec!["trace", "--rate=-1"], 65, "rate"),
        (
            vec!["trace", "--out", "/nowhere/a.csv"],
            69,
            "/nowhere/a.csv",
        ),
    ] {
        let ended = dormouse.bench(&arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.stderr);
        let error = ended.error();
        assert!(error.contains(sentence), "{arguments:?}: {error}");
    }
}

#[test]
fn a_full_disk_loses_no_measurement() {
    let folder = tempfile::tempdir().expect("a folder");
    let (Some(dormouse), Some(server)) = (Dormouse::over(folder.path()), Server::start()) else {
        return;
    };
    let url = format!("{}/livez", server.client().url());
    let arguments = [
        "load",
        "--url",
        &url,
        "--concurrency",
        "1",
        "--duration",
        "1s",
        "--out",
        "/dev/full",
    ];
    let ended = dormouse.bench(&arguments);
    assert_eq!(ended.code, 69, "{}", ended.stderr);
    assert!(
        !ended.stdout.is_empty(),
        "the table is printed all the same"
    );
    let saved = ended
        .stderr
        .split("the record is in ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or_else(|| panic!("{}", ended.stderr));
    assert!(count(&read(Path::new(saved))["runs"][0], "answered") > 0);
    fs::remove_file(saved).expect("the record");
}

#[test]
fn traces_are_made_and_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    let (made, sampled) = (
        folder.path().join("made.csv"),
        folder.path().join("less.csv"),
    );
    let arguments = [
        "trace",
        "--length",
        "5m",
        "--rate",
        "4",
        "--out",
        text(&made),
    ];
    let told = String::from_utf8(dormouse.bench(&arguments).ok()).expect("text");
    assert!(told.contains("Synthetic"), "{told}");
    let arguments = ["trace", text(&made), "--rate", "1", "--out", text(&sampled)];
    let told = String::from_utf8(dormouse.bench(&arguments).ok()).expect("text");
    assert!(told.contains("Synthetic"), "{told}");
    let lines = |path: &Path| fs::read_to_string(path).expect("a trace").lines().count();
    assert!(lines(&sampled) < lines(&made));
    assert!(lines(&sampled) > 1);
}
