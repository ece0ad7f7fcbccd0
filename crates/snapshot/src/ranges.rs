//! Sorted lists of page ranges, and their 16-byte encoding (first page, end page, little-endian).

use std::ops::Range;

/// Bytes that one range takes in a file.
pub(crate) const RANGE_BYTES: usize = 16;

/// Sorts `ranges`, drops empty ones and joins those that overlap or lie at most `gap_pages`
/// apart: fewer, larger ranges at the price of pages nobody asked for.
#[must_use]
pub(crate) fn merge_ranges(ranges: &[Range<u64>], gap_pages: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges
        .iter()
        .filter(|range| !range.is_empty())
        .cloned()
        .collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap_pages) => {
                last.end = last.end.max(range.end);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The sorted, joined ranges of single `pages`.
pub(crate) fn from_pages(pages: impl IntoIterator<Item = u64>) -> Vec<Range<u64>> {
    let single: Vec<_> = pages
        .into_iter()
        .map(|page| page..page.saturating_add(1))
        .collect();
    merge_ranges(&single, 0)
}

/// Whether `ranges` are what the format asks for: sorted, not empty, neither overlapping nor
/// touching, and within `pages`. Says what is wrong otherwise.
pub(crate) fn check(ranges: &[Range<u64>], pages: u64) -> Result<(), String> {
    let mut previous_end = None;
    for range in ranges {
        if range.is_empty() {
            return Err(format!("page range {range:?} is empty"));
        }
        if range.end > pages {
            return Err(format!(
                "page range {range:?} lies beyond the {pages} pages of memory"
            ));
        }
        if previous_end.is_some_and(|end| range.start <= end) {
            return Err(format!(
                "page range {range:?} is not clear of the one before it"
            ));
        }
        previous_end = Some(range.end);
    }
    Ok(())
}

/// Pages in `ranges`, which do not overlap.
pub(crate) fn count(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Whether `page` lies in one of the sorted `ranges`.
pub(crate) fn contains(ranges: &[Range<u64>], page: u64) -> bool {
    let after = ranges.partition_point(|range| range.end <= page);
    ranges.get(after).is_some_and(|range| range.contains(&page))
}

/// The parts of the sorted `ranges` that lie within `window`.
pub(crate) fn within(
    ranges: &[Range<u64>],
    window: Range<u64>,
) -> impl Iterator<Item = Range<u64>> + '_ {
    let first = ranges.partition_point(|range| range.end <= window.start);
    ranges[first..]
        .iter()
        .take_while(move |range| range.start < window.end)
        .map(move |range| range.start.max(window.start)..range.end.min(window.end))
}

/// Appends `ranges` to `out`.
pub(crate) fn encode(ranges: &[Range<u64>], out: &mut Vec<u8>) {
    for range in ranges {
        out.extend_from_slice(&range.start.to_le_bytes());
        out.extend_from_slice(&range.end.to_le_bytes());
    }
}

/// The ranges in `bytes`, a multiple of [`RANGE_BYTES`]; nothing about them is checked yet.
pub(crate) fn decode(bytes: &[u8]) -> Vec<Range<u64>> {
    let (words, _) = bytes.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs
        .iter()
        .map(|[start, end]| u64::from_le_bytes(*start)..u64::from_le_bytes(*end))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::single_range_in_vec_init,
        reason = "lists of one range are meant"
    )]
    use super::*;

    #[test]
    fn merges_by_gap() {
        let ranges = [9..10, 0..2, 2..3, 5..5, 1..2];
        assert_eq!(merge_ranges(&ranges, 0), [0..3, 9..10]);
        assert_eq!(merge_ranges(&ranges, 5), [0..3, 9..10]);
        assert_eq!(merge_ranges(&ranges, 6), [0..10]);
        let far = [0..u64::MAX - 1, u64::MAX - 1..u64::MAX];
        assert_eq!(merge_ranges(&far, u64::MAX), [0..u64::MAX]);
    }

    #[test]
    fn refuses_what_is_not_canonical() {
        assert!(check(&[0..2, 3..8], 8).is_ok());
        let backwards = Range { start: 7, end: 3 };
        for (one, two) in [
            (0..1, 2..2),
            (0..1, 3..9),
            (0..2, 2..3),
            (4..5, 0..1),
            (0..4, 3..5),
            (0..1, backwards),
        ] {
            let bad = [one, two];
            assert!(check(&bad, 8).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn finds_pages_and_windows() {
        let ranges = [1..3, 5..9];
        let found: Vec<_> = (0..10).filter(|page| contains(&ranges, *page)).collect();
        assert_eq!(found, [1, 2, 5, 6, 7, 8]);
        assert_eq!(within(&ranges, 2..6).collect::<Vec<_>>(), [2..3, 5..6]);
        assert_eq!(within(&ranges, 3..5).count(), 0);
        assert_eq!(count(&ranges), 6);
    }

    #[test]
    fn survives_encoding() {
        let ranges = [1..3, 5..u64::MAX];
        let mut bytes = Vec::new();
        encode(&ranges, &mut bytes);
        assert_eq!(bytes.len(), 2 * RANGE_BYTES);
        assert_eq!(decode(&bytes), ranges);
    }
}
