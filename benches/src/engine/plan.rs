//! Which pages one call of a floor's replay brings in: the rules of the pager's plan, page by page.

use std::ops::Range;

use crate::floor::{Step, StepKind};

/// As the pager's plan: read pages this far apart come in together.
const READ_GAP_PAGES: u64 = 8;
/// As the pager's plan: the same for written pages.
const WRITTEN_GAP_PAGES: u64 = 1;

/// The calls that bring in a working set over a snapshot of `pages` with these pages of data.
pub(super) fn steps(
    read: &[Range<u64>],
    written: &[Range<u64>],
    data: &[Range<u64>],
    pages: u64,
) -> Vec<Step> {
    let mut is_data = vec![false; pages as usize];
    for page in data.iter().cloned().flatten() {
        is_data[page as usize] = true;
    }
    let mut taken = vec![false; pages as usize];
    let mut found = Vec::new();
    for (set, gap, kinds) in [
        (
            written,
            WRITTEN_GAP_PAGES,
            [StepKind::Copy, StepKind::CopyZero],
        ),
        (read, READ_GAP_PAGES, [StepKind::Continue, StepKind::Zero]),
    ] {
        let before = taken.clone();
        for (kind, holds_data) in kinds.into_iter().zip([true, false]) {
            let free = |page: u64| is_data[page as usize] == holds_data && !before[page as usize];
            let wanted = set.iter().cloned().flatten().filter(|&page| free(page));
            for run in joined(wanted, gap, free) {
                for page in run.clone() {
                    taken[page as usize] = true;
                }
                found.push(Step { kind, pages: run });
            }
        }
    }
    found
}

/// Runs of pages, over gaps of so many pages where all of them are `free`.
fn joined(
    pages: impl Iterator<Item = u64>,
    gap: u64,
    free: impl Fn(u64) -> bool,
) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(last) if page - last.end <= gap && (last.end..page).all(&free) => {
                last.end = page + 1;
            }
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

/// Pages in any order as ranges.
pub(super) fn ranges(pages: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut pages: Vec<u64> = pages.collect();
    pages.sort_unstable();
    pages.dedup();
    joined(pages.into_iter(), 0, |_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_as_the_pager_does() {
        let data = [0..30, 40..60];
        let read = [0..2, 10..11, 20..21, 28..32];
        let written = [15..16, 17..18, 35..36];
        let step = |kind, pages| Step { kind, pages };
        assert_eq!(
            steps(&read, &written, &data, 64),
            [
                step(StepKind::Copy, 15..18),
                step(StepKind::CopyZero, 35..36),
                step(StepKind::Continue, 0..11),
                step(StepKind::Continue, 20..30),
                step(StepKind::Zero, 30..32),
            ]
        );
    }

    #[test]
    fn the_pager_brings_in_as_many_pages() {
        use std::sync::Arc;

        use dormouse_pager::{Source, WorkingSetPlan};

        let data: Arc<[Range<u64>]> = Arc::new([0..30, 40..60, 62..200]);
        let source = Source::not_local(256, Arc::clone(&data), Arc::new(|_, _| Ok(()))).unwrap();
        for seed in 1..50_u64 {
            // Pages as if by chance, and the same every time.
            let chosen = |factor: u64, of: u64| {
                ranges((0..256).filter(move |page| page * factor * seed % 31 % of == 1))
            };
            let (read, written) = (chosen(7, 3), chosen(13, 5));
            let plan = WorkingSetPlan::new(&source, &read, &written).unwrap();
            let steps = steps(&read, &written, &data, 256);
            let pages: u64 = steps
                .iter()
                .map(|step| step.pages.end - step.pages.start)
                .sum();
            assert_eq!(pages, plan.pages(), "{read:?} {written:?}");
        }
    }

    #[test]
    fn pages_become_ranges() {
        assert_eq!(ranges([5, 3, 4, 9, 4].into_iter()), [3..6, 9..10]);
        assert_eq!(ranges([].into_iter()), []);
    }
}
