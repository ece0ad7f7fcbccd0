//! Scenarios: what they may say, and what becomes of it.

use std::fs;

use dormouse_load::{Arrivals, Pattern, Prepared, Rate, ScenarioConfig, Target};

fn read(text: &str) -> Result<Vec<Prepared>, dormouse_load::Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scenario.toml");
    fs::write(&path, text).unwrap();
    let target = Target::parse("http://127.0.0.1:1/base").unwrap();
    ScenarioConfig::read(&path)?.plans(&target)
}

#[track_caller]
fn refused(text: &str, reasons: &[&str]) {
    let error = read(text).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    for reason in reasons {
        assert!(error.contains(reason), "{reason} is not in: {error}");
    }
}

const MIXED: &str = r#"
title = "Mixed"
seed = 7

[functions]
hello = { image = "hello.img", copies = 3 }

[[request]]
name = "hello"
path = "/v1/functions/hello-{n}/invoke/"
copies = 3
weight = 3
start = "restored"
expect_body = "Hello"

[[request]]
name = "post"
path = "/post"
body_bytes = 1000
headers = { x-a = "b" }

[[run]]
name = "steady"
duration = "5m"
warmup = "10s"
connections = 100
open = { arrivals = "poisson", of_capacity = 0.6 }

[[run]]
name = "steps"
requests = ["post"]
open = { arrivals = "step", rates = [1, 2.5], each = "10s" }

[[run]]
name = "sleep and wake"
duration = "1m"
closed = { concurrency = 1, think = "15s" }
"#;

#[test]
fn a_scenario_becomes_plans() {
    let plans = read(MIXED).unwrap();
    let names: Vec<_> = plans
        .iter()
        .map(|prepared| &prepared.plan.name[..])
        .collect();
    assert_eq!(names, ["steady", "steps", "sleep and wake"]);
    let steady = &plans[0].plan;
    assert_eq!(plans[0].of_capacity, Some(0.6));
    assert_eq!(
        (steady.measured.as_secs(), steady.warmup.as_secs()),
        (300, 10)
    );
    assert_eq!((steady.connections, steady.seed), (100, 7));
    // Copies share the weight of their request.
    assert_eq!(steady.weights, [1.0, 1.0, 1.0, 1.0]);
    let uri = |place: usize| steady.requests[place].uri.to_string();
    assert_eq!(uri(1), "/base/v1/functions/hello-1/invoke/");
    assert_eq!(steady.requests[1].headers["x-dormouse-start"], "restored");
    assert_eq!(steady.requests[3].method, "POST");
    assert_eq!(steady.requests[3].body.len(), 1000);
    assert_eq!(steady.requests[3].headers["x-a"], "b");
    let steps = &plans[1].plan;
    assert_eq!(steps.requests.len(), 1);
    let Pattern::Open(Arrivals::Rated { rate, is_poisson }) = &steps.pattern else {
        panic!("{:?}", steps.pattern);
    };
    assert!(matches!(rate, Rate::Steps(rates, _) if *rates == [1.0, 2.5]));
    assert!(!is_poisson);
}

#[test]
fn a_matrix_has_a_run_for_each_combination() {
    let plans = read(
        r#"
title = "Matrix"
[matrix]
functions = ["hello", "echo"]
starts = ["restored", "rolled-back"]
payload_bytes = [0, 65536]
concurrency = [1, 4]
requests = 100
rounds = 2
how = { duration = "20s" }
"#,
    )
    .unwrap();
    assert_eq!(plans.len(), 32);
    let last = &plans[31].plan;
    assert_eq!(last.name, "echo/rolled-back/65536 B/4 at once/round 2");
    assert_eq!(last.requests[0].body.len(), 65536);
    assert_eq!(last.measured.as_secs(), 20);
}

#[test]
fn a_trace_is_a_plan_of_its_invocations() {
    let text = r#"
title = "Trace"
[[run]]
name = "synthetic"
duration = "2m"
trace = { rate = 5, functions = 50, max_duration = "2s", copies = 4, path = "/v1/functions/burn-{n}/invoke" }
"#;
    let plans = read(text).unwrap();
    let plan = &plans[0].plan;
    let Pattern::Open(Arrivals::Listed(list)) = &plan.pattern else {
        panic!("{:?}", plan.pattern);
    };
    // 600 on average; the generator bursts.
    assert!((200..1800).contains(&list.len()), "{}", list.len());
    assert!(list.is_sorted_by_key(|arrival| arrival.at));
    assert!(plan.requests.len() < 400, "{}", plan.requests.len());
    let uri = plan.requests[0].uri.to_string();
    assert!(uri.starts_with("/base/v1/functions/burn-"), "{uri}");
    assert!(uri.contains("/invoke/?ms="), "{uri}");
    assert_eq!(
        format!("{:?}", read(text).unwrap()[0].plan),
        format!("{plan:?}"),
        "the same seed gives the same plan"
    );
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    refused("title = ", &["line 1"]);
    refused("", &["title"]);
    refused("title = \"a\"\n\nunknown = 1\n", &["line 3", "unknown"]);
    refused("title = \"a\"\n", &["no run and no matrix"]);
    let run = |rest: &str| {
        format!(
            "title = \"a\"\n[[request]]\nname = \"r\"\npath = \"/\"\n[[run]]\nname = \"x\"\n{rest}"
        )
    };
    refused(&run(""), &["\"x\"", "open, closed and trace"]);
    refused(&run("durration = \"1s\"\n"), &["durration"]);
    refused(&run("duration = \"soon\"\n"), &["soon", "5m"]);
    refused(
        &run("open = { arrivals = \"poisson\" }\n"),
        &["rate", "of_capacity"],
    );
    refused(
        &run("open = { arrivals = \"poisson\", rate = 1, of_capacity = 1 }\n"),
        &["not both"],
    );
    refused(
        &run("open = { arrivals = \"poisson\", rate = nan }\n"),
        &["NaN"],
    );
    refused(
        &run("open = { arrivals = \"sometimes\" }\n"),
        &["sometimes"],
    );
    refused(
        &run("requests = [\"none\"]\nclosed = { concurrency = 1 }\n"),
        &["no request \"none\""],
    );
    refused(&run("closed = { concurrency = 1000 }\n"), &["concurrency"]);
    refused(
        &run("trace = { files = [\"nowhere.csv\"] }\n"),
        &["nowhere.csv"],
    );
    refused(&run("trace = { compression = nan }\n"), &["compression"]);
    refused(&run("trace = { compression = 0 }\n"), &["compression"]);
    refused(
        &run("duration = \"9999999999years\"\ntrace = { compression = 1e6 }\n"),
        &[],
    );
    refused(
        "title = \"a\"\n[matrix]\nfunctions = []\n",
        &["matrix", "0 runs"],
    );
    refused(
        "title = \"a\"\n[matrix]\nfunctions = [\"f\"]\nrounds = 4000000000\n",
        &["matrix"],
    );
    let twice =
        run("closed = { concurrency = 1 }\n[[run]]\nname = \"x\"\nclosed = { concurrency = 1 }\n");
    refused(&twice, &["two runs"]);
    let target = Target::parse("http://h").unwrap();
    let missing = ScenarioConfig::read("/nowhere/at/all.toml".as_ref()).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/at/all.toml"));
    drop(target);
}
