//! What is published comes back, small on disk and ready to be mapped.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

use crate::support::{Sample, State, folder, name, packs, temp_store, visible};
use dormouse_snapshot::{Compression, Digest, Error, PAGE_BYTES, Store, WorkingSet};
use rustix::fs::{SealFlags, SeekFrom, seek};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

#[test]
fn a_snapshot_comes_back_as_it_was() {
    let (_dir, store) = temp_store();
    let sample = Sample::small(3);
    let id = sample.publish(&store, &name("hello")).unwrap();
    let snapshot = store.open_newest::<State>(&name("hello")).unwrap();
    sample.check(&snapshot).unwrap();
    assert_eq!(snapshot.id, id);
    assert_eq!(snapshot.memory.data(), [0..3, 5..6, 40..70, 148..150]);
    assert_eq!(snapshot.working_set, None);
    assert!(snapshot.working_set_error.is_none());

    let manifest = store.manifest(&name("hello")).unwrap();
    assert_eq!(manifest, snapshot.manifest);
    assert_eq!(manifest.id, id);
    assert_eq!(manifest.data_pages, 36);
    assert_eq!(manifest.memory_bytes, 150 * 4096);
    assert_eq!(manifest.image_digest, Digest::of(&sample.image));
    assert_eq!(manifest.config["concurrency"], 4);
    let verified = store.verify(&name("hello")).unwrap();
    assert_eq!(verified.snapshots, 1);
}

#[test]
fn memory_of_one_page_and_memory_of_zeros() {
    let (_dir, store) = temp_store();
    for (function, sample) in [
        ("one", Sample::new(1, &[0..1], 9)),
        ("zeros", Sample::new(40, &[], 9)),
        ("full", Sample::new(33, &[0..33], 9)),
    ] {
        sample.publish(&store, &name(function)).unwrap();
        sample
            .check(&store.open_newest(&name(function)).unwrap())
            .unwrap();
        store.verify(&name(function)).unwrap();
    }
}

#[test]
fn every_part_of_memory_can_be_read_alone() {
    let (_dir, store) = temp_store();
    let sample = Sample::small(5);
    sample.publish(&store, &name("parts")).unwrap();
    let memory = store.open_newest::<State>(&name("parts")).unwrap().memory;
    for first in 0..150usize {
        for pages in [0, 1, 2, 15, 16, 17, 40] {
            let mut buf = vec![0xaa; pages * PAGE_BYTES];
            let read = memory.read_verified(first as u64, &mut buf);
            if first + pages <= 150 {
                read.unwrap();
                assert!(buf == sample.memory[first * PAGE_BYTES..][..buf.len()]);
            } else {
                assert!(matches!(read, Err(Error::Refused { .. })));
            }
        }
    }
    assert!(memory.read_verified(0, &mut [0; 100]).is_err());
    assert!(
        memory
            .read_verified(u64::MAX, &mut [0; PAGE_BYTES])
            .is_err()
    );
}

#[test]
fn zero_pages_take_no_room() {
    let (_dir, store) = temp_store();
    // 4 GiB, of which 64 MiB are said to be resident and three pages are not zero.
    let filled = [0u64, 777, 16_000];
    let state = State::default();
    let mut read = |first_page: u64, buf: &mut [u8]| {
        for (page, bytes) in (first_page..).zip(buf.chunks_mut(PAGE_BYTES)) {
            bytes.fill(u8::from(filled.contains(&page)));
        }
        Ok(())
    };
    let draft = dormouse_snapshot::Draft {
        created_unix_ms: 0,
        host: String::new(),
        config: serde_json::Value::Null,
        state: &state,
        memory: dormouse_snapshot::MemoryDraft {
            pages: 1 << 20,
            resident: vec![600..16384, 0..700],
            read: &mut read,
        },
        image: b"image",
        parent: None,
        compression: Compression::None,
    };
    let id = store.publish(&name("sparse"), draft).unwrap();
    let memory = store.open_newest::<State>(&name("sparse")).unwrap().memory;
    assert_eq!(memory.data(), [0..1, 777..778, 16_000..16_001]);

    let memfd = memory.load(true).unwrap();
    let metadata = memfd.metadata().unwrap();
    assert_eq!(metadata.len(), 4 << 30);
    let blocks = metadata.blocks();
    assert!(blocks * 512 <= 256 << 10, "{blocks} blocks");
    let pack = packs(&folder(&store, &name("sparse"), &id)).remove(0);
    let pack = folder(&store, &name("sparse"), &id).join(pack);
    // Three pages are two different ones, and one is the image's.
    assert!(pack.metadata().unwrap().len() < 4 * 4096);
    let state_file = folder(&store, &name("sparse"), &id).join("snapshot.dms");
    assert!(state_file.metadata().unwrap().len() < 1000);

    // In the memfd, exactly the pages with data exist.
    let mut found = Vec::new();
    let mut from = 0;
    while let Ok(start) = seek(&memfd, SeekFrom::Data(from)) {
        from = seek(&memfd, SeekFrom::Hole(start)).unwrap();
        found.push(start / 4096..from / 4096);
    }
    assert_eq!(found, memory.data());
}

#[test]
fn loaded_memory_is_sealed_and_can_be_mapped() {
    let (_dir, store) = temp_store();
    let sample = Sample::small(7);
    sample.publish(&store, &name("sealed")).unwrap();
    let memory = store.open_newest::<State>(&name("sealed")).unwrap().memory;
    let memfd = memory.load(true).unwrap();
    let seals = rustix::fs::fcntl_get_seals(&memfd).unwrap();
    assert!(seals.contains(SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW));
    assert!(memfd.write_at(b"x", 0).is_err());
    assert!(memfd.set_len(0).is_err());
    assert!(memfd.set_len(1 << 30).is_err());
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert!(rustix::fs::fallocate(&memfd, punch, 0, 4096).is_err());

    let length = sample.memory.len();
    let map = |protection, flags, file: &dyn AsFd| {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
        unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                protection,
                flags,
                file.as_fd(),
                0,
            )
        }
    };
    assert!(map(ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &memfd).is_err());
    for (protection, flags, file) in [
        (
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
            &memfd as &dyn AsFd,
        ),
        (ProtFlags::READ, MapFlags::SHARED, &memfd),
    ] {
        let address = map(protection, flags, file).unwrap();
        // SAFETY: `length` readable bytes were mapped at `address`, which nobody else has.
        let mapped = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), length) };
        assert!(mapped == sample.memory);
        // SAFETY: `mapped` is not used any more.
        unsafe { munmap(address, length) }.unwrap();
    }
}

#[test]
fn published_files_belong_to_their_owner_and_are_read_only() {
    let (_dir, store) = temp_store();
    let id = Sample::small(1).publish(&store, &name("private")).unwrap();
    let folder = folder(&store, &name("private"), &id);
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for entry in std::fs::read_dir(&folder).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o400);
    }
}

#[test]
fn the_newest_wins_and_older_ones_stay() {
    let (_dir, store) = temp_store();
    let function = name("again");
    let samples = [Sample::small(1), Sample::small(2), Sample::small(3)];
    let ids: Vec<_> = samples
        .iter()
        .map(|sample| sample.publish(&store, &function).unwrap())
        .collect();
    assert!(ids.is_sorted());
    samples[2]
        .check(&store.open_newest(&function).unwrap())
        .unwrap();
    for (sample, id) in samples.iter().zip(&ids) {
        sample
            .check(&store.open_id(&function, id).unwrap())
            .unwrap();
    }
    Sample::small(1).publish(&store, &name("another")).unwrap();
    let listed: Vec<_> = store
        .list()
        .unwrap()
        .into_iter()
        .map(|entry| {
            (
                entry.function.to_string(),
                entry.manifest.unwrap().id.sequence(),
            )
        })
        .collect();
    let expected = [("again", 1), ("again", 2), ("again", 3), ("another", 1)];
    assert_eq!(
        listed,
        expected.map(|(function, sequence)| (function.to_owned(), sequence))
    );
    assert_eq!(store.verify(&function).unwrap().snapshots, 3);
}

#[test]
fn the_same_content_twice_is_two_snapshots() {
    let (_dir, store) = temp_store();
    let first = Sample::small(1).publish(&store, &name("twin")).unwrap();
    let second = Sample::small(1).publish(&store, &name("twin")).unwrap();
    assert_ne!(first, second);
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn removed_is_gone_but_open_ones_stay_usable() {
    let (_dir, store) = temp_store();
    let (gone, stays) = (name("gone"), name("stays"));
    let sample = Sample::small(1);
    let id = sample.publish(&store, &gone).unwrap();
    sample.publish(&store, &stays).unwrap();
    let open = store.open_newest::<State>(&gone).unwrap();

    store.remove(&gone).unwrap();
    assert_eq!(visible(&store), ["stays"]);
    sample.check(&open).unwrap();
    assert!(matches!(
        store.open_newest::<State>(&gone),
        Err(Error::UnknownFunction { .. })
    ));
    assert!(matches!(
        store.open_id::<State>(&gone, &id),
        Err(Error::UnknownSnapshot { .. })
    ));
    assert!(matches!(
        store.remove(&gone),
        Err(Error::UnknownFunction { .. })
    ));
    assert!(matches!(
        store.verify(&gone),
        Err(Error::UnknownFunction { .. })
    ));
    assert!(matches!(
        store.save_working_set(&gone, &id, &WorkingSet::default()),
        Err(Error::UnknownSnapshot { .. })
    ));
    sample.check(&store.open_newest(&stays).unwrap()).unwrap();
}

#[test]
fn a_working_set_is_saved_replaced_and_checked() {
    let (_dir, store) = temp_store();
    let function = name("working");
    let id = Sample::small(1).publish(&store, &function).unwrap();
    for set in [
        WorkingSet::from_touched([40, 3, 41, 2], [3, 149]),
        WorkingSet::from_touched(0..150, [0]),
        WorkingSet::default(),
    ] {
        store.save_working_set(&function, &id, &set).unwrap();
        let snapshot = store.open_newest::<State>(&function).unwrap();
        assert_eq!(snapshot.working_set, Some(set));
    }
    store.verify(&function).unwrap();
    for bad in [
        WorkingSet::from_touched([150], []),
        WorkingSet::from_touched([u64::MAX], []),
        WorkingSet {
            order: vec![1],
            ..WorkingSet::default()
        },
        WorkingSet {
            order: vec![1, 1],
            read: vec![1..3],
            ..WorkingSet::default()
        },
    ] {
        let error = store.save_working_set(&function, &id, &bad).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    }
    assert!(
        store
            .open_newest::<State>(&function)
            .unwrap()
            .working_set
            .is_some()
    );
}

#[test]
fn the_working_set_of_another_snapshot_is_not_used() {
    let (_dir, store) = temp_store();
    let function = name("mixed");
    let first = Sample::small(1).publish(&store, &function).unwrap();
    let second = Sample::small(2).publish(&store, &function).unwrap();
    let set = WorkingSet::from_touched([1], []);
    store.save_working_set(&function, &first, &set).unwrap();
    let path = folder(&store, &function, &first).join("working-set");
    std::fs::copy(path, folder(&store, &function, &second).join("working-set")).unwrap();

    let snapshot = store.open_newest::<State>(&function).unwrap();
    assert_eq!(snapshot.working_set, None);
    let error = snapshot.working_set_error.unwrap().to_string();
    assert!(error.contains("belongs to another snapshot"), "{error}");
    assert!(store.verify(&function).is_err());
}

#[test]
fn a_copied_store_opens_elsewhere() {
    let (dir, store) = temp_store();
    let sample = Sample::small(1);
    let id = sample.publish(&store, &name("moved")).unwrap();
    store
        .save_working_set(&name("moved"), &id, &WorkingSet::from_touched([1], [2]))
        .unwrap();
    let copy = dir.path().join("copy");
    // Without holes: what is zero comes from the table, not from the file system.
    let copying = Command::new("cp")
        .args(["-r", "--sparse=never"])
        .args([store.path(), &copy])
        .status();
    assert!(copying.unwrap().success());
    store.remove(&name("moved")).unwrap();

    let copied = Store::open(&copy).unwrap();
    let snapshot = copied.open_newest::<State>(&name("moved")).unwrap();
    sample.check(&snapshot).unwrap();
    assert_eq!(snapshot.working_set.unwrap().pages(), 2);
    assert_eq!(snapshot.memory.data(), [0..3, 5..6, 40..70, 148..150]);
    copied.verify(&name("moved")).unwrap();
}

#[test]
fn a_renamed_function_is_refused() {
    let (_dir, store) = temp_store();
    Sample::small(1).publish(&store, &name("alice")).unwrap();
    std::fs::rename(store.path().join("alice"), store.path().join("bob")).unwrap();
    let error = store
        .open_newest::<State>(&name("bob"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("it tells of function alice, but this is bob"),
        "{error}"
    );
}

#[test]
fn a_state_of_another_type_is_refused() {
    let (_dir, store) = temp_store();
    Sample::small(1).publish(&store, &name("typed")).unwrap();
    let error = store.open_newest::<(u8, u8)>(&name("typed")).unwrap_err();
    assert!(matches!(error, Error::Decode { .. }), "{error}");
    assert!(store.list().unwrap()[0].manifest.is_ok());
}

#[test]
fn what_is_not_a_snapshot_is_left_alone() {
    let (_dir, store) = temp_store();
    let function = name("real");
    Sample::small(1).publish(&store, &function).unwrap();
    std::fs::create_dir(store.path().join("lost+found")).unwrap();
    std::fs::create_dir(store.path().join("empty")).unwrap();
    std::fs::create_dir_all(store.path().join("real/.hidden")).unwrap();
    std::fs::create_dir_all(store.path().join("real/notes")).unwrap();
    std::fs::write(store.path().join("readme"), "text").unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
    assert!(matches!(
        store.open_newest::<State>(&name("readme")),
        Err(Error::UnknownFunction { .. })
    ));
    assert!(matches!(
        store.open_newest::<State>(&name("empty")),
        Err(Error::UnknownFunction { .. })
    ));
    Sample::small(1).publish(&store, &name("empty")).unwrap();
    assert!(store.open_newest::<State>(&name("empty")).is_ok());
}
