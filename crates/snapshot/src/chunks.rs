//! The memory table of format version 1: which pages of guest memory are not zero, and a digest
//! for each chunk of 16 pages that has such pages. Only read: this build writes version 2.

use std::ops::Range;
use std::path::Path;

use crate::header::CHUNK_PAGES;
use crate::ranges::{self, RANGE_BYTES};
use crate::{Digest, Error, Result};

/// Bytes that a table with so many ranges and chunks takes.
pub(crate) fn table_bytes(data_ranges: u64, data_chunks: u64) -> u64 {
    data_ranges * RANGE_BYTES as u64 + data_chunks * Digest::BYTES as u64
}

#[derive(Debug, PartialEq)]
pub(crate) struct ChunkTable {
    /// Canonical in the sense of [`ranges::check`].
    pub(crate) data: Vec<Range<u64>>,
    /// The chunks that `data` touches, ascending, each with the digest of all its bytes.
    pub(crate) chunks: Vec<(u64, Digest)>,
}

impl ChunkTable {
    /// Reads the table with `data_ranges` from `bytes` of the file `path`.
    pub(crate) fn decode(
        bytes: &[u8],
        data_ranges: u64,
        memory_pages: u64,
        path: &Path,
    ) -> Result<Self> {
        let range_bytes = data_ranges as usize * RANGE_BYTES;
        let (range_bytes, digest_bytes) = bytes
            .split_at_checked(range_bytes)
            .ok_or_else(|| Error::damaged(path, "its memory table is too short"))?;
        let data = ranges::decode(range_bytes);
        ranges::check(&data, memory_pages)
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
        let chunks = touched_chunks(&data).zip(digests).collect();
        Ok(Self { data, chunks })
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
}
