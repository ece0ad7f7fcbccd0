//! Guest memory, read in pieces: snapshots may be larger than this host's memory.

use std::collections::BTreeMap;
use std::ops::Range;

use dormouse_snapshot::{MemoryImage, PAGE_BYTES};

use crate::error::Result;
use crate::spans;

/// Pages that are read at once: whole blocks of the format.
const PIECE_PAGES: u64 = 256;

/// Tables that are kept for the next walk.
const MAX_KEPT: usize = 256;

/// One page.
pub(crate) type Page = [u8; PAGE_BYTES];

/// Single pages of a memory, for whoever follows page tables. Pages that do not exist are zero.
pub(crate) struct Pages<'a> {
    memory: &'a MemoryImage,
    kept: BTreeMap<u64, Box<Page>>,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(memory: &'a MemoryImage) -> Self {
        Self {
            memory,
            kept: BTreeMap::new(),
        }
    }

    pub(crate) fn read(&mut self, page: u64, bytes: &mut Page) -> Result<()> {
        if let Some(kept) = self.kept.get(&page) {
            bytes.copy_from_slice(&kept[..]);
            return Ok(());
        }
        bytes.fill(0);
        if page < self.memory.pages() {
            self.memory.read_verified(page, bytes)?;
        }
        if self.kept.len() == MAX_KEPT {
            self.kept.clear();
        }
        self.kept.insert(page, Box::new(*bytes));
        Ok(())
    }
}

/// Hands every page of `ranges` to `each`, verified.
pub(crate) fn for_each_page(
    memory: &MemoryImage,
    ranges: &[Range<u64>],
    mut each: impl FnMut(u64, &Page),
) -> Result<()> {
    for piece in pieces(ranges, memory.pages()) {
        let bytes = read(memory, &piece)?;
        for (page, bytes) in piece.zip(bytes.as_chunks().0) {
            each(page, bytes);
        }
    }
    Ok(())
}

/// Hands every page that either memory stores to `each`, verified, as far as both reach.
pub(crate) fn for_each_pair(
    one: &MemoryImage,
    other: &MemoryImage,
    mut each: impl FnMut(u64, &Page, &Page),
) -> Result<()> {
    let ranges = spans::union(one.data(), other.data());
    for piece in pieces(&ranges, one.pages().min(other.pages())) {
        let (ours, theirs) = (read(one, &piece)?, read(other, &piece)?);
        let pairs = ours.as_chunks().0.iter().zip(theirs.as_chunks().0);
        for (page, (ours, theirs)) in piece.zip(pairs) {
            each(page, ours, theirs);
        }
    }
    Ok(())
}

/// `ranges` in pieces that fit into memory and end before `end`.
fn pieces(ranges: &[Range<u64>], end: u64) -> impl Iterator<Item = Range<u64>> + '_ {
    ranges.iter().flat_map(move |range| {
        let range = range.start..range.end.min(end);
        let mut next = range.start;
        std::iter::from_fn(move || {
            let start = next;
            // Pieces end where blocks do, so that each block is read once.
            next = ((start / PIECE_PAGES + 1) * PIECE_PAGES).min(range.end);
            (start < range.end).then_some(start..next)
        })
    })
}

fn read(memory: &MemoryImage, piece: &Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; (piece.end - piece.start) as usize * PAGE_BYTES];
    memory.read_verified(piece.start, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::single_range_in_vec_init,
        reason = "lists of one range are meant"
    )]
    use super::*;

    #[test]
    fn pieces_cover_the_ranges() {
        let found: Vec<_> = pieces(&[3..5, 250..600, 700..701], 599).collect();
        assert_eq!(found, [3..5, 250..256, 256..512, 512..599]);
        assert_eq!(pieces(&[7..9], 7).count(), 0);
    }
}
