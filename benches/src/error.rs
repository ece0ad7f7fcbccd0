//! What can keep a measurement from being taken.

use std::io;
use std::path::PathBuf;

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image that is needed cannot be read.
    #[error("cannot read the image {}: {source}", path.display())]
    Image {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A system call or file operation.
    #[error("{operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A call did only a part of its work.
    #[error("{operation} did {done} of {wanted}")]
    Short {
        /// The call.
        operation: &'static str,
        /// How much it did, in the call's own unit.
        done: u64,
        /// How much it was asked for.
        wanted: u64,
    },
    /// A floor's guest stopped in another way than by answering.
    #[error("a floor's guest ended KVM_RUN with exit reason {reason} instead of its answer")]
    Exit {
        /// `KVM_EXIT_…` of Linux `include/uapi/linux/kvm.h`.
        reason: u32,
    },
    /// What answered is not what was asked for.
    #[error("{what} answered wrongly: {answer}")]
    Answer {
        /// Who.
        what: String,
        /// What came instead.
        answer: String,
    },
    /// The pool, or a function in it.
    #[error(transparent)]
    Pool(#[from] dormouse_pool::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] dormouse_snapshot::Error),
    /// The pager.
    #[error(transparent)]
    Pager(#[from] dormouse_pager::Error),
    /// KVM.
    #[error(transparent)]
    Vmm(#[from] dormouse_vmm::Error),
}

impl Error {
    pub(crate) fn system(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { operation, source }
    }
}
