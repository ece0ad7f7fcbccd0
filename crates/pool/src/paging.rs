//! How a function's clones get their memory, as a user says it.

use std::sync::Arc;

use dormouse_pager::{Policy, Source, Stage, WorkingSetPlan};
use dormouse_snapshot::WorkingSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How many clones at a time can be given staged chunks; the next ones get them replayed.
pub(crate) const STAGED_SETS: usize = 2;

/// How a function's clones get their memory. Which is the fastest depends on the function:
/// `dormouse snapshot tune` measures them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Paging {
    /// Pages come in when the guest asks for them (userfaultfd), with their neighbours.
    Lazy,
    /// What runs are known to touch is brought in first, the rest as with [`Paging::Lazy`].
    #[default]
    WorkingSet,
    /// As [`Paging::WorkingSet`], and where the set is dense it was copied ahead into huge pages,
    /// which are moved in: the fastest for large sets, and the dearest in memory.
    Staged,
    /// A private mapping, whose faults the kernel serves, without userfaultfd.
    Map,
    /// All pages that hold data are brought in first.
    Eager,
}

impl Paging {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Lazy,
        Self::WorkingSet,
        Self::Staged,
        Self::Map,
        Self::Eager,
    ];

    /// The word for it: `lazy`, `working-set`, `staged`, `map` or `eager`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::WorkingSet => "working-set",
            Self::Staged => "staged",
            Self::Map => "map",
            Self::Eager => "eager",
        }
    }

    /// Whether the faults that the pager sees tell how good the working set is.
    pub(crate) fn predicts(self) -> bool {
        matches!(self, Self::WorkingSet | Self::Staged)
    }

    /// The pager's policy for it. Where pages are not local, a private mapping cannot be had, and
    /// the working set is replayed instead.
    pub(crate) fn policy(self, source: &Source, set: &WorkingSet) -> Result<Policy, Error> {
        let working_set = || WorkingSetPlan::new(source, &set.read, &set.written).map(Arc::new);
        Ok(match self {
            Self::Lazy => Policy::Lazy,
            Self::Map if source.file().is_some() => Policy::Map,
            Self::WorkingSet | Self::Map => Policy::WorkingSet(working_set()?),
            Self::Staged => {
                let stage = Stage::new(source, &set.read, &set.written, STAGED_SETS)?;
                Policy::Staged(Arc::new(stage))
            }
            Self::Eager => Policy::Eager(Arc::new(WorkingSetPlan::eager(source, &set.written)?)),
        })
    }
}

impl std::fmt::Display for Paging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Paging {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("{text:?} is no way of paging; there are {known}")
        })
    }
}
