//! Layouts of one deployment: served, kept and counted as one.

use std::fs;
use std::time::{Duration, SystemTime};

use dormouse_snapshot::{
    Error, FunctionName, GcReport, IfTagged, Limit, Protection, RetentionConfig, SnapshotId,
    SnapshotRef, Store,
};

use crate::support::{Sample, copy_folder, folder, name, temp_store};

fn at(function: &FunctionName, id: SnapshotId) -> SnapshotRef {
    let function = function.clone();
    SnapshotRef { function, id }
}

/// Publishes a whole deployment.
fn deploy(store: &Store, function: &FunctionName, group: &str, of: u32) -> Vec<SnapshotId> {
    let publish = |index| {
        let sample = Sample::small(10 * of as u8 + index as u8);
        sample.publish_layout(store, function, (group, index, of))
    };
    (0..of).map(publish).collect()
}

fn ids(store: &Store) -> Vec<SnapshotId> {
    let entries = store.list().unwrap();
    entries.into_iter().map(|entry| entry.id).collect()
}

fn keep_last(store: &Store, most: u32) -> GcReport {
    let config = RetentionConfig {
        keep_last: Some(most),
        ..RetentionConfig::default()
    };
    store.gc(&config, SystemTime::now(), false).unwrap()
}

fn removed(report: &GcReport) -> Vec<SnapshotId> {
    let mut ids: Vec<_> = report.removed.iter().map(|r| r.snapshot.id).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn a_function_is_served_with_all_its_layouts_or_with_the_newest_snapshot() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let plain = Sample::small(1).publish(&store, &function).unwrap();
    assert_eq!(store.served(&function).unwrap(), [plain]);
    let layouts = deploy(&store, &function, "one", 3);
    assert_eq!(store.served(&function).unwrap(), layouts);
    let manifest = store.manifest(&function).unwrap();
    assert_eq!(manifest.layout().unwrap().to_string(), "3/3");

    // A deployment that is not finished hides the one before, as any newer snapshot does.
    let first = Sample::small(2).publish_layout(&store, &function, ("two", 0, 2));
    assert_eq!(store.served(&function).unwrap(), [first]);
    let second = Sample::small(3).publish_layout(&store, &function, ("two", 1, 2));
    assert_eq!(store.served(&function).unwrap(), [first, second]);
    // One that is published again takes its own place.
    let again = Sample::small(4).publish_layout(&store, &function, ("two", 0, 2));
    assert_eq!(store.served(&function).unwrap(), [second, again]);

    let plain = Sample::small(5).publish(&store, &function).unwrap();
    assert_eq!(store.served(&function).unwrap(), [plain]);
    assert!(store.served(&name("nobody")).is_err());
}

#[test]
fn what_cannot_be_a_layout_is_none() {
    let (_dir, store) = temp_store();
    let function = name("odd");
    let long = "x".repeat(65);
    for odd in [
        ("g", 0, 1),
        ("g", 2, 2),
        ("g", 0, 17),
        ("", 0, 2),
        (long.as_str(), 0, 2),
    ] {
        let id = Sample::small(1).publish_layout(&store, &function, odd);
        assert!(store.manifest(&function).unwrap().layout().is_none());
        assert_eq!(store.served(&function).unwrap(), [id]);
    }
}

#[test]
fn layouts_of_one_deployment_count_as_one() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let oldest = Sample::small(1).publish(&store, &function).unwrap();
    let one = deploy(&store, &function, "one", 3);
    let two = deploy(&store, &function, "two", 4);
    assert!(keep_last(&store, 3).removed.is_empty());
    assert_eq!(removed(&keep_last(&store, 2)), [oldest]);
    assert_eq!(removed(&keep_last(&store, 1)), one);
    assert_eq!(ids(&store), two);
}

#[test]
fn all_layouts_of_the_newest_deployment_stay_however_old() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let one = deploy(&store, &function, "one", 2);
    let two = deploy(&store, &function, "two", 2);
    let config = RetentionConfig {
        max_age: Some(Duration::from_secs(1)),
        max_bytes: Some(0),
        ..RetentionConfig::default()
    };
    let report = store.gc(&config, SystemTime::now(), false).unwrap();
    assert_eq!(removed(&report), one);
    let kept: Vec<_> = report.kept.iter().map(|kept| kept.snapshot.id).collect();
    assert_eq!(kept, two);
    assert_eq!(report.kept[0].limit, Limit::MaxAge);
    let beside = Protection::LayoutOf(at(&function, two[1]));
    assert_eq!(
        beside.to_string(),
        format!("a layout beside {function}@{}", two[1])
    );
    assert_eq!(report.kept[0].protections, [beside]);
    assert_eq!(report.kept[1].protections, [Protection::Newest]);
}

#[test]
fn a_tag_keeps_all_layouts_of_its_deployment() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let one = deploy(&store, &function, "one", 3);
    let two = deploy(&store, &function, "two", 2);
    let tagged = at(&function, one[1]);
    store.tag(&tagged, &"good".parse().unwrap()).unwrap();
    let report = keep_last(&store, 1);
    assert!(report.removed.is_empty());
    assert_eq!(report.kept.len(), 3);
    let beside = [Protection::LayoutOf(tagged)];
    assert_eq!(report.kept[0].protections, beside);
    assert_eq!(report.kept[2].protections, beside);

    let other = at(&function, one[0]);
    let refused = store.remove_id(&other, IfTagged::Refuse).unwrap_err();
    assert!(matches!(refused, Error::Tagged { .. }), "{refused}");
    store.untag(&function, &"good".parse().unwrap()).unwrap();
    store.remove_id(&other, IfTagged::Refuse).unwrap();
    assert_eq!(removed(&keep_last(&store, 1)), one[1..]);
    assert_eq!(ids(&store), two);
}

#[test]
fn a_layout_that_is_served_is_not_removed_by_itself() {
    let (_dir, store) = temp_store();
    let function = name("f");
    let layouts = deploy(&store, &function, "one", 3);
    for id in &layouts {
        for if_tagged in [IfTagged::Refuse, IfTagged::DropTags] {
            let error = store.remove_id(&at(&function, *id), if_tagged).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("one of the 3 layouts") && error.contains("deploy"),
                "{error}"
            );
        }
    }
    assert_eq!(store.served(&function).unwrap(), layouts);

    // What a crash between two of them has left may go.
    let half = Sample::small(9).publish_layout(&store, &function, ("half", 0, 2));
    store
        .remove_id(&at(&function, half), IfTagged::Refuse)
        .unwrap();
    assert_eq!(store.served(&function).unwrap(), layouts);
    store.remove(&function).unwrap();
    assert!(ids(&store).is_empty());
}

#[test]
fn a_deployment_that_lacks_a_layout_is_its_newest_snapshot() {
    let (dir, store) = temp_store();
    let function = name("f");
    let layouts = deploy(&store, &function, "one", 3);
    for missing in &layouts {
        let other = Store::open(dir.path().join(missing.to_string())).unwrap();
        copy_folder(
            &store.path().join(function.as_str()),
            &other.path().join(function.as_str()),
        );
        fs::remove_dir_all(folder(&other, &function, missing)).unwrap();
        let newest = *layouts.iter().rfind(|id| *id != missing).unwrap();
        assert_eq!(other.served(&function).unwrap(), [newest]);
        assert!(keep_last(&other, 1).removed.is_empty());
        other
            .remove_id(&at(&function, newest), IfTagged::Refuse)
            .unwrap();
    }
}
