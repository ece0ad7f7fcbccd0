//! A snapshot on its way under guests: its plan, and its memory, loaded or read when it is asked for;
//! verified when the pool's user wants it.

use std::fs::File;
use std::sync::{Arc, OnceLock};

use dormouse_pager::ReadPages;
use dormouse_snapshot::{Lease, Manifest, MemoryImage, Snapshot, SnapshotRef, Store};
use dormouse_vmm::{GuestImage, Namer, Symbols};
use tokio::sync::RwLock;

use crate::budget::{Budget, Charge};
use crate::config::{FunctionConfig, PoolConfig};
use crate::damage::{Damages, Health};
use crate::deploy::SavedFunction;
use crate::error::Error;
use crate::interrupters::Interrupters;
use crate::template::{Backing, Plan};
use crate::verify::Verify;
use crate::worker::Workers;

/// Snapshots up to this size are kept in memory, shared by all clones; the pages of larger ones are
/// read when they are touched.
const RESIDENT_LIMIT_BYTES: u64 = 1 << 30;

/// What all functions of a pool share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) guests: Interrupters,
    pub(crate) budget: Budget,
    pub(crate) damages: Damages,
    pub(crate) workers: Workers,
    /// Read while a working set is stored; written by who waits until none is.
    pub(crate) storing: Arc<RwLock<()>>,
}

impl Shared {
    /// For a function that is alone.
    pub(crate) fn alone() -> Self {
        Self {
            guests: Interrupters::default(),
            budget: Budget::new(u64::MAX, Arc::default()),
            damages: Damages::default(),
            workers: Workers::Here,
            storing: Arc::default(),
        }
    }
}

/// A snapshot that is about to be used.
pub(crate) struct Loaded {
    pub(crate) reference: SnapshotRef,
    pub(crate) manifest: Manifest,
    pub(crate) config: FunctionConfig,
    pub(crate) plan: Arc<Plan>,
    pub(crate) pages: Pages,
    /// The memory file, where all of it is in one.
    pub(crate) file: Option<Arc<File>>,
    /// Nobody removes the snapshot from its function's history as long as it is served.
    pub(crate) lease: Lease,
    /// For what all clones share of it.
    pub(crate) charge: Charge,
}

/// The pages of a snapshot, as they are stored.
#[derive(Clone)]
pub(crate) struct Pages {
    memory: Arc<MemoryImage>,
    verify: Verify,
    is_resident: bool,
    pub(crate) health: Health,
}

impl Loaded {
    /// Blocks while the snapshot's memory is read.
    ///
    /// # Errors
    /// [`Error::OtherAbi`]; [`Error::OverBudget`] or [`Error::LowMemory`]; [`Error::Store`] where it is
    /// damaged.
    pub(crate) fn new(
        snapshot: Snapshot<SavedFunction>,
        pool: &PoolConfig,
        shared: &Shared,
    ) -> Result<Self, Error> {
        let reference = SnapshotRef {
            function: snapshot.manifest.function.clone(),
            id: snapshot.id,
        };
        let config = FunctionConfig::stored(&snapshot.manifest)?;
        if let Some(error) = &snapshot.working_set_error {
            tracing::warn!(snapshot = %reference, %error, "the working set is unusable and is recorded again");
        }
        let Shared {
            budget, damages, ..
        } = shared;
        let was_damaged = damages.was_damaged(&reference)?;
        let memory = Arc::new(snapshot.memory);
        let data_bytes = memory.data_pages() * dormouse_snapshot::PAGE_BYTES as u64;
        let pages = Pages {
            is_resident: data_bytes <= RESIDENT_LIMIT_BYTES,
            verify: if was_damaged {
                Verify::Always
            } else {
                pool.verify
            },
            health: Health::new(damages, &reference),
            memory,
        };
        let charge = budget
            .try_charge(if pages.is_resident { data_bytes } else { 0 })
            .ok_or_else(|| budget.refusal(&reference.function, data_bytes))?;
        let file = pages.file()?;
        if was_damaged {
            if file.is_none() {
                verify_all(&pages.memory).inspect_err(|error| pages.health.note(error))?;
            }
            damages.forget(&reference);
        }
        let state = snapshot.state;
        let read = |page, bytes: &mut [u8]| pages.read_verified(page, bytes);
        let tables = state.vm.table_pages(|page, bytes| read(page, bytes))?;
        state
            .mailbox
            .check_abi(&state.vm, |page, bytes| read(page, bytes))?;
        let plan = Plan {
            name: reference.function.to_string(),
            pages: pages.memory.pages(),
            data: pages.memory.data().to_vec(),
            tables,
            paging: config.paging.unwrap_or_default(),
            timeout_ms: config.timeout_ms,
            rolls_back: pool.rolls_back,
            working_set: snapshot.working_set,
            budget_bytes: budget.limit_bytes(),
            state,
        };
        Ok(Self {
            reference,
            manifest: snapshot.manifest,
            config,
            plan: Arc::new(plan),
            pages,
            file,
            lease: snapshot.lease,
            charge,
        })
    }

    /// Where the pages are, for this process.
    pub(crate) fn backing(&self) -> Backing {
        self.pages.backing(self.file.clone())
    }
}

impl Pages {
    /// All of it in a sealed memory file, read now; nothing where it is too much for that.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn file(&self) -> Result<Option<Arc<File>>, Error> {
        if !self.is_resident {
            return Ok(None);
        }
        let loaded = self.memory.load(self.verify == Verify::Always);
        let loaded = loaded.inspect_err(|error| self.health.note(error))?;
        Ok(Some(Arc::new(loaded)))
    }

    /// Where the pages are, for this process.
    pub(crate) fn backing(&self, file: Option<Arc<File>>) -> Backing {
        match file {
            Some(file) => Backing::File(file),
            None => Backing::Read(self.reader()),
        }
    }

    /// Reads pages as they are touched.
    pub(crate) fn reader(&self) -> Arc<ReadPages> {
        let pages = self.clone();
        Arc::new(move |page, buffer: &mut [u8]| {
            let read = match pages.verify {
                Verify::Always | Verify::Background => pages.memory.read_verified(page, buffer),
                Verify::Off => pages.memory.read(page, buffer),
            };
            read.inspect_err(|error| pages.health.note(error))
                .map_err(std::io::Error::other)
        })
    }

    /// Reads a page, verified.
    pub(crate) fn read_verified(&self, page: u64, bytes: &mut [u8]) -> Result<(), Error> {
        Ok(self.memory.read_verified(page, bytes)?)
    }

    /// Verifies what was loaded into `file`, where that was not done at once, on a thread of its own.
    /// Where it is damaged, or cannot be verified, that is noted first and then `found` is called.
    pub(crate) fn verify_later(
        &self,
        file: Option<&Arc<File>>,
        snapshot: &SnapshotRef,
        found: impl FnOnce() + Send + 'static,
    ) {
        let (Verify::Background, Some(loaded)) = (self.verify, file.cloned()) else {
            return;
        };
        let (memory, health) = (Arc::clone(&self.memory), self.health.clone());
        let verifying = std::thread::Builder::new()
            .name(format!("verify {}", snapshot.function))
            .spawn(move || {
                if let Err(error) = memory.verify_loaded(&loaded) {
                    health.note_unverified(&error);
                    found();
                }
            });
        if let Err(error) = verifying {
            tracing::warn!(%snapshot, %error, "a snapshot is not verified");
        }
    }
}

/// Compares all of `memory` with its digests.
fn verify_all(memory: &MemoryImage) -> dormouse_snapshot::Result<()> {
    let mut page_bytes = [0; dormouse_snapshot::PAGE_BYTES];
    let mut pages = memory.data().iter().cloned().flatten();
    pages.try_for_each(|page| memory.read_verified(page, &mut page_bytes))
}

/// The image that a snapshot was made from, as it is stored.
///
/// # Errors
/// [`Error::Store`].
pub(crate) fn stored_image(store: &Store, snapshot: &SnapshotRef) -> Result<Vec<u8>, Error> {
    let snapshot: Snapshot<SavedFunction> = store.open_id(&snapshot.function, &snapshot.id)?;
    Ok(snapshot.image()?)
}

/// Names addresses by an image's symbols. `image` is read when the first name is asked for.
pub(crate) fn namer(
    load_address: u64,
    image: impl Fn() -> Option<Vec<u8>> + Send + Sync + 'static,
) -> Namer {
    let symbols: OnceLock<Symbols> = OnceLock::new();
    Arc::new(move |address| {
        let symbols = symbols.get_or_init(|| {
            let image = image().and_then(|file| GuestImage::parse(&file).ok());
            image
                .map(|image| image.symbols(load_address))
                .unwrap_or_default()
        });
        symbols.name(address)
    })
}
