//! The memory table: which pages of guest memory are not zero, and a digest for each chunk that
//! has such pages. Chunks without a digest are all zero.

use std::ops::Range;
use std::path::Path;

use crate::header::{CHUNK_PAGES, Header};
use crate::ranges::{self, RANGE_BYTES};
use crate::{Digest, Error, PAGE_BYTES, Result};

#[derive(Debug, PartialEq)]
pub(crate) struct MemoryTable {
    pages: u64,
    /// Canonical in the sense of [`ranges::check`].
    data: Vec<Range<u64>>,
    /// The chunks that `data` touches, ascending, each with the digest of all its bytes.
    chunks: Vec<(u64, Digest)>,
}

impl MemoryTable {
    /// A table for `pages` of memory; `chunks` are the digests of the chunks `data` touches.
    pub(crate) fn new(
        pages: u64,
        data: Vec<Range<u64>>,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Self {
        let chunks = touched_chunks(&data).zip(digests).collect();
        Self {
            pages,
            data,
            chunks,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        ranges::encode(&self.data, &mut bytes);
        for (_, digest) in &self.chunks {
            bytes.extend_from_slice(digest.as_bytes());
        }
        bytes
    }

    /// Reads the table from `bytes`, exactly as long as `header` says, of the file `path`.
    pub(crate) fn decode(bytes: &[u8], header: &Header, path: &Path) -> Result<Self> {
        let (range_bytes, digest_bytes) = bytes.split_at(header.data_ranges as usize * RANGE_BYTES);
        let data = ranges::decode(range_bytes);
        ranges::check(&data, header.memory_pages)
            .map_err(|what| Error::damaged(path, format!("in its memory table, {what}")))?;
        let (digests, _) = digest_bytes.as_chunks::<{ Digest::BYTES }>();
        let touched = touched_chunks(&data).count();
        if touched != digests.len() {
            let what = format!(
                "its memory table has digests of {} chunks, but data in {touched}",
                digests.len()
            );
            return Err(Error::damaged(path, what));
        }
        let digests = digests.iter().copied().map(Digest::from_bytes);
        Ok(Self::new(header.memory_pages, data, digests))
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    pub(crate) fn data(&self) -> &[Range<u64>] {
        &self.data
    }

    pub(crate) fn data_pages(&self) -> u64 {
        ranges::count(&self.data)
    }

    pub(crate) fn chunks(&self) -> &[(u64, Digest)] {
        &self.chunks
    }

    /// The digest of `chunk`, or nothing when it is all zero.
    pub(crate) fn digest(&self, chunk: u64) -> Option<Digest> {
        let at = self
            .chunks
            .binary_search_by_key(&chunk, |(number, _)| *number)
            .ok()?;
        Some(self.chunks[at].1)
    }

    /// The pages of `chunk`; the last one of a memory may be shorter than the others.
    pub(crate) fn chunk_pages(&self, chunk: u64) -> Range<u64> {
        let first = chunk * CHUNK_PAGES;
        first..self.pages.min(first + CHUNK_PAGES)
    }

    /// Bytes in `chunk`.
    pub(crate) fn chunk_bytes(&self, chunk: u64) -> usize {
        let pages = self.chunk_pages(chunk);
        (pages.end - pages.start) as usize * PAGE_BYTES
    }
}

/// The chunks that the canonical ranges `data` touch, ascending, each once.
fn touched_chunks(data: &[Range<u64>]) -> impl Iterator<Item = u64> + '_ {
    let mut next_chunk = 0;
    data.iter().flat_map(move |range| {
        let first = next_chunk.max(range.start / CHUNK_PAGES);
        next_chunk = range.end.div_ceil(CHUNK_PAGES);
        first..next_chunk
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_touched_once() {
        let data = [0..1, 2..3, 15..18, 31..33, 100..101];
        assert_eq!(touched_chunks(&data).collect::<Vec<_>>(), [0, 1, 2, 6]);
        assert_eq!(touched_chunks(&[]).count(), 0);
        assert_eq!(
            touched_chunks(&[0..64, 65..66]).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4]
        );
    }

    #[test]
    fn finds_digests_and_short_last_chunks() {
        let digests = [Digest::of(b"0"), Digest::of(b"2")];
        let table = MemoryTable::new(33, vec![1..2, 32..33], digests);
        assert_eq!(table.digest(0), Some(digests[0]));
        assert_eq!(table.digest(1), None);
        assert_eq!(table.digest(2), Some(digests[1]));
        assert_eq!(table.chunk_bytes(0), 65536);
        assert_eq!(table.chunk_bytes(2), 4096);
        assert_eq!(table.data_pages(), 2);
    }
}
