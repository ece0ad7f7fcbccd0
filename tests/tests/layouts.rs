//! Functions with several layouts, from outside: the command line, the HTTP API, and a host that their
//! snapshots do not fit.

use std::collections::BTreeSet;
use std::fs;

use dormouse_snapshot::{FunctionName, Store};
use dormouse_tests::{Dormouse, Server, edit, image};
use serde_json::Value;

/// The layouts in a history, row by row.
fn layouts(rows: &Value) -> Vec<Option<&str>> {
    let rows = rows.as_array().expect("a list");
    rows.iter().map(|row| row["layout"].as_str()).collect()
}

#[test]
fn layouts_are_deployed_listed_and_kept_together_by_the_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    let images = tempfile::tempdir().expect("a folder");
    let file = images.path().join("hello.img");
    fs::write(&file, image("hello")).expect("room for it");
    let file = file.to_str().expect("a path of text");
    let _ = dormouse.run(&["deploy", "hello", file]).ok();
    let _ = dormouse
        .run(&["snapshot", "create", "hello", file, "--layouts", "2"])
        .ok();
    let rows = dormouse.json(&["snapshot", "ls", "hello"]);
    assert_eq!(layouts(&rows), [None, Some("1/2"), Some("2/2")]);
    let table = String::from_utf8(dormouse.run(&["snapshot", "ls", "hello"]).ok()).expect("text");
    assert!(table.contains("LAYOUT") && table.contains("2/2"), "{table}");

    let from = ["snapshot", "create", "other", "--from", "hello"];
    for (arguments, says) in [
        (&["snapshot", "rm", "hello@2"][..], "one of the 2 layouts"),
        (
            &["snapshot", "rm", "hello@3", "--force"],
            "one of the 2 layouts",
        ),
        (&["deploy", "hello", file, "--layouts", "0"], ""),
        (&["deploy", "hello", file, "--layouts", "17"], ""),
        (
            &[
                "deploy",
                "hello",
                file,
                "--layouts",
                "2",
                "--base",
                "0x11200000",
            ],
            "",
        ),
        (
            &[
                "snapshot",
                "create",
                "hello",
                file,
                "--layouts",
                "2",
                "--warm",
                "1",
            ],
            "",
        ),
        (&[&from[..], &["--warm", "1"]].concat(), "with one layout"),
    ] {
        let ended = dormouse.run(arguments);
        assert_eq!(ended.code, 2, "{arguments:?}: {}", ended.stderr);
        assert!(ended.error().contains(says), "{}", ended.stderr);
    }

    let gc = dormouse.json(&["snapshot", "gc", "--keep-last", "1"]);
    assert_eq!(gc["removed"].as_array().map(Vec::len), Some(1), "{gc}");
    let rows = dormouse.json(&["snapshot", "ls", "hello"]);
    assert_eq!(layouts(&rows), [Some("1/2"), Some("2/2")]);
    let _ = dormouse.run(&["snapshot", "rm", "hello"]).ok();
}

#[test]
fn where_one_layout_does_not_fit_the_host_all_are_made_anew() {
    let Some(server) = Server::start() else {
        return;
    };
    let deployed = server.deploy_as("whoami", "whoami", "?layouts=3");
    assert_eq!(deployed.json()["function"]["config"]["layouts"], 3);
    let folder = server.store().to_owned();
    let store = Store::open(&folder).expect("a store");
    let name = FunctionName::new("whoami").expect("a name");
    let before = store.served(&name).expect("a deployment");
    assert_eq!(before.len(), 3);

    // The newest of them, as a host of another vendor would have made it.
    let host = dormouse_vmm::Host::open().expect("KVM");
    let vendor = host.profile().vendor.as_bytes();
    edit(&folder, "whoami", |edited| {
        let mut found = edited.state.windows(vendor.len());
        let at = found.position(|name| name == vendor).expect("the vendor");
        edited.state[at] ^= 0x20;
    });
    let edited = store.served(&name).expect("a deployment");
    assert_eq!(edited[..2], before[..2]);
    assert_ne!(edited[2], before[2]);

    let Some(later) = Server::over(&folder) else {
        return;
    };
    let client = later.client();
    assert_eq!(
        client.invoke("whoami", "/").ok().header("x-start-type"),
        "cold"
    );
    let anew = store.served(&name).expect("a deployment");
    assert_eq!(anew.len(), 3);
    assert!(anew.iter().all(|id| !edited.contains(id)), "{anew:?}");
    let mut randoms = BTreeSet::new();
    for _ in 0..9 {
        let answer = client.invoke("whoami", "/").ok();
        assert_ne!(answer.header("x-start-type"), "cold");
        randoms.insert(answer.json()["random"].to_string());
    }
    assert_eq!(randoms.len(), 9);
}
