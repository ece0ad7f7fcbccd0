//! The history of functions from the command line: references, tags, layers, retention, and a server
//! that holds on to what it serves.

use std::path::Path;

use dormouse_snapshot::{
    Compression, Draft, FunctionName, MemoryDraft, SnapshotId, SnapshotRef, Store,
};
use dormouse_tests::{Dormouse, edit};
use serde_json::Value;

const PAGES: u64 = 64;

/// Publishes a snapshot that no guest made, with `seed` in all of its pages.
fn publish(store: &Path, function: &str, seed: u8, parent: Option<SnapshotRef>) -> SnapshotRef {
    let store = Store::open(store).expect("a store");
    let function = FunctionName::new(function).expect("a name");
    let mut read = |first_page: u64, buffer: &mut [u8]| {
        buffer.fill(seed);
        buffer[0] = first_page as u8;
        Ok(())
    };
    let draft = Draft {
        created_unix_ms: 1_700_000_000_000 + u64::from(seed),
        host: "a test".into(),
        config: serde_json::json!({}),
        state: &u64::from(seed),
        memory: MemoryDraft {
            pages: PAGES,
            resident: std::iter::once(0..PAGES).collect(),
            read: &mut read,
        },
        image: b"no image",
        parent,
        compression: Compression::None,
    };
    let id = store.publish(&function, draft).expect("a snapshot");
    SnapshotRef { function, id }
}

/// The values of a member, row by row.
fn column<'a>(rows: &'a Value, member: &str) -> Vec<&'a Value> {
    let rows = rows.as_array().expect("a list");
    rows.iter().map(|row| &row[member]).collect()
}

#[test]
fn a_history_is_listed_tagged_and_taken_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let dormouse = Dormouse::without_guests(folder.path());
    let run = |arguments: &[&str]| dormouse.run(&[&["snapshot"], arguments].concat());
    let first = publish(folder.path(), "f", 1, None);
    let second = publish(folder.path(), "f", 2, None);
    let layer = publish(folder.path(), "g", 3, Some(second.clone()));
    publish(folder.path(), "f", 4, None);

    let _ = run(&["tag", "f@1", "v1"]).ok();
    let _ = run(&["tag", "f:v1", "stable"]).ok();
    let rows = dormouse.json(&["snapshot", "ls", "f"]);
    let ids: Vec<_> = column(&rows, "id")
        .iter()
        .map(|id| id.as_str().and_then(|id| id.parse::<SnapshotId>().ok()))
        .collect();
    assert_eq!(ids[..2], [Some(first.id), Some(second.id)]);
    assert_eq!(rows[0]["tags"], serde_json::json!(["stable", "v1"]));
    assert_eq!(rows[0]["apparent_bytes"], PAGES * 4096 + 8);
    assert_eq!(column(&rows, "in_use"), [false, false, false]);
    let rows = dormouse.json(&["snapshot", "ls", "--all"]);
    assert_eq!(rows.as_array().map(Vec::len), Some(4));
    assert_eq!(rows[3]["parent"], second.to_string());
    assert_eq!(rows[3]["depth"], 1);
    let table = String::from_utf8(run(&["ls", "f"]).ok()).expect("text");
    assert!(table.contains("stable v1"), "{table}");
    assert_eq!(table.lines().count(), 4, "{table}");

    for (arguments, code, says) in [
        (&["rm", "f:v1"][..], 2, "is tagged stable, v1"),
        (&["rm", "f@2"], 2, "is the parent of g@"),
        (&["rm", "f"], 2, "is the parent of g@"),
        (&["rm", "f@9"], 66, "no snapshot number 9"),
        (&["rm", "f:v9"], 66, "no tag v9"),
        (&["rm", "f@"], 2, "not a snapshot id"),
        (&["ls", "absent"], 66, "no function named absent"),
        (&["tag", "f", "-x"], 2, ""),
        (&["tag", "f", "X"], 2, "cannot be a tag"),
        (&["tag", "--remove", "f"], 2, "does not name a tag"),
        (&["gc", "--keep-last", "0"], 2, ""),
        (&["gc", "--max-size", "much"], 2, ""),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.stderr);
        assert!(ended.error().contains(says), "{}", ended.stderr);
    }

    let _ = run(&["tag", "--remove", "f:v1"]).ok();
    let _ = run(&["rm", "f@1", "--force"]).ok();
    let _ = run(&["rm", &layer.to_string()]).ok();
    let _ = run(&["rm", &second.to_string()]).ok();
    let rows = dormouse.json(&["snapshot", "ls", "--all"]);
    assert_eq!(column(&rows, "id").len(), 1);
    let _ = run(&["rm", "f"]).ok();
    assert!(run(&["ls", "--all"]).ok().is_empty());
}

#[test]
fn gc_does_what_its_dry_run_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let dormouse = Dormouse::without_guests(folder.path());
    let run = |arguments: &[&str]| dormouse.run(&[&["snapshot"], arguments].concat());
    for seed in 1..6 {
        publish(folder.path(), "f", seed, None);
    }
    let _ = run(&["tag", "f@1", "keep"]).ok();
    let ended = run(&["gc"]);
    assert!(
        ended.stderr.contains("no limit is given"),
        "{}",
        ended.stderr
    );
    assert!(ended.ok().is_empty());

    let gc = ["snapshot", "gc", "--keep-last", "2"];
    let mut dry = dormouse.json(&[&gc[..], &["--dry-run"]].concat());
    assert_eq!(dry["dry_run"], true);
    let real = dormouse.json(&gc);
    dry["dry_run"] = false.into();
    assert_eq!(dry, real);
    assert_eq!(real["removed"].as_array().map(Vec::len), Some(2));
    assert_eq!(real["removed"][0]["limit"], "keep-last");
    assert_eq!(real["kept"][0]["because"][0], "tagged keep");

    // All of them are years old, and the newest stays.
    let report = dormouse.json(&["snapshot", "gc", "--max-age", "30d"]);
    assert_eq!(report["removed"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["kept"].as_array().map(Vec::len), Some(2));
    let table = String::from_utf8(run(&["gc", "--max-size", "1KiB"]).ok()).expect("text");
    assert!(table.contains("over --max-size, but the newest"), "{table}");
}

#[test]
fn what_a_server_serves_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    let run = |arguments: &[&str]| dormouse.run(&[&["snapshot"], arguments].concat());
    dormouse.deploy_sample("hello");
    let serving = dormouse.serve();
    let _ = serving.client().invoke("hello", "/").ok();
    // A newer one, which the server has not taken up.
    edit(folder.path(), "hello", |_| {});

    let rows = dormouse.json(&["snapshot", "ls", "hello"]);
    assert_eq!(column(&rows, "in_use"), [true, false]);
    let ended = run(&["rm", "hello@1"]);
    assert_eq!(ended.code, 75, "{}", ended.stderr);
    assert!(ended.error().contains("is in use"), "{}", ended.stderr);
    let gc = ["snapshot", "gc", "--keep-last", "1"];
    let report = dormouse.json(&gc);
    assert_eq!(report["removed"], serde_json::json!([]));
    assert_eq!(report["kept"][0]["because"][0], "in use");
    let _ = serving.client().invoke("hello", "/").ok();

    drop(serving);
    let report = dormouse.json(&gc);
    assert_eq!(report["removed"].as_array().map(Vec::len), Some(1));
    let _ = dormouse.run(&["invoke", "hello"]).ok();
}
