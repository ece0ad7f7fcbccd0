//! OCI image layouts: valid by their own rules, and byte for byte there and back.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use dormouse_archive::{Error, Existing, Exported, Result, export_oci, import, import_oci};
use dormouse_snapshot::{Compression, SnapshotRef, Store};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::{
    TempStore, assert_same, content, every_kind, memory, mode, names, packs, plain, publish,
};

fn export(
    store: &Store,
    snapshot: &SnapshotRef,
    folder: &Path,
    tag: Option<&str>,
) -> Result<Exported> {
    export_oci(store, snapshot, folder, tag, Existing::Keep, &mut |_, _| {})
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Checks a descriptor and its blob, and gives the blob.
fn blob(layout: &Path, descriptor: &Value, seen: &mut BTreeSet<String>) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap();
    let hex = digest.strip_prefix("sha256:").unwrap();
    let path = layout.join("blobs/sha256").join(hex);
    let content = fs::read(&path).unwrap();
    assert_eq!(descriptor["size"], content.len());
    let found: String = Sha256::digest(&content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(found, hex);
    assert_eq!(mode(&path) & 0o077, 0, "guest memory is nobody else's");
    seen.insert(hex.to_owned());
    content
}

/// Checks a layout by the rules of the image specification, and gives its tags.
fn check_layout(layout: &Path) -> Vec<String> {
    assert_eq!(names(layout), ["blobs", "index.json", "oci-layout"]);
    assert_eq!(
        json(&layout.join("oci-layout"))["imageLayoutVersion"],
        "1.0.0"
    );
    let index = json(&layout.join("index.json"));
    assert_eq!(index["schemaVersion"], 2);
    assert_eq!(
        index["mediaType"],
        "application/vnd.oci.image.index.v1+json"
    );
    let (mut seen, mut tags) = (BTreeSet::new(), Vec::new());
    for entry in index["manifests"].as_array().unwrap() {
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        assert_eq!(entry["mediaType"], manifest_type);
        let tag = &entry["annotations"]["org.opencontainers.image.ref.name"];
        tags.push(tag.as_str().unwrap().to_owned());
        let manifest: Value = serde_json::from_slice(&blob(layout, entry, &mut seen)).unwrap();
        assert_eq!(manifest["schemaVersion"], 2);
        assert_eq!(manifest["mediaType"], manifest_type);
        assert_eq!(manifest["artifactType"], entry["artifactType"]);
        blob(layout, &manifest["config"], &mut seen);
        let mut titles = BTreeSet::new();
        for layer in manifest["layers"].as_array().unwrap() {
            blob(layout, layer, &mut seen);
            let media = layer["mediaType"].as_str().unwrap();
            assert!(
                media.starts_with("application/vnd.dormouse.snapshot."),
                "{media}"
            );
            let title = &layer["annotations"]["org.opencontainers.image.title"];
            assert!(titles.insert(title.as_str().unwrap().to_owned()));
        }
        assert!(titles.contains("snapshot.dms"));
    }
    let blobs: BTreeSet<_> = names(&layout.join("blobs/sha256")).into_iter().collect();
    assert_eq!(blobs, seen, "a blob that nothing needs");
    tags
}

#[test]
fn every_kind_of_snapshot_comes_back_as_it_was() {
    let from = TempStore::new();
    let snapshots = every_kind(&from.store);
    let all = from.path("all");
    let mut sizes = Vec::new();
    for snapshot in &snapshots {
        let alone = from.path(snapshot.function.as_str());
        let out = export(&from.store, snapshot, &alone, None).unwrap();
        let size: usize = content(&from.store, snapshot).values().map(Vec::len).sum();
        assert_eq!(out.bytes, size as u64);
        assert!(out.written_bytes > out.bytes);
        assert_eq!(check_layout(&alone), [snapshot.to_string()]);
        let to = TempStore::new();
        let imported = import(&to.store, &alone, None, &mut |_, _| {}).unwrap();
        assert_eq!(imported.id, snapshot.id);
        assert_same(&from.store, &to.store, snapshot);
        assert_eq!(to.visible(), [snapshot.function.as_str()]);

        sizes.push(export(&from.store, snapshot, &all, None).unwrap());
    }
    // The layer's first pack came with its parent.
    let shared = fs::metadata(
        crate::support::folder(&from.store, &snapshots[0])
            .join(&packs(&crate::support::folder(&from.store, &snapshots[0]))[0]),
    );
    assert!(sizes[2].written_bytes < sizes[2].bytes - shared.unwrap().len() + 8192);
    let tags: Vec<_> = snapshots.iter().map(ToString::to_string).collect();
    assert_eq!(check_layout(&all), tags);
    let to = TempStore::new();
    for (snapshot, tag) in snapshots.iter().zip(&tags) {
        import_oci(&to.store, &all, Some(tag), &mut |_, _| {}).unwrap();
        assert_same(&from.store, &to.store, snapshot);
    }
}

#[test]
fn exporting_again_changes_nothing() {
    let from = TempStore::new();
    let snapshot = plain(&from.store);
    let layout = from.path("layout");
    export(&from.store, &snapshot, &layout, Some("v1")).unwrap();
    let before = fs::read(layout.join("index.json")).unwrap();
    export(&from.store, &snapshot, &layout, Some("v1")).unwrap();
    assert!(fs::read(layout.join("index.json")).unwrap() == before);
    check_layout(&layout);

    // A blob that was damaged is mended.
    let blobs = layout.join("blobs/sha256");
    let largest = names(&blobs)
        .into_iter()
        .max_by_key(|name| fs::metadata(blobs.join(name)).unwrap().len())
        .unwrap();
    let mut content = fs::read(blobs.join(&largest)).unwrap();
    content[77] ^= 1;
    fs::write(blobs.join(&largest), content).unwrap();
    export(&from.store, &snapshot, &layout, Some("v1")).unwrap();
    check_layout(&layout);
}

#[test]
fn tags_choose_and_are_not_lost() {
    let from = TempStore::new();
    let first = plain(&from.store);
    let second = publish(&from.store, "plain", &memory(8), None, Compression::None);
    let layout = from.path("layout");
    export(&from.store, &first, &layout, Some("stable")).unwrap();
    let taken = export(&from.store, &second, &layout, Some("stable"));
    assert!(matches!(taken, Err(Error::TagTaken { .. })));
    assert_eq!(check_layout(&layout), ["stable"]);
    export(&from.store, &second, &layout, Some("next")).unwrap();
    let import = |tag: Option<&str>| {
        let to = TempStore::new();
        import_oci(&to.store, &layout, tag, &mut |_, _| {}).map(|imported| imported.id)
    };
    assert_eq!(import(Some("stable")).unwrap(), first.id);
    assert_eq!(import(Some("next")).unwrap(), second.id);
    let digest = json(&layout.join("index.json"))["manifests"][1]["digest"].clone();
    assert_eq!(import(digest.as_str()).unwrap(), second.id);
    let error = import(None).unwrap_err();
    assert!(
        matches!(error, Error::Ambiguous { snapshots: 2, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("there are next, stable"),
        "{error}"
    );
    let error = import(Some("nightly")).unwrap_err();
    assert!(matches!(error, Error::UnknownTag { .. }), "{error}");

    let replace = |tag| {
        let progress = &mut |_, _| {};
        export_oci(
            &from.store,
            &second,
            &layout,
            Some(tag),
            Existing::Replace,
            progress,
        )
    };
    replace("stable").unwrap();
    assert_eq!(import(Some("stable")).unwrap(), second.id);
    // Both tags are of one snapshot now, so none has to be named.
    assert_eq!(import(None).unwrap(), second.id);
    for bad in ["", "-x", "a b", "ü", &"x".repeat(129), "../up"] {
        assert!(matches!(replace(bad), Err(Error::BadTag { .. })), "{bad:?}");
    }
}

#[test]
fn what_others_have_in_a_layout_stays() {
    let from = TempStore::new();
    let snapshot = plain(&from.store);
    let layout = from.path("layout");
    fs::create_dir(&layout).unwrap();
    export(&from.store, &snapshot, &layout, None).unwrap();
    let path = layout.join("index.json");
    let mut index = json(&path);
    let foreign = serde_json::json!({
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": "sha512:00", "size": 3, "platform": { "os": "plan9" },
    });
    index["manifests"]
        .as_array_mut()
        .unwrap()
        .push(foreign.clone());
    index["annotations"] = serde_json::json!({ "whose": "somebody's" });
    fs::write(&path, index.to_string()).unwrap();
    export(&from.store, &snapshot, &layout, Some("more")).unwrap();
    let after = json(&path);
    assert_eq!(after["annotations"], index["annotations"]);
    assert_eq!(after["manifests"][1], foreign);
    let to = TempStore::new();
    import_oci(&to.store, &layout, None, &mut |_, _| {}).unwrap();
    assert_same(&from.store, &to.store, &snapshot);
}

#[test]
fn other_folders_are_left_alone() {
    let from = TempStore::new();
    let snapshot = plain(&from.store);
    let folder = from.path("home");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("letter"), b"dear").unwrap();
    let refused = export(&from.store, &snapshot, &folder, None);
    assert!(matches!(refused, Err(Error::Occupied { .. })));
    assert_eq!(names(&folder), ["letter"]);

    // Blobs are not written to where a link leads.
    let (layout, outside) = (from.path("layout"), from.path("outside"));
    fs::create_dir(&layout).unwrap();
    fs::create_dir_all(outside.join("sha256")).unwrap();
    fs::write(
        layout.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    symlink(&outside, layout.join("blobs")).unwrap();
    export(&from.store, &snapshot, &layout, None).unwrap_err();
    assert!(names(&outside.join("sha256")).is_empty());
}

#[test]
fn a_first_export_that_was_interrupted_can_be_repeated() {
    let from = TempStore::new();
    let snapshot = plain(&from.store);
    let layout = from.path("deep/layout");
    export(&from.store, &snapshot, &layout, None).unwrap();
    // What is written last, and what is still being written, when it is killed.
    fs::remove_file(layout.join("index.json")).unwrap();
    fs::remove_file(layout.join("oci-layout")).unwrap();
    fs::write(layout.join(".tmpA1b2C3"), b"half of a blob").unwrap();
    let repeated = export(&from.store, &snapshot, &layout, None).unwrap();
    assert!(repeated.written_bytes < repeated.bytes, "blobs are there");
    fs::remove_file(layout.join(".tmpA1b2C3")).unwrap();
    assert_eq!(check_layout(&layout), [snapshot.to_string()]);
}
