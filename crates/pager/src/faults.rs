//! What to do about a fault. Pure: knows pages and tables, no addresses and no descriptors.

use std::ops::Range;

use crate::ranges;

/// How pages are brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Map what the page cache holds, without a copy.
    Continue,
    /// Map the zero page.
    Zero,
    /// Copy from the source into private pages.
    Copy,
    /// Make private zero pages.
    CopyZero,
}

/// One step: these pages, in this way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fill {
    pub(crate) op: Op,
    pub(crate) pages: Range<u64>,
}

/// What the kernel said about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The page cache holds the page.
    Minor,
    /// Nothing holds it.
    Missing,
}

/// Where a source's pages are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout<'a> {
    /// Whether data pages are in the page cache under the mapping.
    pub(crate) local: bool,
    /// Pages in all.
    pub(crate) pages: u64,
    /// Pages that hold data; the others are zero.
    pub(crate) data: &'a [Range<u64>],
}

/// A set of pages as a bitmap.
#[derive(Debug, Default)]
struct PageSet {
    words: Vec<u64>,
    count: u64,
}

impl PageSet {
    /// Empties the set and makes room for `pages`; reuses its memory.
    fn reset(&mut self, pages: u64) {
        let words = pages.div_ceil(64) as usize;
        if self.count > 0 || self.words.len() != words {
            self.words.clear();
            self.words.resize(words, 0);
            self.count = 0;
        }
    }

    fn has(&self, page: u64) -> bool {
        self.words[(page / 64) as usize] & (1 << (page % 64)) != 0
    }

    fn add(&mut self, pages: Range<u64>) {
        for page in pages {
            self.count += u64::from(!self.has(page));
            self.words[(page / 64) as usize] |= 1 << (page % 64);
        }
    }

    fn remove(&mut self, pages: Range<u64>) {
        for page in pages {
            self.count -= u64::from(self.has(page));
            self.words[(page / 64) as usize] &= !(1 << (page % 64));
        }
    }

    /// The next run of pages at or after `from` whose membership is `member`.
    fn run(&self, from: u64, pages: u64, member: bool) -> Option<Range<u64>> {
        let start = self.next(from, pages, member)?;
        Some(start..self.next(start, pages, !member).unwrap_or(pages))
    }

    fn next(&self, from: u64, pages: u64, member: bool) -> Option<u64> {
        let mut page = from;
        while page < pages {
            let word = self.words[(page / 64) as usize];
            let wanted = (if member { word } else { !word }) >> (page % 64);
            if wanted != 0 {
                let found = page + u64::from(wanted.trailing_zeros());
                return (found < pages).then_some(found);
            }
            page = (page / 64 + 1) * 64;
        }
        None
    }
}

/// The state of one attached snapshot: what is in, and in which order it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pages: u64,
    around_pages: u64,
    present: PageSet,
    order: Vec<u64>,
}

impl Faults {
    /// Starts anew for a snapshot of `pages`; reuses the memory of the one before.
    pub(crate) fn reset(&mut self, pages: u64, around_pages: u64) {
        self.pages = pages;
        self.around_pages = around_pages.max(1);
        self.present.reset(pages);
        self.order.clear();
    }

    /// Notes a fault at `page` and says what to bring in.
    ///
    /// The kernel's word counts more than the table: holes of a shared memory file get filled by
    /// any fault that the kernel handles itself (with zeros, for ever), and a table may call a
    /// page data that the file does not hold (which is then zero).
    pub(crate) fn fault(&mut self, layout: Layout<'_>, page: u64, kind: Kind) -> Fill {
        let (extent, is_data) = ranges::extent(layout.data, page, layout.pages);
        let op = match (layout.local, kind) {
            (true, Kind::Minor) => Op::Continue,
            (true, Kind::Missing) => Op::Zero,
            (false, _) if is_data => Op::Copy,
            (false, _) => Op::Zero,
        };
        if self.present.has(page) {
            // Somebody was faster, or the page was dropped from outside: one page, no guessing.
            return Fill {
                op,
                pages: page..page + 1,
            };
        }
        self.order.push(page);
        let table_agrees = !layout.local || is_data == (kind == Kind::Minor);
        let pages = if table_agrees {
            self.around(page, extent)
        } else {
            page..page + 1
        };
        Fill { op, pages }
    }

    /// The absent pages around `page`, within its aligned fault-around block and its extent.
    fn around(&self, page: u64, extent: Range<u64>) -> Range<u64> {
        let block = page - page % self.around_pages;
        let first = block.max(extent.start);
        let end = (block + self.around_pages).min(extent.end).min(self.pages);
        let mut pages = page..page + 1;
        while pages.start > first && !self.present.has(pages.start - 1) {
            pages.start -= 1;
        }
        while pages.end < end && !self.present.has(pages.end) {
            pages.end += 1;
        }
        pages
    }

    /// Notes that pages are in.
    pub(crate) fn filled(&mut self, pages: Range<u64>) {
        self.present.add(pages);
    }

    /// Whether no page is in.
    pub(crate) fn is_empty(&self) -> bool {
        self.present.count == 0
    }

    /// Notes that pages were dropped.
    pub(crate) fn dropped(&mut self, pages: Range<u64>) {
        self.present.remove(pages);
    }

    /// Forgets the order of the faults so far: the guest begins anew.
    pub(crate) fn rolled_back(&mut self) {
        self.order.clear();
    }

    /// Pages in fault order, each once.
    pub(crate) fn order(&self) -> &[u64] {
        &self.order
    }

    /// All pages that are in.
    pub(crate) fn present(&self) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        let mut from = 0;
        while let Some(run) = self.present.run(from, self.pages, true) {
            from = run.end;
            runs.push(run);
        }
        runs
    }

    /// The next run of pages at or after `from` that are not in.
    pub(crate) fn absent(&self, from: u64) -> Option<Range<u64>> {
        self.present.run(from, self.pages, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DATA: &[Range<u64>] = &[3..40, 50..51, 90..100];

    fn faults(around_pages: u64) -> Faults {
        let mut faults = Faults::default();
        faults.reset(100, around_pages);
        faults
    }

    fn layout(local: bool) -> Layout<'static> {
        Layout {
            local,
            pages: 100,
            data: DATA,
        }
    }

    #[test]
    fn a_window_is_clipped_at_data_block_and_snapshot_ends() {
        let mut faults = faults(16);
        let mut minor = |page| faults.fault(layout(true), page, Kind::Minor).pages;
        assert_eq!(minor(3), 3..16, "start of the data");
        assert_eq!(minor(20), 16..32, "a whole block");
        assert_eq!(minor(39), 32..40, "end of the data");
        assert_eq!(minor(50), 50..51, "an island");
        assert_eq!(minor(99), 96..100, "end of the snapshot");
        let mut missing = |page| faults.fault(layout(true), page, Kind::Missing).pages;
        assert_eq!(missing(0), 0..3, "hole before the data");
        assert_eq!(missing(49), 48..50, "hole up to an island");
        assert_eq!(missing(89), 80..90, "hole before the last data");
    }

    #[test]
    fn the_kernels_flag_beats_the_table() {
        let mut faults = faults(16);
        let filled_hole = faults.fault(layout(true), 60, Kind::Minor);
        assert_eq!(
            filled_hole,
            Fill {
                op: Op::Continue,
                pages: 60..61
            }
        );
        let absent_data = faults.fault(layout(true), 20, Kind::Missing);
        assert_eq!(
            absent_data,
            Fill {
                op: Op::Zero,
                pages: 20..21
            }
        );
    }

    #[test]
    fn pages_that_are_not_local_go_by_the_table() {
        let mut faults = faults(4);
        let data = faults.fault(layout(false), 6, Kind::Missing);
        assert_eq!(
            data,
            Fill {
                op: Op::Copy,
                pages: 4..8
            }
        );
        let hole = faults.fault(layout(false), 1, Kind::Missing);
        assert_eq!(
            hole,
            Fill {
                op: Op::Zero,
                pages: 0..3
            }
        );
    }

    #[test]
    fn a_window_leaves_out_what_is_present() {
        let mut faults = faults(16);
        faults.filled(18..20);
        faults.filled(25..26);
        assert_eq!(faults.fault(layout(true), 22, Kind::Minor).pages, 20..25);
        assert_eq!(faults.fault(layout(true), 18, Kind::Minor).pages, 18..19);
        assert_eq!(
            faults.order(),
            [22],
            "a fault on a present page is no touch"
        );
    }

    #[test]
    fn runs_cross_word_borders_and_end_at_the_snapshot() {
        let mut faults = faults(1);
        faults.filled(0..2);
        faults.filled(60..70);
        faults.filled(99..100);
        assert_eq!(faults.present(), [0..2, 60..70, 99..100]);
        assert_eq!(faults.absent(0), Some(2..60));
        assert_eq!(faults.absent(65), Some(70..99));
        assert_eq!(faults.absent(99), None);
        faults.reset(128, 1);
        assert_eq!(faults.absent(0), Some(0..128));
        faults.filled(0..128);
        assert_eq!(faults.absent(0), None);
    }

    proptest! {
        /// Whatever the order, every page comes in once, by the right operation.
        #[test]
        fn every_page_comes_in_once(order in prop::collection::vec(0..100_u64, 1..300), around in 1..20_u64, local: bool) {
            let mut faults = faults(around);
            let mut seen = [false; 100];
            for page in order {
                if seen[page as usize] {
                    continue;
                }
                let is_data = DATA.iter().any(|range| range.contains(&page));
                let kind = if local && is_data { Kind::Minor } else { Kind::Missing };
                let fill = faults.fault(layout(local), page, kind);
                prop_assert!(fill.pages.contains(&page));
                prop_assert!(fill.pages.end - fill.pages.start <= around);
                let data_op = if local { Op::Continue } else { Op::Copy };
                prop_assert_eq!(fill.op, if is_data { data_op } else { Op::Zero });
                for page in fill.pages.clone() {
                    prop_assert!(!std::mem::replace(&mut seen[page as usize], true));
                    prop_assert_eq!(is_data, DATA.iter().any(|range| range.contains(&page)));
                }
                faults.filled(fill.pages);
            }
        }
    }
}
