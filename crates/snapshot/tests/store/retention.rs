//! What `gc` removes and keeps, and what it counts.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use dormouse_snapshot::{
    Compression, FunctionName, GcReport, IfTagged, Limit, Protection, RetentionConfig, Snapshot,
    SnapshotId, SnapshotRef, Store,
};

use crate::support::{Sample, State, folder, name, overwrite, temp_store, visible};

const CHILD_STORE: &str = "DORMOUSE_TEST_GC_STORE";

fn publish(store: &Store, function: &FunctionName, seeds: &[u8]) -> Vec<SnapshotRef> {
    let publish = |seed: &u8| {
        let id = Sample::small(*seed).publish(store, function).unwrap();
        at(function, id)
    };
    seeds.iter().map(publish).collect()
}

fn at(function: &FunctionName, id: SnapshotId) -> SnapshotRef {
    let function = function.clone();
    SnapshotRef { function, id }
}

/// All that is there.
fn all(store: &Store) -> Vec<SnapshotRef> {
    let entries = store.list().unwrap();
    entries.into_iter().map(|e| at(&e.function, e.id)).collect()
}

fn removed(report: &GcReport) -> Vec<SnapshotRef> {
    report.removed.iter().map(|r| r.snapshot.clone()).collect()
}

/// Samples say that they were taken at 1.7 billion seconds.
fn days_after(days: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + days * 86_400)
}

/// Bytes on disk of all files in a store, each once: counted here without the crate.
fn bytes_on_disk(store: &Store) -> u64 {
    let mut seen = BTreeSet::new();
    let mut folders = vec![store.path().to_owned()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if seen.insert(metadata.ino()) {
                bytes += metadata.blocks() * 512;
            }
        }
    }
    bytes
}

/// A dry run changes nothing and says what the real one does then.
fn gc(store: &Store, config: &RetentionConfig, now: SystemTime) -> GcReport {
    let before = (all(store), bytes_on_disk(store));
    let dry = store.gc(config, now, true).unwrap();
    assert_eq!((all(store), bytes_on_disk(store)), before);
    let real = store.gc(config, now, false).unwrap();
    assert_eq!(dry, real);
    let gone: BTreeSet<_> = removed(&real).into_iter().collect();
    let left: Vec<_> = before.0.into_iter().filter(|s| !gone.contains(s)).collect();
    assert_eq!(all(store), left);
    assert_eq!(real.store_bytes, bytes_on_disk(store));
    let freed: u64 = real.removed.iter().map(|r| r.freed_bytes).sum();
    assert_eq!(real.freed_bytes, freed);
    store
        .verify_all(|bad, error| panic!("{bad}: {error}"))
        .unwrap();
    real
}

#[test]
fn no_limit_removes_nothing() {
    let (_dir, store) = temp_store();
    publish(&store, &name("f"), &[1, 2, 3]);
    let report = gc(&store, &RetentionConfig::default(), days_after(10_000));
    assert!(report.removed.is_empty() && report.kept.is_empty());
}

#[test]
fn by_count_each_function_keeps_its_newest() {
    let (_dir, store) = temp_store();
    let one = publish(&store, &name("one"), &[1, 2, 3, 4]);
    publish(&store, &name("two"), &[5]);
    store.tag(&one[1], &"keep".parse().unwrap()).unwrap();
    let config = RetentionConfig {
        keep_last: Some(2),
        ..RetentionConfig::default()
    };
    let report = gc(&store, &config, days_after(0));
    assert_eq!(removed(&report), [one[0].clone()]);
    assert_eq!(report.removed[0].limit, Limit::KeepLast);
    assert!(report.removed[0].freed_bytes > 0);
    assert_eq!(report.kept.len(), 1);
    assert_eq!(report.kept[0].snapshot, one[1]);
    let tagged = Protection::Tagged(vec!["keep".parse().unwrap()]);
    assert_eq!(report.kept[0].protections, [tagged]);
    // None is not possible: the newest stays.
    let config = RetentionConfig {
        keep_last: Some(0),
        ..RetentionConfig::default()
    };
    let report = gc(&store, &config, days_after(0));
    assert_eq!(removed(&report), [one[2].clone()]);
    assert_eq!(report.kept.len(), 3);
    assert_eq!(report.kept[2].protections, [Protection::Newest]);
}

#[test]
fn by_age_the_newest_stays_however_old() {
    let (_dir, store) = temp_store();
    let function = name("old");
    let snapshots = publish(&store, &function, &[1, 2]);
    let config = RetentionConfig {
        max_age: Some(Duration::from_secs(30 * 86_400)),
        ..RetentionConfig::default()
    };
    for days in [0, 30] {
        assert!(gc(&store, &config, days_after(days)).removed.is_empty());
    }
    // A clock that went back makes nothing old.
    assert!(
        gc(&store, &config, SystemTime::UNIX_EPOCH)
            .removed
            .is_empty()
    );
    let report = gc(&store, &config, days_after(31));
    assert_eq!(removed(&report), [snapshots[0].clone()]);
    assert_eq!(report.removed[0].limit, Limit::MaxAge);
    assert_eq!(report.kept[0].protections, [Protection::Newest]);
}

#[test]
fn by_size_no_more_goes_than_must() {
    let (_dir, store) = temp_store();
    let one = publish(&store, &name("one"), &[1, 2, 3]);
    publish(&store, &name("two"), &[4, 5]);
    let usage = store.usage().unwrap();
    assert_eq!(usage.total_bytes, bytes_on_disk(&store));
    let config = |max_bytes| RetentionConfig {
        max_bytes: Some(max_bytes),
        ..RetentionConfig::default()
    };
    assert!(
        gc(&store, &config(usage.total_bytes), days_after(0))
            .removed
            .is_empty()
    );
    let report = gc(&store, &config(usage.total_bytes - 1), days_after(0));
    assert_eq!(removed(&report), [one[0].clone()]);
    assert!(report.kept.is_empty());
    let report = gc(&store, &config(0), days_after(0));
    assert_eq!(report.removed.len(), 2);
    assert_eq!(report.kept.len(), 2);
    assert_eq!(report.kept[0].limit, Limit::MaxBytes);
}

#[test]
fn what_is_shared_counts_when_the_last_user_goes() {
    let (_dir, store) = temp_store();
    let function = name("same");
    let same = publish(&store, &function, &[1, 1]);
    publish(&store, &function, &[2]);
    let usage = store.usage().unwrap();
    assert_eq!(usage.total_bytes, bytes_on_disk(&store));
    assert!(usage.snapshots[0].shared_bytes > 0);
    assert_eq!(
        usage.snapshots[0].shared_bytes,
        usage.snapshots[1].shared_bytes
    );
    assert_eq!(usage.snapshots[2].shared_bytes, 0);
    assert_eq!(usage.snapshots[0].apparent_bytes, 150 * 4096 + 5000);
    let config = RetentionConfig {
        keep_last: Some(1),
        ..RetentionConfig::default()
    };
    let report = gc(&store, &config, days_after(0));
    // From new to old: the pack goes with the older of the two.
    assert_eq!(removed(&report), [same[1].clone(), same[0].clone()]);
    let freed: Vec<_> = report.removed.iter().map(|r| r.freed_bytes).collect();
    let own = |at: usize| usage.snapshots[at].own_bytes;
    assert_eq!(freed, [own(1), own(0) + usage.snapshots[0].shared_bytes]);
}

#[test]
fn a_link_from_elsewhere_frees_nothing() {
    let (dir, store) = temp_store();
    let function = name("linked");
    let snapshots = publish(&store, &function, &[1, 2]);
    let path = folder(&store, &function, &snapshots[0].id);
    let pack = crate::support::packs(&path).remove(0);
    fs::hard_link(path.join(&pack), dir.path().join("elsewhere")).unwrap();
    let own = store.usage().unwrap().snapshots[0].own_bytes;
    let config = RetentionConfig {
        keep_last: Some(1),
        ..RetentionConfig::default()
    };
    let report = gc(&store, &config, days_after(0));
    let elsewhere = fs::metadata(dir.path().join("elsewhere")).unwrap().blocks() * 512;
    assert_eq!(report.freed_bytes, own - elsewhere);
}

#[test]
fn what_is_open_stays_until_it_is_closed() {
    let (_dir, store) = temp_store();
    let function = name("open");
    let snapshots = publish(&store, &function, &[1, 2]);
    let open: Snapshot<State> = store.open_id(&function, &snapshots[0].id).unwrap();
    let config = RetentionConfig {
        keep_last: Some(1),
        ..RetentionConfig::default()
    };
    let report = gc(&store, &config, days_after(0));
    assert!(report.removed.is_empty());
    assert_eq!(report.kept[0].protections, [Protection::InUse]);
    Sample::small(1).check(&open).unwrap();
    drop(open);
    assert_eq!(
        removed(&gc(&store, &config, days_after(0))),
        [snapshots[0].clone()]
    );
}

#[test]
fn parents_go_after_their_layers_and_stay_with_them() {
    let (_dir, store) = temp_store();
    // By name before and behind its layers' function: the order must not matter.
    for base in [name("a-base"), name("z-base")] {
        let top = name("top");
        let parent = publish(&store, &base, &[1]).remove(0);
        publish(&store, &base, &[2]);
        let layer = |seed, parent: &SnapshotRef| {
            let id = Sample::small(seed)
                .publish_as(&store, &top, Some(parent.clone()), Compression::None)
                .unwrap();
            at(&top, id)
        };
        let middle = layer(3, &parent);
        let upper = layer(4, &middle);
        let config = RetentionConfig {
            keep_last: Some(1),
            ..RetentionConfig::default()
        };
        let report = gc(&store, &config, days_after(0));
        assert!(report.removed.is_empty());
        let protections: Vec<_> = report.kept.iter().map(|k| k.protections.clone()).collect();
        let of = |layer: &SnapshotRef| vec![Protection::Parent(vec![layer.clone()])];
        assert!(protections.contains(&of(&middle)) && protections.contains(&of(&upper)));
        // Once nothing that stays is a layer on them, all go at once.
        publish(&store, &top, &[5]);
        let report = gc(&store, &config, days_after(0));
        let gone: BTreeSet<_> = removed(&report).into_iter().collect();
        assert_eq!(gone, BTreeSet::from([parent, middle, upper]));
        store.remove(&top).unwrap();
        store.remove(&base).unwrap();
    }
}

#[test]
fn tags_that_cannot_be_read_keep_all_of_their_function() {
    let (_dir, store) = temp_store();
    let (good, bad) = (name("good"), name("bad"));
    let removable = publish(&store, &good, &[1, 2]).remove(0);
    let kept = publish(&store, &bad, &[3, 4]);
    store.tag(&kept[0], &"x".parse().unwrap()).unwrap();
    overwrite(&store.path().join("bad/tags.json"), b"{");
    let config = RetentionConfig {
        keep_last: Some(1),
        ..RetentionConfig::default()
    };
    let report = gc(&store, &config, days_after(0));
    assert_eq!(removed(&report), [removable]);
    assert_eq!(report.kept[0].snapshot, kept[0]);
    let protection = &report.kept[0].protections[0];
    assert!(
        matches!(protection, Protection::UnknownTags(_)),
        "{protection}"
    );
}

#[test]
fn damaged_snapshots_can_be_removed_and_do_not_stop_it() {
    let (_dir, store) = temp_store();
    let function = name("damaged");
    let snapshots = publish(&store, &function, &[1, 2, 3]);
    let path = folder(&store, &function, &snapshots[0].id);
    overwrite(&path.join("manifest.json"), b"\xff not json");
    fs::remove_file(path.join("snapshot.dms")).unwrap();
    let huge = folder(&store, &function, &snapshots[1].id).join("manifest.json");
    overwrite(&huge, " ".repeat(2 << 20).as_bytes());
    let config = RetentionConfig {
        keep_last: Some(1),
        ..RetentionConfig::default()
    };
    let report = gc(&store, &config, days_after(0));
    assert_eq!(report.removed.len(), 2);
}

#[test]
fn leftovers_and_tags_of_nothing_are_cleared_away() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let snapshots = publish(&store, &function, &[1, 2, 3]);
    store.tag(&snapshots[0], &"old".parse().unwrap()).unwrap();
    store.tag(&snapshots[1], &"kept".parse().unwrap()).unwrap();
    fs::remove_dir_all(folder(&store, &function, &snapshots[0].id)).unwrap();
    // A publisher died that had taken a link to a pack.
    let path = folder(&store, &function, &snapshots[1].id);
    let pack = crate::support::packs(&path).remove(0);
    let leftover = store.path().join(".tmp-dead");
    fs::create_dir(&leftover).unwrap();
    fs::hard_link(path.join(&pack), leftover.join(&pack)).unwrap();
    let old = SystemTime::now() - Duration::from_secs(120);
    File::open(&leftover).unwrap().set_modified(old).unwrap();
    let report = gc(&store, &RetentionConfig::default(), days_after(0));
    assert_eq!(report.leftovers, 1);
    assert_eq!(report.dangling_tags, ["f:old".parse().unwrap()]);
    assert_eq!(visible(&store), ["f"]);
    assert_eq!(store.tags(&function).unwrap().len(), 1);
}

#[test]
fn collectors_publishers_and_readers_at_once() {
    let (_dir, store) = temp_store();
    let function = name("busy");
    publish(&store, &function, &[1]);
    let config = RetentionConfig {
        keep_last: Some(2),
        ..RetentionConfig::default()
    };
    let gone: Vec<SnapshotRef> = thread::scope(|scope| {
        let collectors: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut gone = Vec::new();
                    for _ in 0..30 {
                        gone.extend(removed(&store.gc(&config, days_after(0), false).unwrap()));
                    }
                    gone
                })
            })
            .collect();
        for seed in 2..4 {
            let (store, function) = (&store, &function);
            scope.spawn(move || {
                for _ in 0..15 {
                    let id = Sample::small(seed).publish(store, function).unwrap();
                    if let Ok(open) = store.open_id::<State>(function, &id) {
                        // Nobody has taken it away, as it is leased.
                        Sample::small(seed).check(&open).unwrap();
                        assert!(folder(store, function, &id).exists());
                    }
                    let open: Snapshot<State> = store.open_newest(function).unwrap();
                    Sample::small(open.state.notes["seed"][0])
                        .check(&open)
                        .unwrap();
                }
            });
        }
        let ended = collectors
            .into_iter()
            .map(|collector| collector.join().unwrap());
        ended.collect::<Vec<_>>().concat()
    });
    let unique: BTreeSet<_> = gone.iter().collect();
    assert_eq!(unique.len(), gone.len(), "something was removed twice");
    store.gc(&config, days_after(0), false).unwrap();
    assert_eq!(all(&store).len(), 2);
    store.verify(&function).unwrap();
    assert_eq!(visible(&store), ["busy"]);
}

/// Not a test of its own: what the next test starts and kills.
#[test]
#[ignore = "runs as a child process of killed_collectors_leave_the_store_good"]
fn child_collector() {
    let Some(path) = std::env::var_os(CHILD_STORE) else {
        return;
    };
    let store = Store::open(path).unwrap();
    let function = name("victim");
    let config = RetentionConfig {
        keep_last: Some(1),
        ..RetentionConfig::default()
    };
    loop {
        let snapshots = publish(&store, &function, &[1, 2, 1, 3]);
        store.tag(&snapshots[1], &"t".parse().unwrap()).unwrap();
        store.gc(&config, days_after(0), false).unwrap();
        store.remove_id(&snapshots[1], IfTagged::DropTags).unwrap();
    }
}

#[test]
fn killed_collectors_leave_the_store_good() {
    let (_dir, store) = temp_store();
    let function = name("victim");
    let mut cleaned = 0;
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "retention::child_collector", "--ignored"])
            .env(CHILD_STORE, store.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Once it is at work, it is killed at whatever it is doing some time later.
        let deadline = Instant::now() + Duration::from_secs(60);
        while store.tags(&function).unwrap().is_empty() {
            assert!(Instant::now() < deadline, "the child does not tag");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(round * 977));
        child.kill().unwrap();
        child.wait().unwrap();

        cleaned += store.clean_leftovers(Duration::ZERO).unwrap();
        let left = all(&store);
        for snapshot in &left {
            let open = store.open_id::<State>(&function, &snapshot.id).unwrap();
            let seed = open.state.notes["seed"][0];
            Sample::small(seed).check(&open).unwrap();
        }
        for (tag, id) in store.tags(&function).unwrap() {
            assert!(
                left.contains(&at(&function, id)),
                "{tag} is a tag of nothing"
            );
        }
        assert_eq!(visible(&store), ["victim"]);
        store.remove(&function).unwrap();
    }
    assert!(cleaned > 0, "no child was killed while it was at work");
}
