//! One file: byte for byte there and back.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use dormouse_archive::{Error, Existing, export_file, export_to, import_file, import_from};
use dormouse_snapshot::{Compression, Error as StoreError, SnapshotRef, WorkingSet};

use crate::support::{
    TempStore, assert_same, content, every_kind, exported, folder, import, memory, mode, names,
    overwrite, packs, plain, publish, save_working_set,
};

#[test]
fn every_kind_of_snapshot_comes_back_as_it_was() {
    let from = TempStore::new();
    for snapshot in every_kind(&from.store) {
        let to = TempStore::new();
        let (bytes, out) = exported(&from.store, &snapshot);
        let imported = import(&to.store, &bytes).unwrap();
        assert_eq!(
            (imported.function, imported.id),
            (snapshot.function.clone(), snapshot.id)
        );
        assert!(!imported.already_there);
        let size: usize = content(&from.store, &snapshot).values().map(Vec::len).sum();
        assert_eq!((imported.bytes, out.bytes), (size as u64, size as u64));
        assert_eq!(out.written_bytes, bytes.len() as u64);
        assert_same(&from.store, &to.store, &snapshot);
        assert_eq!(to.visible(), [snapshot.function.as_str()]);
        assert!(
            exported(&to.store, &snapshot).0 == bytes,
            "exporting {snapshot} again gives another file"
        );
    }
}

#[test]
fn tar_can_read_it() {
    let from = TempStore::new();
    let snapshot = plain(&from.store);
    let (file, out) = (from.path("plain.dormouse"), from.path("out"));
    export_file(
        &from.store,
        &snapshot,
        &file,
        Existing::Keep,
        &mut |_, _| {},
    )
    .unwrap();
    fs::create_dir(&out).unwrap();
    let tar = |arguments: &[&str]| {
        let run = Command::new("tar").args(arguments).arg(&file).output();
        let run = run.unwrap();
        assert!(run.status.success(), "{run:?}");
        String::from_utf8(run.stdout).unwrap()
    };
    let listed = tar(&["-tf"]);
    let mut expected = vec!["dormouse-export.json".to_owned()];
    expected.extend(names(&folder(&from.store, &snapshot)));
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
    tar(&["-C", out.to_str().unwrap(), "-xf"]);
    for (name, bytes) in content(&from.store, &snapshot) {
        assert!(fs::read(out.join(&name)).unwrap() == bytes, "{name}");
    }
}

#[test]
fn files_are_there_in_full_or_not_at_all() {
    let from = TempStore::new();
    let snapshot = plain(&from.store);
    let file = from.path("x.dormouse");
    let export = |existing| export_file(&from.store, &snapshot, &file, existing, &mut |_, _| {});
    fs::write(&file, b"mine").unwrap();
    assert!(matches!(export(Existing::Keep), Err(Error::Exists { .. })));
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    export(Existing::Replace).unwrap();
    assert!(fs::read(&file).unwrap() == exported(&from.store, &snapshot).0);
    assert_eq!(mode(&file), 0o600, "guest memory is nobody else's");

    let before = names(from.dir.path());
    let gone = SnapshotRef {
        function: snapshot.function.clone(),
        id: "00000009-0000000000000000".parse().unwrap(),
    };
    let failed = export_file(
        &from.store,
        &gone,
        &from.path("gone"),
        Existing::Keep,
        &mut |_, _| {},
    );
    assert!(matches!(
        failed,
        Err(Error::Store(StoreError::UnknownSnapshot { .. }))
    ));
    assert_eq!(names(from.dir.path()), before);
    let to = TempStore::new();
    import_file(&to.store, &file, &mut |_, _| {}).unwrap();
    assert_same(&from.store, &to.store, &snapshot);
}

#[test]
fn streams_may_come_in_any_pieces() {
    struct Slow<'a>(&'a [u8], usize);
    impl Read for Slow<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 = self.1 % 1000 + 1;
            if self.1.is_multiple_of(10) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let length = buf.len().min(self.1);
            self.0.read(&mut buf[..length])
        }
    }
    let (from, to) = (TempStore::new(), TempStore::new());
    let snapshot = plain(&from.store);
    let (bytes, _) = exported(&from.store, &snapshot);
    let mut steps = Vec::new();
    import_from(&to.store, Slow(&bytes, 0), "a pipe", &mut |done, total| {
        steps.push((done, total));
    })
    .unwrap();
    assert_same(&from.store, &to.store, &snapshot);
    assert!(steps.is_sorted());
    let (done, total) = steps.last().unwrap();
    assert_eq!(done, total);

    let (mut last, mut started) = ((0, 1), false);
    export_to(&from.store, &snapshot, io::sink(), &mut |done, total| {
        started |= done == 0;
        last = (done, total);
    })
    .unwrap();
    assert!(started && last.0 == last.1, "{last:?}");
}

#[test]
fn what_is_there_already_is_left_alone() {
    let (from, to) = (TempStore::new(), TempStore::new());
    let snapshot = plain(&from.store);
    let (bytes, _) = exported(&from.store, &snapshot);
    import(&to.store, &bytes).unwrap();
    let manifest = folder(&to.store, &snapshot).join("manifest.json");
    let before = fs::metadata(&manifest).unwrap();
    let again = import(&to.store, &bytes).unwrap();
    assert!(again.already_there);
    let after = fs::metadata(&manifest).unwrap();
    assert_eq!((before.ino(), before.ctime()), (after.ino(), after.ctime()));
    assert_eq!(to.visible(), ["plain"]);

    // It does not count as there when it is damaged.
    let pack = folder(&to.store, &snapshot).join(&packs(&folder(&to.store, &snapshot))[0]);
    let mut content = fs::read(&pack).unwrap();
    content[5000] ^= 1;
    overwrite(&pack, &content);
    let error = import(&to.store, &bytes).unwrap_err().to_string();
    assert!(error.contains("already, but not whole"), "{error}");
    to.store.remove(&snapshot.function).unwrap();
    import(&to.store, &bytes).unwrap();
    assert_same(&from.store, &to.store, &snapshot);
}

#[test]
fn a_taken_number_is_refused() {
    let (from, to) = (TempStore::new(), TempStore::new());
    let snapshot = plain(&from.store);
    let (bytes, _) = exported(&from.store, &snapshot);
    let other = publish(&to.store, "plain", &memory(9), None, Compression::None);
    assert_eq!(other.id.sequence(), snapshot.id.sequence());
    let error = import(&to.store, &bytes).unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&other.to_string()) && text.contains("remove the other one"),
        "{text}"
    );
    assert_eq!(to.store.list().unwrap().len(), 1);
    assert_eq!(to.visible(), ["plain"]);

    // Another function has numbers of its own, and an older snapshot may join newer ones.
    let newer = publish(&from.store, "plain", &memory(4), None, Compression::None);
    let to = TempStore::new();
    import(&to.store, &exported(&from.store, &newer).0).unwrap();
    import(&to.store, &bytes).unwrap();
    let ids: Vec<_> = to
        .store
        .list()
        .unwrap()
        .iter()
        .map(|entry| entry.id)
        .collect();
    assert_eq!(ids, [snapshot.id, newer.id]);
}

#[test]
fn packs_that_the_store_has_are_linked() {
    let (from, to) = (TempStore::new(), TempStore::new());
    let snapshots = every_kind(&from.store);
    let (plain, layer) = (&snapshots[0], &snapshots[2]);
    let first = import(&to.store, &exported(&from.store, layer).0).unwrap();
    assert_eq!(first.linked_bytes, 0);
    let second = import(&to.store, &exported(&from.store, plain).0).unwrap();
    let pack = &packs(&folder(&from.store, plain))[0];
    let inode = |snapshot| {
        let found = fs::metadata(folder(&to.store, snapshot).join(pack)).unwrap();
        assert_eq!(second.linked_bytes, found.len());
        (found.ino(), found.nlink())
    };
    assert_eq!(inode(plain), inode(layer));
    assert_eq!(inode(plain).1, 2);
    assert_same(&from.store, &to.store, plain);

    // A pack of the same name that is damaged is not taken over.
    let to = TempStore::new();
    import(&to.store, &exported(&from.store, layer).0).unwrap();
    let damaged = folder(&to.store, layer).join(pack);
    let mut content = fs::read(&damaged).unwrap();
    content[5000] ^= 1;
    overwrite(&damaged, &content);
    let second = import(&to.store, &exported(&from.store, plain).0).unwrap();
    assert_eq!(second.linked_bytes, 0);
    assert_same(&from.store, &to.store, plain);
}

#[test]
fn a_removal_does_not_end_an_export() {
    let from = TempStore::new();
    let snapshot = plain(&from.store);
    let before = content(&from.store, &snapshot);
    let files = from.store.files(&snapshot).unwrap();
    from.store.remove(&snapshot.function).unwrap();
    assert!(files.iter().map(|file| &file.name).eq(before.keys()));
    for mut file in files {
        let mut content = Vec::new();
        file.file.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, file.bytes);
        assert!(content == before[&file.name], "{}", file.name);
    }
}

#[test]
fn damage_does_not_travel() {
    let from = TempStore::new();
    let snapshot = plain(&from.store);
    let folder = folder(&from.store, &snapshot);
    // A working set is a hint, without which the snapshot is good.
    let good = fs::read(folder.join("working-set")).unwrap();
    let mut bad = good.clone();
    bad[130] ^= 1;
    overwrite(&folder.join("working-set"), &bad);
    let to = TempStore::new();
    import(&to.store, &exported(&from.store, &snapshot).0).unwrap();
    let opened = to
        .store
        .open_newest::<(u64, Vec<u8>)>(&snapshot.function)
        .unwrap();
    assert_eq!(opened.working_set, None::<WorkingSet>);

    save_working_set(&from.store, &snapshot);
    let pack = folder.join(&packs(&folder)[0]);
    let mut content = fs::read(&pack).unwrap();
    content[9000] ^= 4;
    overwrite(&pack, &content);
    let failed = export_to(&from.store, &snapshot, io::sink(), &mut |_, _| {});
    assert!(matches!(
        failed,
        Err(Error::Store(StoreError::Damaged { .. }))
    ));
}

#[test]
fn importers_at_the_same_time_make_one_snapshot() {
    let (from, to) = (TempStore::new(), TempStore::new());
    let snapshot = plain(&from.store);
    let (bytes, _) = exported(&from.store, &snapshot);
    let new: usize = std::thread::scope(|scope| {
        let import = || import(&to.store, &bytes).unwrap();
        let importers: Vec<_> = (0..8).map(|_| scope.spawn(import)).collect();
        let imported = importers
            .into_iter()
            .map(|importer| importer.join().unwrap());
        imported.filter(|imported| !imported.already_there).count()
    });
    assert_eq!(new, 1);
    assert_same(&from.store, &to.store, &snapshot);
    assert_eq!(to.visible(), ["plain"]);
}
