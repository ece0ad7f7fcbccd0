//! Blocks: up to 16 pages of a pack, as they are or compressed, with a digest of their bytes.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::header::CHUNK_PAGES;
use crate::{CHUNK_BYTES, Digest, Error, PAGE_BYTES, Result, files};

/// Bytes that one block takes in a pack's table.
pub(crate) const ENTRY_BYTES: usize = 48;

/// The level for blocks that are written compressed: most of what can be saved, at a speed at
/// which publishing does not wait for it.
const ZSTD_LEVEL: i32 = 6;

/// How the bytes of a block are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Raw,
    /// One zstd frame (RFC 8878).
    Zstd,
}

/// How pages are stored at rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are: the fastest to open.
    #[default]
    None,
    /// With zstd, each block that gets smaller by it.
    Zstd,
}

impl Compression {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::None, Self::Zstd];

    /// The word for it: `none` or `zstd`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(" and ");
            format!("{text:?} is no way of compressing; there are {known}")
        })
    }
}

/// One block of a pack.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Block {
    pub(crate) first_slot: u64,
    pub(crate) pages: u32,
    /// Where its stored bytes start in the file.
    pub(crate) offset: u64,
    pub(crate) stored_bytes: u32,
    pub(crate) codec: Codec,
    /// Of its pages, whatever the codec.
    pub(crate) digest: Digest,
}

a_change_here_is_a_new_format_version! {
    Block {
        first_slot: u64,
        pages: u32,
        offset: u64,
        stored_bytes: u32,
        codec: Codec,
        digest: Digest,
    }
}

const _: () = assert!(ENTRY_BYTES == 8 + 4 + 4 + Digest::BYTES);

/// Room for one block, as it is stored and as it was.
pub(crate) struct BlockBytes {
    pages: Box<[u8; CHUNK_BYTES]>,
    stored: Vec<u8>,
    /// Made when it is first needed.
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
}

impl Default for BlockBytes {
    fn default() -> Self {
        Self {
            pages: Box::new([0; CHUNK_BYTES]),
            stored: Vec::new(),
            decompressor: None,
        }
    }
}

thread_local! {
    /// What a thread read with last: faults are served one after another, and small.
    static SPARE: Cell<Option<BlockBytes>> = const { Cell::new(None) };
}

impl BlockBytes {
    /// Calls `work` with a buffer that this thread keeps.
    pub(crate) fn with_spare<T>(work: impl FnOnce(&mut Self) -> T) -> T {
        let mut buf = SPARE.take().unwrap_or_default();
        let result = work(&mut buf);
        SPARE.set(Some(buf));
        result
    }

    /// The pages of the block that was read last, and what others have left behind them.
    pub(crate) fn pages(&self) -> &[u8] {
        &self.pages[..]
    }
}

impl Block {
    /// Bytes of its pages.
    fn bytes(&self) -> usize {
        self.pages as usize * PAGE_BYTES
    }

    /// Reads its pages from the pack `file` at `path`.
    pub(crate) fn read<'a>(
        &self,
        file: &File,
        path: &Path,
        buf: &'a mut BlockBytes,
        verify: bool,
    ) -> Result<&'a [u8]> {
        let pages = &mut buf.pages[..self.bytes()];
        let damaged = |what: &str| {
            let end = self.first_slot + u64::from(self.pages);
            Error::damaged(
                path,
                format!("the pages {} to {end} {what}", self.first_slot),
            )
        };
        match self.codec {
            Codec::Raw => files::read_at(file, pages, self.offset, path)?,
            Codec::Zstd => {
                buf.stored.resize(self.stored_bytes as usize, 0);
                files::read_at(file, &mut buf.stored, self.offset, path)?;
                let decompressor = match &mut buf.decompressor {
                    Some(decompressor) => decompressor,
                    none => {
                        let made = zstd::bulk::Decompressor::new();
                        none.insert(made.map_err(Error::io("prepare to decompress", path))?)
                    }
                };
                let bytes = decompressor
                    .decompress_to_buffer(&buf.stored, pages)
                    .map_err(|error| damaged(&format!("cannot be decompressed ({error})")))?;
                if bytes != pages.len() {
                    return Err(damaged(&format!("decompress to {bytes} bytes only")));
                }
            }
        }
        if verify && Digest::of(pages) != self.digest {
            return Err(damaged("do not match their digest"));
        }
        Ok(pages)
    }
}

/// The bytes that `pages` are stored as, and how.
pub(crate) fn encode(pages: &[u8], compression: Compression) -> (Vec<u8>, Codec) {
    if compression == Compression::Zstd {
        let packed = zstd::bulk::compress(pages, ZSTD_LEVEL);
        if let Some(packed) = packed.ok().filter(|packed| packed.len() < pages.len()) {
            return (packed, Codec::Zstd);
        }
    }
    (pages.to_vec(), Codec::Raw)
}

/// Appends `blocks` as a pack's table has them.
pub(crate) fn encode_table(blocks: &[Block]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(blocks.len() * ENTRY_BYTES);
    for block in blocks {
        let codec: u32 = match block.codec {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        };
        bytes.extend_from_slice(&block.offset.to_le_bytes());
        bytes.extend_from_slice(&block.stored_bytes.to_le_bytes());
        bytes.extend_from_slice(&codec.to_le_bytes());
        bytes.extend_from_slice(block.digest.as_bytes());
    }
    bytes
}

/// Reads the table of a pack with `pages`, whose blocks fill the bytes `place` of its file, or
/// says what is wrong.
pub(crate) fn decode_table(
    bytes: &[u8],
    pages: u64,
    place: Range<u64>,
) -> Result<Vec<Block>, String> {
    let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
    let mut blocks = Vec::with_capacity(entries.len());
    let mut next_byte = place.start;
    for (number, entry) in (0..).zip(entries) {
        let [offset, sizes, digest @ ..] = entry.as_chunks::<8>().0 else {
            return Err("its block table is too short".into());
        };
        let first_slot = number * CHUNK_PAGES;
        let block_pages = pages.saturating_sub(first_slot).min(CHUNK_PAGES) as u32;
        let [s0, s1, s2, s3, c0, c1, c2, c3] = *sizes;
        let mut digest_bytes = [0; Digest::BYTES];
        digest_bytes.copy_from_slice(digest.as_flattened());
        let block = Block {
            first_slot,
            pages: block_pages,
            offset: u64::from_le_bytes(*offset),
            stored_bytes: u32::from_le_bytes([s0, s1, s2, s3]),
            codec: match u32::from_le_bytes([c0, c1, c2, c3]) {
                0 => Codec::Raw,
                1 => Codec::Zstd,
                other => return Err(format!("its block {number} has the unknown codec {other}")),
            },
            digest: Digest::from_bytes(digest_bytes),
        };
        let most = block_pages * PAGE_BYTES as u32;
        let fits = match block.codec {
            Codec::Raw => block.stored_bytes == most,
            Codec::Zstd => (1..most).contains(&block.stored_bytes),
        };
        if block_pages == 0 || !fits || block.offset != next_byte {
            let Block {
                offset,
                stored_bytes,
                ..
            } = block;
            return Err(format!(
                "its block {number} cannot have {stored_bytes} bytes at byte {offset}"
            ));
        }
        next_byte += u64::from(block.stored_bytes);
        blocks.push(block);
    }
    if next_byte != place.end {
        return Err(format!(
            "its blocks end at byte {next_byte}, not {}",
            place.end
        ));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u64, offset: u64, stored_bytes: u32, codec: Codec) -> Block {
        Block {
            first_slot: number * CHUNK_PAGES,
            pages: if number == 0 { 16 } else { 3 },
            offset,
            stored_bytes,
            codec,
            digest: Digest::of(&offset.to_le_bytes()),
        }
    }

    #[test]
    fn tables_survive_encoding_and_refuse_what_does_not_fit() {
        let good = [
            block(0, 4096, 65536, Codec::Raw),
            block(1, 69632, 700, Codec::Zstd),
        ];
        let place = 4096..70332;
        assert_eq!(
            decode_table(&encode_table(&good), 19, place.clone()).unwrap(),
            good
        );
        let bad = |change: fn(&mut [Block])| {
            let mut blocks = good.clone();
            change(&mut blocks);
            decode_table(&encode_table(&blocks), 19, place.clone()).unwrap_err()
        };
        bad(|blocks| blocks[0].offset = 0);
        bad(|blocks| blocks[0].stored_bytes = 4096);
        bad(|blocks| blocks[1].offset += 1);
        bad(|blocks| blocks[1].stored_bytes = 0);
        bad(|blocks| blocks[1].stored_bytes = u32::MAX);
        bad(|blocks| blocks[1].codec = Codec::Raw);
        assert!(decode_table(&encode_table(&good), 16, place.clone()).is_err());
        assert!(decode_table(&encode_table(&good[..1]), 19, place).is_err());
    }

    #[test]
    fn an_entry_has_the_documented_bytes() {
        let entry = encode_table(&[block(0, 0x0102_0304_0506_0708, 0x0a0b_0c0d, Codec::Zstd)]);
        assert_eq!(
            entry[..16],
            *b"\x08\x07\x06\x05\x04\x03\x02\x01\x0d\x0c\x0b\x0a\x01\0\0\0"
        );
        let digest = Digest::of(&0x0102_0304_0506_0708_u64.to_le_bytes());
        assert_eq!(entry[16..], *digest.as_bytes());
        assert_eq!(entry.len(), ENTRY_BYTES);
    }

    #[test]
    fn what_does_not_get_smaller_stays_raw() {
        let mut noise = vec![0; CHUNK_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(
            encode(&noise, Compression::Zstd),
            (noise.clone(), Codec::Raw)
        );
        let same = vec![7; CHUNK_BYTES];
        assert_eq!(encode(&same, Compression::None).1, Codec::Raw);
        let (packed, codec) = encode(&same, Compression::Zstd);
        assert_eq!(codec, Codec::Zstd);
        assert!(packed.len() < 100);
    }
}
