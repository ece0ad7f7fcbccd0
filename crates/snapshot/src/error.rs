//! What can go wrong, in one sentence each, with the next step.

use std::io;
use std::path::{Path, PathBuf};

use crate::retention::list;
use crate::{FunctionName, SnapshotId, SnapshotRef, Tag};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a snapshot could not be published, opened or trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no function name.
    #[error(
        "{name:?} cannot be a function's name because {reason}: use 1 to 63 of a-z, 0-9, - and _, \
         starting with a letter or a digit"
    )]
    InvalidName {
        /// The name as it was given, shortened to 80 characters.
        name: String,
        /// Which rule it breaks.
        reason: String,
    },

    /// The text is no snapshot id.
    #[error(
        "{id:?} is not a snapshot id like 00000007-9f86d081884c7d65: list the snapshots to see \
         theirs"
    )]
    InvalidId {
        /// The id as it was given, shortened to 80 characters.
        id: String,
    },

    /// The store has no snapshot of this function.
    #[error("the store {} has no snapshot of function {function}: deploy it first", store.display())]
    UnknownFunction {
        /// The function that was asked for.
        function: FunctionName,
        /// The store's folder.
        store: PathBuf,
    },

    /// The store has no such snapshot of this function.
    #[error(
        "the store {} has no snapshot {id} of function {function}: list the snapshots to see which \
         there are", store.display()
    )]
    UnknownSnapshot {
        /// The function that was asked for.
        function: FunctionName,
        /// The snapshot that was asked for.
        id: SnapshotId,
        /// The store's folder.
        store: PathBuf,
    },

    /// The text is no tag.
    #[error(
        "{tag:?} cannot be a tag: use 1 to 63 of a-z, 0-9, ., - and _, starting with a letter or a \
         digit"
    )]
    InvalidTag {
        /// The tag as it was given, shortened to 80 characters.
        tag: String,
    },

    /// The store has no snapshot of this function with this sequence number.
    #[error(
        "the store {} has no snapshot number {sequence} of function {function}: list the snapshots \
         to see which there are", store.display()
    )]
    UnknownSequence {
        /// The function that was asked for.
        function: FunctionName,
        /// The sequence number that was asked for.
        sequence: u32,
        /// The store's folder.
        store: PathBuf,
    },

    /// The function has no such tag.
    #[error(
        "function {function} in the store {} has no tag {tag}: list its snapshots to see their \
         tags", store.display()
    )]
    UnknownTag {
        /// The function that was asked for.
        function: FunctionName,
        /// The tag that was asked for.
        tag: Tag,
        /// The store's folder.
        store: PathBuf,
    },

    /// The snapshot that has the tag is gone.
    #[error("{function}:{tag} is the snapshot {id}, which is gone: set the tag anew or remove it")]
    DanglingTag {
        /// The function that was asked for.
        function: FunctionName,
        /// The tag that was asked for.
        tag: Tag,
        /// The snapshot that it was given to.
        id: SnapshotId,
    },

    /// A function's tags are not what they should be.
    #[error(
        "the tags in {} cannot be used ({reason}): remove that file, and set the tags anew",
        path.display()
    )]
    BadTags {
        /// The file.
        path: PathBuf,
        /// What did not hold, with values.
        reason: String,
    },

    /// Somebody uses the snapshot that was to be removed.
    #[error("{snapshot} is in use: stop the server that serves it, or remove it later")]
    InUse {
        /// The snapshot.
        snapshot: SnapshotRef,
    },

    /// Other snapshots are layers on the one that was to be removed.
    #[error("{snapshot} is the parent of {}: remove these first", list(layers))]
    HasLayers {
        /// The snapshot.
        snapshot: SnapshotRef,
        /// The layers on it.
        layers: Vec<SnapshotRef>,
    },

    /// The snapshot that was to be removed has tags.
    #[error("{snapshot} is tagged {}: remove its tags first", list(tags))]
    Tagged {
        /// The snapshot.
        snapshot: SnapshotRef,
        /// Its tags.
        tags: Vec<Tag>,
    },

    /// The snapshot that was to be removed is served together with others.
    #[error(
        "{snapshot} is one of the {layouts} layouts that its function is served with: deploy the \
         function again first, or remove it as a whole"
    )]
    OneLayout {
        /// The snapshot.
        snapshot: SnapshotRef,
        /// How many layouts there are.
        layouts: u32,
    },

    /// The file does not start with the magic bytes.
    #[error(
        "{} is not a Dormouse {kind} (its first bytes are not {magic:?}): remove it or deploy the \
         function again", path.display()
    )]
    WrongMagic {
        /// The file.
        path: PathBuf,
        /// What the file should have been.
        kind: &'static str,
        /// The bytes it should have started with.
        magic: &'static str,
    },

    /// The file was written by a newer Dormouse.
    #[error(
        "{} has format version {found}, but this build reads none above {newest}: use a newer \
         dormouse, or deploy the function again with this one", path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u32,
        /// The newest that this build reads.
        newest: u32,
    },

    /// The file was written by an older Dormouse.
    #[error(
        "{} has format version {found}, but this build reads none below {oldest}: deploy the \
         function again", path.display()
    )]
    TooOld {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u32,
        /// The oldest that this build reads.
        oldest: u32,
    },

    /// The state section is encoded in a way that this build does not know.
    #[error(
        "{} encodes its state with codec {found}, which this build does not know: use the dormouse \
         that wrote it, or deploy the function again", path.display()
    )]
    UnknownCodec {
        /// The file.
        path: PathBuf,
        /// The codec id it names.
        found: u32,
    },

    /// A file is truncated, altered or inconsistent.
    #[error("{} is damaged: {what}; deploy the function again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What did not hold, with values.
        what: String,
    },

    /// The state section is intact, but is not a state as this build knows it.
    #[error(
        "the state in {} is intact but not readable by this build ({reason}): use the dormouse \
         that wrote it, or deploy the function again", path.display()
    )]
    Decode {
        /// The file.
        path: PathBuf,
        /// What the codec said.
        reason: String,
    },

    /// What was to be written, or asked of a snapshot, does not fit the format.
    #[error("cannot {operation}: {reason}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// What does not fit, with values.
        reason: String,
    },

    /// The operating system refused.
    #[error("cannot {operation} {}: {source}; {}", path.display(), remedy(source))]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn refused(operation: &'static str, reason: impl Into<String>) -> Self {
        Self::Refused {
            operation,
            reason: reason.into(),
        }
    }

    /// For `map_err`: names the operation and the path that an I/O error belongs to.
    pub(crate) fn io<E: Into<io::Error>>(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            operation,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Whether a file or folder that should exist does not: the sign of a removal in progress.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether something that is not a folder is in a folder's place.
    pub(crate) fn is_not_a_folder(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotADirectory)
    }
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on that file system and try again"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "check who may write there, or choose another store"
        }
        io::ErrorKind::OutOfMemory => "free some memory or lower the function's memory size",
        io::ErrorKind::NotFound => "deploy the function again if the file was lost",
        _ => "check the store's file system and try again",
    }
}
