//! Equal pages are stored once, layers store what differs, and nobody depends on anybody's folder.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;

use crate::support::{Sample, State, folder, name, open_writable, packs, temp_store};
use dormouse_snapshot::{
    Compression, Error, FunctionName, MAX_LAYER_DEPTH, PAGE_BYTES, SnapshotId, SnapshotRef, Store,
};

fn reference(function: &FunctionName, id: SnapshotId) -> SnapshotRef {
    SnapshotRef {
        function: function.clone(),
        id,
    }
}

/// Bytes of the packs of a snapshot that no other snapshot has.
fn own_bytes(store: &Store, function: &FunctionName, id: &SnapshotId) -> u64 {
    let folder = folder(store, function, id);
    let packs = packs(&folder);
    let metadata = packs
        .iter()
        .map(|pack| folder.join(pack).metadata().unwrap());
    metadata
        .filter(|metadata| metadata.nlink() == 1)
        .map(|metadata| metadata.len())
        .sum()
}

/// `sample` with other bytes in `pages`.
fn changed(sample: &Sample, pages: &[usize]) -> Sample {
    let mut changed = sample.clone();
    for page in pages {
        changed.memory[page * PAGE_BYTES + 99] ^= 0x55;
    }
    changed
}

#[test]
fn equal_content_is_stored_once() {
    let (_dir, store) = temp_store();
    let (one, two) = (name("one"), name("two"));
    let sample = Sample::small(1);
    let first = sample.publish(&store, &one).unwrap();
    let second = sample.publish(&store, &one).unwrap();
    let third = sample.publish(&store, &two).unwrap();
    for (function, id) in [(&one, &first), (&one, &second), (&two, &third)] {
        sample.check(&store.open_id(function, id).unwrap()).unwrap();
        assert_eq!(own_bytes(&store, function, id), 0);
    }
    // Whoever goes takes nothing from the others.
    store.remove(&one).unwrap();
    sample.check(&store.open_newest(&two).unwrap()).unwrap();
    assert!(own_bytes(&store, &two, &third) > 0);
    store.verify(&two).unwrap();
}

#[test]
fn what_differs_is_stored_alone() {
    let (_dir, store) = temp_store();
    let function = name("changing");
    let sample = Sample::small(1);
    sample.publish(&store, &function).unwrap();
    let other = changed(&sample, &[1, 50, 100]);
    let id = other.publish(&store, &function).unwrap();
    other.check(&store.open_newest(&function).unwrap()).unwrap();
    let own = own_bytes(&store, &function, &id);
    assert!((3 * 4096..5 * 4096).contains(&own), "{own} bytes");
}

#[test]
fn a_pack_of_which_little_is_wanted_is_not_held() {
    let (_dir, store) = temp_store();
    Sample::new(200, &[0..200], 1)
        .publish(&store, &name("large"))
        .unwrap();
    let mut small = Sample::new(20, &[0..4], 9);
    small.memory[..PAGE_BYTES].copy_from_slice(&Sample::new(1, &[0..1], 1).memory);
    let id = small.publish(&store, &name("small")).unwrap();
    let folder = folder(&store, &name("small"), &id);
    assert_eq!(packs(&folder).len(), 1);
    small
        .check(&store.open_newest(&name("small")).unwrap())
        .unwrap();
}

#[test]
fn blocks_that_are_shared_are_verified_once() {
    let (_dir, store) = temp_store();
    let sample = Sample::small(1);
    let once = {
        sample.publish(&store, &name("f0")).unwrap();
        store.verify_all(|_, error| panic!("{error}")).unwrap()
    };
    assert!(once.blocks > 0 && once.bytes > 0);
    for number in 1..200 {
        sample
            .publish(&store, &name(&format!("f{number}")))
            .unwrap();
    }
    let mut told = Vec::new();
    let all = store.verify_each(
        &store.snapshots().unwrap(),
        |found| told.push(*found),
        |_, error| panic!("{error}"),
    );
    assert_eq!(all.snapshots, 200);
    assert_eq!((all.blocks, all.bytes), (once.blocks, once.bytes));
    assert_eq!(store.verify_all(|_, error| panic!("{error}")).unwrap(), all);
    // After each block and each snapshot, and never less than before.
    assert_eq!(told.len() as u64, all.blocks + all.snapshots);
    assert!(told.is_sorted_by_key(|found| (found.snapshots, found.blocks)));
    assert_eq!(told.last(), Some(&all));
}

#[test]
fn a_damaged_pack_damages_all_that_share_it() {
    let (_dir, store) = temp_store();
    let sample = Sample::small(1);
    let id = sample.publish(&store, &name("one")).unwrap();
    sample.publish(&store, &name("two")).unwrap();
    Sample::small(3).publish(&store, &name("good")).unwrap();
    let folder = folder(&store, &name("one"), &id);
    let file = open_writable(&folder.join(&packs(&folder)[0]));
    std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 4096 + 70).unwrap();

    let mut bad = Vec::new();
    let found = store
        .verify_all(|snapshot, error| bad.push((snapshot.function.to_string(), error)))
        .unwrap();
    assert_eq!(found.snapshots, 1);
    assert_eq!(bad.len(), 2, "{bad:?}");
    for ((function, error), expected) in bad.iter().zip(["one", "two"]) {
        assert_eq!(function, expected);
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
    // One that is not there is not good either, when it is asked for.
    let gone = reference(&name("none"), id);
    let mut bad = Vec::new();
    store.verify_each(&[gone], |_| {}, |_, error| bad.push(error));
    assert!(matches!(bad[..], [Error::UnknownSnapshot { .. }]));
}

#[test]
fn a_damaged_pack_lends_nothing() {
    let (_dir, store) = temp_store();
    let sample = Sample::small(1);
    let id = sample.publish(&store, &name("damaged")).unwrap();
    let damaged = folder(&store, &name("damaged"), &id);
    let pack = damaged.join(&packs(&damaged)[0]);
    let file = open_writable(&pack);
    std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 4096 + 70).unwrap();

    for (function, sample) in [("same", sample.clone()), ("other", changed(&sample, &[50]))] {
        sample.publish(&store, &name(function)).unwrap();
        sample
            .check(&store.open_newest(&name(function)).unwrap())
            .unwrap();
    }
    let mut bad = Vec::new();
    store.verify_all(|snapshot, _| bad.push(snapshot)).unwrap();
    // The others may have linked the pack for its good blocks, and use none of the damaged one.
    assert_eq!(bad, [reference(&name("damaged"), id)]);
}

#[test]
fn everybody_who_shares_a_damaged_pack_is_told() {
    let (_dir, store) = temp_store();
    let sample = Sample::small(1);
    let id = sample.publish(&store, &name("one")).unwrap();
    sample.publish(&store, &name("two")).unwrap();
    let first = folder(&store, &name("one"), &id);
    let pack = first.join(&packs(&first)[0]);
    let file = open_writable(&pack);
    std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 4096 + 70).unwrap();

    let mut bad = Vec::new();
    store
        .verify_all(|snapshot, _| bad.push(snapshot.function))
        .unwrap();
    assert_eq!(bad, [name("one"), name("two")]);
}

#[test]
fn layers_store_what_differs_from_their_parent() {
    let (_dir, store) = temp_store();
    let (base, warm) = (name("base"), name("warm"));
    let sample = Sample::new(400, &[0..400], 1);
    let parent = sample.publish(&store, &base).unwrap();
    let layer = changed(&sample, &[7]);
    let parent = reference(&base, parent);
    let id = layer
        .publish_as(&store, &warm, Some(parent.clone()), Compression::None)
        .unwrap();
    let snapshot = store.open_newest::<State>(&warm).unwrap();
    layer.check(&snapshot).unwrap();
    let info = snapshot.manifest.layer.clone().unwrap();
    assert_eq!((info.parent, info.depth), (parent.clone(), 1));
    assert!(own_bytes(&store, &warm, &id) < 3 * 4096);
    let below = store.open_newest::<State>(&base).unwrap();
    let shared = snapshot.memory.stored_once_with(&below.memory);
    assert_eq!(shared, [0..7, 8..400]);

    // A parent that lends little is still a parent.
    let mut other = Sample::new(400, &[0..2], 3);
    other.memory[..PAGE_BYTES].copy_from_slice(&sample.memory[..PAGE_BYTES]);
    let id = other
        .publish_as(&store, &name("far"), Some(parent), Compression::None)
        .unwrap();
    assert_eq!(packs(&folder(&store, &name("far"), &id)).len(), 2);
    other
        .check(&store.open_newest(&name("far")).unwrap())
        .unwrap();
}

#[test]
fn a_layer_without_a_parent_is_refused() {
    let (_dir, store) = temp_store();
    let sample = Sample::small(1);
    let id = sample.publish(&store, &name("gone")).unwrap();
    store.remove(&name("gone")).unwrap();
    let parent = reference(&name("gone"), id);
    let published = sample.publish_as(&store, &name("warm"), Some(parent), Compression::None);
    assert!(matches!(published, Err(Error::UnknownSnapshot { .. })));
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn deep_chains_are_flattened_by_themselves() {
    let (_dir, store) = temp_store();
    let function = name("deep");
    let mut sample = Sample::small(1);
    let mut id = sample.publish(&store, &function).unwrap();
    for depth in 1..=MAX_LAYER_DEPTH + 2 {
        sample = changed(&sample, &[depth as usize]);
        let parent = reference(&function, id);
        id = sample
            .publish_as(&store, &function, Some(parent), Compression::None)
            .unwrap();
        let snapshot = store.open_newest::<State>(&function).unwrap();
        sample.check(&snapshot).unwrap();
        let found = snapshot.manifest.layer.map(|layer| layer.depth);
        let expected = match depth {
            ..=MAX_LAYER_DEPTH => Some(depth),
            _ => (depth > MAX_LAYER_DEPTH + 1).then_some(1),
        };
        assert_eq!(found, expected, "{depth}");
        if depth == MAX_LAYER_DEPTH + 1 {
            assert_eq!(packs(&folder(&store, &function, &id)).len(), 1);
        }
    }
    store.verify(&function).unwrap();
}

#[test]
fn flattening_makes_a_snapshot_that_shares_nothing() {
    let (_dir, store) = temp_store();
    let function = name("flat");
    let sample = Sample::small(1);
    let first = sample.publish(&store, &function).unwrap();
    let layer = changed(&sample, &[3, 60]);
    let parent = Some(reference(&function, first));
    let id = layer
        .publish_as(&store, &function, parent, Compression::None)
        .unwrap();
    let set = dormouse_snapshot::WorkingSet::from_touched([1, 2], [60]);
    store.save_working_set(&function, &id, &set).unwrap();

    let error = store
        .flatten(&function, &first, Compression::None)
        .unwrap_err();
    assert!(error.to_string().contains("not the newest"), "{error}");
    let flat = store.flatten(&function, &id, Compression::None).unwrap();
    let snapshot = store.open_newest::<State>(&function).unwrap();
    assert_eq!(snapshot.id, flat);
    assert_eq!(snapshot.manifest.layer, None);
    assert_eq!(snapshot.working_set.as_ref(), Some(&set));
    layer.check(&snapshot).unwrap();
    let folder = folder(&store, &function, &flat);
    let names = packs(&folder);
    assert_eq!(names.len(), 1);
    assert_eq!(folder.join(&names[0]).metadata().unwrap().nlink(), 1);
}

#[test]
fn compressed_snapshots_are_smaller_and_the_same() {
    let (_dir, store) = temp_store();
    let sample = Sample::new(300, &[0..300], 1);
    let raw = sample.publish(&store, &name("raw")).unwrap();
    store.remove(&name("raw")).unwrap();
    let raw_bytes = 300 * 4096;
    let id = sample
        .publish_as(&store, &name("small"), None, Compression::Zstd)
        .unwrap();
    assert_ne!(raw, id);
    assert!(own_bytes(&store, &name("small"), &id) < raw_bytes / 10);
    sample
        .check(&store.open_newest(&name("small")).unwrap())
        .unwrap();
    // And others use its pages as they are.
    let id = sample.publish(&store, &name("user")).unwrap();
    assert_eq!(own_bytes(&store, &name("user"), &id), 0);
    sample
        .check(&store.open_newest(&name("user")).unwrap())
        .unwrap();
    store.verify(&name("user")).unwrap();
}

#[test]
fn lenders_that_go_while_others_publish() {
    let (_dir, store) = temp_store();
    let samples: Vec<_> = (0..4).map(|n| changed(&Sample::small(1), &[n])).collect();
    thread::scope(|scope| {
        for (number, sample) in samples.iter().enumerate() {
            let store = &store;
            scope.spawn(move || {
                let function = name(&format!("f{number}"));
                for _ in 0..20 {
                    sample.publish(store, &function).unwrap();
                    sample
                        .check(&store.open_newest(&function).unwrap())
                        .unwrap();
                    store.remove(&function).unwrap();
                }
            });
        }
    });
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_store_without_its_hard_links_is_as_good() {
    let (dir, store) = temp_store();
    let sample = Sample::small(1);
    sample.publish(&store, &name("one")).unwrap();
    changed(&sample, &[2])
        .publish(&store, &name("two"))
        .unwrap();
    let copy = dir.path().join("copy");
    let copying = std::process::Command::new("cp")
        .arg("-r")
        .args([store.path(), &copy])
        .status();
    assert!(copying.unwrap().success());
    fs::remove_dir_all(store.path()).unwrap();
    let copied = Store::open(&copy).unwrap();
    changed(&sample, &[2])
        .check(&copied.open_newest(&name("two")).unwrap())
        .unwrap();
    let verified = copied.verify_all(|_, error| panic!("{error}")).unwrap();
    assert_eq!(verified.snapshots, 2);
}
