//! What an attach does before the guest runs.

use std::ops::Range;

use crate::faults::{Fill, Op};
use crate::source::Origin;
use crate::{Error, Source, ranges};

/// Read pages this far apart come in together: a page more in one call is cheaper than a call more,
/// and a fault avoided is worth twenty pages.
const READ_GAP_PAGES: u64 = 8;
/// The same for written pages; these cost memory, so only a single one.
const WRITTEN_GAP_PAGES: u64 = 1;

/// A working set made ready for replay on one [`Source`].
#[derive(Debug)]
pub struct WorkingSetPlan {
    source_id: u64,
    steps: Box<[Fill]>,
    pages: u64,
    /// Whether no page that holds data is left out.
    is_eager: bool,
}

impl WorkingSetPlan {
    /// Plans the replay of recorded sets, given in any order.
    ///
    /// Pages that were only read are mapped shared, gaps of up to 8 pages included. Pages that
    /// were written become private copies at once, so that no copy-on-write fault is taken later.
    /// Zero pages stay zero pages. A page in both sets counts as written.
    ///
    /// # Errors
    /// [`Error::BadRange`] when a set reaches beyond the source, [`Error::Os`] when the written
    /// pages of a shared source cannot be made ready for copying.
    pub fn new(
        source: &Source,
        read: &[Range<u64>],
        written: &[Range<u64>],
    ) -> Result<Self, Error> {
        let layout = source.layout();
        let read = ranges::normalize(read);
        let written = ranges::normalize(written);
        ranges::check("read set", &read, layout.pages)?;
        ranges::check("write set", &written, layout.pages)?;

        let in_one_extent = |gap: Range<u64>| {
            // Both neighbours must be of the gap's kind too, or the joint would be cut again.
            let (extent, _) = ranges::extent(layout.data, gap.start, layout.pages);
            extent.start < gap.start && gap.end < extent.end
        };
        let cut = |set: &[Range<u64>]| {
            let (mut data, mut zero) = (Vec::new(), Vec::new());
            for range in set {
                ranges::split(
                    layout.data,
                    range.clone(),
                    layout.pages,
                    |piece, is_data| {
                        if is_data {
                            data.push(piece)
                        } else {
                            zero.push(piece)
                        }
                    },
                );
            }
            (data, zero)
        };

        let (data, zero) = cut(&written);
        let copied = ranges::join(data, WRITTEN_GAP_PAGES, in_one_extent);
        let zero_copied = ranges::join(zero, WRITTEN_GAP_PAGES, in_one_extent);
        let private: Vec<_> = copied.iter().chain(&zero_copied).cloned().collect();
        let private = ranges::normalize(&private);

        let free_gap = |gap: Range<u64>| {
            let taken = private.partition_point(|range| range.end <= gap.start);
            private
                .get(taken)
                .is_none_or(|range| range.start >= gap.end)
                && in_one_extent(gap)
        };
        let (data, zero) = cut(&ranges::subtract(&read, &private));
        let mapped = ranges::join(data, READ_GAP_PAGES, free_gap);
        let zero_mapped = ranges::join(zero, READ_GAP_PAGES, free_gap);

        if let Origin::Shared(file) = source.origin() {
            for pages in &copied {
                file.prefault(pages)?;
            }
        }
        let read_op = if layout.local { Op::Continue } else { Op::Copy };
        let steps: Box<[Fill]> = [
            (read_op, mapped),
            (Op::Zero, zero_mapped),
            (Op::Copy, copied),
            (Op::CopyZero, zero_copied),
        ]
        .into_iter()
        .flat_map(|(op, set)| set.into_iter().map(move |pages| Fill { op, pages }))
        .collect();
        let pages = steps
            .iter()
            .map(|step| step.pages.end - step.pages.start)
            .sum();
        Ok(Self {
            source_id: source.id(),
            is_eager: ranges::subtract(&ranges::subtract(layout.data, &private), &read).is_empty(),
            steps,
            pages,
        })
    }

    /// Plans to bring in every page that holds data, for [`Policy::Eager`](crate::Policy::Eager).
    /// Those that were recorded as `written` become private copies, as in [`WorkingSetPlan::new`].
    ///
    /// # Errors
    /// As [`WorkingSetPlan::new`].
    pub fn eager(source: &Source, written: &[Range<u64>]) -> Result<Self, Error> {
        Self::new(source, source.data(), written)
    }

    /// Pages that the replay brings in, gaps included.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether the plan was made for this source.
    pub(crate) fn fits(&self, source: &Source) -> bool {
        self.source_id == source.id()
    }

    /// Whether the plan brings in all that holds data.
    pub(crate) fn is_eager(&self) -> bool {
        self.is_eager
    }

    pub(crate) fn steps(&self) -> &[Fill] {
        &self.steps
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "sets of one range are meant"
    )]

    use std::sync::Arc;

    use super::*;
    use proptest::prelude::*;

    const PAGES: u64 = 100;

    fn source() -> Source {
        let data: Arc<[Range<u64>]> = Arc::new([0..30, 40..60, 61..100]);
        Source::not_local(PAGES, data, Arc::new(|_, _| Ok(()))).unwrap()
    }

    fn steps(read: &[Range<u64>], written: &[Range<u64>]) -> Vec<(Op, Range<u64>)> {
        let plan = WorkingSetPlan::new(&source(), read, written).unwrap();
        plan.steps()
            .iter()
            .map(|step| (step.op, step.pages.clone()))
            .collect()
    }

    #[test]
    fn gaps_are_bridged_within_an_extent_only() {
        assert_eq!(
            steps(&[1..2, 5..6, 15..16], &[]),
            [(Op::Copy, 1..6), (Op::Copy, 15..16)]
        );
        assert_eq!(
            steps(&[58..59, 62..63], &[]),
            [(Op::Copy, 58..59), (Op::Copy, 62..63)]
        );
        let across = [(Op::Copy, 28..30), (Op::Copy, 40..42), (Op::Zero, 30..40)];
        assert_eq!(steps(&[28..42], &[]), across);
    }

    #[test]
    fn written_pages_win_and_are_never_bridged_over_by_read_ones() {
        let want = [
            (Op::Copy, 1..3),
            (Op::Copy, 5..7),
            (Op::Copy, 3..5),
            (Op::CopyZero, 33..34),
        ];
        assert_eq!(steps(&[1..7], &[3..4, 4..5, 33..34]), want);
        assert_eq!(
            steps(&[], &[3..4, 5..6, 8..9]),
            [(Op::Copy, 3..6), (Op::Copy, 8..9)]
        );
    }

    #[test]
    fn an_eager_plan_is_one_step_for_each_stretch_of_data() {
        let plan = WorkingSetPlan::eager(&source(), &[50..52, 35..36]).unwrap();
        let want = [
            (Op::Copy, 0..30),
            (Op::Copy, 40..50),
            (Op::Copy, 52..60),
            (Op::Copy, 61..100),
            (Op::Copy, 50..52),
            (Op::CopyZero, 35..36),
        ];
        let steps = plan.steps().iter();
        assert_eq!(
            steps
                .map(|step| (step.op, step.pages.clone()))
                .collect::<Vec<_>>(),
            want
        );
        assert!(plan.is_eager());
        let is_eager = |read, written| {
            WorkingSetPlan::new(&source(), read, written)
                .unwrap()
                .is_eager()
        };
        assert!(is_eager(&[0..100], &[]));
        assert!(is_eager(&[0..55], &[50..100]));
        assert!(!is_eager(&[0..99], &[]));
    }

    #[test]
    fn a_set_beyond_the_source_is_refused() {
        assert!(WorkingSetPlan::new(&source(), &[90..101], &[]).is_err());
        assert!(WorkingSetPlan::new(&source(), &[], &[100..101]).is_err());
    }

    proptest! {
        /// Steps never overlap, cover both sets, and treat each page by its kind.
        #[test]
        fn plans_are_sound(
            read in prop::collection::vec((0..95_u64, 0..6_u64), 0..20),
            written in prop::collection::vec((0..95_u64, 0..6_u64), 0..20),
        ) {
            let set = |pairs: Vec<(u64, u64)>| -> Vec<Range<u64>> {
                pairs.into_iter().map(|(start, len)| start..start + len).collect()
            };
            let (read, written) = (set(read), set(written));
            let source = source();
            let mut op_of = [None; PAGES as usize];
            for (op, pages) in steps(&read, &written) {
                for page in pages {
                    prop_assert!(op_of[page as usize].replace(op).is_none(), "page {} twice", page);
                    let is_data = source.data().iter().any(|range| range.contains(&page));
                    prop_assert_eq!(is_data, op == Op::Copy);
                }
            }
            for page in read.into_iter().flatten() {
                prop_assert!(op_of[page as usize].is_some());
            }
            for page in written.into_iter().flatten() {
                prop_assert!(matches!(op_of[page as usize], Some(Op::Copy | Op::CopyZero)));
            }
        }
    }
}
