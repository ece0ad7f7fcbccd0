//! The memory of a published snapshot.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::space::PageSpace;
use crate::{CHUNK_BYTES, Error, PAGE_BYTES, Result, files, ranges};

/// Guest memory in a snapshot, read from its packs page by page.
#[derive(Debug)]
pub struct MemoryImage {
    space: Arc<PageSpace>,
    /// The snapshot's folder, for messages.
    folder: PathBuf,
    pages: u64,
    data: Vec<Range<u64>>,
}

/// A pack that a snapshot takes pages from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackStats {
    /// The file's name in the snapshot's folder.
    pub name: String,
    /// Pages in it.
    pub pages: u64,
    /// Pages of the snapshot that are taken from it, guest memory and image; a page that is at
    /// several places counts at each.
    pub used_pages: u64,
    /// Size of its blocks as they are stored, in bytes.
    pub stored_bytes: u64,
}

impl MemoryImage {
    /// The first `pages` of `space`, of which `data` are not zero.
    pub(crate) fn new(
        space: Arc<PageSpace>,
        folder: PathBuf,
        pages: u64,
        data: Vec<Range<u64>>,
    ) -> Self {
        Self {
            space,
            folder,
            pages,
            data,
        }
    }

    /// Pages of guest memory.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The ranges of pages that are not zero, sorted and apart from each other. They come from a
    /// checksummed table.
    #[must_use]
    pub fn data(&self) -> &[Range<u64>] {
        &self.data
    }

    /// Pages that are not zero.
    #[must_use]
    pub fn data_pages(&self) -> u64 {
        ranges::count(&self.data)
    }

    /// The packs that the snapshot's pages are in, at most 64.
    #[must_use]
    pub fn packs(&self) -> Vec<PackStats> {
        self.space.pack_stats()
    }

    /// The pages of this memory that `other` has in the very same place of the same pack: sorted
    /// ranges, apart from each other. Of a layer and its parent, these are pages that did not
    /// change.
    #[must_use]
    pub fn stored_once_with(&self, other: &Self) -> Vec<Range<u64>> {
        let shared = self.space.stored_once_with(&other.space);
        ranges::within(&shared, 0..self.pages).collect()
    }

    /// Fills `buf`, some whole pages, with the pages from `first_page` on. Reads whole blocks and
    /// compares their digests; pages that are zero are not read at all.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a file ends early or a block has another digest (`buf` may then
    /// be partly filled), [`Error::Refused`] when the pages do not exist.
    pub fn read_verified(&self, first_page: u64, buf: &mut [u8]) -> Result<()> {
        self.read_pages(first_page, buf, true)
    }

    /// As [`read_verified`](Self::read_verified), without comparing digests: for those who have
    /// chosen to trust the disk.
    ///
    /// # Errors
    /// As [`read_verified`](Self::read_verified), as far as damage shows without digests.
    pub fn read(&self, first_page: u64, buf: &mut [u8]) -> Result<()> {
        self.read_pages(first_page, buf, false)
    }

    fn read_pages(&self, first_page: u64, buf: &mut [u8], verify: bool) -> Result<()> {
        const OPERATION: &str = "read snapshot memory";
        if !buf.len().is_multiple_of(PAGE_BYTES) {
            let reason = format!("{} bytes are not whole pages", buf.len());
            return Err(Error::refused(OPERATION, reason));
        }
        let pages = (buf.len() / PAGE_BYTES) as u64;
        let end = first_page.checked_add(pages);
        let Some(end) = end.filter(|end| *end <= self.pages) else {
            let reason = format!(
                "{pages} pages from {first_page} on are not all within the {} \
                 pages of memory",
                self.pages
            );
            return Err(Error::refused(OPERATION, reason));
        };
        buf.fill(0);
        self.space
            .read(first_page..end, verify, &mut |page, bytes| {
                let at = (page - first_page) as usize * PAGE_BYTES;
                buf[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            })
    }

    /// Copies the memory into a memfd of its own, comparing every digest on the way if it is to
    /// `verify`. Only pages with data are written: the rest are holes. The memfd is then sealed:
    /// it can be mapped privately, or shared for reading, and neither its size nor its content
    /// changes any more.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a block cannot be verified, [`Error::Io`] when the host cannot
    /// hold the pages.
    pub fn load(&self, verify: bool) -> Result<File> {
        let folder = &self.folder;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = rustix::fs::memfd_create("dormouse-memory", flags)
            .map_err(Error::io("create a memfd for", folder))?;
        let memfd = File::from(memfd);
        memfd
            .set_len(self.pages * PAGE_BYTES as u64)
            .map_err(Error::io("size the memfd for", folder))?;
        self.space.read(0..self.pages, verify, &mut |page, bytes| {
            memfd
                .write_all_at(bytes, page * PAGE_BYTES as u64)
                .map_err(Error::io("fill the memfd for", folder))
        })?;

        // FUTURE_WRITE, not WRITE: no writable mapping exists, so both forbid every write, but
        // before Linux 6.7 WRITE forbade shared read-only mappings as well.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memfd, seals)
            .map_err(Error::io("seal the memfd for", folder))?;
        Ok(memfd)
    }

    /// Verifies what [`load`](Self::load) has brought into `memfd` unverified: every digest is
    /// compared, and every page with what was loaded.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a digest or a page differs, [`Error::Io`] when one cannot be read.
    pub fn verify_loaded(&self, memfd: &File) -> Result<()> {
        let mut loaded = [0; CHUNK_BYTES];
        self.space.read(0..self.pages, true, &mut |page, bytes| {
            let loaded = &mut loaded[..bytes.len()];
            files::read_at(memfd, loaded, page * PAGE_BYTES as u64, &self.folder)?;
            if loaded == bytes {
                return Ok(());
            }
            let what = format!("what was loaded of page {page} is not what it holds now");
            Err(Error::damaged(&self.folder, what))
        })
    }
}
