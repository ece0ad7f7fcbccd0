//! What can go wrong, in one sentence each, with the next step.

use std::io;
use std::path::PathBuf;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a snapshot could not be explained or drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The snapshot cannot be opened or read.
    #[error(transparent)]
    Store(#[from] dormouse_snapshot::Error),

    /// The file's name does not tell which kind of picture it is to be.
    #[error("{} cannot be drawn: pictures are .svg or .png; choose one of these endings", path.display())]
    UnknownPicture {
        /// The file.
        path: PathBuf,
    },

    /// The picture cannot be written.
    #[error("cannot write the picture {}: {source}; choose another place", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}
