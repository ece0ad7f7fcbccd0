//! Small snapshots of every kind, and stores that they move between.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dormouse_archive::{Exported, Imported, Result, export_to, import_from};
use dormouse_snapshot::{
    Compression, Digest, Draft, FunctionName, MemoryDraft, PAGE_BYTES, SnapshotRef, Store,
    WorkingSet,
};

pub(crate) const PAGES: u64 = 64;

/// A store in a folder of its own.
pub(crate) struct TempStore {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl TempStore {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What is in the store's folder, but for its lock.
    pub(crate) fn visible(&self) -> Vec<String> {
        let mut names = names(self.store.path());
        names.retain(|name| name != ".lock");
        names
    }
}

/// Memory whose pages differ from each other, by `seed`, but for those that are zero.
pub(crate) fn memory(seed: u8) -> Vec<u8> {
    let mut memory = vec![0; PAGES as usize * PAGE_BYTES];
    for (number, page) in memory.chunks_mut(PAGE_BYTES).enumerate() {
        if number % 3 != 1 {
            page[number] = seed;
            page[4000] = number as u8 + 1;
        }
    }
    memory
}

/// Publishes a snapshot with the given memory.
pub(crate) fn publish(
    store: &Store,
    function: &str,
    memory: &[u8],
    parent: Option<SnapshotRef>,
    compression: Compression,
) -> SnapshotRef {
    let function = FunctionName::new(function).unwrap();
    let mut read = |first_page: u64, buf: &mut [u8]| {
        let at = first_page as usize * PAGE_BYTES;
        buf.copy_from_slice(&memory[at..at + buf.len()]);
        Ok(())
    };
    let draft = Draft {
        created_unix_ms: 1_700_000_000_000,
        host: "test host".into(),
        config: serde_json::json!({ "memory": "256KiB" }),
        state: &(7u64, vec![3u8; 500]),
        memory: MemoryDraft {
            pages: PAGES,
            resident: std::iter::once(0..PAGES).collect(),
            read: &mut read,
        },
        image: &[5; 5000],
        parent,
        compression,
    };
    let id = store.publish(&function, draft).unwrap();
    SnapshotRef { function, id }
}

/// Saves a working set with the snapshot.
pub(crate) fn save_working_set(store: &Store, snapshot: &SnapshotRef) {
    let set = WorkingSet::from_touched([9, 3, 4, 30], [4, 60]);
    store
        .save_working_set(&snapshot.function, &snapshot.id, &set)
        .unwrap();
}

/// A plain snapshot with a working set.
pub(crate) fn plain(store: &Store) -> SnapshotRef {
    let snapshot = publish(store, "plain", &memory(1), None, Compression::None);
    save_working_set(store, &snapshot);
    snapshot
}

/// Snapshots of every kind that there is: raw, compressed, a layer with its parent's pack and one of
/// its own, one that has no pack at all, and one of format version 1.
pub(crate) fn every_kind(store: &Store) -> Vec<SnapshotRef> {
    let plain = plain(store);
    let packed = publish(store, "packed", &memory(2), None, Compression::Zstd);
    let mut changed = memory(1);
    changed[5] = 99;
    let layer = publish(
        store,
        "layer",
        &changed,
        Some(plain.clone()),
        Compression::Zstd,
    );
    assert_eq!(packs(&folder(store, &layer)).len(), 2);
    vec![plain, packed, layer, version_1(store)]
}

/// A snapshot of version 1, which the store only reads (FORMAT.md, section 8).
pub(crate) fn version_1(store: &Store) -> SnapshotRef {
    let snapshot = SnapshotRef {
        function: FunctionName::new("old").unwrap(),
        id: "00000003-00000000000000aa".parse().unwrap(),
    };
    let mut memory = vec![0; 20 * PAGE_BYTES];
    memory[3 * PAGE_BYTES + 1] = 7;
    memory[19 * PAGE_BYTES + 4] = 8;
    let (image, state) = (vec![6; 777], vec![1; 100]);
    let mut body = state.clone();
    for bound in [3u64, 4, 19, 20] {
        body.extend_from_slice(&bound.to_le_bytes());
    }
    for chunk in memory.chunks(16 * PAGE_BYTES) {
        body.extend_from_slice(Digest::of(chunk).as_bytes());
    }
    let manifest = serde_json::to_vec(&serde_json::json!({
        "format_version": 1, "function": snapshot.function, "id": snapshot.id,
        "created_unix_ms": 1_600_000_000_000u64, "host": "old host",
        "memory_bytes": memory.len(), "data_pages": 2, "state_bytes": state.len(),
        "image_bytes": image.len(), "image_digest": Digest::of(&image), "config": {},
    }))
    .unwrap();
    let mut header = b"DORMOUSE".to_vec();
    for word in [1u32, 1, 256, 4096, 65536, 0] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    let sizes = [20, state.len(), 2, 2, manifest.len(), image.len()];
    for size in sizes {
        header.extend_from_slice(&(size as u64).to_le_bytes());
    }
    for digested in [&manifest, &image, &body] {
        header.extend_from_slice(Digest::of(digested).as_bytes());
    }
    header.extend_from_slice(&[0; 48]);
    header.extend_from_slice(Digest::of(&header).as_bytes());

    let folder = folder(store, &snapshot);
    fs::create_dir_all(&folder).unwrap();
    for (name, content) in [
        ("snapshot.dms", [header, body].concat()),
        ("manifest.json", manifest),
        ("memory", memory),
        ("image", image),
    ] {
        fs::write(folder.join(name), content).unwrap();
    }
    store.verify(&snapshot.function).unwrap();
    snapshot
}

pub(crate) fn folder(store: &Store, snapshot: &SnapshotRef) -> PathBuf {
    let function = store.path().join(snapshot.function.as_str());
    function.join(snapshot.id.to_string())
}

/// The names in the folder `path`, sorted.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The names of the packs in the folder `path`, sorted.
pub(crate) fn packs(path: &Path) -> Vec<String> {
    let mut names = names(path);
    names.retain(|name| name.starts_with("pack-"));
    names
}

/// Every file of a snapshot with its content.
pub(crate) fn content(store: &Store, snapshot: &SnapshotRef) -> BTreeMap<String, Vec<u8>> {
    let folder = folder(store, snapshot);
    let read = |name: String| {
        let content = fs::read(folder.join(&name)).unwrap();
        (name, content)
    };
    names(&folder).into_iter().map(read).collect()
}

/// Exports to memory.
pub(crate) fn exported(store: &Store, snapshot: &SnapshotRef) -> (Vec<u8>, Exported) {
    let mut bytes = Vec::new();
    let exported = export_to(store, snapshot, &mut bytes, &mut |_, _| {}).unwrap();
    (bytes, exported)
}

/// Imports from memory.
pub(crate) fn import(store: &Store, bytes: &[u8]) -> Result<Imported> {
    import_from(store, bytes, "the export", &mut |_, _| {})
}

/// Replaces the file `path`, which is read-only, by one with `content`.
pub(crate) fn overwrite(path: &Path, content: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Asserts that the snapshot is in both stores, to the byte, and good.
pub(crate) fn assert_same(from: &Store, to: &Store, snapshot: &SnapshotRef) {
    let (ours, theirs) = (content(from, snapshot), content(to, snapshot));
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>()
    );
    assert!(ours == theirs, "{snapshot}");
    to.verify(&snapshot.function).unwrap();
    for name in theirs.keys() {
        assert_eq!(mode(&folder(to, snapshot).join(name)), 0o400, "{name}");
    }
}
