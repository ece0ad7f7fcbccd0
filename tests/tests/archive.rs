//! Snapshots that move from store to store: they answer there as they did at home.

use std::fs;
use std::path::Path;

use dormouse_tests::{Dormouse, Ended, files_below};
use serde_json::Value;

const ANSWER: &[u8] = b"Hello from Dormouse!\n";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

fn json(ended: Ended) -> Value {
    serde_json::from_slice(&ended.ok()).expect("JSON")
}

/// The answer comes from the snapshot that was imported, not from a boot.
#[track_caller]
fn greets_from_its_snapshot(dormouse: &Dormouse) {
    let ended = dormouse.run(&["invoke", "hello", "--include"]);
    assert!(
        ended
            .stderr
            .to_lowercase()
            .contains("x-start-type: restored"),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.ok(), ANSWER);
}

/// All files below a store but its lock, with their contents.
fn contents(store: &Path) -> Vec<(String, Vec<u8>)> {
    let files = files_below(store).into_iter();
    let files = files.filter(|file| !file.ends_with(".lock"));
    let read = |file: std::path::PathBuf| {
        let name = text(file.strip_prefix(store).expect("below it")).to_owned();
        (name, fs::read(&file).expect("a file"))
    };
    files.map(read).collect()
}

#[test]
fn a_snapshot_answers_in_another_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name);
    let Some(home) = Dormouse::over(&place("home")) else {
        return;
    };
    let over = |name: &str| Dormouse::over(&place(name)).expect("guests run");
    home.deploy_sample("hello");

    let file = place("hello.dormouse");
    let exported = json(home.run(&[
        "snapshot",
        "export",
        "hello",
        "--output",
        text(&file),
        "--format",
        "json",
    ]));
    let size = fs::metadata(&file).expect("the export").len();
    assert_eq!(exported["written_bytes"], size);
    assert_eq!(exported["form"], "file");
    let reference = format!("hello@{}", exported["id"].as_str().expect("an id"));

    let away = over("away");
    let imported = json(away.run(&["snapshot", "import", text(&file), "--format", "json"]));
    assert_eq!(imported["id"], exported["id"]);
    assert_eq!(imported["already_there"], false);
    assert!(contents(&place("home")) == contents(&place("away")));
    let again = json(away.run(&["snapshot", "import", text(&file), "--format", "json"]));
    assert_eq!(again["already_there"], true);

    // Over stdout and stdin, and through a layout: the same bytes.
    let piped = home
        .run(&["snapshot", "export", &reference, "--output", "-"])
        .ok();
    assert!(piped == fs::read(&file).expect("the export"));
    let _ = over("piped")
        .run_with(&["snapshot", "import", "-"], &piped)
        .ok();
    assert!(contents(&place("home")) == contents(&place("piped")));
    let layout = place("layout");
    let _ = home
        .run(&[
            "snapshot",
            "export",
            "hello",
            "--oci",
            text(&layout),
            "--tag",
            "v1",
        ])
        .ok();
    let _ = over("from-layout")
        .run(&["snapshot", "import", text(&layout), "--tag", "v1"])
        .ok();
    assert!(contents(&place("home")) == contents(&place("from-layout")));

    for name in ["away", "from-layout"] {
        greets_from_its_snapshot(&over(name));
    }
}

#[test]
fn what_cannot_be_moved_is_said_in_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(&folder.path().join("store")) else {
        return;
    };
    let file = folder.path().join("garbage");
    fs::write(&file, "garbage".repeat(1000)).expect("a file");
    let import = dormouse.run(&["snapshot", "import", text(&file)]);
    assert!(import.error().contains("is not an exported snapshot"));
    assert_eq!(import.code, 65);
    let import = dormouse.run(&["snapshot", "import", text(folder.path())]);
    assert!(import.error().contains("oci-layout"));
    assert_eq!(import.code, 65);
    let missing = folder.path().join("missing");
    let import = dormouse.run(&["snapshot", "import", text(&missing)]);
    assert_eq!((import.error().is_empty(), import.code), (false, 66));
    let export = dormouse.run(&["snapshot", "export", "nobody", "-o", text(&missing)]);
    assert!(export.error().contains("nobody"));
    assert_eq!(export.code, 66);
    assert!(!missing.exists());
    let export = dormouse.run(&["snapshot", "export", "hello@latest", "-o", text(&missing)]);
    assert_eq!((export.error().is_empty(), export.code), (false, 2));
    assert_eq!(dormouse.run(&["snapshot", "export", "hello"]).code, 2);
}
