//! What this process holds.

use std::fs;

/// What could leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Memory mappings.
    pub mappings: usize,
    /// Resident memory, in KiB.
    pub resident_kib: u64,
}

impl Usage {
    /// As it is now.
    ///
    /// # Panics
    /// Where `/proc` cannot be read.
    #[must_use]
    pub fn now() -> Self {
        let entries = |folder: &str| {
            fs::read_dir(folder)
                .unwrap_or_else(|error| panic!("cannot read {folder}: {error}"))
                .count()
        };
        let status = read("/proc/self/status");
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|value| value.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.parse().ok());
        Self {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            mappings: read("/proc/self/maps").lines().count(),
            resident_kib: resident.expect("/proc/self/status has VmRSS"),
        }
    }
}

/// A file below `/proc`.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}
