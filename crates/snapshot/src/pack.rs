//! A pack: an immutable file of pages, stored in blocks of up to 16, each with a digest.
//!
//! ```text
//! header (256 bytes), zeros up to byte 4096 │ blocks │ block table │ page keys
//! ```
//!
//! Pages of a pack are numbered by *slots*; slot `n` lies in block `n / 16`. The digest of the
//! header stands for the whole pack: it covers the digest of the block table, which covers the
//! blocks. Guest memory of format version 1 is read as a pack whose slots are page numbers.

use std::fs::File;
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::block::{self, Block, BlockBytes, Codec, ENTRY_BYTES};
use crate::header::{CHUNK_PAGES, MAX_IMAGE_BYTES, check_version, field};
use crate::{CHUNK_BYTES, Digest, Error, MAX_MEMORY_PAGES, PAGE_BYTES, Result, files};

const MAGIC: &str = "DORMPACK";

/// The version of the pack's own layout.
const PACK_VERSION: u32 = 1;

/// Where the first block starts: pages of raw blocks lie at multiples of the page size.
pub(crate) const BLOCKS_AT: u64 = PAGE_BYTES as u64;

/// Bytes in a page's key.
pub(crate) const KEY_BYTES: usize = 16;

const HEADER_BYTES: usize = size_of::<Layout>();

/// The most pages that a pack may have: all of a memory and an image.
const MAX_PACK_PAGES: u64 = MAX_MEMORY_PAGES + MAX_IMAGE_BYTES / PAGE_BYTES as u64;

/// The header's shape. All integers are little-endian; only offsets are taken from here.
#[repr(C)]
struct Layout {
    magic: [u8; 8],
    version: u32,
    header_bytes: u32,
    pages: u64,
    table_at: u64,
    reserved_a: [u8; 32],
    table_digest: [u8; 32],
    keys_digest: [u8; 32],
    reserved_b: [u8; 96],
    header_digest: [u8; 32],
}

// Files in the field depend on these places: a change here is a new PACK_VERSION and a new
// FORMAT_VERSION, see snapshots/FORMAT.md, "Compatibility".
const _: () = {
    assert!(HEADER_BYTES == 256);
    assert!(offset_of!(Layout, magic) == 0);
    assert!(offset_of!(Layout, version) == 8);
    assert!(offset_of!(Layout, header_bytes) == 12);
    assert!(offset_of!(Layout, pages) == 16);
    assert!(offset_of!(Layout, table_at) == 24);
    assert!(offset_of!(Layout, reserved_a) == 32);
    assert!(offset_of!(Layout, table_digest) == 64);
    assert!(offset_of!(Layout, keys_digest) == 96);
    assert!(offset_of!(Layout, reserved_b) == 128);
    assert!(offset_of!(Layout, header_digest) == 224);
    assert!(PACK_VERSION == 1 && BLOCKS_AT == 4096 && KEY_BYTES == 16);
};

a_change_here_is_a_new_format_version! {
    PackHeader { pages: u64, table_at: u64, table_digest: Digest, keys_digest: Digest }
}

/// A page's key: the first bytes of its BLAKE3 digest. Pages with equal keys are compared before
/// they count as equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PageKey([u8; KEY_BYTES]);

impl From<&Digest> for PageKey {
    fn from(digest: &Digest) -> Self {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&digest.as_bytes()[..KEY_BYTES]);
        Self(key)
    }
}

impl PageKey {
    pub(crate) fn of(page: &[u8]) -> Self {
        Self::from(&Digest::of(page))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

/// What a pack's header says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PackHeader {
    /// Pages in the pack.
    pub(crate) pages: u64,
    /// Where the block table starts.
    pub(crate) table_at: u64,
    pub(crate) table_digest: Digest,
    pub(crate) keys_digest: Digest,
}

impl PackHeader {
    /// The header as it is stored, and the digest that stands for the whole pack.
    pub(crate) fn encode(&self) -> ([u8; HEADER_BYTES], Digest) {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(offset_of!(Layout, magic), MAGIC.as_bytes());
        put(offset_of!(Layout, version), &PACK_VERSION.to_le_bytes());
        let header_bytes = HEADER_BYTES as u32;
        put(
            offset_of!(Layout, header_bytes),
            &header_bytes.to_le_bytes(),
        );
        put(offset_of!(Layout, pages), &self.pages.to_le_bytes());
        put(offset_of!(Layout, table_at), &self.table_at.to_le_bytes());
        put(
            offset_of!(Layout, table_digest),
            self.table_digest.as_bytes(),
        );
        put(offset_of!(Layout, keys_digest), self.keys_digest.as_bytes());
        let digest = Digest::of(&bytes[..offset_of!(Layout, header_digest)]);
        bytes[offset_of!(Layout, header_digest)..].copy_from_slice(digest.as_bytes());
        (bytes, digest)
    }

    /// Reads the header at the start of `file`, of a pack of `file_bytes` at `path`.
    pub(crate) fn decode(file: &[u8], file_bytes: u64, path: &Path) -> Result<(Self, Digest)> {
        check_version(file, MAGIC, "pack", PACK_VERSION..=PACK_VERSION, path)?;
        let digest = Digest::from_bytes(field(file, offset_of!(Layout, header_digest), path)?);
        if Digest::of(&file[..offset_of!(Layout, header_digest)]) != digest {
            return Err(Error::damaged(path, "its header does not match its digest"));
        }
        let u64_at = |offset| field(file, offset, path).map(u64::from_le_bytes);
        let digest_at = |offset| field(file, offset, path).map(Digest::from_bytes);
        let header_bytes = field(file, offset_of!(Layout, header_bytes), path)?;
        let header = Self {
            pages: u64_at(offset_of!(Layout, pages))?,
            table_at: u64_at(offset_of!(Layout, table_at))?,
            table_digest: digest_at(offset_of!(Layout, table_digest))?,
            keys_digest: digest_at(offset_of!(Layout, keys_digest))?,
        };
        let reserved = field::<32>(file, offset_of!(Layout, reserved_a), path)? == [0; 32]
            && field::<96>(file, offset_of!(Layout, reserved_b), path)? == [0; 96];
        if u32::from_le_bytes(header_bytes) as usize != HEADER_BYTES || !reserved {
            return Err(Error::damaged(path, "its header is not of this version"));
        }
        if !(1..=MAX_PACK_PAGES).contains(&header.pages) {
            let pages = header.pages;
            let what = format!("it claims {pages} pages, possible are 1 to {MAX_PACK_PAGES}");
            return Err(Error::damaged(path, what));
        }
        // Bounded above, so nothing overflows; the table's place is bounded by the file's size.
        let behind_blocks = header.blocks() * ENTRY_BYTES as u64 + header.pages * KEY_BYTES as u64;
        if header.table_at < BLOCKS_AT
            || header.table_at.checked_add(behind_blocks) != Some(file_bytes)
        {
            let what = format!("it has {file_bytes} bytes, which its header does not explain");
            return Err(Error::damaged(path, what));
        }
        Ok((header, digest))
    }

    fn blocks(&self) -> u64 {
        self.pages.div_ceil(CHUNK_PAGES)
    }

    fn keys_at(&self) -> u64 {
        self.table_at + self.blocks() * ENTRY_BYTES as u64
    }
}

/// An opened pack. Its blocks are verified as they are read, all else has been.
#[derive(Debug)]
pub(crate) struct Pack {
    file: File,
    path: PathBuf,
    blocks: Vec<Block>,
    pages: u64,
    /// Nothing for a memory of format version 1.
    identity: Option<(PackHeader, Digest)>,
}

impl Pack {
    /// What names of packs start with.
    pub(crate) const PREFIX: &str = "pack-";

    /// The name of the pack with the header's digest `digest`.
    pub(crate) fn name(digest: &Digest) -> String {
        let hex = digest.to_string();
        format!("{}{}", Self::PREFIX, &hex[..16])
    }

    /// Whether `name` is one that a pack may have.
    pub(crate) fn is_name(name: &str) -> bool {
        let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        name.strip_prefix(Self::PREFIX)
            .is_some_and(|rest| rest.len() == 16 && rest.bytes().all(hex))
    }

    /// Opens the pack `path`, which must be the one that `expected` stands for, if that is known.
    pub(crate) fn open(path: PathBuf, expected: Option<&Digest>) -> Result<Self> {
        let (file, file_bytes) = files::open(&path)?;
        Self::of_file(file, path, file_bytes, expected)
    }

    /// The pack in `file`, which has `file_bytes` and is known as `path`.
    pub(crate) fn of_file(
        file: File,
        path: PathBuf,
        file_bytes: u64,
        expected: Option<&Digest>,
    ) -> Result<Self> {
        let start = files::read_start(&file, file_bytes.min(BLOCKS_AT) as usize, &path)?;
        let (header, digest) = PackHeader::decode(&start, file_bytes, &path)?;
        if expected.is_some_and(|expected| *expected != digest) {
            let what = format!("it is the pack {digest}, which does not belong here");
            return Err(Error::damaged(&path, what));
        }
        if start[HEADER_BYTES..].iter().any(|byte| *byte != 0) {
            return Err(Error::damaged(
                &path,
                "the gap behind its header is not zero",
            ));
        }
        let mut table = vec![0; header.blocks() as usize * ENTRY_BYTES];
        files::read_at(&file, &mut table, header.table_at, &path)?;
        if Digest::of(&table) != header.table_digest {
            return Err(Error::damaged(
                &path,
                "its block table does not match its digest",
            ));
        }
        let blocks = block::decode_table(&table, header.pages, BLOCKS_AT..header.table_at)
            .map_err(|what| Error::damaged(&path, what))?;
        Ok(Self {
            file,
            path,
            blocks,
            pages: header.pages,
            identity: Some((header, digest)),
        })
    }

    /// A memory of format version 1 as a pack: `file` has page `n` at byte `n × 4096`, and
    /// `chunks` are the blocks that have a digest.
    pub(crate) fn of_chunks(
        file: File,
        path: PathBuf,
        pages: u64,
        chunks: impl IntoIterator<Item = (u64, Digest)>,
    ) -> Self {
        let block = |(chunk, digest): (u64, Digest)| {
            let first_slot = chunk * CHUNK_PAGES;
            let pages = (pages - first_slot).min(CHUNK_PAGES) as u32;
            Block {
                first_slot,
                pages,
                offset: chunk * CHUNK_BYTES as u64,
                stored_bytes: pages * PAGE_BYTES as u32,
                codec: Codec::Raw,
                digest,
            }
        };
        Self {
            blocks: chunks.into_iter().map(block).collect(),
            file,
            path,
            pages,
            identity: None,
        }
    }

    /// The number of slots.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Size of its blocks as they are stored.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let blocks = self.blocks.iter();
        blocks.map(|block| u64::from(block.stored_bytes)).sum()
    }

    /// The digest that stands for the whole pack; nothing for a memory of version 1.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.identity.as_ref().map(|(_, digest)| digest)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Which file this is, whatever name it was opened by.
    pub(crate) fn inode(&self) -> Result<(u64, u64)> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(Error::io("inspect", &self.path))?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// The block with the page of `slot`. Nothing where there is none, as may be in memories of
    /// version 1.
    pub(crate) fn block(&self, slot: u64) -> Option<&Block> {
        let after = self
            .blocks
            .partition_point(|block| block.first_slot <= slot);
        let block = &self.blocks[after.checked_sub(1)?];
        (slot - block.first_slot < u64::from(block.pages)).then_some(block)
    }

    /// Reads `block` of this pack into `buf` and compares its digest if it is to `verify`.
    pub(crate) fn read_block<'a>(
        &self,
        block: &Block,
        buf: &'a mut BlockBytes,
        verify: bool,
    ) -> Result<&'a [u8]> {
        block.read(&self.file, &self.path, buf, verify)
    }

    /// The keys of all pages by slot, compared with their digest.
    pub(crate) fn keys(&self) -> Result<Vec<PageKey>> {
        let Some((header, _)) = &self.identity else {
            return Ok(Vec::new());
        };
        let mut bytes = vec![0; header.pages as usize * KEY_BYTES];
        files::read_at(&self.file, &mut bytes, header.keys_at(), &self.path)?;
        if Digest::of(&bytes) != header.keys_digest {
            return Err(Error::damaged(
                &self.path,
                "its page keys do not match their digest",
            ));
        }
        let (keys, _) = bytes.as_chunks::<KEY_BYTES>();
        Ok(keys.iter().copied().map(PageKey).collect())
    }

    /// Reads and compares every block, and the keys. `good` is told the bytes of each good block.
    /// Tells which slots are in blocks that are damaged, and what is wrong with them.
    pub(crate) fn verify(&self, mut good: impl FnMut(u64)) -> Result<Vec<(Range<u64>, String)>> {
        self.keys()?;
        let mut buf = BlockBytes::default();
        let mut damaged = Vec::new();
        for block in &self.blocks {
            match self.read_block(block, &mut buf, true) {
                Ok(_) => good(u64::from(block.stored_bytes)),
                Err(error) => {
                    // What the disk does not give is lost for those who use it, and for no others.
                    let what = match error {
                        Error::Damaged { what, .. } => what,
                        other => other.to_string(),
                    };
                    let end = block.first_slot + u64::from(block.pages);
                    damaged.push((block.first_slot..end, what));
                }
            }
        }
        Ok(damaged)
    }
}
