//! The ways in which a snapshot's pages get under a guest.

use std::sync::Arc;

use crate::faults::Fill;
use crate::{Error, Source, WorkingSetPlan};

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
            Self::Eager(_) => "eager",
            Self::Map => "map",
        }
    }

    /// Whether the pages that a run wrote can be told from all others and put back from `source`,
    /// with the rest left in place.
    ///
    /// Not where pages are not local: each is a copy then, written or not, and would have to be
    /// fetched anew.
    #[must_use]
    pub fn can_roll_back(&self, source: &Source) -> bool {
        source.layout().local
    }

    /// Whether this can be done with a source.
    pub(crate) fn check(&self, source: &Source) -> Result<(), Error> {
        match self {
            Self::WorkingSet(plan) | Self::Eager(plan) if !plan.fits(source) => {
                Err(Error::ForeignPlan)
            }
            Self::Eager(plan) if !plan.is_eager() => Err(Error::PartialPlan),
            Self::Map if !source.layout().local => Err(Error::NotShared {
                policy: self.name(),
            }),
            _ => Ok(()),
        }
    }

    /// What is brought in before the guest runs.
    pub(crate) fn steps(&self) -> &[Fill] {
        match self {
            Self::WorkingSet(plan) | Self::Eager(plan) => plan.steps(),
            Self::Lazy | Self::Record | Self::Map => &[],
        }
    }
}
