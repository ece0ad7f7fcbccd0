//! Writes a pack, block by block.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::block::{self, Block, Compression};
use crate::header::CHUNK_PAGES;
use crate::pack::{BLOCKS_AT, KEY_BYTES, Pack, PackHeader, PageKey};
use crate::{CHUNK_BYTES, Digest, Error, PAGE_BYTES, Result, files};

/// A pack that is being written in a folder that nobody else sees yet.
pub(crate) struct PackWriter {
    folder: PathBuf,
    path: PathBuf,
    file: Option<File>,
    compression: Compression,
    next_byte: u64,
    blocks: Vec<Block>,
    keys: Vec<u8>,
    pending: Vec<u8>,
}

impl PackWriter {
    /// Starts a pack in `folder`. There is no file before the first block is full.
    pub(crate) fn new(folder: &Path, compression: Compression) -> Self {
        Self {
            folder: folder.to_owned(),
            path: folder.join("pack"),
            file: None,
            compression,
            next_byte: BLOCKS_AT,
            blocks: Vec::new(),
            keys: Vec::new(),
            pending: Vec::with_capacity(CHUNK_BYTES),
        }
    }

    /// Pages so far, also the slot of the next one.
    pub(crate) fn pages(&self) -> u64 {
        (self.keys.len() / KEY_BYTES) as u64
    }

    /// Adds a page; tells its slot.
    pub(crate) fn add(&mut self, page: &[u8], key: PageKey) -> Result<u64> {
        let slot = self.pages();
        self.keys.extend_from_slice(key.as_bytes());
        self.pending.extend_from_slice(page);
        if self.pending.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(slot)
    }

    /// Completes the pack: it is on disk under its name when this returns. Tells the digest that
    /// stands for it; nothing where there was no page.
    pub(crate) fn finish(mut self) -> Result<Option<Digest>> {
        self.flush()?;
        let pages = self.pages();
        let Some(file) = self.file else {
            return Ok(None);
        };
        let table = block::encode_table(&self.blocks);
        let header = PackHeader {
            pages,
            table_at: self.next_byte,
            table_digest: Digest::of(&table),
            keys_digest: Digest::of(&self.keys),
        };
        let (header, digest) = header.encode();
        let behind_blocks = [table, self.keys].concat();
        for (bytes, offset) in [(&behind_blocks[..], self.next_byte), (&header[..], 0)] {
            file.write_all_at(bytes, offset)
                .map_err(Error::io("write", &self.path))?;
        }
        file.sync_all().map_err(Error::io("flush", &self.path))?;
        files::rename(&self.path, &self.folder.join(Pack::name(&digest)))?;
        Ok(Some(digest))
    }

    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => files::create(&self.path)?,
        };
        let (stored, codec) = block::encode(&self.pending, self.compression);
        file.write_all_at(&stored, self.next_byte)
            .map_err(Error::io("write", &self.path))?;
        self.file = Some(file);
        self.blocks.push(Block {
            first_slot: self.blocks.len() as u64 * CHUNK_PAGES,
            pages: (self.pending.len() / PAGE_BYTES) as u32,
            offset: self.next_byte,
            stored_bytes: stored.len() as u32,
            codec,
            digest: Digest::of(&self.pending),
        });
        self.next_byte += stored.len() as u64;
        self.pending.clear();
        Ok(())
    }
}
