//! What can go wrong, in one sentence each, with the next step.

use std::io;
use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a snapshot could not be exported or imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store says so.
    #[error(transparent)]
    Store(#[from] dormouse_snapshot::Error),

    /// It is something else.
    #[error(
        "{place} is not an exported snapshot: {reason}; give a file or a folder that `dormouse \
         snapshot export` has written"
    )]
    NotAnExport {
        /// The file or folder.
        place: String,
        /// What it lacks.
        reason: String,
    },

    /// It is truncated, altered or inconsistent.
    #[error("{place} is damaged: {what}; export the snapshot again, or copy the export anew")]
    Damaged {
        /// The file or folder.
        place: String,
        /// What did not hold, with values.
        what: String,
    },

    /// It was written by a newer Dormouse.
    #[error(
        "{place} has version {found}, but this build reads none above {newest}: use a newer \
         dormouse, or export the snapshot with this one"
    )]
    TooNew {
        /// The file or folder.
        place: String,
        /// The version it has.
        found: u32,
        /// The newest that this build reads.
        newest: u32,
    },

    /// It is intact, but the snapshot in it is nothing for this build.
    #[error("the snapshot in {place} cannot be used: {reason}")]
    Unusable {
        /// The file or folder.
        place: String,
        /// What the store said of it.
        reason: String,
    },

    /// There is a file of this name.
    #[error("{} is there already: choose another name, or have it overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },

    /// The folder has other things in it.
    #[error(
        "{} is neither empty nor an OCI image layout: name a new folder, or a layout to add the \
         snapshot to", path.display()
    )]
    Occupied {
        /// The folder.
        path: PathBuf,
    },

    /// The text is no tag.
    #[error(
        "{tag:?} cannot be a tag: use 1 to 128 of letters, digits and . _ : @ + / -, starting with \
         a letter or a digit"
    )]
    BadTag {
        /// The tag as it was given, shortened to 80 characters.
        tag: String,
    },

    /// Another snapshot in the layout has this tag.
    #[error(
        "{place} has another snapshot tagged {tag}: choose another tag, or have it overwritten"
    )]
    TagTaken {
        /// The layout.
        place: String,
        /// The tag.
        tag: String,
    },

    /// The layout has no such snapshot.
    #[error("{place} has no snapshot tagged {tag:?}: there {tags}")]
    UnknownTag {
        /// The layout.
        place: String,
        /// The tag, shortened to 80 characters.
        tag: String,
        /// Those that there are, as the end of a sentence.
        tags: String,
    },

    /// The layout has several snapshots.
    #[error("{place} has {snapshots} snapshots: choose one by its tag; there {tags}")]
    Ambiguous {
        /// The layout.
        place: String,
        /// How many.
        snapshots: usize,
        /// Their tags, as the end of a sentence.
        tags: String,
    },

    /// A tag was asked for where there are none.
    #[error("{place} is not a folder, so it holds one snapshot without a tag: leave the tag out")]
    NoTags {
        /// The file.
        place: String,
    },

    /// The operating system refused.
    #[error(
        "cannot {operation} {place}: {reason}; check the path, its file system and who may use it"
    )]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        place: String,
        /// What the operating system said.
        reason: io::Error,
    },
}

/// What a parser said, which may quote what it read: on one line, and shortened.
pub(crate) fn quoted(error: &dyn std::fmt::Display) -> String {
    const MOST_CHARS: usize = 160;
    let text = error.to_string();
    let line = text.chars().flat_map(|c| match c.is_control() {
        true => c.escape_default().collect::<Vec<_>>(),
        false => vec![c],
    });
    line.take(MOST_CHARS).collect()
}

impl Error {
    pub(crate) fn damaged(place: &str, what: impl Into<String>) -> Self {
        Self::Damaged {
            place: place.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn not_an_export(place: &str, reason: impl Into<String>) -> Self {
        Self::NotAnExport {
            place: place.to_owned(),
            reason: reason.into(),
        }
    }

    /// For `map_err`: names the operation and the place that an I/O error belongs to.
    pub(crate) fn io<E: Into<io::Error>>(
        operation: &'static str,
        place: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        let place = place.as_ref().display().to_string();
        move |reason| Self::Io {
            operation,
            place,
            reason: reason.into(),
        }
    }

    /// What the store said of a snapshot that came from `place`: its files were never anywhere else
    /// for whoever reads this.
    pub(crate) fn of_content(place: &str, error: dormouse_snapshot::Error) -> Self {
        use dormouse_snapshot::Error as Store;
        let name = |path: &Path| match path.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => path.display().to_string(),
        };
        let unusable = |reason| Self::Unusable {
            place: place.to_owned(),
            reason,
        };
        match error {
            Store::Damaged { path, what } => {
                Self::damaged(place, format!("of its file {}, {what}", name(&path)))
            }
            Store::WrongMagic { path, kind, .. } => {
                Self::damaged(place, format!("its file {} is no {kind}", name(&path)))
            }
            Store::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Self::damaged(place, format!("it lacks the file {}", name(&path)))
            }
            Store::TooNew { found, newest, .. } => unusable(format!(
                "it has format version {found}, but this build reads none above {newest}; use a \
                 newer dormouse"
            )),
            Store::TooOld { found, oldest, .. } => unusable(format!(
                "it has format version {found}, but this build reads none below {oldest}; deploy \
                 the function instead"
            )),
            Store::UnknownCodec { found, .. } => unusable(format!(
                "its state has the unknown codec {found}; use the dormouse that wrote it"
            )),
            Store::Refused { reason, .. } => unusable(reason),
            other => Self::Store(other),
        }
    }
}
