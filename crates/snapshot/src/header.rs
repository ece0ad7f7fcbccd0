//! The first 256 bytes of `snapshot.dms`: fixed, outside of any codec, the same place for the
//! version in every format to come.

use std::mem::{offset_of, size_of};
use std::ops::RangeInclusive;
use std::path::Path;

use crate::codec::{CODEC_ID, MAX_STATE_BYTES};
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::table::MAX_PACKS;
use crate::{
    CHUNK_BYTES, Digest, Error, FORMAT_VERSION, MAX_MEMORY_PAGES, OLDEST_FORMAT_VERSION,
    PAGE_BYTES, Result, chunks, table,
};

/// Bytes in the header.
pub(crate) const HEADER_BYTES: usize = size_of::<Layout>();

/// The most bytes that an image may have.
pub(crate) const MAX_IMAGE_BYTES: u64 = 1 << 30;

/// Pages in a chunk.
pub(crate) const CHUNK_PAGES: u64 = (CHUNK_BYTES / PAGE_BYTES) as u64;

const MAGIC: &str = "DORMOUSE";

/// The header's shape. All integers are little-endian; only offsets are taken from here.
#[repr(C)]
struct Layout {
    magic: [u8; 8],
    format_version: u32,
    codec_id: u32,
    header_bytes: u32,
    page_bytes: u32,
    chunk_bytes: u32,
    reserved_a: u32,
    memory_pages: u64,
    state_bytes: u64,
    /// Runs; in version 1, data ranges.
    table_entries: u64,
    /// Packs; in version 1, chunks with data.
    table_digests: u64,
    manifest_bytes: u64,
    image_bytes: u64,
    manifest_digest: [u8; 32],
    image_digest: [u8; 32],
    body_digest: [u8; 32],
    reserved_b: [u8; 48],
    header_digest: [u8; 32],
}

// Files in the field depend on these places: a change here is a new FORMAT_VERSION, see
// snapshots/FORMAT.md, "Compatibility".
const _: () = {
    assert!(HEADER_BYTES == 256);
    assert!(offset_of!(Layout, magic) == 0);
    assert!(offset_of!(Layout, format_version) == 8);
    assert!(offset_of!(Layout, codec_id) == 12);
    assert!(offset_of!(Layout, header_bytes) == 16);
    assert!(offset_of!(Layout, page_bytes) == 20);
    assert!(offset_of!(Layout, chunk_bytes) == 24);
    assert!(offset_of!(Layout, reserved_a) == 28);
    assert!(offset_of!(Layout, memory_pages) == 32);
    assert!(offset_of!(Layout, state_bytes) == 40);
    assert!(offset_of!(Layout, table_entries) == 48);
    assert!(offset_of!(Layout, table_digests) == 56);
    assert!(offset_of!(Layout, manifest_bytes) == 64);
    assert!(offset_of!(Layout, image_bytes) == 72);
    assert!(offset_of!(Layout, manifest_digest) == 80);
    assert!(offset_of!(Layout, image_digest) == 112);
    assert!(offset_of!(Layout, body_digest) == 144);
    assert!(offset_of!(Layout, reserved_b) == 176);
    assert!(offset_of!(Layout, header_digest) == 224);
    assert!(FORMAT_VERSION == 2 && CODEC_ID == 1);
    assert!(PAGE_BYTES == 4096 && CHUNK_BYTES == 65536);
};

/// What a header says; every number is within its limit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    pub(crate) format_version: u32,
    pub(crate) memory_pages: u64,
    pub(crate) state_bytes: u64,
    /// Runs; in version 1, data ranges.
    pub(crate) table_entries: u64,
    /// Packs; in version 1, chunks with data.
    pub(crate) table_digests: u64,
    pub(crate) manifest_bytes: u64,
    pub(crate) image_bytes: u64,
    pub(crate) manifest_digest: Digest,
    pub(crate) image_digest: Digest,
    pub(crate) body_digest: Digest,
}

a_change_here_is_a_new_format_version! {
    Header {
        format_version: u32,
        memory_pages: u64,
        state_bytes: u64,
        table_entries: u64,
        table_digests: u64,
        manifest_bytes: u64,
        image_bytes: u64,
        manifest_digest: Digest,
        image_digest: Digest,
        body_digest: Digest,
    }
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(offset_of!(Layout, magic), MAGIC.as_bytes());
        put(
            offset_of!(Layout, format_version),
            &self.format_version.to_le_bytes(),
        );
        put(offset_of!(Layout, codec_id), &CODEC_ID.to_le_bytes());
        put(
            offset_of!(Layout, header_bytes),
            &(HEADER_BYTES as u32).to_le_bytes(),
        );
        put(
            offset_of!(Layout, page_bytes),
            &(PAGE_BYTES as u32).to_le_bytes(),
        );
        put(
            offset_of!(Layout, chunk_bytes),
            &(CHUNK_BYTES as u32).to_le_bytes(),
        );
        put(
            offset_of!(Layout, memory_pages),
            &self.memory_pages.to_le_bytes(),
        );
        put(
            offset_of!(Layout, state_bytes),
            &self.state_bytes.to_le_bytes(),
        );
        put(
            offset_of!(Layout, table_entries),
            &self.table_entries.to_le_bytes(),
        );
        put(
            offset_of!(Layout, table_digests),
            &self.table_digests.to_le_bytes(),
        );
        put(
            offset_of!(Layout, manifest_bytes),
            &self.manifest_bytes.to_le_bytes(),
        );
        put(
            offset_of!(Layout, image_bytes),
            &self.image_bytes.to_le_bytes(),
        );
        put(
            offset_of!(Layout, manifest_digest),
            self.manifest_digest.as_bytes(),
        );
        put(
            offset_of!(Layout, image_digest),
            self.image_digest.as_bytes(),
        );
        put(offset_of!(Layout, body_digest), self.body_digest.as_bytes());
        let digest = Digest::of(&bytes[..offset_of!(Layout, header_digest)]);
        bytes[offset_of!(Layout, header_digest)..].copy_from_slice(digest.as_bytes());
        bytes
    }

    /// Reads the header at the start of `file`, the content of the file `path` or at least its
    /// first [`HEADER_BYTES`].
    pub(crate) fn decode(file: &[u8], path: &Path) -> Result<Self> {
        let u32_at = |offset| field(file, offset, path).map(u32::from_le_bytes);
        let u64_at = |offset| field(file, offset, path).map(u64::from_le_bytes);
        let digest_at = |offset| field(file, offset, path).map(Digest::from_bytes);

        let known = OLDEST_FORMAT_VERSION..=FORMAT_VERSION;
        let format_version = check_version(file, MAGIC, "snapshot", known, path)?;
        let codec_id = u32_at(offset_of!(Layout, codec_id))?;
        if codec_id != CODEC_ID {
            return Err(Error::UnknownCodec {
                path: path.to_owned(),
                found: codec_id,
            });
        }
        let header_digest = digest_at(offset_of!(Layout, header_digest))?;
        if Digest::of(&file[..offset_of!(Layout, header_digest)]) != header_digest {
            return Err(Error::damaged(
                path,
                "its header does not match the header's digest",
            ));
        }

        for (what, offset, expected) in [
            (
                "header size",
                offset_of!(Layout, header_bytes),
                HEADER_BYTES as u32,
            ),
            (
                "page size",
                offset_of!(Layout, page_bytes),
                PAGE_BYTES as u32,
            ),
            (
                "chunk size",
                offset_of!(Layout, chunk_bytes),
                CHUNK_BYTES as u32,
            ),
            ("reserved word", offset_of!(Layout, reserved_a), 0),
        ] {
            let found = u32_at(offset)?;
            if found != expected {
                let what = format!("its {what} is {found}, but should be {expected}");
                return Err(Error::damaged(path, what));
            }
        }
        if field(file, offset_of!(Layout, reserved_b), path)? != [0; 48] {
            return Err(Error::damaged(path, "its reserved bytes are not zero"));
        }

        let header = Self {
            format_version,
            memory_pages: u64_at(offset_of!(Layout, memory_pages))?,
            state_bytes: u64_at(offset_of!(Layout, state_bytes))?,
            table_entries: u64_at(offset_of!(Layout, table_entries))?,
            table_digests: u64_at(offset_of!(Layout, table_digests))?,
            manifest_bytes: u64_at(offset_of!(Layout, manifest_bytes))?,
            image_bytes: u64_at(offset_of!(Layout, image_bytes))?,
            manifest_digest: digest_at(offset_of!(Layout, manifest_digest))?,
            image_digest: digest_at(offset_of!(Layout, image_digest))?,
            body_digest: digest_at(offset_of!(Layout, body_digest))?,
        };
        header.check_limits(path)?;
        Ok(header)
    }

    /// Bytes in the whole state file; cannot overflow once the limits were checked.
    pub(crate) fn file_bytes(&self) -> u64 {
        let table_bytes = if self.format_version == 1 {
            chunks::table_bytes
        } else {
            table::table_bytes
        };
        HEADER_BYTES as u64 + self.state_bytes + table_bytes(self.table_entries, self.table_digests)
    }

    /// Pages of memory and image together.
    pub(crate) fn all_pages(&self) -> u64 {
        self.memory_pages + self.image_bytes.div_ceil(PAGE_BYTES as u64)
    }

    fn check_limits(&self, path: &Path) -> Result<()> {
        let within = |what: &str, value: u64, limits: RangeInclusive<u64>| {
            if limits.contains(&value) {
                return Ok(());
            }
            let (least, most) = limits.into_inner();
            let what = format!("it claims {value} {what}, possible are {least} to {most}");
            Err(Error::damaged(path, what))
        };
        within("pages of memory", self.memory_pages, 1..=MAX_MEMORY_PAGES)?;
        within(
            "bytes of state",
            self.state_bytes,
            0..=MAX_STATE_BYTES as u64,
        )?;
        within(
            "bytes of manifest",
            self.manifest_bytes,
            0..=MAX_MANIFEST_BYTES,
        )?;
        within("bytes of image", self.image_bytes, 0..=MAX_IMAGE_BYTES)?;
        if self.format_version == 1 {
            // Ranges never touch, so at most every other page starts one.
            let most_ranges = self.memory_pages.div_ceil(2);
            let most_chunks = self.memory_pages.div_ceil(CHUNK_PAGES);
            within("data ranges", self.table_entries, 0..=most_ranges)?;
            within("data chunks", self.table_digests, 0..=most_chunks)
        } else {
            within("runs of pages", self.table_entries, 0..=self.all_pages())?;
            within("packs", self.table_digests, 0..=MAX_PACKS)
        }
    }
}

/// Checks the start that all of Dormouse's binary files share: 8 bytes of magic, a u32 version,
/// which must be one of those that are `known`. Tells which.
pub(crate) fn check_version(
    file: &[u8],
    magic: &'static str,
    kind: &'static str,
    known: RangeInclusive<u32>,
    path: &Path,
) -> Result<u32> {
    if file.get(..magic.len()) != Some(magic.as_bytes()) {
        return Err(Error::WrongMagic {
            path: path.to_owned(),
            kind,
            magic,
        });
    }
    let found = u32::from_le_bytes(field(file, magic.len(), path)?);
    let (oldest, newest) = known.into_inner();
    if found < oldest {
        return Err(Error::TooOld {
            path: path.to_owned(),
            found,
            oldest,
        });
    }
    if found > newest {
        return Err(Error::TooNew {
            path: path.to_owned(),
            found,
            newest,
        });
    }
    Ok(found)
}

/// The `N` bytes at `offset`, or that `path` is truncated.
pub(crate) fn field<const N: usize>(file: &[u8], offset: usize, path: &Path) -> Result<[u8; N]> {
    file.get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or_else(|| {
            let what = format!("it ends after {} bytes, within its header", file.len());
            Error::damaged(path, what)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            format_version: FORMAT_VERSION,
            memory_pages: 16384,
            state_bytes: 1000,
            table_entries: 10,
            table_digests: 40,
            manifest_bytes: 500,
            image_bytes: 100_000,
            manifest_digest: Digest::of(b"manifest"),
            image_digest: Digest::of(b"image"),
            body_digest: Digest::of(b"body"),
        }
    }

    /// `bytes` with the header digest made right again, as a forger would.
    fn forged(mut bytes: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
        let digest = Digest::of(&bytes[..224]);
        bytes[224..].copy_from_slice(digest.as_bytes());
        bytes
    }

    #[test]
    fn round_trip() {
        assert_eq!(
            Header::decode(&header().encode(), Path::new("x")).unwrap(),
            header()
        );
    }

    #[test]
    fn version_and_codec_come_before_the_digest() {
        let path = Path::new("x");
        let mut bytes = header().encode();
        bytes[8] = 3;
        assert!(matches!(
            Header::decode(&bytes, path),
            Err(Error::TooNew { found: 3, .. })
        ));
        // A newer format may be shorter or longer: its version is still told.
        assert!(matches!(
            Header::decode(&bytes[..12], path),
            Err(Error::TooNew { .. })
        ));
        bytes[8] = 0;
        assert!(matches!(
            Header::decode(&bytes, path),
            Err(Error::TooOld { found: 0, .. })
        ));
        bytes[8] = 2;
        bytes[12] = 9;
        assert!(matches!(
            Header::decode(&bytes, path),
            Err(Error::UnknownCodec { found: 9, .. })
        ));
    }

    #[test]
    fn every_flipped_bit_and_every_length_is_noticed() {
        let good = header().encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bytes, Path::new("x")).is_err(), "bit {bit}");
        }
        for length in 0..HEADER_BYTES {
            assert!(
                Header::decode(&good[..length], Path::new("x")).is_err(),
                "length {length}"
            );
        }
    }

    #[test]
    fn hostile_numbers_with_a_right_digest_are_refused() {
        for offset in [16, 20, 24, 28, 200] {
            let mut bytes = header().encode();
            bytes[offset] ^= 0x40;
            assert!(
                Header::decode(&forged(bytes), Path::new("x")).is_err(),
                "offset {offset}"
            );
        }
        for offset in (32..80).step_by(8) {
            for value in [u64::MAX, 1 << 63, 1 << 40] {
                let mut bytes = header().encode();
                bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
                let error = Header::decode(&forged(bytes), Path::new("x")).unwrap_err();
                assert!(
                    error.to_string().contains(&format!("claims {value}")),
                    "{error}"
                );
            }
        }
    }
}
