//! `snapshot.dms`: the header and the sections that its digest covers.

use std::ops::Range;
use std::path::Path;

use crate::chunks::ChunkTable;
use crate::header::{HEADER_BYTES, Header};
use crate::table::PageTable;
use crate::{Digest, Error, Result, files, ranges};

/// The content of a `snapshot.dms` whose digests were compared.
pub(crate) struct StateFile {
    pub(crate) header: Header,
    pub(crate) table: Table,
    content: Vec<u8>,
}

/// Where the pages are.
pub(crate) enum Table {
    /// Version 1: memory in one file with digests by chunk, the image in another.
    Chunks(ChunkTable),
    /// Since version 2: all pages in packs.
    Pages(PageTable),
}

impl StateFile {
    pub(crate) const NAME: &str = "snapshot.dms";

    /// Reads and checks the file `path`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let (file, file_bytes) = files::open(path)?;
        // The header first: it tells how long the file should be, before anything is allocated.
        let header_bytes = file_bytes.min(HEADER_BYTES as u64) as usize;
        let header = Header::decode(&files::read_start(&file, header_bytes, path)?, path)?;
        files::check_size(path, file_bytes, header.file_bytes())?;
        let content = files::read_start(&file, file_bytes as usize, path)?;
        // The header may have changed since it was read: only one reading counts.
        if Header::decode(&content, path)? != header {
            return Err(Error::damaged(path, "it changed while it was read"));
        }
        Self::of_content(header, content, path)
    }

    /// The file `path`, whose size and header were checked.
    fn of_content(header: Header, content: Vec<u8>, path: &Path) -> Result<Self> {
        let body = &content[HEADER_BYTES..];
        if Digest::of(body) != header.body_digest {
            return Err(Error::damaged(
                path,
                "its content does not match the digest in its header",
            ));
        }
        let table = &body[header.state_bytes as usize..];
        let (entries, memory_pages) = (header.table_entries, header.memory_pages);
        let table = if header.format_version == 1 {
            Table::Chunks(ChunkTable::decode(table, entries, memory_pages, path)?)
        } else {
            Table::Pages(PageTable::decode(table, entries, header.all_pages(), path)?)
        };
        Ok(Self {
            header,
            table,
            content,
        })
    }

    /// The file `path` with all its `content`.
    pub(crate) fn decode(content: Vec<u8>, path: &Path) -> Result<Self> {
        let header = Header::decode(&content, path)?;
        files::check_size(path, content.len() as u64, header.file_bytes())?;
        Self::of_content(header, content, path)
    }

    /// The encoded state.
    pub(crate) fn state(&self) -> &[u8] {
        &self.content[HEADER_BYTES..HEADER_BYTES + self.header.state_bytes as usize]
    }

    /// The pages of guest memory that are not zero, sorted and apart from each other.
    pub(crate) fn data(&self) -> Vec<Range<u64>> {
        match &self.table {
            Table::Chunks(table) => table.data.clone(),
            Table::Pages(table) => table.data(self.header.memory_pages),
        }
    }

    pub(crate) fn data_pages(&self) -> u64 {
        ranges::count(&self.data())
    }
}
