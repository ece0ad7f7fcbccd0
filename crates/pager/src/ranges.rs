//! Sorted page ranges: checking, merging, cutting. Pure.

use std::ops::Range;

use crate::Error;

/// Checks that `ranges` are non-empty, ascending, disjoint and within `pages`.
pub(crate) fn check(table: &'static str, ranges: &[Range<u64>], pages: u64) -> Result<(), Error> {
    let mut end = 0;
    for range in ranges {
        if range.start < end || range.is_empty() || range.end > pages {
            return Err(Error::BadRange {
                table,
                first: range.start,
                end: range.end,
                pages,
            });
        }
        end = range.end;
    }
    Ok(())
}

/// Sorts `ranges` and merges what overlaps or touches; drops empty ones.
pub(crate) fn normalize(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges
        .iter()
        .filter(|range| !range.is_empty())
        .cloned()
        .collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// How many pages there are in disjoint ranges.
pub(crate) fn count(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Whether `page` is in one of `ranges`.
pub(crate) fn contains(ranges: &[Range<u64>], page: u64) -> bool {
    let next = ranges.partition_point(|range| range.end <= page);
    ranges.get(next).is_some_and(|range| range.start <= page)
}

/// The extent around `page` that is wholly data or wholly hole, and whether it is data.
pub(crate) fn extent(data: &[Range<u64>], page: u64, pages: u64) -> (Range<u64>, bool) {
    let next = data.partition_point(|range| range.end <= page);
    let hole_start = if next == 0 { 0 } else { data[next - 1].end };
    match data.get(next) {
        Some(range) if range.contains(&page) => (range.clone(), true),
        Some(range) => (hole_start..range.start, false),
        None => (hole_start..pages, false),
    }
}

/// Cuts `range` at the borders of `data`; calls `piece` with each part and whether it is data.
pub(crate) fn split(
    data: &[Range<u64>],
    range: Range<u64>,
    pages: u64,
    mut piece: impl FnMut(Range<u64>, bool),
) {
    let mut at = range.start;
    while at < range.end {
        let (extent, is_data) = extent(data, at, pages);
        let end = extent.end.min(range.end);
        piece(at..end, is_data);
        at = end;
    }
}

/// Merges neighbours that are at most `gap` pages apart, if `joinable` allows the gap.
pub(crate) fn join(
    ranges: Vec<Range<u64>>,
    gap: u64,
    joinable: impl Fn(Range<u64>) -> bool,
) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start - last.end <= gap && joinable(last.end..range.start) => {
                last.end = range.end;
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// `from` without `what`; both sorted and disjoint.
pub(crate) fn subtract(from: &[Range<u64>], what: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut rest = Vec::with_capacity(from.len());
    let mut cuts = what.iter().peekable();
    for range in from {
        let mut at = range.start;
        while cuts.next_if(|cut| cut.end <= at).is_some() {}
        while at < range.end {
            match cuts.peek() {
                Some(cut) if cut.start < range.end => {
                    if at < cut.start {
                        rest.push(at..cut.start);
                    }
                    at = cut.end;
                    if cut.end <= range.end {
                        cuts.next();
                    }
                }
                _ => {
                    rest.push(at..range.end);
                    at = range.end;
                }
            }
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "sets of one range are meant"
    )]

    use super::*;
    use proptest::prelude::*;

    const PAGES: u64 = 64;

    fn pages_of(ranges: &[Range<u64>]) -> Vec<u64> {
        ranges.iter().cloned().flatten().collect()
    }

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((0..PAGES, 0..9_u64), 0..12).prop_map(|starts| {
            starts
                .into_iter()
                .map(|(start, len)| start..(start + len).min(PAGES))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn normalize_keeps_the_pages_and_sorts_them(given in ranges()) {
            let mut want = pages_of(&given);
            want.sort_unstable();
            want.dedup();
            let normal = normalize(&given);
            prop_assert_eq!(pages_of(&normal), want);
            prop_assert!(check("test", &normal, PAGES).is_ok());
            prop_assert!(normal.windows(2).all(|pair| pair[0].end < pair[1].start));
        }

        #[test]
        fn subtract_is_set_difference(a in ranges(), b in ranges()) {
            let (a, b) = (normalize(&a), normalize(&b));
            let mut want = pages_of(&a);
            want.retain(|page| !b.iter().any(|range| range.contains(page)));
            prop_assert_eq!(pages_of(&subtract(&a, &b)), want);
        }

        #[test]
        fn split_covers_a_range_once_with_the_right_kind(data in ranges(), start in 0..PAGES, len in 0..PAGES) {
            let data = normalize(&data);
            let range = start..(start + len).min(PAGES);
            let mut seen = Vec::new();
            split(&data, range.clone(), PAGES, |piece, is_data| {
                for page in piece {
                    assert_eq!(is_data, data.iter().any(|range| range.contains(&page)));
                    seen.push(page);
                }
            });
            prop_assert_eq!(seen, range.collect::<Vec<_>>());
        }
    }

    #[test]
    fn join_bridges_small_gaps_only_where_allowed() {
        let given = vec![0..2, 4..5, 14..15, 16..17];
        assert_eq!(join(given.clone(), 8, |_| true), vec![0..5, 14..17]);
        assert_eq!(
            join(given, 8, |gap| gap.start != 2),
            vec![0..2, 4..5, 14..17]
        );
    }

    #[test]
    fn check_refuses_empty_overlapping_unsorted_and_outlying_ranges() {
        assert!(check("test", &[0..1, 1..3, 5..6], 6).is_ok());
        for bad in [vec![1..1], vec![0..2, 1..3], vec![4..5, 0..1], vec![5..7]] {
            assert!(check("test", &bad, 6).is_err(), "{bad:?}");
        }
    }
}
