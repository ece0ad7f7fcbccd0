//! Resource limits.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Limits of a confined process (`getrlimit(2)`), each at most what it has already; nothing leaves
/// one as it is. Core dumps, POSIX message queues and locked memory are always 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// Descriptors (`RLIMIT_NOFILE`).
    pub open_files: Option<u64>,
    /// Threads (`RLIMIT_NPROC`), with those that the kernel starts in its name. The kernel counts all processes of the same user in the same user
    /// namespace; of one that has neither of its own, it would count others, so it is not set then.
    pub threads: Option<u64>,
    /// Virtual memory, with all that is mapped and untouched (`RLIMIT_AS`).
    pub address_space_bytes: Option<u64>,
    /// Memory of its own that is not shared (`RLIMIT_DATA`).
    pub data_bytes: Option<u64>,
    /// Length that it can write a file to, also one in memory (`RLIMIT_FSIZE`).
    pub file_bytes: Option<u64>,
}

impl ResourceLimits {
    /// Puts them in place, soft and hard. `alone` says that nobody else runs as this user.
    pub(crate) fn apply(&self, alone: bool) -> Result<(), Error> {
        let threads = self.threads.filter(|_| alone);
        let all = [
            (Resource::Core, Some(0), "setrlimit(RLIMIT_CORE)"),
            (Resource::Msgqueue, Some(0), "setrlimit(RLIMIT_MSGQUEUE)"),
            (Resource::Memlock, Some(0), "setrlimit(RLIMIT_MEMLOCK)"),
            (
                Resource::Nofile,
                self.open_files,
                "setrlimit(RLIMIT_NOFILE)",
            ),
            (Resource::Nproc, threads, "setrlimit(RLIMIT_NPROC)"),
            (
                Resource::As,
                self.address_space_bytes,
                "setrlimit(RLIMIT_AS)",
            ),
            (Resource::Data, self.data_bytes, "setrlimit(RLIMIT_DATA)"),
            (Resource::Fsize, self.file_bytes, "setrlimit(RLIMIT_FSIZE)"),
        ];
        for (resource, limit, operation) in all {
            let Some(limit) = limit else { continue };
            // No maximum is infinity. More than there is now would need a capability.
            let limit = getrlimit(resource)
                .maximum
                .map_or(limit, |now| now.min(limit));
            let limit = Rlimit {
                current: Some(limit),
                maximum: Some(limit),
            };
            setrlimit(resource, limit).map_err(Error::os(operation))?;
        }
        Ok(())
    }
}
