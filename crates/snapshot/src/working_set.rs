//! Which pages the first runs of a function touched: what to put in place before the next one.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::header::{check_version, field};
use crate::ranges::{self, RANGE_BYTES};
use crate::{Digest, Error, MAX_MEMORY_PAGES, Result, files};

const MAGIC: &str = "DORMWSET";

/// The version of this file's own layout.
const VERSION: u32 = 1;
const DIGEST_AT: usize = 80;
const HEADER_BYTES: usize = DIGEST_AT + Digest::BYTES;
const PAGE_NUMBER_BYTES: usize = 8;

/// The most pages that a stored working set may have (4 GiB).
const MAX_WORKING_SET_PAGES: u64 = 1 << 20;

/// The pages that running guests touched after a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// Every touched page once, in the order of first touch.
    pub order: Vec<u64>,
    /// The pages that were only read; sorted ranges that do not touch each other.
    pub read: Vec<Range<u64>>,
    /// The pages that were written; sorted ranges that do not touch each other, apart from
    /// `read`.
    pub written: Vec<Range<u64>>,
}

// The places of the header's fields, which `encode` writes one after the other.
const PAGES_AT: usize = 16;
const COUNTS_AT: [usize; 3] = [24, 32, 40];
const BODY_DIGEST_AT: usize = 48;

// Files in the field depend on these places: a change here is a new VERSION and a new
// FORMAT_VERSION, see snapshots/FORMAT.md, "Compatibility".
const _: () = {
    assert!(VERSION == 1 && HEADER_BYTES == 112);
    assert!(MAGIC.len() + 2 * size_of::<u32>() == PAGES_AT);
    assert!(PAGES_AT + size_of::<u64>() == COUNTS_AT[0]);
    assert!(COUNTS_AT[2] + size_of::<u64>() == BODY_DIGEST_AT);
    assert!(BODY_DIGEST_AT + Digest::BYTES == DIGEST_AT);
    assert!(PAGE_NUMBER_BYTES == 8 && RANGE_BYTES == 16);
};

a_change_here_is_a_new_format_version! {
    WorkingSet { order: Vec<u64>, read: Vec<Range<u64>>, written: Vec<Range<u64>> }
}

impl WorkingSet {
    pub(crate) const NAME: &str = "working-set";

    /// The most bytes that the file may have.
    pub(crate) const MAX_FILE_BYTES: u64 = HEADER_BYTES as u64
        + MAX_WORKING_SET_PAGES * (PAGE_NUMBER_BYTES as u64 + RANGE_BYTES as u64);

    /// The working set of the `touched` pages, in order of touch, of which `written` were
    /// written. Repeated pages count once; written pages that `touched` lacks come last.
    #[must_use]
    pub fn from_touched(
        touched: impl IntoIterator<Item = u64>,
        written: impl IntoIterator<Item = u64>,
    ) -> Self {
        let written = ranges::from_pages(written);
        let mut seen = HashSet::new();
        let order: Vec<u64> = touched
            .into_iter()
            .chain(written.iter().cloned().flatten())
            .filter(|page| seen.insert(*page))
            .collect();
        let only_read = order
            .iter()
            .copied()
            .filter(|page| !ranges::contains(&written, *page));
        let read = ranges::from_pages(only_read);
        Self {
            order,
            read,
            written,
        }
    }

    /// The pages of both; what either has written is written, and the order is that of `self`
    /// followed by what only `other` touched.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let written = self.written.iter().chain(&other.written);
        Self::from_touched(
            self.order.iter().chain(&other.order).copied(),
            written.cloned().flatten(),
        )
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> u64 {
        ranges::count(&self.read) + ranges::count(&self.written)
    }

    /// All pages, read or written, in ranges joined across gaps of up to `gap_pages`.
    #[must_use]
    pub fn merged(&self, gap_pages: u64) -> Vec<Range<u64>> {
        ranges::merge_ranges(&[self.read.as_slice(), &self.written].concat(), gap_pages)
    }

    /// Whether the pages exist in a memory of `memory_pages`, the ranges are canonical and apart
    /// from each other, and the order names each of their pages once.
    fn check(&self, memory_pages: u64) -> Result<(), String> {
        // No sum of what is below this overflows.
        if memory_pages > MAX_MEMORY_PAGES {
            return Err(format!(
                "its memory has {memory_pages} pages of at most {MAX_MEMORY_PAGES}"
            ));
        }
        ranges::check(&self.read, memory_pages)?;
        ranges::check(&self.written, memory_pages)?;
        let pages = self.pages();
        if pages > MAX_WORKING_SET_PAGES {
            return Err(format!(
                "it has {pages} pages of at most {MAX_WORKING_SET_PAGES}"
            ));
        }
        if ranges::count(&self.merged(0)) != pages {
            return Err("some pages are both read-only and written".into());
        }
        if self.order.len() as u64 != pages {
            let ordered = self.order.len();
            return Err(format!(
                "its order has {ordered} pages, its ranges have {pages}"
            ));
        }
        let mut sorted = self.order.clone();
        sorted.sort_unstable();
        let in_ranges = self.merged(0).into_iter().flatten();
        if !sorted.into_iter().eq(in_ranges) {
            return Err("its order and its ranges name different pages".into());
        }
        Ok(())
    }

    /// Reads the file `path`, if there is one.
    pub(crate) fn read(
        path: &Path,
        memory_pages: u64,
        body_digest: &Digest,
    ) -> Result<Option<Self>> {
        let (file, file_bytes) = match files::open(path) {
            Err(error) if error.is_not_found() => return Ok(None),
            opened => opened?,
        };
        if file_bytes > Self::MAX_FILE_BYTES {
            let most = Self::MAX_FILE_BYTES;
            let what = format!("it has {file_bytes} bytes of at most {most}");
            return Err(Error::damaged(path, what));
        }
        let content = files::read_start(&file, file_bytes as usize, path)?;
        Self::decode(&content, memory_pages, body_digest, path).map(Some)
    }

    /// The file's content, for the snapshot whose state file has `body_digest`.
    pub(crate) fn encode(&self, memory_pages: u64, body_digest: &Digest) -> Result<Vec<u8>> {
        self.check(memory_pages)
            .map_err(|reason| Error::refused("save the working set", reason))?;
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC.as_bytes());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        bytes.extend_from_slice(&memory_pages.to_le_bytes());
        for count in [self.order.len(), self.read.len(), self.written.len()] {
            bytes.extend_from_slice(&(count as u64).to_le_bytes());
        }
        bytes.extend_from_slice(body_digest.as_bytes());
        debug_assert_eq!(bytes.len(), DIGEST_AT);
        bytes.extend_from_slice(&[0; Digest::BYTES]);
        for page in &self.order {
            bytes.extend_from_slice(&page.to_le_bytes());
        }
        ranges::encode(&self.read, &mut bytes);
        ranges::encode(&self.written, &mut bytes);
        let digest = digest_without_itself(&bytes);
        bytes[DIGEST_AT..HEADER_BYTES].copy_from_slice(digest.as_bytes());
        Ok(bytes)
    }

    /// Reads the content of the file `path`.
    pub(crate) fn decode(
        bytes: &[u8],
        memory_pages: u64,
        body_digest: &Digest,
        path: &Path,
    ) -> Result<Self> {
        let damaged = |what: String| Error::damaged(path, what);
        check_version(bytes, MAGIC, "working set", VERSION..=VERSION, path)?;
        let header_bytes = u32::from_le_bytes(field(bytes, 12, path)?);
        let u64_at = |offset| field(bytes, offset, path).map(u64::from_le_bytes);
        let digest = Digest::from_bytes(field(bytes, DIGEST_AT, path)?);
        if digest_without_itself(bytes) != digest {
            return Err(damaged("it does not match its digest".into()));
        }
        if header_bytes as usize != HEADER_BYTES {
            return Err(damaged(format!("its header has {header_bytes} bytes")));
        }
        if field(bytes, BODY_DIGEST_AT, path)? != *body_digest.as_bytes()
            || u64_at(PAGES_AT)? != memory_pages
        {
            return Err(damaged("it belongs to another snapshot".into()));
        }
        let mut body = &bytes[HEADER_BYTES..];
        let mut section = |offset: usize, item_bytes: usize| {
            let length = usize::try_from(u64_at(offset)?)
                .ok()
                .and_then(|count| count.checked_mul(item_bytes))
                .filter(|length| *length <= body.len())
                .ok_or_else(|| damaged("its counts do not fit its size".into()))?;
            let (section, rest) = body.split_at(length);
            body = rest;
            Ok::<_, Error>(section)
        };
        let order = section(COUNTS_AT[0], PAGE_NUMBER_BYTES)?.as_chunks().0;
        let order = order.iter().copied().map(u64::from_le_bytes).collect();
        let read = ranges::decode(section(COUNTS_AT[1], RANGE_BYTES)?);
        let written = ranges::decode(section(COUNTS_AT[2], RANGE_BYTES)?);
        if !body.is_empty() {
            return Err(damaged("its counts do not fit its size".into()));
        }
        let set = Self {
            order,
            read,
            written,
        };
        set.check(memory_pages).map_err(damaged)?;
        Ok(set)
    }
}

/// The digest of a working-set file with the digest's own bytes as zeros.
fn digest_without_itself(bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..DIGEST_AT]);
    hasher.update(&[0; Digest::BYTES]);
    hasher.update(&bytes[HEADER_BYTES..]);
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATH: &str = "working-set";

    fn decode(bytes: &[u8], memory_pages: u64) -> Result<WorkingSet> {
        WorkingSet::decode(bytes, memory_pages, &Digest::of(b"body"), Path::new(PATH))
    }

    /// `bytes` with the digest made right again, as a forger would.
    fn forged(mut bytes: Vec<u8>) -> Vec<u8> {
        let digest = digest_without_itself(&bytes);
        bytes[DIGEST_AT..HEADER_BYTES].copy_from_slice(digest.as_bytes());
        bytes
    }

    fn encoded(set: &WorkingSet, memory_pages: u64) -> Vec<u8> {
        set.encode(memory_pages, &Digest::of(b"body")).unwrap()
    }

    #[test]
    fn is_made_from_touched_pages() {
        let set = WorkingSet::from_touched([5, 3, 5, 4, 9], [4, 8, 4]);
        assert_eq!(set.order, [5, 3, 4, 9, 8]);
        assert_eq!(set.read, [3..4, 5..6, 9..10]);
        assert_eq!(set.written, [4..5, 8..9]);
        assert_eq!(set.pages(), 5);
        assert_eq!(set.merged(0), [3..6, 8..10]);
        assert_eq!(set.merged(1), [3..6, 8..10]);
        assert_eq!(set.merged(2), [Range { start: 3, end: 10 }]);
    }

    #[test]
    fn union_keeps_what_either_has_written() {
        let one = WorkingSet::from_touched([1, 2], [1]);
        let two = WorkingSet::from_touched([3, 2, 1], [2]);
        let both = one.union(&two);
        assert_eq!(both, WorkingSet::from_touched([1, 2, 3], [1, 2]));
        assert_eq!(both.union(&both), both);
    }

    #[test]
    fn hostile_files_are_refused() {
        let good = encoded(&WorkingSet::from_touched([5, 3, 9], [3]), 10);
        assert!(decode(&good, 10).is_ok());
        assert!(decode(&good, 11).is_err());
        for length in 0..good.len() {
            assert!(decode(&good[..length], 10).is_err(), "length {length}");
        }
        for offset in [24, 32, 40] {
            for count in [0, 2, 1 << 32, u64::MAX / 8, u64::MAX] {
                let mut bytes = good.clone();
                if bytes[offset..offset + 8] == u64::to_le_bytes(count) {
                    continue;
                }
                bytes[offset..offset + 8].copy_from_slice(&count.to_le_bytes());
                assert!(decode(&forged(bytes), 10).is_err(), "{count} at {offset}");
            }
        }
        // Page 5 twice, a page beyond the memory, a page that no range has.
        for (at, page) in [
            (HEADER_BYTES + 8, 5u64),
            (HEADER_BYTES, 10),
            (HEADER_BYTES, 4),
        ] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&page.to_le_bytes());
            assert!(decode(&forged(bytes), 10).is_err(), "page {page} at {at}");
        }
    }

    proptest! {
        #[test]
        fn survives_encoding(
            touched in prop::collection::vec(0..500u64, 0..200),
            written in prop::collection::vec(0..500u64, 0..50),
        ) {
            let set = WorkingSet::from_touched(touched, written);
            prop_assert_eq!(decode(&encoded(&set, 500), 500).unwrap(), set);
        }

        #[test]
        fn forged_bytes_never_panic(
            at in any::<prop::sample::Index>(), value in any::<u64>(), small in any::<bool>(),
        ) {
            let set = WorkingSet::from_touched((0..40).rev(), 3..9);
            let mut bytes = encoded(&set, 50);
            let at = at.index(bytes.len() - 8) & !7;
            let value = if small { value % 64 } else { value };
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            if let Ok(read) = decode(&forged(bytes), 50) {
                prop_assert!(read.check(50).is_ok());
            }
        }
    }
}
