//! Snapshots that were written once and must be readable for ever (`snapshots/golden`), on any host.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Sample, State, copy_folder, name, names, overwrite, temp_store};
use dormouse_snapshot::{
    Compression, Digest, Error, FORMAT_VERSION, OLDEST_FORMAT_VERSION, PAGE_BYTES, Snapshot,
    SnapshotRef, Store, WorkingSet,
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../snapshots/golden")
}

/// A few pages in the first chunk and in the short last one.
fn sample(seed: u8) -> Sample {
    Sample::new(20, &[0..2, 5..6, 17..20], seed)
}

/// [`sample`] as its function goes on: one page more, one page less, one that differs.
fn layered(seed: u8) -> Sample {
    let mut sample = sample(seed);
    sample.memory[5 * PAGE_BYTES..6 * PAGE_BYTES].fill(0);
    sample.memory[9 * PAGE_BYTES..10 * PAGE_BYTES].fill(0xd7);
    sample.memory[PAGE_BYTES + 99] = 0x42;
    sample.state.registers[3] += 1;
    sample
}

fn working_set() -> WorkingSet {
    WorkingSet::from_touched([18, 0, 5, 9], [9, 1])
}

const RAW: &str = "raw";
const LAYER: &str = "layer";
const ZSTD: &str = "zstd";

/// What the store of a version has in it.
fn content(version: u32) -> Vec<(&'static str, Sample)> {
    match version {
        1 => vec![(RAW, sample(1))],
        2 => vec![(LAYER, layered(1)), (RAW, sample(1)), (ZSTD, sample(6))],
        other => panic!("no golden snapshots of version {other} are known here: add some"),
    }
}

/// Writes the snapshots of version 2 with this very build.
fn write_v2(store: &Store) {
    let raw = sample(1).publish(store, &name(RAW)).unwrap();
    let parent = SnapshotRef {
        function: name(RAW),
        id: raw,
    };
    store
        .save_working_set(&name(RAW), &raw, &working_set())
        .unwrap();
    layered(1)
        .publish_as(store, &name(LAYER), Some(parent), Compression::None)
        .unwrap();
    sample(6)
        .publish_as(store, &name(ZSTD), None, Compression::Zstd)
        .unwrap();
}

/// Writes a snapshot of version 1, which no build does any more: by `snapshots/FORMAT.md`, section
/// 8, and without this crate's code.
fn write_v1(root: &Path) {
    let sample = sample(1);
    let state = bincode::serde::encode_to_vec(&sample.state, bincode::config::standard()).unwrap();
    let mut body = state.clone();
    for range in [0..2u64, 5..6, 17..20] {
        body.extend_from_slice(&range.start.to_le_bytes());
        body.extend_from_slice(&range.end.to_le_bytes());
    }
    for chunk in sample.memory.chunks(65536) {
        body.extend_from_slice(Digest::of(chunk).as_bytes());
    }
    let id = "00000001-0123456789abcdef";
    let manifest = serde_json::json!({
        "format_version": 1,
        "function": RAW,
        "id": id,
        "created_unix_ms": 1_700_000_000_000u64,
        "host": "test host",
        "memory_bytes": 20 * 4096,
        "data_pages": 6,
        "state_bytes": state.len(),
        "image_bytes": sample.image.len(),
        "image_digest": Digest::of(&sample.image).to_string(),
        "config": { "memory": "64MiB", "concurrency": 4, "seed": 1 },
    });
    let manifest = serde_json::to_vec_pretty(&manifest).unwrap();

    let mut header = b"DORMOUSE".to_vec();
    for word in [1u32, 1, 256, 4096, 65536, 0] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    let (state_bytes, image_bytes) = (state.len() as u64, sample.image.len() as u64);
    // Pages, state, data ranges, chunks with data, manifest, image.
    for number in [20, state_bytes, 3, 2, manifest.len() as u64, image_bytes] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    for content in [&manifest, &sample.image, &body] {
        header.extend_from_slice(Digest::of(content).as_bytes());
    }
    header.extend_from_slice(&[0; 48]);
    let digest = Digest::of(&header);
    header.extend_from_slice(digest.as_bytes());
    assert_eq!(header.len(), 256);

    let folder = root.join(RAW).join(id);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("snapshot.dms"), [header, body].concat()).unwrap();
    fs::write(folder.join("manifest.json"), manifest).unwrap();
    fs::write(folder.join("memory"), &sample.memory).unwrap();
    fs::write(folder.join("image"), &sample.image).unwrap();
}

/// Writes the store of a version into the folder `root`.
fn write(version: u32, root: &Path) {
    match version {
        1 => write_v1(root),
        _ => write_v2(&Store::open(root).unwrap()),
    }
}

/// A copy of a golden store, as readers must leave it alone.
fn copied(version: u32) -> (tempfile::TempDir, Store) {
    let (dir, store) = temp_store();
    copy_folder(&golden().join(format!("v{version}")), store.path());
    (dir, store)
}

#[test]
#[ignore = "writes snapshots/golden: `cargo xtask golden` runs it"]
fn write_golden() {
    for version in OLDEST_FORMAT_VERSION..=FORMAT_VERSION {
        let folder = golden().join(format!("v{version}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        write(version, &folder);
        let _ = fs::remove_file(folder.join(".lock"));
    }
}

#[test]
fn every_version_is_read_to_the_last_byte() {
    for version in OLDEST_FORMAT_VERSION..=FORMAT_VERSION {
        let (_dir, store) = copied(version);
        let mut functions = names(store.path());
        functions.retain(|name| !name.starts_with('.'));
        let content = content(version);
        let known: Vec<&str> = content.iter().map(|(function, _)| *function).collect();
        assert_eq!(functions, known, "of version {version}");
        for (function, sample) in content {
            let snapshot: Snapshot<State> = store.open_newest(&name(function)).unwrap();
            sample.check(&snapshot).unwrap();
            assert_eq!(snapshot.manifest.format_version, version);
            assert_eq!(snapshot.manifest.created_unix_ms, 1_700_000_000_000);
            assert_eq!(snapshot.manifest.host, "test host");
            assert_eq!(snapshot.manifest.config["concurrency"], 4);
            assert_eq!(
                snapshot.manifest.layer.map(|layer| layer.depth),
                (function == LAYER).then_some(1)
            );
            assert!(snapshot.working_set_error.is_none());
            let has_set = version > 1 && function == RAW;
            assert_eq!(snapshot.working_set, has_set.then(working_set));
        }
        let verified = store.verify_all(|which, error| panic!("{which}: {error}"));
        assert_eq!(verified.unwrap().snapshots, known.len() as u64);
    }
}

#[test]
fn a_golden_snapshot_of_the_first_version_can_be_made_one_of_today() {
    let (_dir, store) = copied(1);
    let first: Snapshot<State> = store.open_newest(&name(RAW)).unwrap();
    store
        .flatten(&name(RAW), &first.id, Compression::Zstd)
        .unwrap();
    let snapshot: Snapshot<State> = store.open_newest(&name(RAW)).unwrap();
    assert_eq!(snapshot.manifest.format_version, FORMAT_VERSION);
    sample(1).check(&snapshot).unwrap();
}

/// How well zstd compresses may change with it, so nothing is said of the bytes of that snapshot.
#[test]
fn what_is_written_today_is_what_was_written_then() {
    for version in OLDEST_FORMAT_VERSION..=FORMAT_VERSION {
        let (_dir, store) = temp_store();
        write(version, store.path());
        let (_golden_dir, golden) = copied(version);
        for (function, _) in content(version) {
            if function == ZSTD {
                continue;
            }
            let folders = [&store, &golden].map(|store| store.path().join(function));
            let [ids, golden_ids] = folders.each_ref().map(|folder| names(folder));
            assert_eq!(ids, golden_ids, "of {function} in version {version}");
            let [now, then] = folders.map(|folder| folder.join(&ids[0]));
            assert_eq!(names(&now), names(&then));
            for file in names(&now) {
                let same =
                    fs::read(now.join(&file)).unwrap() == fs::read(then.join(&file)).unwrap();
                assert!(
                    same,
                    "{function}/{file} of version {version} is written in other bytes than before: \
                     that is a new FORMAT_VERSION, see snapshots/FORMAT.md, \"Compatibility\""
                );
            }
        }
    }
}

#[test]
fn the_manifest_has_the_documented_members() {
    for (version, function) in [(1, RAW), (2, RAW), (2, LAYER)] {
        let folder = golden().join(format!("v{version}")).join(function);
        let json = fs::read(folder.join(&names(&folder)[0]).join("manifest.json")).unwrap();
        let Value::Object(manifest) = serde_json::from_slice(&json).unwrap() else {
            panic!("no object");
        };
        let mut found: Vec<&str> = manifest.keys().map(String::as_str).collect();
        let mut members = vec![
            "format_version",
            "function",
            "id",
            "created_unix_ms",
            "host",
            "memory_bytes",
            "data_pages",
            "state_bytes",
            "image_bytes",
            "image_digest",
            "config",
        ];
        if function == LAYER {
            members.push("layer");
            let parent = &manifest["layer"]["parent"];
            assert_eq!(parent["function"], RAW);
            assert!(parent["id"].is_string());
            assert_eq!(manifest["layer"]["depth"], 1);
        }
        members.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, members, "of {function} in version {version}");
    }
}

/// A newer and an older one than is known: each is said, whatever stands behind the version.
#[test]
fn versions_that_are_not_read_are_named_with_what_to_do() {
    let (_dir, store) = copied(2);
    let folder = store.path().join(RAW);
    let path = folder.join(&names(&folder)[0]).join("snapshot.dms");
    let good = fs::read(&path).unwrap();
    let told = |version: u32, length: usize| {
        let mut bytes = good.clone();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes.truncate(length);
        overwrite(&path, &bytes);
        store.open_newest::<State>(&name(RAW)).unwrap_err()
    };
    for length in [good.len(), 16] {
        let error = told(FORMAT_VERSION + 1, length);
        assert!(matches!(
            error,
            Error::TooNew {
                found: 3,
                newest: 2,
                ..
            }
        ));
        assert_eq!(
            error.to_string(),
            format!(
                "{} has format version 3, but this build reads none above 2: use a newer dormouse, \
                 or deploy the function again with this one",
                path.display()
            )
        );
        let error = told(0, length);
        assert!(matches!(
            error,
            Error::TooOld {
                found: 0,
                oldest: 1,
                ..
            }
        ));
        assert_eq!(
            error.to_string(),
            format!(
                "{} has format version 0, but this build reads none below 1: deploy the function \
                 again",
                path.display()
            )
        );
    }
}
