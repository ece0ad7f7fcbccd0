//! Writes guest memory as a sparse file and builds its table.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::header::CHUNK_PAGES;
use crate::table::MemoryTable;
use crate::{CHUNK_BYTES, Digest, Error, MAX_MEMORY_PAGES, PAGE_BYTES, Result, files, ranges};

/// Guest memory that is to be published.
pub struct MemoryDraft<'a> {
    /// Pages of guest memory, 1 to [`MAX_MEMORY_PAGES`](crate::MAX_MEMORY_PAGES).
    pub pages: u64,
    /// The ranges of pages that may hold something else than zeros, in any order; everything
    /// else is zero. Pages among these that turn out to be zero are left out.
    pub resident: Vec<Range<u64>>,
    /// Fills the buffer with the pages from the given one on. Asked once for each resident page,
    /// in ascending order, at most 64 KiB at a time.
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

/// Writes the memory of `draft` to the new file `path`, on disk when this returns.
pub(crate) fn write_memory(path: &Path, draft: MemoryDraft<'_>) -> Result<MemoryTable> {
    let MemoryDraft {
        pages,
        resident,
        read,
    } = draft;
    let refused = |reason| Error::refused("publish the snapshot", reason);
    if !(1..=MAX_MEMORY_PAGES).contains(&pages) {
        let reason =
            format!("it has {pages} pages of memory, possible are 1 to {MAX_MEMORY_PAGES}");
        return Err(refused(reason));
    }
    let resident = ranges::merge_ranges(&resident, 0);
    ranges::check(&resident, pages).map_err(refused)?;

    let file = files::create(path)?;
    file.set_len(pages * PAGE_BYTES as u64)
        .map_err(Error::io("size", path))?;
    let mut data: Vec<Range<u64>> = Vec::new();
    let mut digests = Vec::new();
    let mut buf = [0; CHUNK_BYTES];
    let mut next_chunk = 0;
    for range in &resident {
        let first_chunk = next_chunk.max(range.start / CHUNK_PAGES);
        next_chunk = range.end.div_ceil(CHUNK_PAGES);
        for chunk in first_chunk..next_chunk {
            let start = chunk * CHUNK_PAGES;
            let window = start..pages.min(start + CHUNK_PAGES);
            let buf = &mut buf[..(window.end - window.start) as usize * PAGE_BYTES];
            let bytes_of = |pages: &Range<u64>| {
                (pages.start - start) as usize * PAGE_BYTES
                    ..(pages.end - start) as usize * PAGE_BYTES
            };

            buf.fill(0);
            for part in ranges::within(&resident, window.clone()) {
                read(part.start, &mut buf[bytes_of(&part)])
                    .map_err(Error::io("read guest memory for", path))?;
            }
            let filled = window.filter(|page| buf[bytes_of(&(*page..page + 1))] != ZERO_PAGE);
            let runs = ranges::from_pages(filled);
            if runs.is_empty() {
                continue;
            }
            for run in &runs {
                file.write_all_at(&buf[bytes_of(run)], run.start * PAGE_BYTES as u64)
                    .map_err(Error::io("write", path))?;
            }
            digests.push(Digest::of(buf));
            data.extend(runs);
        }
    }
    file.sync_all().map_err(Error::io("flush", path))?;
    // Runs were found chunk by chunk: join those that meet at a chunk's border.
    Ok(MemoryTable::new(
        pages,
        ranges::merge_ranges(&data, 0),
        digests,
    ))
}
