//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// A failure to start a jailed process, or to confine one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program could not be started.
    #[error("{} cannot be started: {source}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{operation} failed: {source}")]
    Os {
        /// The operation, in the kernel's words.
        operation: &'static str,
        /// The errno.
        source: io::Error,
    },
    /// Descriptor 0 of this process is no stream socket.
    #[error("descriptor 0 is no stream socket: this process was not started by `spawn`")]
    NoSocket,
    /// A process with several threads cannot be confined: each layer holds for one thread and those
    /// that it starts afterwards.
    #[error("the process has {count} threads already; a jail is entered with one")]
    Threads {
        /// Threads of the process.
        count: usize,
    },
    /// Something is open that the confined process is not to have.
    #[error("descriptors are open that are not to be kept: {found}; close them first")]
    Descriptors {
        /// Each as its number and what it leads to.
        found: String,
    },
    /// No control group could be made for a process.
    #[error(
        "no control group: {reason}; under systemd, `Delegate=memory pids` and \
         `DelegateSubgroup=` give some away"
    )]
    Group {
        /// Why, for each group that it could have been made in.
        reason: String,
    },
    /// Rules that cannot be one filter.
    #[error("system call {call}: {reason}")]
    Rule {
        /// The system call's number.
        call: i64,
        /// What is wrong with its rules.
        reason: &'static str,
    },
    /// The rules could not be compiled.
    #[error("the system call filter cannot be compiled: {0}")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel did not take a compiled filter.
    #[error("the system call filter cannot be put in place: {0}")]
    Filter(#[from] seccompiler::Error),
}

impl Error {
    /// For `map_err`.
    pub(crate) fn os<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Os {
            operation,
            source: source.into(),
        }
    }
}
