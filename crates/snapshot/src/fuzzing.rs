//! What the fuzz targets (`tests/fuzz`) call: each of this crate's parsers on any bytes.
//!
//! Digests keep a fuzzer out, so each input is also tried with its digests made right, as a forger
//! would. What parses must be written again as the same bytes, as nothing in these files can be said
//! in two ways. Anything else is a panic, for the fuzzer to find.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::block::{BlockBytes, ENTRY_BYTES};
use crate::pack::{KEY_BYTES, Pack, PackHeader};
use crate::state_file::{StateFile, Table};
use crate::table::RUN_BYTES;
use crate::{CHUNK_BYTES, Digest, Manifest, PAGE_BYTES, WorkingSet, codec, ranges};

/// For messages.
const PATH: &str = "input";

/// Calls `check` on the input and, where it is long enough for a header, on its forgery.
fn both(bytes: &[u8], forge: fn(&mut [u8]) -> Option<()>, check: fn(&[u8])) {
    check(bytes);
    let mut forged = bytes.to_vec();
    if forge(&mut forged).is_some() {
        check(&forged);
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*word))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes
        .get_mut(at..)?
        .get_mut(..value.len())?
        .copy_from_slice(value);
    Some(())
}

/// Where snapshots/FORMAT.md has the digest of both kinds of headers, which ends them.
const HEADER_DIGEST_AT: usize = 224;
const HEADER_BYTES: usize = HEADER_DIGEST_AT + Digest::BYTES;

fn seal_header(bytes: &mut [u8]) -> Option<()> {
    let digest = Digest::of(bytes.get(..HEADER_DIGEST_AT)?);
    put(bytes, HEADER_DIGEST_AT, digest.as_bytes())
}

/// Makes the sizes of a `snapshot.dms` fit where they can, and its digests.
fn forge_state_file(bytes: &mut [u8]) -> Option<()> {
    let body = bytes.get(HEADER_BYTES..)?;
    let digest = Digest::of(body);
    let entry_bytes = if bytes.get(8)? == &1 {
        ranges::RANGE_BYTES
    } else {
        RUN_BYTES
    };
    let entries = u64_at(bytes, 48)?.checked_mul(entry_bytes as u64);
    let digests = u64_at(bytes, 56)?.checked_mul(Digest::BYTES as u64);
    let table = entries
        .zip(digests)
        .and_then(|(one, other)| one.checked_add(other));
    if let Some(state) = table.and_then(|table| (body.len() as u64).checked_sub(table)) {
        put(bytes, 40, &state.to_le_bytes())?;
    }
    put(bytes, 144, digest.as_bytes())?;
    seal_header(bytes)
}

/// Makes the digest of a `working-set` right.
fn forge_working_set(bytes: &mut [u8]) -> Option<()> {
    put(bytes, 80, &[0; Digest::BYTES])?;
    let digest = Digest::of(bytes);
    put(bytes, 80, digest.as_bytes())
}

/// Makes the sizes of a pack fit where they can, and the digests of its header.
fn forge_pack(bytes: &mut [u8]) -> Option<()> {
    // Numbers that fit no file are as good, behind a header that looks right.
    let _ = forge_pack_tables(bytes);
    seal_header(bytes)
}

fn forge_pack_tables(bytes: &mut [u8]) -> Option<()> {
    let pages = usize::try_from(u64_at(bytes, 16)?).ok()?;
    let blocks = pages.div_ceil(CHUNK_BYTES / PAGE_BYTES);
    let keys_at = bytes.len().checked_sub(pages.checked_mul(KEY_BYTES)?)?;
    let table_at = keys_at.checked_sub(blocks * ENTRY_BYTES)?;
    put(bytes, 24, &(table_at as u64).to_le_bytes())?;
    let digest = Digest::of(bytes.get(table_at..keys_at)?);
    put(bytes, 64, digest.as_bytes())?;
    let digest = Digest::of(bytes.get(keys_at..)?);
    put(bytes, 96, digest.as_bytes())
}

/// A file in memory with these bytes, as the reader of packs wants one.
fn memory_file(bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(memfd_create(PATH, MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

/// `snapshot.dms`: the header and the page table behind the state.
pub fn state_file(bytes: &[u8]) {
    both(bytes, forge_state_file, |bytes| {
        let Ok(file) = StateFile::decode(bytes.to_vec(), Path::new(PATH)) else {
            return;
        };
        let header = file.header.encode();
        assert_eq!(header[..], bytes[..header.len()], "the header");
        let table = match &file.table {
            Table::Chunks(table) => {
                let mut bytes = Vec::new();
                ranges::encode(&table.data, &mut bytes);
                for (_, digest) in &table.chunks {
                    bytes.extend_from_slice(digest.as_bytes());
                }
                bytes
            }
            Table::Pages(table) => table.encode(),
        };
        assert!(bytes.ends_with(&table), "the page table");
        assert!(file.data_pages() <= file.header.memory_pages);
    });
}

/// `manifest.json`.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else {
        return;
    };
    // JSON says the same in many ways, so only what was written once must stay.
    let Ok(written) = manifest.encode() else {
        return;
    };
    match serde_json::from_slice::<Manifest>(&written) {
        Ok(again) => assert_eq!(again, manifest),
        Err(error) => panic!("a manifest that was written cannot be read: {error}"),
    }
}

/// The state section, as a value of the type `S`; nothing where it is none.
pub fn state<S: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<S> {
    let state: S = codec::decode(bytes).ok()?;
    // The codec reads integers that are longer than they need be, and writes short ones.
    let written = codec::encode(&state).unwrap_or_else(|error| panic!("{error}"));
    let again: S = codec::decode(&written).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(codec::encode(&again), Ok(written));
    Some(state)
}

/// `working-set`.
pub fn working_set(bytes: &[u8]) {
    both(bytes, forge_working_set, |bytes| {
        // It names its snapshot itself: take that one.
        let body = bytes.get(48..).and_then(|rest| rest.first_chunk());
        let Some((pages, body)) = u64_at(bytes, 16).zip(body) else {
            return;
        };
        let body = Digest::from_bytes(*body);
        let Ok(set) = WorkingSet::decode(bytes, pages, &body, Path::new(PATH)) else {
            return;
        };
        match set.encode(pages, &body) {
            Ok(written) => assert_eq!(written, bytes),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(set.union(&set).pages(), set.pages());
    });
}

/// A pack: its header, its block table, its keys and every block.
pub fn pack(bytes: &[u8]) {
    both(bytes, forge_pack, |bytes| {
        let header = PackHeader::decode(bytes, bytes.len() as u64, Path::new(PATH));
        if let Ok((header, _)) = &header {
            let (written, _) = header.encode();
            assert_eq!(written[..], bytes[..written.len()], "the header");
        }
        let Ok(file) = memory_file(bytes) else {
            return;
        };
        let Ok(pack) = Pack::of_file(file, Path::new(PATH).into(), bytes.len() as u64, None) else {
            return;
        };
        let _ = pack.verify(|_| ());
        let mut buf = BlockBytes::default();
        for slot in (0..pack.pages()).step_by(16) {
            let Some(block) = pack.block(slot) else {
                panic!("there is no block for the slot {slot}");
            };
            // Without its digest: hostile bytes reach the decompression.
            if let Ok(pages) = pack.read_block(block, &mut buf, false) {
                assert_eq!(pages.len(), block.pages as usize * PAGE_BYTES);
            }
        }
    });
}
