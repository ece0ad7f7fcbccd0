//! Sorted lists of page ranges.

use std::ops::Range;

/// Whether `page` lies in one of the sorted `ranges`.
pub(crate) fn contains(ranges: &[Range<u64>], page: u64) -> bool {
    let after = ranges.partition_point(|range| range.end <= page);
    ranges.get(after).is_some_and(|range| range.contains(&page))
}

/// Pages in `ranges`, which do not overlap.
pub(crate) fn count(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Pages that the sorted `ranges` and `window` have in common.
pub(crate) fn count_within(ranges: &[Range<u64>], window: &Range<u64>) -> u64 {
    let first = ranges.partition_point(|range| range.end <= window.start);
    ranges[first..]
        .iter()
        .take_while(|range| range.start < window.end)
        .map(|range| range.end.min(window.end) - range.start.max(window.start))
        .sum()
}

/// The ranges of both lists, sorted and joined.
pub(crate) fn union(one: &[Range<u64>], other: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = one.iter().chain(other).cloned().collect();
    all.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(all.len());
    for range in all {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Appends `page` to ascending `ranges`.
pub(crate) fn push(ranges: &mut Vec<Range<u64>>, page: u64) {
    match ranges.last_mut() {
        Some(last) if last.end == page => last.end += 1,
        _ => ranges.push(page..page + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_counted() {
        let joined = union(&[1..3, 8..9], &[3..4, 5..6, 8..12]);
        assert_eq!(joined, [1..4, 5..6, 8..12]);
        assert_eq!(count(&joined), 8);
        assert_eq!(count_within(&joined, &(2..9)), 4);
        assert_eq!(count_within(&joined, &(6..8)), 0);
        assert!(contains(&joined, 11) && !contains(&joined, 12));
        let mut ranges = Vec::new();
        [1, 2, 5]
            .into_iter()
            .for_each(|page| push(&mut ranges, page));
        assert_eq!(ranges, [1..3, 5..6]);
    }
}
