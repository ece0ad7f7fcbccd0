//! The on-disk snapshot format, version 1, and the store that keeps snapshots.
//!
//! A snapshot is a folder of plain files below `<store>/<function>/<id>/`:
//!
//! ```text
//! snapshot.dms    header │ state (bincode) │ data ranges │ chunk digests
//! memory          guest memory, sparse, page n at byte n × 4096: can be mapped as it is
//! image           the function's image, as it was deployed
//! manifest.json   for people; covered by a digest in the header
//! working-set     which pages the first runs touched; comes later, may be replaced
//! ```
//!
//! The folder is built under a name that starts with a dot, is flushed to disk and appears under
//! its own name by one rename, so whoever can see a snapshot sees all of it. After that nothing
//! writes into its files: they may be mapped by running guests.
//!
//! Everything read from a store is hostile until its digest was compared, and stays bounded even
//! then (BLAKE3 without a key tells damage, not malice): lengths are checked against limits and
//! against the file's real size before anything is allocated. `snapshots/FORMAT.md` is the
//! normative description of the bytes.
//!
//! The crate knows nothing of KVM: a virtual machine's state is any `S: Serialize`.
#![forbid(unsafe_code)]

mod codec;
mod digest;
mod error;
mod files;
mod header;
mod manifest;
mod memory;
mod memory_writer;
mod name;
mod publish;
mod ranges;
mod snapshot;
mod state_file;
mod store;
mod table;
mod working_set;

pub use digest::Digest;
pub use error::{Error, Result};
pub use manifest::Manifest;
pub use memory::MemoryImage;
pub use memory_writer::MemoryDraft;
pub use name::{FunctionName, SnapshotId};
pub use publish::Draft;
pub use snapshot::Snapshot;
pub use store::{Entry, Store, Verified};
pub use working_set::WorkingSet;

/// The version of the on-disk format that this build writes, and the only one it reads.
///
/// It counts everything that decides what the bytes mean, the types behind the state section
/// included: bincode does not describe itself, so a changed type needs a new version.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes in a page of guest memory, the unit of all page numbers and page ranges.
pub const PAGE_BYTES: usize = 4096;

/// Bytes of guest memory under one digest, the smallest amount that can be verified.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// The most guest memory that one snapshot may have, in pages (256 GiB).
pub const MAX_MEMORY_PAGES: u64 = 1 << 26;
