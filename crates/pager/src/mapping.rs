//! What lies under the guest's host range, and the read-only view that private copies come from.
//!
//! Soundness: the range belongs to a vm-memory region, whose readers and writers go through
//! volatile accesses and expect the content to change at any time (the guest is such a writer).
//! Replacing the mapping under them is one more such change. The range always stays mapped
//! readable and writable, and always over something that cannot raise SIGBUS: anonymous memory or
//! a memory file that is sealed against shrinking.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::{Arc, LazyLock};

use rustix::fs::{SealFlags, SeekFrom};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::{GuestRegionMmap, MmapRegion};

use crate::{Error, PAGE_BYTES, ranges};

/// A page's content.
pub(crate) type PageBytes = [u8; PAGE_BYTES as usize];

/// The host range of a guest memory region, or a part of it, kept mapped for as long as this lives.
#[derive(Clone, Debug)]
pub(crate) struct HostRange {
    region: Arc<MmapRegion>,
    /// Where in the region the range starts, and its length: always within the region.
    offset_bytes: usize,
    bytes: usize,
}

impl HostRange {
    pub(crate) fn new(region: &GuestRegionMmap) -> Self {
        let region = region.get_mmap();
        Self {
            offset_bytes: 0,
            bytes: region.size(),
            region,
        }
    }

    /// Some pages of this range as one of its own.
    ///
    /// # Errors
    /// [`Error::BadRange`] when they are not within this one.
    pub(crate) fn part(&self, pages: &Range<u64>) -> Result<Self, Error> {
        ranges::check(
            "part",
            std::slice::from_ref(pages),
            self.bytes() / PAGE_BYTES,
        )?;
        Ok(Self {
            region: Arc::clone(&self.region),
            offset_bytes: self.offset_bytes + (pages.start * PAGE_BYTES) as usize,
            bytes: ((pages.end - pages.start) * PAGE_BYTES) as usize,
        })
    }

    pub(crate) fn address(&self) -> u64 {
        self.start() as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Host address of a page.
    pub(crate) fn page(&self, page: u64) -> u64 {
        self.address() + page * PAGE_BYTES
    }

    fn start(&self) -> *mut c_void {
        self.region.as_ptr().wrapping_add(self.offset_bytes).cast()
    }

    /// Puts the file's pages here, privately. Everything that was here before is gone.
    pub(crate) fn map_file(&self, file: &MemoryFile) -> Result<(), Error> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is within a live vm-memory mapping (module head); the file is sealed
        // and, as the caller checked, exactly as long as the region.
        let mapped = unsafe {
            rustix::mm::mmap(
                self.start(),
                self.bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                file.file.as_fd(),
                self.offset_bytes as u64,
            )
        };
        self.check("mmap(memory file)", mapped)
    }

    /// Puts anonymous zero memory here. Everything that was here before is gone.
    pub(crate) fn map_blank(&self) -> Result<(), Error> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is within a live vm-memory mapping (module head).
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                self.start(),
                self.bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        };
        self.check("mmap(anonymous)", mapped)
    }

    /// Drops all private pages: what was never touched and what was are the same again.
    pub(crate) fn drop_pages(&self) -> Result<(), Error> {
        // SAFETY: the range is within a live vm-memory mapping (module head).
        let dropped =
            unsafe { rustix::mm::madvise(self.start(), self.bytes, Advice::LinuxDontNeed) };
        self.check("madvise(DONTNEED)", dropped)
    }

    /// Drops the private pages of a part: they are the snapshot's again when they are next touched.
    pub(crate) fn drop_part(&self, pages: &Range<u64>) -> Result<(), Error> {
        let (address, bytes) = self.span(pages);
        // SAFETY: `span` lies within a live vm-memory mapping (module head).
        let dropped = unsafe {
            rustix::mm::madvise(address as *mut _, bytes as usize, Advice::LinuxDontNeed)
        };
        dropped.map_err(|errno| Error::io("madvise(DONTNEED)", address, bytes, errno))
    }

    /// Copies pages of the file over the same pages of the range. Both must be *in*: data pages of
    /// the file, private pages of the range. Nobody may wait for this thread meanwhile, were it to
    /// fault all the same.
    pub(crate) fn copy_part(&self, pages: &Range<u64>, file: &MemoryFile) {
        let (address, bytes) = self.span(pages);
        let (source, available) = file.view(pages.start);
        let bytes = bytes.min(available) as usize;
        // SAFETY: `span` lies within a live vm-memory mapping, the source within the file's view,
        // which is sealed and never written to; `bytes` is within both, and two mappings do not
        // overlap. No reference into either exists (module head).
        unsafe { ptr::copy_nonoverlapping(source as *const u8, address as *mut u8, bytes) };
    }

    /// Fills private pages of the range with zeros.
    pub(crate) fn zero_part(&self, pages: &Range<u64>) {
        let (address, bytes) = self.span(pages);
        // SAFETY: `span` lies within a live vm-memory mapping; no reference into it exists (module
        // head).
        unsafe { ptr::write_bytes(address as *mut u8, 0, bytes as usize) };
    }

    /// Copies one page of the range out. It must be *in*, as for [`HostRange::copy_part`].
    pub(crate) fn read_page(&self, page: u64, buffer: &mut PageBytes) {
        let (address, _) = self.span(&(page..page + 1));
        // SAFETY: `span` lies within a live vm-memory mapping and is one page long, as the buffer
        // is; the buffer is ours alone.
        unsafe {
            ptr::copy_nonoverlapping(address as *const u8, buffer.as_mut_ptr(), buffer.len())
        };
    }

    /// Host address and length of some pages.
    ///
    /// # Panics
    /// Where they are not all within the range.
    fn span(&self, pages: &Range<u64>) -> (u64, u64) {
        let bytes = pages.end.saturating_sub(pages.start) * PAGE_BYTES;
        assert!(
            pages.end <= self.bytes() / PAGE_BYTES,
            "pages {pages:?} are not all within {} bytes",
            self.bytes()
        );
        (self.page(pages.start), bytes)
    }

    fn check<T>(
        &self,
        operation: &'static str,
        result: rustix::io::Result<T>,
    ) -> Result<(), Error> {
        match result {
            Ok(_) => Ok(()),
            Err(errno) => Err(Error::io(operation, self.address(), self.bytes(), errno)),
        }
    }
}

/// A sealed memory file with a read-only view of it.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    file: Arc<File>,
    view: View,
}

impl MemoryFile {
    /// Takes a memory file of at least `pages` that nobody can write or shrink any more.
    pub(crate) fn new(file: Arc<File>, pages: u64) -> Result<Self, Error> {
        let seals = rustix::fs::fcntl_get_seals(&file)
            .map_err(|errno| Error::io("fcntl(F_GET_SEALS)", 0, 0, errno))?;
        // FUTURE_WRITE serves as well: whoever could still write made its mapping before the seal.
        let unwritable = seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE);
        if !(unwritable && seals.contains(SealFlags::SHRINK)) {
            return Err(Error::NotSealed);
        }
        // Nobody goes by the file's offset; processes that may open no files may not ask for more.
        let have_bytes = rustix::fs::seek(&file, SeekFrom::End(0))
            .map_err(|errno| Error::io("lseek(SEEK_END)", 0, 0, errno))?;
        let have_pages = have_bytes / PAGE_BYTES;
        if have_pages < pages {
            return Err(Error::ShortFile {
                have_pages,
                want_pages: pages,
            });
        }
        let bytes = (pages * PAGE_BYTES) as usize;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                flags,
                file.as_fd(),
                0,
            )
        }
        .map_err(|errno| Error::io("mmap(memory file, read-only)", 0, bytes as u64, errno))?;
        let view = View {
            address: address as usize,
            bytes,
        };
        Ok(Self { file, view })
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Maps pages into the view now, so that no copy from them has to fault on its source later.
    /// Only for data pages, as [`MemoryFile::view`].
    pub(crate) fn prefault(&self, pages: &Range<u64>) -> Result<(), Error> {
        let (address, _) = self.view(pages.start);
        let bytes = (pages.end - pages.start) * PAGE_BYTES;
        // SAFETY: within our own read-only mapping; populating it changes no content.
        let advised = unsafe {
            rustix::mm::madvise(address as *mut _, bytes as usize, Advice::LinuxPopulateRead)
        };
        match advised {
            // Before Linux 5.14: the copies will fault, which is only slower.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
            Err(errno) => Err(Error::io("madvise(POPULATE_READ)", address, bytes, errno)),
        }
    }

    /// Reads pages into memory of our own; holes are zeros, and stay holes.
    pub(crate) fn read(&self, first_page: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, first_page * PAGE_BYTES)
    }

    /// Address of a page in the view and the bytes from there to its end. Only data pages may be
    /// read through it: reading a hole would fill it in the file, for all.
    pub(crate) fn view(&self, page: u64) -> (u64, u64) {
        let offset = page * PAGE_BYTES;
        (
            self.view.address as u64 + offset,
            self.view.bytes as u64 - offset,
        )
    }
}

/// Zeros to copy from: address and length in bytes.
pub(crate) fn zero_buffer() -> Result<(u64, u64), Error> {
    const BYTES: usize = 64 * PAGE_BYTES as usize;
    static ZEROS: LazyLock<rustix::io::Result<View>> = LazyLock::new(|| {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), BYTES, ProtFlags::READ, MapFlags::PRIVATE)
        }?;
        Ok(View {
            address: address as usize,
            bytes: BYTES,
        })
    });
    match &*ZEROS {
        Ok(view) => Ok((view.address as u64, view.bytes as u64)),
        Err(errno) => Err(Error::io("mmap(zero buffer)", 0, BYTES as u64, *errno)),
    }
}

/// A read-only mapping of our own. The kernel reads it, we do not: so it hands out addresses only.
#[derive(Debug)]
struct View {
    address: usize,
    bytes: usize,
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no reference into it was ever made. Failure leaves it mapped,
        // which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.address as *mut _, self.bytes) };
    }
}

#[cfg(test)]
mod for_tests {
    use rustix::fs::MemfdFlags;
    use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};

    use super::*;

    impl MemoryFile {
        /// A sealed file whose `data` pages hold their page number plus one.
        pub(crate) fn for_tests(pages: u64, data: &[Range<u64>]) -> Self {
            let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
            let file = File::from(rustix::fs::memfd_create("pager-test", flags).unwrap());
            file.set_len(pages * PAGE_BYTES).unwrap();
            for page in data.iter().cloned().flatten() {
                file.write_all_at(&(page + 1).to_le_bytes(), page * PAGE_BYTES)
                    .unwrap();
            }
            let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
            rustix::fs::fcntl_add_seals(&file, seals).unwrap();
            Self::new(Arc::new(file), pages).unwrap()
        }

        pub(crate) fn into_file(self) -> Arc<File> {
            self.file
        }
    }

    impl HostRange {
        pub(crate) fn for_tests(pages: u64) -> Self {
            let bytes = (pages * PAGE_BYTES) as usize;
            Self::new(&GuestRegionMmap::from_range(GuestAddress(0), bytes, None).unwrap())
        }

        fn guest(&self) -> GuestRegionMmap {
            GuestRegionMmap::with_arc(Arc::clone(&self.region), GuestAddress(0)).unwrap()
        }

        pub(crate) fn read_for_tests(&self, page: u64) -> u64 {
            self.guest()
                .read_obj(MemoryRegionAddress(page * PAGE_BYTES))
                .unwrap()
        }

        pub(crate) fn write_for_tests(&self, page: u64) {
            self.guest()
                .write_obj(!page, MemoryRegionAddress(page * PAGE_BYTES + 8))
                .unwrap();
        }
    }
}
