//! What is to be published.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::header::CHUNK_PAGES;
use crate::{
    CHUNK_BYTES, Compression, Error, MAX_MEMORY_PAGES, PAGE_BYTES, Result, SnapshotRef, ranges,
};

/// What is to be published.
#[derive(Debug)]
pub struct Draft<'a, S> {
    /// When the snapshot was taken, in milliseconds since 1970 (UTC).
    pub created_unix_ms: u64,
    /// The host that it was taken on, for people.
    pub host: String,
    /// The function's configuration, free-form; comes back in
    /// [`Manifest::config`](crate::Manifest::config).
    pub config: serde_json::Value,
    /// The machine state. It is encoded with bincode, so its types must not use serde features
    /// that need a self-describing format (`flatten`, `untagged`, `skip_serializing_if`, …), and
    /// changing them needs a new [`FORMAT_VERSION`](crate::FORMAT_VERSION).
    pub state: &'a S,
    /// Guest memory.
    pub memory: MemoryDraft<'a>,
    /// The function's image, as it was deployed.
    pub image: &'a [u8],
    /// The snapshot that this one is a layer on: only the pages that differ are stored with it. It
    /// must be in the store. Past the depth of [`MAX_LAYER_DEPTH`](crate::MAX_LAYER_DEPTH) the
    /// snapshot is published flattened: with all its pages, and no layer.
    pub parent: Option<SnapshotRef>,
    /// How the pages are stored that no snapshot has yet.
    pub compression: Compression,
}

/// Guest memory that is to be published.
pub struct MemoryDraft<'a> {
    /// Pages of guest memory, 1 to [`MAX_MEMORY_PAGES`](crate::MAX_MEMORY_PAGES).
    pub pages: u64,
    /// The ranges of pages that may hold something else than zeros, in any order; everything
    /// else is zero. Pages among these that turn out to be zero are left out.
    pub resident: Vec<Range<u64>>,
    /// Fills the buffer with the pages from the given one on. Asked at most twice for each resident
    /// page, in ascending order, at most 64 KiB at a time; the pages must not change meanwhile.
    pub read: &'a mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
}

impl fmt::Debug for MemoryDraft<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDraft")
            .field("pages", &self.pages)
            .field("resident", &self.resident)
            .finish_non_exhaustive()
    }
}

const ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Memory and image of a draft as one space of pages: the image's follow the memory's.
pub(crate) struct DraftPages<'a> {
    memory: MemoryDraft<'a>,
    image: &'a [u8],
}

impl<'a> DraftPages<'a> {
    pub(crate) fn new(mut memory: MemoryDraft<'a>, image: &'a [u8]) -> Result<Self> {
        let refused = |reason| Error::refused("publish the snapshot", reason);
        let pages = memory.pages;
        if !(1..=MAX_MEMORY_PAGES).contains(&pages) {
            let reason =
                format!("it has {pages} pages of memory, possible are 1 to {MAX_MEMORY_PAGES}");
            return Err(refused(reason));
        }
        memory.resident = ranges::merge_ranges(&memory.resident, 0);
        ranges::check(&memory.resident, pages).map_err(refused)?;
        Ok(Self { memory, image })
    }

    pub(crate) fn memory_pages(&self) -> u64 {
        self.memory.pages
    }

    pub(crate) fn image(&self) -> &'a [u8] {
        self.image
    }

    /// Hands every page that is not zero to `sink`, in ascending order. `path` is for messages.
    pub(crate) fn for_each(
        &mut self,
        path: &Path,
        mut sink: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut give = |first_page: u64, bytes: &[u8]| {
            let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
            (first_page..)
                .zip(pages)
                .filter(|(_, bytes)| **bytes != ZERO_PAGE)
                .try_for_each(|(page, bytes)| sink(page, bytes))
        };
        let mut buf = [0; CHUNK_BYTES];
        for range in &self.memory.resident {
            let mut page = range.start;
            while page < range.end {
                let pages = (range.end - page).min(CHUNK_PAGES);
                let bytes = &mut buf[..pages as usize * PAGE_BYTES];
                (self.memory.read)(page, bytes).map_err(|error| {
                    // Memory of another snapshot says itself what is wrong with it.
                    let own = error.downcast::<Error>();
                    own.unwrap_or_else(Error::io("read guest memory for", path))
                })?;
                give(page, bytes)?;
                page += pages;
            }
        }
        for (page, bytes) in (self.memory.pages..).zip(self.image.chunks(PAGE_BYTES)) {
            buf[..PAGE_BYTES].fill(0);
            buf[..bytes.len()].copy_from_slice(bytes);
            give(page, &buf[..PAGE_BYTES])?;
        }
        Ok(())
    }
}
