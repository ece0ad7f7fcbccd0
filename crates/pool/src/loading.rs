//! A snapshot's memory on its way under guests: loaded, or read when it is asked for; verified when
//! the pool's user wants it.

use std::sync::{Arc, OnceLock};

use dormouse_pager::Source;
use dormouse_snapshot::{MemoryImage, SnapshotRef, Store};
use dormouse_vmm::{GuestImage, Namer, Symbols};

use crate::budget::{Budget, Charge};
use crate::damage::{Damages, Health};
use crate::deploy::SavedFunction;
use crate::error::Error;
use crate::interrupters::Interrupters;
use crate::verify::Verify;

/// Snapshots up to this size are kept in memory, shared by all clones; the pages of larger ones are
/// read when they are touched.
const RESIDENT_LIMIT_BYTES: u64 = 1 << 30;

/// What all functions of a pool share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) guests: Interrupters,
    pub(crate) budget: Budget,
    pub(crate) damages: Damages,
}

impl Shared {
    /// For a function that is alone.
    pub(crate) fn alone() -> Self {
        Self {
            guests: Interrupters::default(),
            budget: Budget::new(u64::MAX, Arc::default()),
            damages: Damages::default(),
        }
    }
}

/// A snapshot's memory, ready to be put under guests.
pub(crate) struct Loaded {
    pub(crate) memory: Arc<MemoryImage>,
    pub(crate) source: Source,
    pub(crate) health: Health,
    /// How it is verified.
    pub(crate) verify: Verify,
    /// For what all clones share of it.
    pub(crate) charge: Charge,
}

impl Loaded {
    /// Loads `memory`, or prepares that it is read page by page. Blocks while it is read.
    pub(crate) fn new(
        memory: MemoryImage,
        snapshot: &SnapshotRef,
        usual: Verify,
        shared: &Shared,
    ) -> Result<Self, Error> {
        let Shared {
            budget, damages, ..
        } = shared.clone();
        let was_damaged = damages.was_damaged(snapshot)?;
        let verify = if was_damaged { Verify::Always } else { usual };
        let health = Health::new(&damages, snapshot);
        let memory = Arc::new(memory);
        let data: Arc<[_]> = memory.data().into();
        let data_bytes = memory.data_pages() * dormouse_snapshot::PAGE_BYTES as u64;
        let is_resident = data_bytes <= RESIDENT_LIMIT_BYTES;
        let charge = budget
            .try_charge(if is_resident { data_bytes } else { 0 })
            .ok_or_else(|| budget.refusal(&snapshot.function, data_bytes))?;
        let source = if is_resident {
            let loaded = memory.load(verify == Verify::Always);
            let loaded = loaded.inspect_err(|error| health.note(error))?;
            Source::shared(Arc::new(loaded), memory.pages(), data)?
        } else {
            if was_damaged {
                verify_all(&memory).inspect_err(|error| health.note(error))?;
            }
            let (file, health) = (Arc::clone(&memory), health.clone());
            let read = move |page: u64, buffer: &mut [u8]| {
                let read = match verify {
                    Verify::Always | Verify::Background => file.read_verified(page, buffer),
                    Verify::Off => file.read(page, buffer),
                };
                read.inspect_err(|error| health.note(error))
                    .map_err(std::io::Error::other)
            };
            Source::not_local(memory.pages(), data, Arc::new(read))?
        };
        if was_damaged {
            damages.forget(snapshot);
        }
        Ok(Self {
            memory,
            source,
            health,
            verify,
            charge,
        })
    }
}

/// Compares all of `memory` with its digests.
fn verify_all(memory: &MemoryImage) -> dormouse_snapshot::Result<()> {
    let mut page_bytes = [0; dormouse_snapshot::PAGE_BYTES];
    let mut pages = memory.data().iter().cloned().flatten();
    pages.try_for_each(|page| memory.read_verified(page, &mut page_bytes))
}

/// Verifies what was loaded into `source`, if that is all of `memory`, on a thread of its own. Where
/// it is damaged, or cannot be verified, that is noted first and then `found` is called.
pub(crate) fn verify_later(
    memory: &Arc<MemoryImage>,
    source: &Source,
    snapshot: &SnapshotRef,
    health: Health,
    found: impl FnOnce() + Send + 'static,
) {
    let Some(loaded) = source.file().cloned() else {
        return;
    };
    let memory = Arc::clone(memory);
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

/// Names addresses by the stored image's symbols, which are read when the first name is asked for.
pub(crate) fn namer(store: Store, snapshot: SnapshotRef, load_address: u64) -> Namer {
    let symbols: OnceLock<Symbols> = OnceLock::new();
    Arc::new(move |address| {
        let symbols = symbols.get_or_init(|| {
            let snapshot = store
                .open_id::<SavedFunction>(&snapshot.function, &snapshot.id)
                .ok();
            let file = snapshot.and_then(|snapshot| snapshot.image().ok());
            let image = file.and_then(|file| GuestImage::parse(&file).ok());
            image
                .map(|image| image.symbols(load_address))
                .unwrap_or_default()
        });
        symbols.name(address)
    })
}
