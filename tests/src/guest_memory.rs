//! The memory of this process's guests, as the kernel has it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::process;

const PAGE_BYTES: u64 = 4096;

/// Where guests have their memory: the writable mappings of a snapshot's memory file.
#[derive(Debug)]
pub struct GuestMemory {
    ranges: Vec<Range<u64>>,
}

impl GuestMemory {
    /// The guests that run, or have memory attached, now.
    #[must_use]
    pub fn find() -> Self {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for line in process::read("/proc/self/maps").lines() {
            let mut words = line.split_whitespace();
            let (Some(range), Some(rights)) = (words.next(), words.next()) else {
                continue;
            };
            if !rights.starts_with("rw") || !line.contains("/memfd:dormouse-memory") {
                continue;
            }
            let Some((start, end)) = range.split_once('-') else {
                continue;
            };
            let address = |text| u64::from_str_radix(text, 16).expect("an address");
            ranges.push(address(start)..address(end));
        }
        Self { ranges }
    }

    /// How many bytes they span.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }

    /// How often `pattern` stands in the pages that are there, whoever has put them there. What is
    /// not there would come from the snapshot's sealed file, or as zeros.
    ///
    /// # Panics
    /// Where this process cannot read its own memory.
    #[must_use]
    pub fn count(&self, pattern: &[u8]) -> usize {
        let memory = File::open("/proc/self/mem").expect("own memory");
        let page_map = File::open("/proc/self/pagemap").expect("own page map");
        let mut found = 0;
        // Pages that follow one another are read as one, or a pattern across two would be missed.
        for run in self
            .ranges
            .iter()
            .flat_map(|range| present(&page_map, range))
        {
            let mut bytes = vec![0; (run.end - run.start) as usize];
            // A mapping that has gone meanwhile has nothing in it.
            if memory.read_exact_at(&mut bytes, run.start).is_ok() {
                found += occurrences(&bytes, pattern);
            }
        }
        found
    }
}

/// The parts of `range` that have pages (Linux `Documentation/admin-guide/mm/pagemap.rst`: bit 63
/// is *present*, bit 62 *swapped*).
fn present(page_map: &File, range: &Range<u64>) -> Vec<Range<u64>> {
    let pages = (range.end - range.start) / PAGE_BYTES;
    let mut entries = vec![0; (pages * 8) as usize];
    page_map
        .read_exact_at(&mut entries, range.start / PAGE_BYTES * 8)
        .expect("entries of the page map");
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (page, entry) in (0..).zip(entries.chunks_exact(8)) {
        if entry[7] & 0b1100_0000 == 0 {
            continue;
        }
        let start = range.start + page * PAGE_BYTES;
        match runs.last_mut() {
            Some(run) if run.end == start => run.end += PAGE_BYTES,
            _ => runs.push(start..start + PAGE_BYTES),
        }
    }
    runs
}

fn occurrences(bytes: &[u8], pattern: &[u8]) -> usize {
    let first = pattern[0];
    let mut found = 0;
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        found += usize::from(rest[at..].starts_with(pattern));
        rest = &rest[at + 1..];
    }
    found
}
