//! What is in a snapshot, all of it from one number: whoever opens it can tell whether it is right.

use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use dormouse_snapshot::{
    Compression, Draft, FunctionName, LayerInfo, Manifest, MemoryDraft, PAGE_BYTES, Snapshot,
    SnapshotId, SnapshotRef, Store, WorkingSet,
};
use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Pages of guest memory in each snapshot: several blocks, the last one not full.
const MEMORY_PAGES: u64 = 41;
/// Bytes of each image; its last page is not full.
const IMAGE_BYTES: usize = 3 * PAGE_BYTES + 1234;
/// How many numbers in a row make snapshots that are mostly equal.
const FAMILY: u64 = 8;
/// Different pages that any two snapshots may have in common.
const COMMON_PAGES: u64 = 12;
/// Stands for a working set that is not there.
const NO_WORKING_SET: u64 = 0;

/// The content of one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content(pub u64);

/// One snapshot in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) content: Content,
    /// Which working set it has; 0 for none.
    pub(crate) working_set: u64,
    pub(crate) layer: Option<LayerInfo>,
}

/// The state of a machine that never was.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    content: u64,
    registers: Vec<u64>,
    name: String,
}

impl Content {
    /// Publishes it.
    ///
    /// # Errors
    /// As [`Store::publish`].
    pub fn publish(
        self,
        store: &Store,
        function: &FunctionName,
        parent: Option<SnapshotRef>,
    ) -> dormouse_snapshot::Result<SnapshotId> {
        let memory = self.memory();
        let mut read = |first_page: u64, buf: &mut [u8]| {
            let at = first_page as usize * PAGE_BYTES;
            let pages = memory.get(at..at + buf.len());
            buf.copy_from_slice(pages.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        let draft = Draft {
            created_unix_ms: self.created_unix_ms(),
            host: "torture".to_owned(),
            config: serde_json::json!({ "content": self.0 }),
            state: &self.state(),
            memory: MemoryDraft {
                pages: MEMORY_PAGES,
                resident: std::iter::once(0..MEMORY_PAGES).collect(),
                read: &mut read,
            },
            image: &self.image(),
            parent,
            compression: self.compression(),
        };
        store.publish(function, draft)
    }

    /// When it says it was taken.
    pub(crate) fn created_unix_ms(self) -> u64 {
        1_700_000_000_000 + self.0
    }

    /// Compares everything in the snapshot `id` with what it should be. Where it holds, tells what
    /// it is.
    ///
    /// # Errors
    /// The store's own where it refuses; [`Differs`] where it gives something wrong.
    pub(crate) fn check(store: &Store, function: &FunctionName, id: &SnapshotId) -> Result<Kept> {
        let snapshot: Snapshot<State> = store.open_id(function, id)?;
        Self::check_opened(&snapshot)
    }

    /// The same for the newest snapshot of `function`.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn check_newest(store: &Store, function: &FunctionName) -> Result<Kept> {
        let snapshot: Snapshot<State> = store.open_newest(function)?;
        Self::check_opened(&snapshot)
    }

    fn check_opened(snapshot: &Snapshot<State>) -> Result<Kept> {
        let content = Self::of(&snapshot.manifest)?;
        ensure!(snapshot.state == content.state(), Differs("state"));
        ensure!(
            snapshot.memory.pages() == MEMORY_PAGES,
            Differs("memory's size")
        );
        let mut memory = vec![0xa5; MEMORY_PAGES as usize * PAGE_BYTES];
        snapshot.memory.read_verified(0, &mut memory)?;
        ensure!(memory == content.memory(), Differs("memory"));
        // As a server reads it: verified on the way, and after.
        for verify in [true, false] {
            let loaded = snapshot.memory.load(verify)?;
            snapshot.memory.verify_loaded(&loaded)?;
            loaded.read_exact_at(&mut memory, 0)?;
            ensure!(memory == content.memory(), Differs("loaded memory"));
        }
        ensure!(snapshot.image()? == content.image(), Differs("image"));
        if let Some(error) = &snapshot.working_set_error {
            bail!("its working set cannot be used: {error}");
        }
        let working_set = match &snapshot.working_set {
            None => NO_WORKING_SET,
            Some(set) => {
                // The first touched page says which version it is.
                let version = set.order.first().context(Differs("working set"))?;
                ensure!(*set == Self::working_set(*version), Differs("working set"));
                *version
            }
        };
        Ok(Kept {
            content,
            working_set,
            layer: snapshot.manifest.layer.clone(),
        })
    }

    fn of(manifest: &Manifest) -> Result<Self> {
        let number = manifest.config["content"].as_u64();
        number.map(Self).context(Differs("configuration"))
    }

    /// The working set of this `version`, 1 to 30.
    #[must_use]
    pub fn working_set(version: u64) -> WorkingSet {
        let touched = [version, 0, version + 5, version + 6];
        WorkingSet::from_touched(touched, [version + 5])
    }

    fn compression(self) -> Compression {
        match self.0 % 3 {
            0 => Compression::Zstd,
            _ => Compression::None,
        }
    }

    fn state(self) -> State {
        let mut rng = ChaCha8Rng::seed_from_u64(self.0 ^ 0x5747);
        State {
            content: self.0,
            registers: (0..40).map(|_| rng.next_u64()).collect(),
            name: format!("machine {}", self.0),
        }
    }

    fn memory(self) -> Vec<u8> {
        (0..MEMORY_PAGES).flat_map(|page| self.page(page)).collect()
    }

    fn image(self) -> Vec<u8> {
        // Code of the image is in memory as well.
        let pages = (2..6).flat_map(|page| self.page(page));
        pages.take(IMAGE_BYTES).collect()
    }

    fn page(self, page: u64) -> Vec<u8> {
        let family = self.0 / FAMILY;
        let of_family = (family << 20) | (page << 8);
        let choice = ChaCha8Rng::seed_from_u64(of_family).next_u64();
        match choice % 8 {
            0 | 1 => vec![0; PAGE_BYTES],
            2 | 3 => filled((1 << 60) | ((choice >> 8) % COMMON_PAGES)),
            4..=6 => filled((2 << 60) | of_family),
            _ => filled((3 << 60) | (self.0 << 20) | (page << 8)),
        }
    }
}

/// A page of bytes that compress, but not to nothing.
fn filled(seed: u64) -> Vec<u8> {
    let mut part = [0; 512];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut part);
    part.repeat(PAGE_BYTES / part.len())
}

/// Something that was read as good and is not what was written: what must never be.
#[derive(Debug)]
pub(crate) struct Differs(pub(crate) &'static str);

impl std::fmt::Display for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WRONG: its {} is not what was published", self.0)
    }
}

impl std::error::Error for Differs {}
