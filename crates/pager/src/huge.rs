//! Anonymous memory in huge pages, filled ahead and given away page by page.
//!
//! Source: `madvise(2)` (`MADV_HUGEPAGE`, `MADV_POPULATE_WRITE`), Linux
//! `Documentation/admin-guide/mm/transhuge.rst`.

use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::{Error, PAGE_BYTES};

/// A huge page of x86-64 (`PMD_SIZE`), in bytes.
pub(crate) const HUGE_BYTES: u64 = 2 << 20;
/// The same in small pages.
pub(crate) const HUGE_PAGES: u64 = HUGE_BYTES / PAGE_BYTES;

/// Aligned anonymous memory of our own, with room for a number of huge pages.
#[derive(Debug)]
pub(crate) struct HugeArea {
    /// What was mapped: one huge page more, to align the area in.
    mapped: usize,
    huge_pages: u64,
}

impl HugeArea {
    /// Reserves an area; it takes no memory yet.
    pub(crate) fn new(huge_pages: u64) -> Result<Self, Error> {
        let bytes = mapped_bytes(huge_pages);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapped = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, prot, flags) }
            .map_err(|errno| Error::io("mmap(staging area)", 0, bytes as u64, errno))?;
        let area = Self {
            mapped: mapped as usize,
            huge_pages,
        };
        // SAFETY: our own mapping; the advice changes no content. It fails where the kernel knows no
        // huge pages; small ones do as well, and are moved one by one. (`MADV_COLLAPSE` would get
        // them in more cases, but it disturbs every core each time.)
        let _ = unsafe { rustix::mm::madvise(mapped, bytes, Advice::LinuxHugepage) };
        Ok(area)
    }

    pub(crate) fn address(&self) -> u64 {
        (self.mapped as u64).next_multiple_of(HUGE_BYTES)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.huge_pages * HUGE_BYTES
    }

    /// Brings in every page, in huge ones where the kernel has them to give, and lends the area to
    /// be filled. What was never filled, or was moved away since, is zero.
    pub(crate) fn populate(&mut self) -> Result<&mut [u8], Error> {
        let (address, bytes) = (self.address(), self.bytes());
        let start = address as *mut u8;
        // SAFETY: within our own mapping, which nobody else knows; populating changes no content.
        unsafe { rustix::mm::madvise(start.cast(), bytes as usize, Advice::LinuxPopulateWrite) }
            .map_err(|errno| Error::io("madvise(POPULATE_WRITE)", address, bytes, errno))?;
        // SAFETY: mapped readable and writable for as long as `self` lives, zeros or bytes written
        // through such a slice, and borrowed by nobody else while `self` is.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, bytes as usize) })
    }
}

impl Drop for HugeArea {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no reference into it outlives `self`. Failure leaves it mapped,
        // which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.mapped as *mut _, mapped_bytes(self.huge_pages)) };
    }
}

fn mapped_bytes(huge_pages: u64) -> usize {
    ((huge_pages + 1) * HUGE_BYTES) as usize
}

#[cfg(test)]
mod for_tests {
    use super::*;

    impl HugeArea {
        /// Takes a page away, as a move does.
        pub(crate) fn drop_page_for_tests(&mut self, page: u64) {
            assert!(page < self.huge_pages * HUGE_PAGES);
            let address = self.address() + page * PAGE_BYTES;
            // SAFETY: within our own mapping, which nobody borrows meanwhile.
            unsafe { rustix::mm::madvise(address as *mut _, 4096, Advice::LinuxDontNeed) }.unwrap();
        }
    }
}
