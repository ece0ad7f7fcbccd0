//! The page table of a snapshot: where each page that is not zero is stored.
//!
//! Guest memory and image are one space of pages: the image's first page follows the memory's
//! last one. What no run names is zero.

use std::ops::Range;
use std::path::Path;

use crate::{Digest, Error, Result, ranges};

/// Bytes that one run takes in a file.
pub(crate) const RUN_BYTES: usize = 24;

/// The most packs that a snapshot may take its pages from.
pub(crate) const MAX_PACKS: u64 = 64;

/// Consecutive pages in consecutive slots of a pack.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) first_page: u64,
    pub(crate) pages: u32,
    /// Which of the snapshot's packs.
    pub(crate) pack: u32,
    pub(crate) slot: u64,
}

impl Run {
    pub(crate) fn range(&self) -> Range<u64> {
        // The pages of a snapshot are bounded far below what could overflow; see `decode`.
        self.first_page..self.first_page + u64::from(self.pages)
    }
}

/// The runs of a snapshot, ascending and apart from each other, and its packs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PageTable {
    pub(crate) runs: Vec<Run>,
    pub(crate) packs: Vec<Digest>,
}

a_change_here_is_a_new_format_version! {
    Run { first_page: u64, pages: u32, pack: u32, slot: u64 }
}
a_change_here_is_a_new_format_version! {
    PageTable { runs: Vec<Run>, packs: Vec<Digest> }
}

const _: () = assert!(RUN_BYTES == 8 + 4 + 4 + 8);

/// Bytes that a table with so many runs and packs takes.
pub(crate) fn table_bytes(runs: u64, packs: u64) -> u64 {
    runs * RUN_BYTES as u64 + packs * Digest::BYTES as u64
}

impl PageTable {
    /// Adds a page behind those that are there.
    pub(crate) fn push(&mut self, page: u64, pack: u32, slot: u64) {
        if let Some(last) = self.runs.last_mut()
            && last.pack == pack
            && last.range().end == page
            && last.slot + u64::from(last.pages) == slot
        {
            last.pages += 1;
            return;
        }
        self.runs.push(Run {
            first_page: page,
            pages: 1,
            pack,
            slot,
        });
    }

    /// The table of a memory of format version 1: page `n` in slot `n` of the only pack.
    pub(crate) fn of_whole_file(data: &[Range<u64>]) -> Self {
        let mut runs = Vec::new();
        for range in data {
            let mut from = range.start;
            while from < range.end {
                let pages = u32::try_from(range.end - from).unwrap_or(u32::MAX);
                runs.push(Run {
                    first_page: from,
                    pages,
                    pack: 0,
                    slot: from,
                });
                from += u64::from(pages);
            }
        }
        Self {
            runs,
            packs: Vec::new(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for run in &self.runs {
            bytes.extend_from_slice(&run.first_page.to_le_bytes());
            bytes.extend_from_slice(&run.pages.to_le_bytes());
            bytes.extend_from_slice(&run.pack.to_le_bytes());
            bytes.extend_from_slice(&run.slot.to_le_bytes());
        }
        for pack in &self.packs {
            bytes.extend_from_slice(pack.as_bytes());
        }
        bytes
    }

    /// Reads the table with `runs` runs from `bytes` of the file `path`, for a snapshot with
    /// `pages` of memory and image. Whether the packs have the slots is not known here.
    pub(crate) fn decode(bytes: &[u8], runs: u64, pages: u64, path: &Path) -> Result<Self> {
        let damaged = |what: String| Error::damaged(path, format!("in its page table, {what}"));
        let (runs, packs) = bytes
            .split_at_checked(runs as usize * RUN_BYTES)
            .ok_or_else(|| damaged("runs are missing".into()))?;
        let (packs, _) = packs.as_chunks::<{ Digest::BYTES }>();
        let packs: Vec<_> = packs.iter().copied().map(Digest::from_bytes).collect();
        let (words, _) = runs.as_chunks::<8>();
        let (triples, _) = words.as_chunks::<3>();
        let mut previous_end = 0;
        let mut is_used = vec![false; packs.len()];
        let mut decoded = Vec::with_capacity(triples.len());
        for [first_page, sizes, slot] in triples {
            let sizes = u64::from_le_bytes(*sizes);
            let run = Run {
                first_page: u64::from_le_bytes(*first_page),
                pages: sizes as u32,
                pack: (sizes >> 32) as u32,
                slot: u64::from_le_bytes(*slot),
            };
            let Run {
                first_page,
                pages: count,
                pack,
                slot,
            } = run;
            let end = first_page.checked_add(u64::from(count));
            let is_good = count > 0
                && first_page >= previous_end
                && end.is_some_and(|end| end <= pages)
                && slot.checked_add(u64::from(count)).is_some()
                && (pack as usize) < packs.len();
            if !is_good {
                return Err(damaged(format!(
                    "{count} pages from {first_page} on cannot be at slot {slot} of pack {pack}"
                )));
            }
            previous_end = run.range().end;
            is_used[pack as usize] = true;
            decoded.push(run);
        }
        if let Some(idle) = is_used.iter().position(|used| !used) {
            return Err(damaged(format!("no page is in pack {idle}")));
        }
        Ok(Self {
            runs: decoded,
            packs,
        })
    }

    /// The ranges of pages below `end` that are stored, sorted and apart from each other.
    pub(crate) fn data(&self, end: u64) -> Vec<Range<u64>> {
        let all: Vec<_> = self.runs.iter().map(Run::range).collect();
        let merged = ranges::merge_ranges(&all, 0);
        ranges::within(&merged, 0..end).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> PageTable {
        let mut table = PageTable {
            packs: vec![Digest::of(b"one"), Digest::of(b"two")],
            ..PageTable::default()
        };
        for (page, pack, slot) in [(0, 0, 7), (1, 0, 8), (2, 1, 9), (3, 1, 0), (9, 1, 1)] {
            table.push(page, pack, slot);
        }
        table
    }

    #[test]
    fn a_run_has_the_documented_bytes() {
        let mut table = PageTable::default();
        table.push(0x0102_0304_0506_0708, 0x0a0b_0c0d, 0x1112_1314_1516_1718);
        let bytes = table.encode();
        assert_eq!(bytes[..8], *b"\x08\x07\x06\x05\x04\x03\x02\x01");
        assert_eq!(bytes[8..16], *b"\x01\0\0\0\x0d\x0c\x0b\x0a");
        assert_eq!(bytes[16..], *b"\x18\x17\x16\x15\x14\x13\x12\x11");
    }

    #[test]
    fn runs_join_only_where_all_goes_on() {
        let table = table();
        assert_eq!(table.runs.len(), 4);
        assert_eq!(table.data(10), [0..4, 9..10]);
        assert_eq!(table.data(2), std::slice::from_ref(&(0..2)));
        let path = Path::new("x");
        assert_eq!(
            PageTable::decode(&table.encode(), 4, 10, path).unwrap(),
            table
        );
    }

    #[test]
    fn hostile_runs_are_refused() {
        let bad = |change: fn(&mut PageTable)| {
            let mut table = table();
            change(&mut table);
            let bytes = table.encode();
            let error = PageTable::decode(&bytes, 4, 10, Path::new("x")).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
        };
        bad(|table| table.runs[0].pages = 0);
        bad(|table| table.runs[0].pages = 3);
        bad(|table| table.runs[1].pack = 2);
        bad(|table| table.runs[1].slot = u64::MAX);
        bad(|table| table.runs[2].first_page = 1);
        bad(|table| table.runs[3].first_page = 10);
        bad(|table| table.runs[3].first_page = u64::MAX);
        bad(|table| table.packs.truncate(1));
        let bytes = table().encode();
        assert!(PageTable::decode(&bytes, 40, 10, Path::new("x")).is_err());
    }
}
