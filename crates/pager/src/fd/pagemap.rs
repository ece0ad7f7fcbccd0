//! Which pages of a range are private, or there at all, from `/proc/self/pagemap`.
//!
//! Source: Linux `Documentation/admin-guide/mm/pagemap.rst` (entry bits, `PAGEMAP_SCAN`) and
//! `include/uapi/linux/fs.h` (`struct pm_scan_arg`, `PAGE_IS_*`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use crate::{Error, PAGE_BYTES};

/// `_IOWR('f', 16, struct pm_scan_arg)`, Linux 6.7.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Bits of a pagemap entry. The zero page has no owner, so it is never "exclusively mapped".
const ENTRY_EXCLUSIVE: u64 = 1 << 56;
const ENTRY_FILE: u64 = 1 << 61;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_PRESENT: u64 = 1 << 63;

/// Which pages are looked for.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Private,
    Present,
}

/// Regions fetched by one ioctl.
const REGIONS_PER_SCAN: usize = 256;
/// Entries fetched by one read in the fall-back.
const ENTRIES_PER_READ: usize = 4096;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// An open `/proc/self/pagemap`.
#[derive(Debug)]
pub(crate) struct Pagemap(File);

impl AsRawFd for Pagemap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Pagemap {
    /// The process's one; it stays open, one descriptor for all pagers.
    pub(crate) fn of_this_process() -> Result<&'static Self, Error> {
        static OPEN: OnceLock<Pagemap> = OnceLock::new();
        if let Some(open) = OPEN.get() {
            return Ok(open);
        }
        let file = File::open("/proc/self/pagemap")
            .map_err(|error| Error::io("open(/proc/self/pagemap)", 0, 0, error))?;
        Ok(OPEN.get_or_init(|| Self(file)))
    }

    /// Pages (counted from the range's start) that are private: written since they were mapped,
    /// or copied in. Where pages arrived write-protected, only those written since.
    pub(crate) fn private_pages(&self, address: u64, bytes: u64) -> Result<Vec<Range<u64>>, Error> {
        self.pages(address, bytes, Wanted::Private)
    }

    /// Pages that are in the page table, whoever brought them in, counted likewise.
    pub(crate) fn present_pages(&self, address: u64, bytes: u64) -> Result<Vec<Range<u64>>, Error> {
        self.pages(address, bytes, Wanted::Present)
    }

    fn pages(&self, address: u64, bytes: u64, wanted: Wanted) -> Result<Vec<Range<u64>>, Error> {
        match self.scan(address, bytes, wanted) {
            // Before Linux 6.7.
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => self
                .read_entries(address, bytes, wanted)
                .map_err(|error| Error::io("read(/proc/self/pagemap)", address, bytes, error)),
            result => result.map_err(|error| Error::io("PAGEMAP_SCAN", address, bytes, error)),
        }
    }

    fn scan(&self, address: u64, bytes: u64, wanted: Wanted) -> io::Result<Vec<Range<u64>>> {
        let (category_inverted, category_mask) = match wanted {
            Wanted::Present => (0, 0),
            // Without write-protection every present page counts as "written" to the kernel.
            Wanted::Private => (
                PAGE_IS_FILE | PAGE_IS_PFNZERO,
                PAGE_IS_FILE | PAGE_IS_PFNZERO | PAGE_IS_WRITTEN,
            ),
        };
        let mut regions = [PageRegion::default(); REGIONS_PER_SCAN];
        let mut runs = Runs::default();
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            start: address,
            end: address + bytes,
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS_PER_SCAN as u64,
            category_inverted,
            category_mask,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            ..ScanArg::default()
        };
        while arg.start < arg.end {
            // SAFETY: the request takes this struct; it writes it and at most `vec_len` regions
            // to `vec`, which is `regions`, alive and not otherwise borrowed here.
            let count = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            let Ok(count) = usize::try_from(count) else {
                return Err(io::Error::last_os_error());
            };
            for region in &regions[..count] {
                let first = (region.start - address) / PAGE_BYTES;
                runs.add(first..(region.end - address) / PAGE_BYTES);
            }
            if arg.walk_end <= arg.start {
                break;
            }
            arg.start = arg.walk_end;
        }
        Ok(runs.0)
    }

    /// The same by reading the table. Does not know about write protection, so pages that were
    /// copied in all count; the caller never write-protects on kernels that need this.
    fn read_entries(
        &self,
        address: u64,
        bytes: u64,
        wanted: Wanted,
    ) -> io::Result<Vec<Range<u64>>> {
        let (mask, value) = match wanted {
            Wanted::Present => (ENTRY_PRESENT, ENTRY_PRESENT),
            Wanted::Private => (
                ENTRY_PRESENT | ENTRY_EXCLUSIVE | ENTRY_FILE,
                ENTRY_PRESENT | ENTRY_EXCLUSIVE,
            ),
        };
        let first = address / PAGE_BYTES;
        let pages = bytes / PAGE_BYTES;
        let mut buffer = vec![0; ENTRIES_PER_READ * 8];
        let mut runs = Runs::default();
        let mut at = 0;
        while at < pages {
            let count = (pages - at).min(ENTRIES_PER_READ as u64);
            let buffer = &mut buffer[..count as usize * 8];
            self.0.read_exact_at(buffer, (first + at) * 8)?;
            for (page, entry) in (at..).zip(buffer.as_chunks::<8>().0) {
                let entry = u64::from_ne_bytes(*entry);
                if entry & mask == value || entry & ENTRY_SWAPPED != 0 {
                    runs.add(page..page + 1);
                }
            }
            at += count;
        }
        Ok(runs.0)
    }
}

/// Ascending ranges; joins what touches.
#[derive(Default)]
struct Runs(Vec<Range<u64>>);

impl Runs {
    fn add(&mut self, range: Range<u64>) {
        match self.0.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.0.push(range),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "sets of one range are meant"
    )]

    use super::*;
    use crate::mapping::{HostRange, MemoryFile};

    const PAGES: u64 = 1500;

    /// Reads some pages and writes others, of a file and of holes; both ways must agree.
    #[test]
    fn scan_and_table_find_the_written_pages() {
        let file = MemoryFile::for_tests(PAGES, &[0..700]);
        let range = HostRange::for_tests(PAGES);
        range.map_file(&file).unwrap();
        let (mut touched, mut written) = (Vec::new(), Vec::new());
        for page in 0..PAGES {
            match page % 7 {
                0 | 3 => range.write_for_tests(page),
                1 | 4 => _ = range.read_for_tests(page),
                _ => continue,
            }
            touched.push(page);
            if page % 7 == 0 || page % 7 == 3 {
                written.push(page);
            }
        }
        let pagemap = Pagemap::of_this_process().unwrap();
        let flat = |ranges: Vec<Range<u64>>| ranges.into_iter().flatten().collect::<Vec<_>>();
        let (address, bytes) = (range.address(), range.bytes());
        let read = |wanted| flat(pagemap.read_entries(address, bytes, wanted).unwrap());
        assert_eq!(read(Wanted::Private), written);
        // The kernel brings in neighbours as well.
        let present = read(Wanted::Present);
        assert!(touched.iter().all(|page| present.contains(page)));
        assert!(
            present.len() < PAGES as usize,
            "nobody asked for the holes between"
        );
        for (wanted, expected) in [(Wanted::Private, written), (Wanted::Present, present)] {
            match pagemap.scan(address, bytes, wanted) {
                Ok(runs) => assert_eq!(flat(runs), expected),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "{error}"),
            }
        }
    }

    #[test]
    fn reading_zero_pages_of_anonymous_memory_is_not_writing() {
        let range = HostRange::for_tests(64);
        range.map_blank().unwrap();
        for page in 0..64 {
            _ = range.read_for_tests(page);
        }
        range.write_for_tests(9);
        let pagemap = Pagemap::of_this_process().unwrap();
        assert_eq!(
            pagemap
                .private_pages(range.address(), range.bytes())
                .unwrap(),
            [9..10]
        );
        assert_eq!(
            pagemap
                .read_entries(range.address(), range.bytes(), Wanted::Private)
                .unwrap(),
            [9..10]
        );
    }
}
