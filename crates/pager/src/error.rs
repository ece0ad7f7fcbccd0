//! What can go wrong.

use std::io;

/// A failure of the pager.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This host or this process cannot use userfaultfd the way the pager needs it.
    #[error("userfaultfd cannot be used: {reason}; {remedy}")]
    Unavailable {
        /// What was found.
        reason: String,
        /// What the operator can do about it.
        remedy: &'static str,
    },
    /// A system call failed.
    #[error("{operation} failed at {address:#x} for {length_bytes} bytes: {source}")]
    Os {
        /// The operation, in the kernel's words.
        operation: &'static str,
        /// Host address it was asked for; 0 where there is none.
        address: u64,
        /// Length it was asked for; 0 where there is none.
        length_bytes: u64,
        /// The errno.
        source: io::Error,
    },
    /// The shared memory file could still be written or shrunk under its clones.
    #[error("the snapshot's memory file is not sealed against writing and shrinking")]
    NotSealed,
    /// The shared memory file is shorter than the snapshot says.
    #[error("the snapshot's memory file holds {have_pages} pages, {want_pages} are needed")]
    ShortFile {
        /// Whole pages in the file.
        have_pages: u64,
        /// Pages of the snapshot.
        want_pages: u64,
    },
    /// A table of page ranges is unsorted, overlapping, or reaches beyond the snapshot.
    #[error("{table}: page range {first}..{end} is empty, out of order or beyond page {pages}")]
    BadRange {
        /// Which table.
        table: &'static str,
        /// First page of the range at fault.
        first: u64,
        /// End of the range at fault.
        end: u64,
        /// Pages of the snapshot.
        pages: u64,
    },
    /// The guest's range and the snapshot differ in size.
    #[error("the guest's range is {range_bytes} bytes long, the snapshot {snapshot_pages} pages")]
    SizeMismatch {
        /// Length of the guest's range.
        range_bytes: u64,
        /// Pages of the snapshot.
        snapshot_pages: u64,
    },
    /// A working-set plan or stage was made for another source: its zero pages may be data here.
    #[error("the working-set plan or stage was made for another snapshot source")]
    ForeignPlan,
    /// A plan for [`Policy::Eager`](crate::Policy::Eager) leaves pages out that hold data.
    #[error("the plan leaves out pages that hold data, so it cannot be an eager one")]
    PartialPlan,
    /// The policy works on shared memory only.
    #[error(
        "the policy \"{policy}\" needs a snapshot in shared memory; this one's pages are not local"
    )]
    NotShared {
        /// [`Policy::name`](crate::Policy::name) of the policy.
        policy: &'static str,
    },
    /// Pages of the snapshot could not be read.
    #[error("reading {pages} snapshot pages from page {first_page} failed: {source}")]
    ReadPages {
        /// First page asked for.
        first_page: u64,
        /// How many were asked for.
        pages: u64,
        /// What the reader reported.
        source: io::Error,
    },
    /// The handler thread panicked. Its guest was released; the pager can only be dropped.
    #[error("the page fault handler panicked: {message}")]
    HandlerPanicked {
        /// The panic's message.
        message: String,
    },
    /// The handler thread is gone (its own error says why); the pager can only be dropped.
    #[error("the page fault handler is dead")]
    HandlerDead,
    /// The operation needs an attached snapshot.
    #[error("no snapshot is attached")]
    NotAttached,
}

impl Error {
    /// A failed system call on a host range.
    pub(crate) fn io(
        operation: &'static str,
        address: u64,
        length_bytes: u64,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Os {
            operation,
            address,
            length_bytes,
            source: source.into(),
        }
    }
}
