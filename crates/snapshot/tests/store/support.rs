//! A small function with a sparse memory, as the tests publish it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dormouse_snapshot::{
    Compression, Draft, FunctionName, MemoryDraft, PAGE_BYTES, Result, Snapshot, SnapshotId,
    SnapshotRef, Store,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) registers: Vec<u64>,
    pub(crate) notes: BTreeMap<String, Vec<u8>>,
    pub(crate) xsave: Option<Box<[u32]>>,
}

/// Everything that one snapshot holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) state: State,
    pub(crate) memory: Vec<u8>,
    pub(crate) resident: Vec<Range<u64>>,
    pub(crate) image: Vec<u8>,
}

impl Sample {
    /// `pages` of memory of which those in `filled` are not zero; `seed` makes them differ.
    pub(crate) fn new(pages: u64, filled: &[Range<u64>], seed: u8) -> Self {
        let mut memory = vec![0; pages as usize * PAGE_BYTES];
        for page in filled.iter().cloned().flatten() {
            let at = page as usize * PAGE_BYTES;
            memory[at + (page as usize * 7) % PAGE_BYTES] = seed | 1;
            memory[at + 17] = page as u8;
        }
        let state = State {
            registers: (0..40).map(|n| (n * u64::from(seed)) << 20).collect(),
            notes: BTreeMap::from([("seed".into(), vec![seed; 9])]),
            xsave: Some(vec![u32::from(seed); 700].into()),
        };
        let resident = std::iter::once(0..pages).collect();
        Self {
            state,
            memory,
            resident,
            image: vec![seed; 5000],
        }
    }

    /// 150 pages with data in the first, the middle and the short last chunk.
    pub(crate) fn small(seed: u8) -> Self {
        Self::new(150, &[0..3, 5..6, 40..70, 148..150], seed)
    }

    pub(crate) fn publish(&self, store: &Store, name: &FunctionName) -> Result<SnapshotId> {
        self.publish_as(store, name, None, Compression::None)
    }

    pub(crate) fn publish_as(
        &self,
        store: &Store,
        name: &FunctionName,
        parent: Option<SnapshotRef>,
        compression: Compression,
    ) -> Result<SnapshotId> {
        self.publish_with(store, name, parent, compression, |_| ())
    }

    /// Publishes this as a layout, `index` of `of`, of the deployment `group`.
    pub(crate) fn publish_layout(
        &self,
        store: &Store,
        name: &FunctionName,
        (group, index, of): (&str, u32, u32),
    ) -> SnapshotId {
        let layout = serde_json::json!({ "group": group, "index": index, "of": of });
        let add = |config: &mut serde_json::Value| config["layout"] = layout;
        self.publish_with(store, name, None, Compression::None, add)
            .unwrap()
    }

    fn publish_with(
        &self,
        store: &Store,
        name: &FunctionName,
        parent: Option<SnapshotRef>,
        compression: Compression,
        change: impl FnOnce(&mut serde_json::Value),
    ) -> Result<SnapshotId> {
        let mut config =
            serde_json::json!({ "memory": "64MiB", "concurrency": 4, "seed": self.image.first() });
        change(&mut config);
        let mut read = |first_page: u64, buf: &mut [u8]| {
            let at = first_page as usize * PAGE_BYTES;
            buf.copy_from_slice(&self.memory[at..at + buf.len()]);
            Ok(())
        };
        let draft = Draft {
            created_unix_ms: 1_700_000_000_000,
            host: "test host".into(),
            config,
            state: &self.state,
            memory: MemoryDraft {
                pages: (self.memory.len() / PAGE_BYTES) as u64,
                resident: self.resident.clone(),
                read: &mut read,
            },
            image: &self.image,
            parent,
            compression,
        };
        store.publish(name, draft)
    }

    /// Asserts that `snapshot` holds this, in every way there is to read it, or gives its first
    /// error.
    pub(crate) fn check(&self, snapshot: &Snapshot<State>) -> Result<()> {
        assert_eq!(snapshot.state, self.state);
        assert_eq!(
            snapshot.memory.pages() as usize * PAGE_BYTES,
            self.memory.len()
        );
        assert!(snapshot.image()? == self.image);
        let mut memory = vec![0xaa; self.memory.len()];
        snapshot.memory.read_verified(0, &mut memory)?;
        assert!(memory == self.memory);
        memory.fill(0xaa);
        let memfd = snapshot.memory.load(true)?;
        snapshot.memory.verify_loaded(&memfd)?;
        std::os::unix::fs::FileExt::read_exact_at(&memfd, &mut memory, 0).unwrap();
        assert!(memory == self.memory);
        Ok(())
    }
}

pub(crate) fn name(name: &str) -> FunctionName {
    FunctionName::new(name).unwrap()
}

pub(crate) fn temp_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

pub(crate) fn folder(store: &Store, function: &FunctionName, id: &SnapshotId) -> PathBuf {
    store.path().join(function.as_str()).join(id.to_string())
}

/// Replaces the file `path`, which is read-only, by one with `content`.
pub(crate) fn overwrite(path: &Path, content: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, content).unwrap();
}

/// Opens the file `path` for writing, although published files are read-only.
pub(crate) fn open_writable(path: &Path) -> File {
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    OpenOptions::new().write(true).open(path).unwrap()
}

/// The names in the folder `path`, sorted.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let names = std::fs::read_dir(path).unwrap();
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

/// What is in the store's folder, but for its lock.
pub(crate) fn visible(store: &Store) -> Vec<String> {
    let mut names = names(store.path());
    names.retain(|name| name != ".lock");
    names
}

/// Copies the folder `from` with all below it, as `cp -r` does.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
