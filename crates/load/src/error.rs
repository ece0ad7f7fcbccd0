//! What keeps a measurement from being made.

use std::io;

/// Why there is no measurement. Requests that fail are none of these: they are counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The target's URL cannot be used.
    #[error("{url:?} is no target: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// Nothing accepts connections at the target before the run begins.
    #[error("nothing answers at {target}: {source}; start it, or check the address")]
    Unreachable {
        /// The target.
        target: String,
        /// What connecting said.
        source: io::Error,
    },
    /// A scenario cannot be read.
    #[error("the scenario {path} cannot be used: {reason}")]
    Scenario {
        /// The file.
        path: String,
        /// Where it is wrong, and how.
        reason: String,
    },
    /// A setting makes no sense.
    #[error("{setting}: {reason}")]
    Setting {
        /// Which.
        setting: String,
        /// Why, and what would do.
        reason: String,
    },
    /// A trace cannot be used.
    #[error(transparent)]
    Trace(#[from] crate::trace::Error),
    /// The operating system refused something that the client itself needs.
    #[error("{operation} failed: {source}")]
    Client {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A thread of the client panicked.
    #[error("a thread of the client ended with a panic: {0}; please report it")]
    Panicked(String),
}

impl Error {
    pub(crate) fn setting(setting: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Setting {
            setting: setting.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn client(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Client { operation, source }
    }
}
