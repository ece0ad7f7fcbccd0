//! A guest that was stopped and saved, on its way into the store.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use dormouse_snapshot::{Draft, FunctionName, Layout, MemoryDraft, SnapshotId, SnapshotRef, Store};
use dormouse_vmm::GuestRam;
use dormouse_vmm::layout::PAGE_BYTES;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::config::FunctionConfig;
use crate::deploy::SavedFunction;
use crate::error::Error;

/// How much is copied at a time.
const CHUNK_PAGES: u64 = 64;

/// A guest, but for its memory, which is in a file beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(crate) state: SavedFunction,
    /// Pages of its memory.
    pages: u64,
    /// Those that may hold anything but zeros.
    resident: Vec<Range<u64>>,
}

/// An empty file in memory: for a guest's memory, or for an image.
///
/// # Errors
/// [`Error::Internal`] where the host has none.
pub(crate) fn memory_file(name: &str) -> Result<File, Error> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC);
    let file = file.map_err(|e| Error::internal("making a file in memory")(e.into()))?;
    Ok(File::from(file))
}

impl Saved {
    /// Writes the `resident` pages of a guest's memory to their places in `memory`.
    ///
    /// # Errors
    /// Where memory cannot be read, or `memory` not be written.
    pub(crate) fn new(
        state: SavedFunction,
        ram: &GuestRam,
        resident: Vec<Range<u64>>,
        memory: &File,
    ) -> Result<Self, Error> {
        let mut buffer = vec![0; (CHUNK_PAGES * PAGE_BYTES) as usize];
        for run in &resident {
            for first in run.clone().step_by(CHUNK_PAGES as usize) {
                let bytes = (run.end - first).min(CHUNK_PAGES) * PAGE_BYTES;
                let chunk = &mut buffer[..bytes as usize];
                ram.read(ram.base() + first * PAGE_BYTES, chunk)?;
                let written = memory.write_all_at(chunk, first * PAGE_BYTES);
                written.map_err(|e| Error::internal("saving a guest's memory")(e.into()))?;
            }
        }
        Ok(Self {
            state,
            pages: ram.len() / PAGE_BYTES,
            resident,
        })
    }

    /// Checks what a worker says of a guest that has so much memory.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub(crate) fn check(&self, memory_bytes: u64) -> Result<(), Error> {
        if self.pages.checked_mul(PAGE_BYTES) == Some(memory_bytes)
            && self.resident.iter().all(|run| run.end <= self.pages)
        {
            return Ok(());
        }
        Err(Error::Internal {
            operation: "saving a guest".into(),
            reason: format!("it has {} pages, not {memory_bytes} bytes", self.pages),
        })
    }

    /// Publishes it as the newest snapshot of `name`, with its configuration, and its layout where there
    /// are several.
    ///
    /// # Errors
    /// [`Error::Store`]; nothing is published then.
    pub(crate) fn publish(
        &self,
        store: &Store,
        name: &FunctionName,
        (config, layout): (&FunctionConfig, Option<&Layout>),
        image: &[u8],
        memory: &File,
        parent: Option<SnapshotRef>,
    ) -> Result<SnapshotId, Error> {
        let mut read = |first_page: u64, buffer: &mut [u8]| {
            memory.read_exact_at(buffer, first_page * PAGE_BYTES)
        };
        let profile = self.state.vm.host();
        let draft = Draft {
            created_unix_ms: dormouse_vmm::real_time_unix_ns() / 1_000_000,
            host: format!("{} {}", profile.vendor, profile.kvm_flavour),
            config: config.to_stored(layout)?,
            state: &self.state,
            memory: MemoryDraft {
                pages: self.pages,
                resident: self.resident.clone(),
                read: &mut read,
            },
            image,
            parent,
            compression: config.compression,
        };
        Ok(store.publish(name, draft)?)
    }
}
