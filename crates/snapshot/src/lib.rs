//! The on-disk snapshot format, version 2, and the store that keeps snapshots.
//!
//! A snapshot is a folder of plain files below `<store>/<function>/<id>/`:
//!
//! ```text
//! snapshot.dms    header │ state (bincode) │ where each page is │ which packs
//! pack-…          pages of guest memory and image in blocks of 16, raw or compressed
//! manifest.json   for people; covered by a digest in the header
//! working-set     which pages the first runs touched; comes later, may be replaced
//! ```
//!
//! Zero pages are stored nowhere and equal pages once: a snapshot that has pages in common with
//! others gets hard links to their packs. Every folder is complete by itself.
//!
//! The folder is built under a name that starts with a dot, is flushed to disk and appears under
//! its own name by one rename, so whoever can see a snapshot sees all of it. After that nothing
//! writes into its files: they may be read by running servers, and belong to other snapshots too.
//!
//! A function's older snapshots stay beside its newest: a [`Reference`] names one, a [`Tag`] or a
//! [`Lease`] keeps it, [`Store::remove_id`] and [`Store::gc`] take away what nothing keeps. Where a
//! function was deployed with several [`Layout`]s, these are served, kept and counted as one.
//!
//! Everything read from a store is hostile until its digest was compared, and stays bounded even
//! then (BLAKE3 without a key tells damage, not malice): lengths are checked against limits and
//! against the file's real size before anything is allocated. `snapshots/FORMAT.md` is the
//! normative description of the bytes.
//!
//! The crate knows nothing of KVM: a virtual machine's state is any `S: Serialize`.
#![forbid(unsafe_code)]

#[macro_use]
mod written;

mod block;
mod chunks;
mod codec;
mod digest;
mod draft;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod gc;
mod header;
mod layout;
mod lease;
mod manifest;
mod memory;
mod name;
mod pack;
mod pack_writer;
mod publish;
mod ranges;
mod reference;
mod removal;
mod retention;
mod sharing;
mod snapshot;
mod space;
mod state_file;
mod store;
mod table;
mod tags;
mod transfer;
mod usage;
mod verify;
mod working_set;

pub use block::Compression;
pub use digest::Digest;
pub use draft::{Draft, MemoryDraft};
pub use error::{Error, Result};
pub use layout::Layout;
pub use lease::Lease;
pub use manifest::{LayerInfo, Manifest};
pub use memory::{MemoryImage, PackStats};
pub use name::{FunctionName, SnapshotId, SnapshotRef};
pub use reference::Reference;
pub use removal::IfTagged;
pub use retention::{GcReport, Kept, Limit, Protection, Removed, RetentionConfig};
pub use snapshot::{Snapshot, StoredImage};
pub use store::{Entry, Store};
pub use tags::Tag;
pub use transfer::{Adopted, Adoption, MAX_SNAPSHOT_FILES, SnapshotFile};
pub use usage::{SnapshotUsage, StoreUsage};
pub use verify::Verified;
pub use working_set::WorkingSet;

/// The version of the on-disk format that this build writes.
///
/// It counts everything that decides what the bytes mean, the types behind the state section
/// included: bincode does not describe itself, so a changed type needs a new version.
pub const FORMAT_VERSION: u32 = 2;

/// The oldest version of the on-disk format that this build reads.
pub const OLDEST_FORMAT_VERSION: u32 = 1;

/// How many snapshots a layer may have below it.
pub const MAX_LAYER_DEPTH: u32 = 8;

/// Bytes in a page of guest memory, the unit of all page numbers and page ranges.
pub const PAGE_BYTES: usize = 4096;

/// Bytes of pages under one digest, the smallest amount that can be verified.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// The most guest memory that one snapshot may have, in pages (256 GiB).
pub const MAX_MEMORY_PAGES: u64 = 1 << 26;
