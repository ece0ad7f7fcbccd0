//! Stores with something in them that does not belong there, and work that meets other work.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::SystemTime;

use dormouse_snapshot::{
    Compression, Error, IfTagged, Protection, RetentionConfig, Snapshot, SnapshotRef, Store,
};

use crate::support::{Sample, State, folder, name, open_writable, overwrite, packs, temp_store};

fn keep_one() -> RetentionConfig {
    RetentionConfig {
        keep_last: Some(1),
        ..RetentionConfig::default()
    }
}

#[test]
fn flattening_never_undoes_what_was_published_meanwhile() {
    let (_dir, store) = temp_store();
    let function = name("f");
    Sample::small(1).publish(&store, &function).unwrap();
    thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            for seed in 2..40 {
                Sample::small(seed).publish(&store, &function).unwrap();
            }
        });
        while !publisher.is_finished() {
            let source = store.manifest(&function).unwrap().id;
            match store.flatten(&function, &source, Compression::None) {
                Ok(flat) => assert_eq!(flat.sequence(), source.sequence() + 1),
                Err(Error::Refused { reason, .. }) => assert!(reason.contains("not the newest")),
                Err(other) => panic!("{other}"),
            }
        }
    });
    // A function that was removed does not come back.
    let source = store.manifest(&function).unwrap().id;
    store.remove(&function).unwrap();
    let error = store.flatten(&function, &source, Compression::None);
    assert!(matches!(error, Err(Error::UnknownSnapshot { .. })));
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn flattening_a_damaged_snapshot_says_that_it_is_damaged() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let id = Sample::small(1).publish(&store, &function).unwrap();
    let folder = folder(&store, &function, &id);
    let pack = folder.join(&packs(&folder)[0]);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[5000] ^= 1;
    overwrite(&pack, &bytes);
    let error = store.flatten(&function, &id, Compression::Zstd);
    assert!(matches!(error, Err(Error::Damaged { .. })), "{error:?}");
}

#[test]
fn a_stray_file_with_the_name_of_a_snapshot_is_none() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let id = Sample::small(1).publish(&store, &function).unwrap();
    let stray = "00000099-0123456789abcdef";
    fs::write(store.path().join("f").join(stray), "x").unwrap();
    let opened: Snapshot<State> = store.open_newest(&function).unwrap();
    assert_eq!(opened.id, id);
    assert_eq!(store.resolve(&"f".parse().unwrap()).unwrap().id, id);
    let opened = store.open_id::<State>(&function, &stray.parse().unwrap());
    assert!(matches!(opened, Err(Error::UnknownSnapshot { .. })));
    // Its number is not given out again, and it can be taken away.
    let next = Sample::small(2).publish(&store, &function).unwrap();
    assert_eq!(next.sequence(), 100);
    let snapshot: SnapshotRef = format!("f@{stray}").parse().unwrap();
    store.remove_id(&snapshot, IfTagged::Refuse).unwrap();
}

#[test]
fn folders_that_cannot_be_read_stop_nobody_else() {
    let (_dir, store) = temp_store();
    symlink("loop", store.path().join("loop")).unwrap();
    let sample = Sample::small(1);
    sample.publish(&store, &name("f")).unwrap();
    sample
        .check(&store.open_newest(&name("f")).unwrap())
        .unwrap();
}

#[test]
fn the_lock_is_not_looked_for_where_a_link_leads() {
    let (dir, store) = temp_store();
    let elsewhere = dir.path().join("elsewhere");
    fs::remove_file(store.path().join(".lock")).ok();
    symlink(&elsewhere, store.path().join(".lock")).unwrap();
    assert!(Sample::small(1).publish(&store, &name("f")).is_err());
    assert!(!elsewhere.exists());
}

#[test]
fn one_odd_snapshot_does_not_stop_a_collection() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let ids = [1, 2, 3].map(|seed| Sample::small(seed).publish(&store, &function).unwrap());
    let state = folder(&store, &function, &ids[0]).join("snapshot.dms");
    fs::remove_file(&state).unwrap();
    let _socket = UnixListener::bind(&state).unwrap();
    let report = store.gc(&keep_one(), SystemTime::now(), false).unwrap();
    assert_eq!(report.removed.len(), 2, "{report:?}");
    assert_eq!(store.snapshots().unwrap().len(), 1);
}

#[test]
fn what_is_being_deleted_makes_no_other_go() {
    let (_dir, store) = temp_store();
    let function = name("f");
    for seed in 1..4 {
        Sample::small(seed).publish(&store, &function).unwrap();
    }
    let bytes = store.usage().unwrap().total_bytes;
    let going = store.path().join(".tmp-somebody");
    fs::create_dir(&going).unwrap();
    fs::write(going.join("pack"), vec![1; 1 << 20]).unwrap();
    assert!(store.usage().unwrap().total_bytes > bytes);
    let config = RetentionConfig {
        max_bytes: Some(bytes),
        ..RetentionConfig::default()
    };
    let report = store.gc(&config, SystemTime::now(), false).unwrap();
    assert!(report.removed.is_empty(), "{report:?}");
}

#[test]
fn a_layer_keeps_its_parent_whatever_else_its_manifest_says() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let parent = SnapshotRef {
        id: Sample::small(1).publish(&store, &function).unwrap(),
        function: function.clone(),
    };
    let layer = Sample::small(2)
        .publish_as(&store, &function, Some(parent.clone()), Compression::None)
        .unwrap();
    let manifest = folder(&store, &function, &layer).join("manifest.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    json["created_unix_ms"] = "yesterday".into();
    json["memory_bytes"] = (-1).into();
    overwrite(&manifest, json.to_string().as_bytes());
    let removed = store.remove_id(&parent, IfTagged::Refuse);
    assert!(
        matches!(removed, Err(Error::HasLayers { .. })),
        "{removed:?}"
    );
    let report = store.gc(&keep_one(), SystemTime::now(), false).unwrap();
    assert!(report.removed.is_empty(), "{report:?}");
}

#[test]
fn tags_with_a_flipped_bit_free_nothing() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let tagged = SnapshotRef {
        id: Sample::small(1).publish(&store, &function).unwrap(),
        function: function.clone(),
    };
    Sample::small(2).publish(&store, &function).unwrap();
    store.tag(&tagged, &"stable".parse().unwrap()).unwrap();
    let path = store.path().join("f/tags.json");
    let text = fs::read_to_string(&path).unwrap();
    // Another id that may well be: only the digest tells.
    let id = tagged.id.to_string();
    let last = if id.ends_with('0') { '1' } else { '0' };
    let other = format!("{}{last}", &id[..id.len() - 1]);
    drop(open_writable(&path));
    fs::write(&path, text.replace(&id, &other)).unwrap();
    assert!(matches!(store.tags(&function), Err(Error::BadTags { .. })));
    let report = store.gc(&keep_one(), SystemTime::now(), false).unwrap();
    assert!(report.removed.is_empty(), "{report:?}");
    let [kept] = &report.kept[..] else {
        panic!("{report:?}")
    };
    assert!(matches!(kept.protections[..], [Protection::UnknownTags(_)]));
}

#[test]
fn one_page_used_often_does_not_borrow_a_whole_pack() {
    let (_dir, store) = temp_store();
    let big = Sample::new(150, &[0..140], 7);
    big.publish(&store, &name("big")).unwrap();
    // Nothing but copies of one of its pages.
    let mut copies = Sample::new(150, &[0..0], 9);
    let page = big.memory[3 * 4096..4 * 4096].to_vec();
    for place in copies.memory.chunks_mut(4096).take(100) {
        place.copy_from_slice(&page);
    }
    let id = copies.publish(&store, &name("copies")).unwrap();
    let theirs = packs(&folder(&store, &name("copies"), &id));
    let id = store.manifest(&name("big")).unwrap().id;
    let of_big = packs(&folder(&store, &name("big"), &id));
    assert!(theirs.iter().all(|pack| !of_big.contains(pack)));
    copies
        .check(&store.open_newest(&name("copies")).unwrap())
        .unwrap();
}

#[test]
fn a_copy_in_the_store_that_is_not_whole_is_blamed_itself() {
    let (_dir, store) = temp_store();
    let (_other_dir, other) = temp_store();
    let function = name("f");
    let id = Sample::small(1).publish(&store, &function).unwrap();
    let snapshot = SnapshotRef {
        function: function.clone(),
        id,
    };
    let import = |store: &Store, from: &Store| {
        let mut adoption = store.adopt(&snapshot).unwrap();
        for mut file in from.files(&snapshot).unwrap() {
            adoption
                .receive(&file.name, file.bytes, &mut file.file)
                .unwrap();
        }
        adoption.finish()
    };
    import(&other, &store).unwrap();
    let theirs = folder(&other, &function, &id);
    for broken in ["manifest.json", "snapshot.dms", &packs(&theirs)[0]] {
        let path = theirs.join(broken);
        let good = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let error = import(&other, &store).unwrap_err();
        let Error::Refused { reason, .. } = &error else {
            panic!("{broken}: {error}")
        };
        assert!(reason.contains("not whole"), "{broken}: {reason}");
        fs::write(&path, good).unwrap();
    }
    assert!(import(&other, &store).unwrap().already_there);
}
