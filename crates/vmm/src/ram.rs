//! Guest-physical memory.

use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

use crate::error::Error;
use crate::layout::PAGE_BYTES;

/// The memory of one guest: one range of guest-physical addresses, backed by one range of ours.
///
/// The backing starts as private anonymous memory without reservation. The pager may map a snapshot
/// over it (same range, `MAP_FIXED`) while no vCPU runs. All access is by copying: the guest may
/// write at any time, so no reference to its bytes is ever made while it can run.
#[derive(Debug, Clone)]
pub struct GuestRam {
    region: Arc<GuestRegionMmap>,
}

impl GuestRam {
    /// Reserves `len` bytes for guest-physical addresses from `base`.
    ///
    /// # Errors
    /// [`Error::Memory`] where the host refuses the mapping.
    pub fn new(base: u64, len: u64) -> Result<Self, Error> {
        let refused = |reason: String| Error::Memory {
            base,
            length_bytes: len,
            reason,
        };
        let size = usize::try_from(len).map_err(|e| refused(e.to_string()))?;
        let mapping = MmapRegion::new(size).map_err(|e| refused(e.to_string()))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base))
            .ok_or_else(|| refused("the range runs past the end of the address space".into()))?;
        Ok(Self {
            region: Arc::new(region),
        })
    }

    /// The region as vm-memory's plain value, for the pager.
    #[must_use]
    pub fn region(&self) -> &Arc<GuestRegionMmap> {
        &self.region
    }

    /// The lowest guest-physical address.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.region.start_addr().0
    }

    /// Size in bytes.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a guest's memory is never empty"
    )]
    pub fn len(&self) -> u64 {
        self.region.len()
    }

    /// Where `len` bytes from guest-physical `address` stand in this process.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] where they are not all guest memory.
    pub(crate) fn host_pointer(&self, address: u64, len: u64) -> Result<*mut u8, Error> {
        let offset = self.offset(address, len)?;
        Ok(self.region.as_ptr().wrapping_add(offset as usize))
    }

    fn offset(&self, address: u64, len: u64) -> Result<u64, Error> {
        let inside = address
            .checked_sub(self.base())
            .filter(|offset| offset.checked_add(len).is_some_and(|end| end <= self.len()));
        inside.ok_or(Error::OutOfBounds {
            address,
            length_bytes: len,
        })
    }

    /// Copies guest memory out.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] where the range is not all guest memory; nothing is copied then.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let offset = self.offset(address, buffer.len() as u64)?;
        self.region
            .read_slice(buffer, MemoryRegionAddress(offset))
            .map_err(|_| Error::OutOfBounds {
                address,
                length_bytes: buffer.len() as u64,
            })
    }

    /// Copies into guest memory.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] where the range is not all guest memory; nothing is written then.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let offset = self.offset(address, bytes.len() as u64)?;
        self.region
            .write_slice(bytes, MemoryRegionAddress(offset))
            .map_err(|_| Error::OutOfBounds {
                address,
                length_bytes: bytes.len() as u64,
            })
    }

    /// Reads a little-endian word.
    ///
    /// # Errors
    /// As [`GuestRam::read`].
    pub fn read_u64(&self, address: u64) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Fills a range with zeros.
    ///
    /// # Errors
    /// As [`GuestRam::write`].
    pub fn zero(&self, address: u64, len: u64) -> Result<(), Error> {
        const ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
        let mut at = 0;
        while at < len {
            let part = (len - at).min(PAGE_BYTES);
            self.write(address + at, &ZEROS[..part as usize])?;
            at += part;
        }
        Ok(())
    }

    /// The range as memory to load an image into.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] where it is not all guest memory.
    ///
    /// # Safety
    /// No vCPU may run on this memory and nothing else may access it while the slice lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "the memory is the guest's, not a field; exclusive access is the caller's promise"
    )]
    pub(crate) unsafe fn exclusive_slice(
        &self,
        address: u64,
        len: u64,
    ) -> Result<&mut [MaybeUninit<u8>], Error> {
        let pointer = self.host_pointer(address, len)?;
        // SAFETY: `host_pointer` checked that the range is mapped memory of this region, which
        // lives as long as `self`; exclusive access is the caller's promise.
        Ok(unsafe { std::slice::from_raw_parts_mut(pointer.cast(), len as usize) })
    }

    /// The pages (counted from the base) that may hold anything but zeros: those that are present
    /// or swapped out in this process.
    ///
    /// Where a snapshot is mapped over the range, pages that were never touched are not listed
    /// although they may hold data; they are the snapshot's own.
    ///
    /// # Errors
    /// [`Error::Memory`] where `/proc/self/pagemap` cannot be read.
    pub fn resident_pages(&self) -> Result<Vec<Range<u64>>, Error> {
        // Linux Documentation/admin-guide/mm/pagemap.rst: one word a page; 63 present, 62 swapped.
        const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
        let failed = |e: std::io::Error| Error::Memory {
            base: self.base(),
            length_bytes: self.len(),
            reason: format!("/proc/self/pagemap: {e}"),
        };
        let pages = self.len() / PAGE_BYTES;
        let first = self.region.as_ptr() as u64 / PAGE_BYTES;
        let pagemap = pagemap().map_err(failed)?;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut words = vec![0; 8 * 8192];
        let mut page = 0;
        while page < pages {
            let batch = (pages - page).min(8192);
            let part = &mut words[..8 * batch as usize];
            pagemap
                .read_exact_at(part, (first + page) * 8)
                .map_err(failed)?;
            for (index, word) in part.as_chunks::<8>().0.iter().enumerate() {
                if u64::from_le_bytes(*word) & PRESENT_OR_SWAPPED == 0 {
                    continue;
                }
                let here = page + index as u64;
                match ranges.last_mut() {
                    Some(last) if last.end == here => last.end += 1,
                    _ => ranges.push(here..here + 1),
                }
            }
            page += batch;
        }
        Ok(ranges)
    }
}

/// The process's `/proc/self/pagemap`, which stays open.
pub(crate) fn pagemap() -> std::io::Result<&'static File> {
    static PAGEMAP: OnceLock<File> = OnceLock::new();
    if let Some(open) = PAGEMAP.get() {
        return Ok(open);
    }
    let file = File::open("/proc/self/pagemap")?;
    Ok(PAGEMAP.get_or_init(|| file))
}
