//! The memory of one guest, and the snapshot that belongs under it.
//!
//! Soundness: the range is that of a vm-memory region, whose users expect its content to change at
//! any time, by the guest and by a pager alike. Mapping over it and copying into it are such
//! changes. It stays mapped readable and writable, over a memory file that cannot shrink.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use dormouse_pager::PAGE_BYTES;
use vm_memory::{GuestRegionMmap, MmapRegion};

use crate::Error;

/// Guest memory with the sealed memory file of its snapshot.
#[derive(Debug)]
pub struct Memory {
    region: Arc<MmapRegion>,
    file: Arc<File>,
    /// The file, mapped for reading: where copies come from.
    view: *const u8,
}

impl Memory {
    /// Takes the range of `region`, and `file`, a memory file that is sealed against shrinking and
    /// as long as the region. `data` are its pages that may hold anything but zeros.
    ///
    /// # Errors
    /// [`Error::System`] where the file cannot be mapped.
    pub fn new(
        region: &GuestRegionMmap,
        file: Arc<File>,
        data: &[Range<u64>],
    ) -> Result<Self, Error> {
        let region = region.get_mmap();
        let have_bytes = file
            .metadata()
            .map_err(Error::system("fstat(memfd)"))?
            .len();
        if have_bytes < region.size() as u64 {
            let short = io::Error::other(format!("it has {have_bytes} bytes only"));
            return Err(Error::system("mapping the memory file")(short));
        }
        // SAFETY: a new mapping at an address of the kernel's choice.
        let view = unsafe {
            libc::mmap(
                ptr::null_mut(),
                region.size(),
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if view == libc::MAP_FAILED {
            return Err(Error::system("mmap(memfd, read-only)")(
                io::Error::last_os_error(),
            ));
        }
        let memory = Self {
            region,
            file,
            view: view.cast(),
        };
        for pages in data {
            memory.bring_into_view(pages)?;
        }
        Ok(memory)
    }

    /// So that no copy faults on its source.
    fn bring_into_view(&self, pages: &Range<u64>) -> Result<(), Error> {
        let bytes = (pages.end - pages.start) * PAGE_BYTES;
        let address = self.view_address(pages.start) as *mut libc::c_void;
        // SAFETY: within our own read-only mapping; populating it changes no content.
        let result = unsafe { libc::madvise(address, bytes as usize, libc::MADV_POPULATE_READ) };
        if result < 0 {
            return Err(Error::system("madvise(POPULATE_READ)")(
                io::Error::last_os_error(),
            ));
        }
        Ok(())
    }

    /// Size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.region.size() as u64
    }

    /// Host address of a page.
    pub(super) fn address(&self, page: u64) -> u64 {
        self.region.as_ptr() as u64 + page * PAGE_BYTES
    }

    /// Where a page of the snapshot can be read.
    pub(super) fn view_address(&self, page: u64) -> u64 {
        self.view as u64 + page * PAGE_BYTES
    }

    /// Puts the snapshot under the guest, privately: one `mmap`.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn map(&self) -> Result<(), Error> {
        // SAFETY: the range is the whole of a live vm-memory mapping (module head); the file is
        // sealed and, as `new` checked, long enough.
        let mapped = unsafe {
            libc::mmap(
                self.region.as_ptr().cast(),
                self.region.size(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED,
                self.file.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(Error::system("mmap(memfd)")(io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Copies pages of the snapshot into the guest's memory: one `memcpy` for each range.
    ///
    /// # Panics
    /// Where a range reaches beyond the memory.
    pub(super) fn copy_back(&self, ranges: &[Range<u64>]) {
        for pages in ranges {
            let bytes = (pages.end - pages.start) * PAGE_BYTES;
            assert!(pages.end * PAGE_BYTES <= self.bytes(), "{pages:?}");
            // SAFETY: both ranges are within their mappings (checked above; they are equally long)
            // and apart. The guest does not run, and the snapshot cannot change.
            unsafe {
                ptr::copy_nonoverlapping(
                    self.view_address(pages.start) as *const u8,
                    self.address(pages.start) as *mut u8,
                    bytes as usize,
                );
            }
        }
    }

    /// Overwrites one page of the guest's memory.
    ///
    /// # Panics
    /// Where there is no such page.
    pub(super) fn put_page(&self, page: u64, content: &[u8; PAGE_BYTES as usize]) {
        assert!(page < self.bytes() / PAGE_BYTES, "page {page}");
        // SAFETY: the page is within the mapping; the guest does not run.
        unsafe {
            ptr::copy_nonoverlapping(
                content.as_ptr(),
                self.address(page) as *mut u8,
                content.len(),
            );
        }
    }

    /// Reads one page of the guest's memory.
    ///
    /// # Panics
    /// Where there is no such page.
    pub(super) fn page(&self, page: u64) -> [u8; PAGE_BYTES as usize] {
        let mut content = [0; PAGE_BYTES as usize];
        assert!(page < self.bytes() / PAGE_BYTES, "page {page}");
        // SAFETY: the page is within the mapping; the guest does not run.
        unsafe {
            ptr::copy_nonoverlapping(
                self.address(page) as *const u8,
                content.as_mut_ptr(),
                content.len(),
            );
        }
        content
    }

    /// Reads one word of a page, as a guest would: a fault where the page is missing.
    ///
    /// # Panics
    /// Where there is no such page.
    #[must_use]
    pub fn touch(&self, page: u64) -> u64 {
        assert!(page < self.bytes() / PAGE_BYTES, "page {page}");
        // SAFETY: the page is within the mapping, which is aligned; somebody serves its faults.
        unsafe { ptr::read_volatile(self.address(page) as *const u64) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no reference into it was ever made. Failure leaves it mapped,
        // which harms nobody.
        unsafe { libc::munmap(self.view as *mut libc::c_void, self.region.size()) };
    }
}
