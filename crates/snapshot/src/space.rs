//! All pages of a snapshot, guest memory and image, read from its packs.

use std::ops::Range;
use std::path::Path;

use crate::block::BlockBytes;
use crate::pack::Pack;
use crate::table::PageTable;
use crate::{Error, PAGE_BYTES, PackStats, Result, ranges};

/// The pages of a snapshot. Immutable, and read from any number of threads.
#[derive(Debug)]
pub(crate) struct PageSpace {
    table: PageTable,
    packs: Vec<Pack>,
}

/// What is to be read at one place of a pack.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    pack: u32,
    slot: u64,
    page: u64,
    pages: u64,
}

impl PageSpace {
    /// The pages that `table`, of the file `path`, finds in `packs`: one for each that it names.
    pub(crate) fn new(table: PageTable, packs: Vec<Pack>, path: &Path) -> Result<Self> {
        for run in &table.runs {
            let pages = packs.get(run.pack as usize).map_or(0, Pack::pages);
            // `PageTable::decode` has seen that this does not overflow.
            let end = run.slot + u64::from(run.pages);
            if end > pages {
                let what = format!(
                    "in its page table, a run ends at slot {end} of pack {}, which has {pages}",
                    run.pack
                );
                return Err(Error::damaged(path, what));
            }
        }
        Ok(Self { table, packs })
    }

    pub(crate) fn packs(&self) -> &[Pack] {
        &self.packs
    }

    /// The slots that are used of each pack: sorted ranges, apart from each other.
    pub(crate) fn used_slots(&self) -> Vec<Vec<Range<u64>>> {
        let mut slots = vec![Vec::new(); self.packs.len()];
        for run in &self.table.runs {
            slots[run.pack as usize].push(run.slot..run.slot + u64::from(run.pages));
        }
        let slots = slots.iter();
        slots.map(|slots| ranges::merge_ranges(slots, 0)).collect()
    }

    /// Where the pages from `first` on are: page, number of the pack, slot and number of pages of
    /// each run.
    pub(crate) fn places_from(&self, first: u64) -> impl Iterator<Item = (u64, u32, u64, u64)> {
        let runs = &self.table.runs;
        let at = runs.partition_point(|run| run.range().end <= first);
        runs[at..].iter().map(move |run| {
            let page = run.first_page.max(first);
            let skipped = page - run.first_page;
            let pages = u64::from(run.pages) - skipped;
            (page, run.pack, run.slot + skipped, pages)
        })
    }

    pub(crate) fn pack_stats(&self) -> Vec<PackStats> {
        let mut used_pages = vec![0; self.packs.len()];
        for run in &self.table.runs {
            used_pages[run.pack as usize] += u64::from(run.pages);
        }
        let packs = self.packs.iter().zip(used_pages);
        packs
            .map(|(pack, used_pages)| PackStats {
                name: pack
                    .path()
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                pages: pack.pages(),
                used_pages,
                stored_bytes: pack.stored_bytes(),
            })
            .collect()
    }

    /// Hands the stored pages within `window` to `sink`, some consecutive ones at a time and in the
    /// order of the packs, so that each block is read once. Pages that no one gets are zero.
    pub(crate) fn read(
        &self,
        window: Range<u64>,
        verify: bool,
        sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let first = self
            .table
            .runs
            .partition_point(|run| run.range().end <= window.start);
        let mut parts: Vec<Part> = self.table.runs[first..]
            .iter()
            .take_while(|run| run.first_page < window.end)
            .map(|run| {
                let page = run.first_page.max(window.start);
                Part {
                    pack: run.pack,
                    slot: run.slot + (page - run.first_page),
                    page,
                    pages: run.range().end.min(window.end) - page,
                }
            })
            .collect();
        parts.sort_unstable();
        BlockBytes::with_spare(|buf| self.read_parts(parts, buf, verify, sink))
    }

    fn read_parts(
        &self,
        parts: Vec<Part>,
        buf: &mut BlockBytes,
        verify: bool,
        sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut in_buf = None;
        for mut part in parts {
            let pack = &self.packs[part.pack as usize];
            while part.pages > 0 {
                let block = pack.block(part.slot).ok_or_else(|| {
                    let what = format!("it has no page at slot {}", part.slot);
                    Error::damaged(pack.path(), what)
                })?;
                let here = (part.pack, block.first_slot);
                if in_buf != Some(here) {
                    pack.read_block(block, buf, verify)?;
                    in_buf = Some(here);
                }
                let skipped = part.slot - block.first_slot;
                let pages = part.pages.min(u64::from(block.pages) - skipped);
                let at = skipped as usize * PAGE_BYTES;
                sink(part.page, &buf.pages()[at..][..pages as usize * PAGE_BYTES])?;
                part.page += pages;
                part.slot += pages;
                part.pages -= pages;
            }
        }
        Ok(())
    }

    /// The pages that both have at the same place of the same pack: sorted ranges, apart from each
    /// other.
    pub(crate) fn stored_once_with(&self, other: &Self) -> Vec<Range<u64>> {
        let mut theirs = other.table.runs.iter().peekable();
        let mut shared = Vec::new();
        for run in &self.table.runs {
            while theirs
                .next_if(|their| their.range().end <= run.first_page)
                .is_some()
            {}
            let mut ahead = theirs.clone();
            while let Some(their) = ahead.next_if(|their| their.first_page < run.range().end) {
                let packs = [
                    self.packs[run.pack as usize].digest(),
                    other.packs[their.pack as usize].digest(),
                ];
                let start = run.first_page.max(their.first_page);
                let end = run.range().end.min(their.range().end);
                let slots = [run, their].map(|run| run.slot + (start - run.first_page));
                if packs[0].is_some() && packs[0] == packs[1] && slots[0] == slots[1] {
                    shared.push(start..end);
                }
            }
        }
        ranges::merge_ranges(&shared, 0)
    }
}
