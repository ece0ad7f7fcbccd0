//! What can go wrong with a tokens file.

use std::io;
use std::path::PathBuf;

/// Why a tokens file cannot be read or changed. None of them shows what stands in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The kernel refused something.
    #[error(
        "cannot {operation} the tokens file {}: {cause}; {}", path.display(), remedy(cause)
    )]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },

    /// Others than its owner may read or write it.
    #[error(
        "others may read or change the tokens file {path} (its mode is {mode:03o}): run `chmod 600 \
         {path}`, and make new tokens if somebody may have changed it", path = path.display()
    )]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },

    /// It is a folder, a pipe or a device.
    #[error("{} is no regular file: name another tokens file", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },

    /// It is too large to be one.
    #[error(
        "the tokens file {} is larger than {limit_bytes} bytes: remove tokens that nobody needs",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes that are read.
        limit_bytes: u64,
    },

    /// What stands in it is not what stands in a tokens file.
    #[error(
        "the tokens file {} cannot be used because {reason}: mend it, or move it away and make new \
         tokens with `dormouse token create`",
        path.display()
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A token cannot be named so.
    #[error(
        "{name:?} cannot be a token's name: use 1 to 63 of A-Z, a-z, 0-9, `.`, `_` and `-`, \
         starting with a letter or a digit"
    )]
    BadName {
        /// The name, shortened to 80 characters.
        name: String,
    },

    /// A token without scopes would be good for nothing.
    #[error("the token {name} would have no scope: give it invoke, deploy or admin")]
    NoScope {
        /// Its name.
        name: String,
    },

    /// The name is taken.
    #[error(
        "there is a token named {name} already: take another name, or remove that one first with \
         `dormouse token rm {name}`"
    )]
    Exists {
        /// The name.
        name: String,
    },

    /// The file has no such token.
    #[error("the tokens file {} has no token named {name}: `dormouse token ls` lists them", path.display())]
    Unknown {
        /// The name, shortened to 80 characters.
        name: String,
        /// The file.
        path: PathBuf,
    },

    /// The kernel gave no random bytes.
    #[error("cannot draw random bytes for a token: {0}")]
    Random(getrandom::Error),
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => "`dormouse token create` makes it, in a folder that is there",
        io::ErrorKind::PermissionDenied => "run this as the user whom it belongs to",
        _ => "check the file system that it is on",
    }
}
