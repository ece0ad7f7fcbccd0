//! The memory of a published snapshot.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::io::Errno;

use crate::header::CHUNK_PAGES;
use crate::table::MemoryTable;
use crate::{CHUNK_BYTES, Digest, Error, PAGE_BYTES, Result, files, ranges};

/// Guest memory in a snapshot: a sparse file, page `n` at byte `n × 4096`, with a digest for
/// each 64 KiB that is not all zero.
#[derive(Debug)]
pub struct MemoryImage {
    file: File,
    path: PathBuf,
    table: MemoryTable,
}

impl MemoryImage {
    pub(crate) const NAME: &str = "memory";

    /// Opens the file `path`, whose verified table is `table`.
    pub(crate) fn open(path: PathBuf, table: MemoryTable) -> Result<Self> {
        let (file, file_bytes) = files::open(&path)?;
        files::check_size(&path, file_bytes, table.pages() * PAGE_BYTES as u64)?;
        Ok(Self { file, path, table })
    }

    /// Pages of guest memory.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.table.pages()
    }

    /// The ranges of pages that are not zero, sorted and apart from each other. They come from a
    /// checksummed table and not from the file's holes.
    #[must_use]
    pub fn data(&self) -> &[Range<u64>] {
        self.table.data()
    }

    /// Pages that are not zero.
    #[must_use]
    pub fn data_pages(&self) -> u64 {
        self.table.data_pages()
    }

    /// The file, open for reading only. What is mapped from it was not verified:
    /// [`load`](Self::load) and [`read_verified`](Self::read_verified) do that.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills `buf`, some whole pages, with the pages from `first_page` on. Reads whole chunks and
    /// compares their digests; pages of chunks that are all zero are not read at all.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the file ends early or a chunk has another digest (`buf` may then
    /// be partly filled), [`Error::Refused`] when the pages do not exist.
    pub fn read_verified(&self, first_page: u64, buf: &mut [u8]) -> Result<()> {
        const OPERATION: &str = "read snapshot memory";
        if !buf.len().is_multiple_of(PAGE_BYTES) {
            let reason = format!("{} bytes are not whole pages", buf.len());
            return Err(Error::refused(OPERATION, reason));
        }
        let pages = (buf.len() / PAGE_BYTES) as u64;
        if first_page
            .checked_add(pages)
            .is_none_or(|end| end > self.pages())
        {
            let reason = format!(
                "{pages} pages from {first_page} on are not all within the {} \
                 pages of memory",
                self.pages()
            );
            return Err(Error::refused(OPERATION, reason));
        }

        let mut scratch = Vec::new();
        let (mut page, mut rest) = (first_page, buf);
        while !rest.is_empty() {
            let chunk = page / CHUNK_PAGES;
            let chunk_pages = self.table.chunk_pages(chunk);
            let skipped_bytes = (page - chunk_pages.start) as usize * PAGE_BYTES;
            let wanted_bytes = rest
                .len()
                .min(self.table.chunk_bytes(chunk) - skipped_bytes);
            let (part, tail) = rest.split_at_mut(wanted_bytes);
            if self.table.digest(chunk).is_none() {
                part.fill(0);
            } else if part.len() == self.table.chunk_bytes(chunk) {
                self.read_chunk(chunk, part)?;
            } else {
                scratch.resize(self.table.chunk_bytes(chunk), 0);
                self.read_chunk(chunk, &mut scratch)?;
                part.copy_from_slice(&scratch[skipped_bytes..skipped_bytes + wanted_bytes]);
            }
            page = chunk_pages.end;
            rest = tail;
        }
        Ok(())
    }

    /// Copies the memory into a memfd of its own, verifying every chunk on the way. Only pages
    /// with data are written: holes stay holes. The memfd is then sealed: it can be mapped
    /// privately, or shared for reading, and neither its size nor its content changes any more.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a chunk cannot be verified, [`Error::Io`] when the host cannot
    /// hold the pages.
    pub fn load(&self) -> Result<File> {
        let memfd = rustix::fs::memfd_create(
            "dormouse-memory",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(Error::io("create a memfd for", &self.path))?;
        let memfd = File::from(memfd);
        memfd
            .set_len(self.pages() * PAGE_BYTES as u64)
            .map_err(Error::io("size the memfd for", &self.path))?;

        let mut buf = [0; CHUNK_BYTES];
        for (chunk, _) in self.table.chunks() {
            let buf = &mut buf[..self.table.chunk_bytes(*chunk)];
            self.read_chunk(*chunk, buf)?;
            let pages = self.table.chunk_pages(*chunk);
            for run in ranges::within(self.data(), pages.clone()) {
                let start = (run.start - pages.start) as usize * PAGE_BYTES;
                let end = (run.end - pages.start) as usize * PAGE_BYTES;
                memfd
                    .write_all_at(&buf[start..end], run.start * PAGE_BYTES as u64)
                    .map_err(Error::io("fill the memfd for", &self.path))?;
            }
        }

        // FUTURE_WRITE, not WRITE: no writable mapping exists, so both forbid every write, but
        // before Linux 6.7 WRITE forbade shared read-only mappings as well.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memfd, seals)
            .map_err(Error::io("seal the memfd for", &self.path))?;
        Ok(memfd)
    }

    /// Verifies all chunks, and that what should be zero is; tells how many bytes it read.
    pub(crate) fn verify(&self) -> Result<u64> {
        let mut read_bytes = 0;
        let mut buf = [0; CHUNK_BYTES];
        for (chunk, _) in self.table.chunks() {
            let buf = &mut buf[..self.table.chunk_bytes(*chunk)];
            self.read_chunk(*chunk, buf)?;
            read_bytes += buf.len() as u64;
        }
        // A hole reads as zero, so here, and only here, holes may be skipped.
        let mut from = 0;
        while let Some(extent) = self.next_extent(from)? {
            from = extent.end;
            for chunk in extent.start / CHUNK_BYTES as u64..extent.end.div_ceil(CHUNK_BYTES as u64)
            {
                if self.table.digest(chunk).is_some() {
                    continue;
                }
                let buf = &mut buf[..self.table.chunk_bytes(chunk)];
                files::read_at(&self.file, buf, chunk * CHUNK_BYTES as u64, &self.path)?;
                read_bytes += buf.len() as u64;
                if buf.iter().any(|byte| *byte != 0) {
                    let what = format!("chunk {chunk} should be all zero and is not");
                    return Err(Error::damaged(&self.path, what));
                }
            }
        }
        Ok(read_bytes)
    }

    /// The next extent of the file with data at or after byte `from`, within its proper size.
    fn next_extent(&self, from: u64) -> Result<Option<Range<u64>>> {
        let size = self.pages() * PAGE_BYTES as u64;
        let seek = |to| rustix::fs::seek(&self.file, to);
        let start = match seek(SeekFrom::Data(from)) {
            Err(Errno::NXIO) => return Ok(None),
            found => found.map_err(Error::io("seek in", &self.path))?,
        };
        if start >= size {
            return Ok(None);
        }
        let end = seek(SeekFrom::Hole(start)).map_err(Error::io("seek in", &self.path))?;
        Ok(Some(start..end.min(size)))
    }

    /// Fills `buf`, as long as `chunk` is, and compares its digest.
    fn read_chunk(&self, chunk: u64, buf: &mut [u8]) -> Result<()> {
        files::read_at(&self.file, buf, chunk * CHUNK_BYTES as u64, &self.path)?;
        if self.table.digest(chunk) == Some(Digest::of(buf)) {
            return Ok(());
        }
        let pages = self.table.chunk_pages(chunk);
        let what = format!("chunk {chunk} (pages {pages:?}) does not match its digest");
        Err(Error::damaged(&self.path, what))
    }
}
