//! Snapshots that travel: out of a store into one file or an OCI image layout, and from there into
//! another store, byte for byte.
//!
//! ```text
//! Store::files ──► list of files with SHA-256 ──► tar file │ OCI image layout
//! Store::adopt ◄── each file compared with the list ◄──────┘
//! ```
//!
//! What comes in is hostile: names are taken from what a snapshot can have, sizes are bounded,
//! every file is compared with the list that came with it, and the store verifies the whole before
//! it shows anything of it. `snapshots/EXPORT.md` is the normative description of both forms.
#![forbid(unsafe_code)]

mod blobs;
mod contents;
mod error;
mod file;
mod layout;
mod media;
mod oci;
mod sha256;

use std::path::Path;

use dormouse_snapshot::{FunctionName, SnapshotId, Store};
use serde::Serialize;

pub use error::{Error, Result};
pub use file::{FILE_VERSION, export_file, export_to, import_file, import_from};
pub use oci::{export_oci, import_oci};

/// Is told how much of the work is done and how much there is, in bytes.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// What to do with a file, or a tag in a layout, that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone: the export fails.
    #[default]
    Keep,
    /// Put the export in its place.
    Replace,
}

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// Bytes in the snapshot's files.
    pub bytes: u64,
    /// Bytes that were written: more than the files have, or less where an OCI image layout has
    /// some of them already.
    pub written_bytes: u64,
}

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// The function that the snapshot belongs to.
    pub function: FunctionName,
    /// The snapshot's id, the same as where it came from.
    pub id: SnapshotId,
    /// The store had this very snapshot before, and was not changed.
    pub already_there: bool,
    /// Bytes in the snapshot's files.
    pub bytes: u64,
    /// Bytes of those files that the store had already and did not store again.
    pub linked_bytes: u64,
}

/// Imports what is at `path`: an OCI image layout where that is a folder, else a single file. Of a
/// layout with several snapshots, `tag` chooses one.
///
/// # Errors
/// As [`import_file`] and [`import_oci`]; [`Error::NoTags`] for a file with a tag.
pub fn import(
    store: &Store,
    path: &Path,
    tag: Option<&str>,
    progress: Progress<'_>,
) -> Result<Imported> {
    if path.is_dir() {
        return import_oci(store, path, tag, progress);
    }
    if tag.is_some() {
        return Err(Error::NoTags {
            place: path.display().to_string(),
        });
    }
    import_file(store, path, progress)
}
