//! Snapshots by reference and tag, and taking single ones away while others use them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dormouse_snapshot::{
    Compression, Draft, Error, FunctionName, IfTagged, MemoryDraft, Reference, Snapshot,
    SnapshotId, SnapshotRef, Store, Tag,
};

use crate::support::{Sample, State, folder, name, names, overwrite, temp_store, visible};

const CHILD_STORE: &str = "DORMOUSE_TEST_LEASE_STORE";

fn at(function: &FunctionName, id: SnapshotId) -> SnapshotRef {
    let function = function.clone();
    SnapshotRef { function, id }
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn resolve(store: &Store, text: &str) -> Result<SnapshotRef, Error> {
    store.resolve(&text.parse::<Reference>().unwrap())
}

fn publish(store: &Store, function: &FunctionName, seeds: &[u8]) -> Vec<SnapshotId> {
    let publish = |seed: &u8| Sample::small(*seed).publish(store, function).unwrap();
    seeds.iter().map(publish).collect()
}

#[test]
fn every_kind_of_reference_finds_its_snapshot() {
    let (_dir, store) = temp_store();
    let function = name("hello");
    let ids = publish(&store, &function, &[1, 2, 3]);
    store.tag(&at(&function, ids[1]), &tag("stable")).unwrap();
    for (text, id) in [
        ("hello".into(), ids[2]),
        ("hello@1".into(), ids[0]),
        ("hello@00000002".into(), ids[1]),
        (format!("hello@{}", ids[0]), ids[0]),
        ("hello:stable".into(), ids[1]),
    ] {
        assert_eq!(resolve(&store, &text).unwrap(), at(&function, id), "{text}");
    }
    let odd = "hello@00000001-0000000000000000";
    assert!(matches!(
        resolve(&store, odd),
        Err(Error::UnknownSnapshot { .. })
    ));
    for (text, why) in [
        ("other", "no snapshot of function other"),
        ("other:stable", "no snapshot of function other"),
        ("hello@9", "no snapshot number 9"),
        ("hello:new", "no tag new"),
    ] {
        let error = resolve(&store, text).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn tags_survive_publishing_move_and_go() {
    let (_dir, store) = temp_store();
    let function = name("tagged");
    let first = publish(&store, &function, &[1])[0];
    assert_eq!(store.tag(&at(&function, first), &tag("v1")).unwrap(), None);
    assert_eq!(
        store.tag(&at(&function, first), &tag("prod")).unwrap(),
        None
    );
    let second = publish(&store, &function, &[2])[0];
    let store = Store::open(store.path()).unwrap();
    assert_eq!(resolve(&store, "tagged:prod").unwrap().id, first);
    let moved = store.tag(&at(&function, second), &tag("prod")).unwrap();
    assert_eq!(moved, Some(first));
    let expected = BTreeMap::from([(tag("prod"), second), (tag("v1"), first)]);
    assert_eq!(store.tags(&function).unwrap(), expected);
    assert_eq!(store.untag(&function, &tag("v1")).unwrap(), first);
    let error = store.untag(&function, &tag("v1")).unwrap_err();
    assert!(matches!(error, Error::UnknownTag { .. }), "{error}");
    // What lies beside the snapshots disturbs no reader.
    assert_eq!(store.list().unwrap().len(), 2);
    store.verify(&function).unwrap();
    assert_eq!(visible(&store), ["tagged"]);
    store.remove(&function).unwrap();
    assert!(store.tags(&function).unwrap().is_empty());
}

#[test]
fn tags_are_given_to_what_is_there_and_not_without_end() {
    let (_dir, store) = temp_store();
    let function = name("many");
    let id = publish(&store, &function, &[1])[0];
    let absent = at(&name("absent"), id);
    let error = store.tag(&absent, &tag("x")).unwrap_err();
    assert!(matches!(error, Error::UnknownSnapshot { .. }), "{error}");
    for number in 0..256 {
        let long = format!("{number:x<63}");
        store.tag(&at(&function, id), &tag(&long)).unwrap();
    }
    let error = store.tag(&at(&function, id), &tag("more")).unwrap_err();
    assert!(error.to_string().contains("256 tags already"), "{error}");
    assert_eq!(store.tags(&function).unwrap().len(), 256);
}

#[test]
fn taggers_at_once_lose_nothing() {
    let (_dir, store) = temp_store();
    let function = name("crowd");
    let id = publish(&store, &function, &[1])[0];
    thread::scope(|scope| {
        for thread in 0..4 {
            let (store, function) = (&store, &function);
            scope.spawn(move || {
                for number in 0..10 {
                    let tag = tag(&format!("t{thread}-{number}"));
                    store.tag(&at(function, id), &tag).unwrap();
                }
            });
        }
    });
    assert_eq!(store.tags(&function).unwrap().len(), 40);
}

#[test]
fn hostile_tags_are_refused_and_stop_nothing_else() {
    let (dir, store) = temp_store();
    let function = name("hostile");
    let ids = publish(&store, &function, &[1, 2]);
    store.tag(&at(&function, ids[0]), &tag("v1")).unwrap();
    let path = store.path().join("hostile/tags.json");
    let good = fs::read_to_string(&path).unwrap();
    let many: Vec<_> = (0..300)
        .map(|n| format!("\"t{n}\": \"{}\"", ids[0]))
        .collect();
    for bad in [
        String::new(),
        "[]".into(),
        "null".into(),
        "{}".into(),
        "{\"version\": 1}".into(),
        "{\"version\": 1, \"tags\": [1]}".into(),
        "{\"version\": 1, \"tags\": {\"v1\": 7}}".into(),
        "{\"version\": 1, \"tags\": {\"v1\": \"../../etc\"}}".into(),
        good.replace("\"v1\"", "\"../v1\""),
        good.replace("\"v1\"", "\"\""),
        good.replace("\"version\": 1", "\"version\": 2"),
        good.replace("\"version\": 1", "\"version\": -1"),
        format!("{{\"version\": 1, \"tags\": {{{}}}}}", many.join(", ")),
        "[".repeat(60_000),
        " ".repeat(1 << 20),
    ] {
        overwrite(&path, bad.as_bytes());
        let start: String = bad.chars().take(60).collect();
        let error = store.tags(&function).unwrap_err();
        assert!(matches!(error, Error::BadTags { .. }), "{start}: {error}");
        assert!(error.to_string().len() < 600, "{error}");
        for error in [
            resolve(&store, "hostile:v1").unwrap_err(),
            store.tag(&at(&function, ids[0]), &tag("v2")).unwrap_err(),
            store.untag(&function, &tag("v1")).unwrap_err(),
            // Whether it has tags cannot be told, so it stays.
            store
                .remove_id(&at(&function, ids[0]), IfTagged::DropTags)
                .unwrap_err(),
        ] {
            assert!(matches!(error, Error::BadTags { .. }), "{start}: {error}");
        }
        assert_eq!(resolve(&store, "hostile").unwrap().id, ids[1]);
    }
    let elsewhere = dir.path().join("elsewhere.json");
    fs::write(&elsewhere, &good).unwrap();
    fs::remove_file(&path).unwrap();
    symlink(&elsewhere, &path).unwrap();
    let error = store.tags(&function).unwrap_err();
    assert!(matches!(error, Error::BadTags { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = store.tags(&function).unwrap_err();
    assert!(matches!(error, Error::BadTags { .. }), "{error}");
    fs::remove_dir(&path).unwrap();
    store.tag(&at(&function, ids[0]), &tag("v2")).unwrap();
    store.remove(&function).unwrap();
}

#[test]
fn a_tag_of_nothing_says_so() {
    let (_dir, store) = temp_store();
    let function = name("dangling");
    let ids = publish(&store, &function, &[1, 2, 3]);
    store.tag(&at(&function, ids[0]), &tag("old")).unwrap();
    fs::remove_dir_all(folder(&store, &function, &ids[0])).unwrap();
    let error = resolve(&store, "dangling:old").unwrap_err();
    assert!(matches!(error, Error::DanglingTag { .. }), "{error}");
    // Removing another snapshot clears it away.
    store
        .remove_id(&at(&function, ids[1]), IfTagged::Refuse)
        .unwrap();
    assert!(store.tags(&function).unwrap().is_empty());
}

#[test]
fn one_snapshot_goes_and_what_it_shared_stays() {
    let (_dir, store) = temp_store();
    let function = name("shared");
    let ids = publish(&store, &function, &[1, 1, 2]);
    let open: Snapshot<State> = store.open_newest(&function).unwrap();
    store
        .remove_id(&at(&function, ids[0]), IfTagged::Refuse)
        .unwrap();
    let gone = store.open_id::<State>(&function, &ids[0]).unwrap_err();
    assert!(matches!(gone, Error::UnknownSnapshot { .. }), "{gone}");
    let error = store.remove_id(&at(&function, ids[0]), IfTagged::Refuse);
    assert!(matches!(error, Err(Error::UnknownSnapshot { .. })));
    Sample::small(1)
        .check(&store.open_id(&function, &ids[1]).unwrap())
        .unwrap();
    Sample::small(2).check(&open).unwrap();
    drop(open);
    store
        .remove_id(&at(&function, ids[2]), IfTagged::Refuse)
        .unwrap();
    assert_eq!(resolve(&store, "shared").unwrap().id, ids[1]);
    // The function goes with its last one.
    store
        .remove_id(&at(&function, ids[1]), IfTagged::Refuse)
        .unwrap();
    assert!(visible(&store).is_empty(), "{:?}", visible(&store));
}

#[test]
fn tags_keep_their_snapshot_unless_they_are_dropped() {
    let (_dir, store) = temp_store();
    let function = name("kept");
    let ids = publish(&store, &function, &[1, 2]);
    store.tag(&at(&function, ids[0]), &tag("a")).unwrap();
    store.tag(&at(&function, ids[1]), &tag("b")).unwrap();
    let error = store
        .remove_id(&at(&function, ids[0]), IfTagged::Refuse)
        .unwrap_err();
    assert!(matches!(error, Error::Tagged { .. }), "{error}");
    assert!(error.to_string().contains("tagged a"), "{error}");
    store
        .remove_id(&at(&function, ids[0]), IfTagged::DropTags)
        .unwrap();
    let left = BTreeMap::from([(tag("b"), ids[1])]);
    assert_eq!(store.tags(&function).unwrap(), left);
}

#[test]
fn what_is_open_cannot_be_removed_by_itself() {
    let (_dir, store) = temp_store();
    let function = name("open");
    let ids = publish(&store, &function, &[1, 2]);
    let (first, second) = (at(&function, ids[0]), at(&function, ids[1]));
    let open: Snapshot<State> = store.open_id(&function, &ids[0]).unwrap();
    assert!(store.is_in_use(&first).unwrap());
    assert!(!store.is_in_use(&second).unwrap());
    let error = store.remove_id(&first, IfTagged::DropTags).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    // Looking at it is no use of it, nor is the lease of one snapshot one of another.
    store.list().unwrap();
    store.remove_id(&second, IfTagged::Refuse).unwrap();
    let lease = open.lease;
    drop(open.memory);
    assert!(store.is_in_use(&first).unwrap());
    drop(lease);
    assert!(!store.is_in_use(&first).unwrap());
    store.remove_id(&first, IfTagged::Refuse).unwrap();
}

#[test]
fn a_function_can_be_removed_while_its_snapshots_are_read() {
    let (_dir, store) = temp_store();
    let function = name("served");
    publish(&store, &function, &[1]);
    let open: Snapshot<State> = store.open_newest(&function).unwrap();
    store.remove(&function).unwrap();
    assert!(visible(&store).is_empty());
    Sample::small(1).check(&open).unwrap();
}

/// Not a test of its own: what the next test starts and kills.
#[test]
#[ignore = "runs as a child process of a_lease_of_another_process_ends_with_it"]
fn child_reader() {
    let Some(path) = std::env::var_os(CHILD_STORE) else {
        return;
    };
    let store = Store::open(path).unwrap();
    let _open: Snapshot<State> = store.open_newest(&name("leased")).unwrap();
    thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_lease_of_another_process_ends_with_it() {
    let (_dir, store) = temp_store();
    let function = name("leased");
    let snapshot = at(&function, publish(&store, &function, &[1])[0]);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "history::child_reader", "--ignored"])
        .env(CHILD_STORE, store.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !store.is_in_use(&snapshot).unwrap() {
        assert!(Instant::now() < deadline, "the child does not open it");
        thread::sleep(Duration::from_millis(5));
    }
    let refused = store.remove_id(&snapshot, IfTagged::Refuse);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(refused, Err(Error::InUse { .. })));
    store.remove_id(&snapshot, IfTagged::Refuse).unwrap();
}

fn layer(store: &Store, function: &FunctionName, seed: u8, parent: SnapshotRef) -> SnapshotRef {
    let id = Sample::small(seed)
        .publish_as(store, function, Some(parent), Compression::None)
        .unwrap();
    at(function, id)
}

#[test]
fn parents_stay_as_long_as_their_layers() {
    let (_dir, store) = temp_store();
    let (base, top) = (name("base"), name("top"));
    let parent = at(&base, publish(&store, &base, &[1])[0]);
    publish(&store, &base, &[9]);
    let middle = layer(&store, &top, 2, parent.clone());
    let upper = layer(&store, &top, 3, middle.clone());
    for (snapshot, layer) in [(&parent, &middle), (&middle, &upper)] {
        let error = store.remove_id(snapshot, IfTagged::DropTags).unwrap_err();
        assert!(matches!(error, Error::HasLayers { .. }), "{error}");
        assert!(error.to_string().contains(&layer.to_string()), "{error}");
    }
    let error = store.remove(&base).unwrap_err();
    assert!(matches!(error, Error::HasLayers { .. }), "{error}");
    // Layers within one function go with it.
    store.remove(&top).unwrap();
    store.remove_id(&parent, IfTagged::Refuse).unwrap();
    store.remove(&base).unwrap();
}

#[test]
fn a_parent_stays_while_a_layer_is_made_on_it() {
    let (_dir, store) = temp_store();
    let function = name("growing");
    let parent = at(&function, publish(&store, &function, &[1])[0]);
    let remover = store.clone();
    let (state, removed) = (State::default(), parent.clone());
    let mut read = |_: u64, buf: &mut [u8]| {
        let error = remover.remove_id(&removed, IfTagged::Refuse).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        buf.fill(7);
        Ok::<_, io::Error>(())
    };
    let draft = Draft {
        created_unix_ms: 0,
        host: String::new(),
        config: serde_json::Value::Null,
        state: &state,
        memory: MemoryDraft {
            pages: 16,
            resident: std::iter::once(0..16).collect(),
            read: &mut read,
        },
        image: b"image",
        parent: Some(parent.clone()),
        compression: Compression::None,
    };
    store.publish(&function, draft).unwrap();
    assert!(!store.is_in_use(&parent).unwrap());
}

#[test]
fn removers_publishers_taggers_and_readers_at_once() {
    let (_dir, store) = temp_store();
    let function = name("busy");
    let done = AtomicBool::new(false);
    let opened = thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut opened = 0;
                    while !done.load(Ordering::Relaxed) {
                        match store.open_newest::<State>(&function) {
                            Ok(snapshot) => {
                                let seed = snapshot.state.notes["seed"][0];
                                // As long as it is open nobody takes it away.
                                let here = at(&function, snapshot.id);
                                let removed = store.remove_id(&here, IfTagged::DropTags);
                                assert!(matches!(removed, Err(Error::InUse { .. })), "{removed:?}");
                                Sample::small(seed).check(&snapshot).unwrap();
                                opened += 1;
                            }
                            Err(Error::UnknownFunction { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    opened
                })
            })
            .collect();
        let workers: Vec<_> = (1..4)
            .map(|seed| {
                let (store, function) = (&store, &function);
                scope.spawn(move || {
                    for round in 0..20 {
                        let id = Sample::small(seed).publish(store, function).unwrap();
                        let here = at(function, id);
                        match store.tag(&here, &tag(&format!("t{seed}"))) {
                            Ok(_) | Err(Error::UnknownSnapshot { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                        if round % 3 == 0 {
                            continue;
                        }
                        match store.remove_id(&here, IfTagged::DropTags) {
                            Ok(()) | Err(Error::InUse { .. } | Error::UnknownSnapshot { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        done.store(true, Ordering::Relaxed);
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum::<u32>()
    });
    assert!(opened > 0);
    store.verify(&function).unwrap();
    assert_eq!(visible(&store), ["busy"]);
    let ids: Vec<_> = store.list().unwrap().iter().map(|entry| entry.id).collect();
    for (tag, id) in store.tags(&function).unwrap() {
        assert!(ids.contains(&id), "{tag} is a tag of nothing");
    }
    assert!(names(store.path()).len() <= 2);
}
