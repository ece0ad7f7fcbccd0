//! `dormouse snapshot inspect` and `diff`, and snapshots that are made to harm who looks at them.

use std::fs;
use std::path::Path;

use dormouse_explain::{Difference, Inspection, Picture};
use dormouse_snapshot::{FunctionName, Store};
use dormouse_tests::{Dormouse, edit};
use serde_json::Value;

fn json(stdout: &[u8]) -> Value {
    serde_json::from_slice(stdout).expect("JSON")
}

/// Looks at the newest snapshot of `hello` in every way; what it says does not matter.
fn look(folder: &Path, good: &Inspection) {
    let store = Store::open(folder).expect("a store");
    let function = FunctionName::new("hello").expect("a name");
    let id = store.manifest(&function).expect("a snapshot").id;
    let hostile = Inspection::of(&store, &function, &id).expect("it is well formed");
    let explanation = hostile.explain();
    let pages: u64 = explanation.memory.classes.iter().map(|all| all.pages).sum();
    assert_eq!(pages, explanation.memory.pages);
    assert!(!explanation.text().is_empty());
    Picture::of(&hostile, None).expect("a picture");
    Picture::of(&hostile, Some(good)).expect("a picture");
    for difference in [
        Difference::between(&hostile, good),
        Difference::between(good, &hostile),
    ] {
        assert!(!difference.expect("a comparison").is_empty());
    }
    let same = Difference::between(&hostile, &hostile).expect("a comparison");
    assert!(same.is_empty());
}

#[test]
fn snapshots_are_explained_drawn_and_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    let Some(dormouse) = Dormouse::over(&store) else {
        return;
    };
    dormouse.deploy_sample("hello");
    let _ = dormouse.run(&["invoke", "hello"]).ok();

    let inspect = ["snapshot", "inspect", "hello"];
    let table = String::from_utf8(dormouse.run(&inspect).ok()).expect("text");
    for word in [
        "page tables",
        "kernel text",
        "heap",
        "dormouse_guest::",
        "LMA",
        "Clocks",
    ] {
        assert!(table.contains(word), "{word} is not in {table}");
    }
    let facts = json(
        &dormouse
            .run(&[&inspect[..], &["--format", "json"]].concat())
            .ok(),
    );
    let id = facts["snapshot"]["id"].as_str().expect("an id");
    let by_id = format!("hello@{id}");
    let of_id = dormouse.run(&["snapshot", "inspect", &by_id, "--format", "json"]);
    assert_eq!(json(&of_id.ok()), facts);

    for (name, start) in [("map.svg", &b"<svg "[..]), ("map.png", b"\x89PNG\r\n")] {
        let map = folder.path().join(name);
        let path = map.to_str().expect("a path of text");
        let ended = dormouse.run(&[&inspect[..], &["--map", path, "--verify"]].concat());
        assert!(ended.stderr.contains("all good"), "{}", ended.stderr);
        let _ = ended.ok();
        assert!(fs::read(&map).expect("a picture").starts_with(start));
    }
    let gif = dormouse.run(&[&inspect[..], &["--map", "map.gif"]].concat());
    assert_eq!(gif.code, 2);
    assert!(gif.error().contains(".svg or .png"), "{}", gif.stderr);

    let diff = |a: &str, b: &str| dormouse.run(&["snapshot", "diff", a, b, "--format", "json"]);
    let nothing = json(&diff("hello", &by_id).ok());
    assert_eq!(nothing["memory"]["changed_pages"], 0);
    let plain = dormouse.run(&["snapshot", "diff", "hello", &by_id]);
    assert!(plain.stderr.contains("nothing differs"));
    assert!(plain.ok().is_empty());
    let _ = dormouse
        .run(&["deploy", "hello", &hello(), "--timeout", "3s"])
        .ok();
    let changed = json(&diff(&by_id, "hello").ok());
    assert_eq!(changed["config"][0]["what"], "timeout_ms");
    assert!(changed["memory"]["changed_pages"].as_u64() > Some(0));
    let table = dormouse.run(&["snapshot", "diff", &by_id, "hello"]).ok();
    let table = String::from_utf8(table).expect("text");
    assert!(
        table.contains("timeout_ms") && table.contains("Clocks"),
        "{table}"
    );

    for (reference, code) in [
        ("nobody", 66),
        ("hello@7", 66),
        ("hello@x", 2),
        ("hello@00000099-0123456789abcdef", 66),
    ] {
        let ended = dormouse.run(&["snapshot", "inspect", reference]);
        assert_eq!(ended.code, code, "{reference}: {}", ended.stderr);
        assert!(!ended.error().is_empty());
    }
}

fn hello() -> String {
    let folder = std::env::var("DORMOUSE_TEST_IMAGES").expect("set by `cargo xtask test`");
    format!("{folder}/hello")
}

#[test]
fn hostile_states_and_memories_are_explained_without_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    dormouse.deploy_sample("hello");
    let store = Store::open(folder.path()).expect("a store");
    let function = FunctionName::new("hello").expect("a name");
    let id = store.manifest(&function).expect("a snapshot").id;
    let good = Inspection::of(&store, &function, &id).expect("a good snapshot");
    let facts = good.explain();
    let number = |text: &str| u64::from_str_radix(&text[2..], 16).expect("a number");
    let base = number(&facts.machine.base);
    let registers = &facts.machine.control.registers;
    let cr3 = registers.iter().find(|register| register.name == "cr3");
    let root = (number(&cr3.expect("CR3").value) - base) as usize;

    let memory_bytes = facts.snapshot.memory_bytes;
    let values = [
        0,
        u64::MAX,
        1 << 63,
        base,
        base + memory_bytes - 1,
        !0xFFF,
        1 << 47,
    ];
    for round in 0..values.len() {
        edit(folder.path(), "hello", |edited| {
            for (nth, (at, _)) in edited.integers().into_iter().enumerate() {
                edited.set_integer(at, values[(nth + round) % values.len()]);
            }
        });
        look(folder.path(), &good);
        // The next one starts from the good one again.
        let newest = store.manifest(&function).expect("a snapshot").id;
        let path = folder.path().join("hello").join(newest.to_string());
        fs::remove_dir_all(path).expect("a snapshot to remove");
    }

    /// Present and writable.
    const TABLE: u64 = 3;
    let tables: [&dyn Fn(usize) -> u64; 4] = [
        &|_| (base + root as u64) | TABLE,
        &|entry| (base + 4096 * entry as u64) | TABLE,
        &|entry| (base + memory_bytes - 4096 + 4096 * entry as u64) | TABLE,
        &|entry| 1 << 52 | (u64::MAX << (entry % 52)) | TABLE,
    ];
    for entry_of in tables {
        edit(folder.path(), "hello", |edited| {
            for entry in 0..512 {
                let at = root + 8 * entry;
                edited.memory[at..at + 8].copy_from_slice(&entry_of(entry).to_le_bytes());
            }
        });
        look(folder.path(), &good);
        let newest = store.manifest(&function).expect("a snapshot").id;
        let path = folder.path().join("hello").join(newest.to_string());
        fs::remove_dir_all(path).expect("a snapshot to remove");
    }
}
