//! The ways in which a snapshot's pages get under a guest.

use std::sync::Arc;

use crate::faults::Fill;
use crate::{Error, Source, Stage, WorkingSetPlan};

/// How a snapshot's pages get under a guest.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Policy {
    /// Pages come in when they are asked for, with their neighbours.
    Lazy,
    /// Pages come in when they are asked for, one at a time: slow, and what
    /// [`touched`](crate::Pager::touched) then says is exact.
    Record,
    /// A recorded working set is put in first; the rest comes in as with [`Policy::Lazy`].
    WorkingSet(Arc<WorkingSetPlan>),
    /// Where a working set is dense, it is moved in as huge pages that were filled ahead; the rest
    /// of it is put in, and all else comes in, as with [`Policy::WorkingSet`]. The same goes for
    /// the dense part while the stage has no set ready, where the kernel cannot move pages (before
    /// Linux 6.8), and where the guest's range does not start at a multiple of 2 MiB on the host.
    ///
    /// All pages of a chunk that was moved in are private and count as written, also in
    /// [`touched`](crate::Pager::touched): what the run itself wrote there is not known.
    Staged(Arc<Stage>),
    /// Every page that holds data is put in first, by a plan from [`WorkingSetPlan::eager`]; zero
    /// pages come in as with [`Policy::Lazy`].
    Eager(Arc<WorkingSetPlan>),
    /// The kernel serves all faults from a private mapping, without userfaultfd. The handler has
    /// no part in it, so nothing is counted, and the fault order is not known.
    ///
    /// Only over a shared source. A hole of it that is read or written is filled in the shared
    /// file, with a zero page that stays there for good: it grows by what its clones touch.
    Map,
}

impl Policy {
    /// A short name that does not change, for statistics and messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Record => "record",
            Self::WorkingSet(_) => "working-set",
            Self::Staged(_) => "staged",
            Self::Eager(_) => "eager",
            Self::Map => "map",
        }
    }

    /// Whether the pages that a run wrote can be told from all others and put back from `source`,
    /// with the rest left in place.
    ///
    /// Not under [`Policy::Staged`], where whole chunks are private, and not where pages are not
    /// local: each is a copy then, written or not, and would have to be fetched anew.
    #[must_use]
    pub fn can_roll_back(&self, source: &Source) -> bool {
        source.layout().local && !matches!(self, Self::Staged(_))
    }

    /// Whether this can be done with a source.
    pub(crate) fn check(&self, source: &Source) -> Result<(), Error> {
        match self {
            Self::WorkingSet(plan) | Self::Eager(plan) if !plan.fits(source) => {
                Err(Error::ForeignPlan)
            }
            Self::Staged(stage) if !stage.fits(source) => Err(Error::ForeignPlan),
            Self::Eager(plan) if !plan.is_eager() => Err(Error::PartialPlan),
            Self::Map if !source.layout().local => Err(Error::NotShared {
                policy: self.name(),
            }),
            _ => Ok(()),
        }
    }

    /// What is brought in before the guest runs, once staged chunks were moved in or not.
    pub(crate) fn steps(&self, chunks_are_in: bool) -> &[Fill] {
        match self {
            Self::Staged(stage) => stage.steps(chunks_are_in),
            Self::WorkingSet(plan) | Self::Eager(plan) => plan.steps(),
            Self::Lazy | Self::Record | Self::Map => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::MemoryFile;

    #[test]
    fn names_are_fixed_and_rollback_needs_pages_that_can_be_told_apart() {
        let file = MemoryFile::for_tests(8, &[]).into_file();
        let shared = Source::shared(file, 8, Arc::new([])).unwrap();
        let not_local = Source::not_local(8, Arc::new([]), Arc::new(|_, _| Ok(()))).unwrap();
        let plan = || Arc::new(WorkingSetPlan::eager(&shared, &[]).unwrap());
        let stage = Stage::new(&shared, &[], &[], 0).unwrap();
        for (policy, name, can_roll_back) in [
            (Policy::Lazy, "lazy", true),
            (Policy::Record, "record", true),
            (Policy::WorkingSet(plan()), "working-set", true),
            (Policy::Staged(Arc::new(stage)), "staged", false),
            (Policy::Eager(plan()), "eager", true),
            (Policy::Map, "map", true),
        ] {
            assert_eq!(policy.name(), name);
            assert_eq!(policy.can_roll_back(&shared), can_roll_back, "{name}");
            assert!(!policy.can_roll_back(&not_local), "{name}");
        }
    }
}
