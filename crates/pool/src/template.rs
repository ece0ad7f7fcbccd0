//! What all clones of one snapshot are made of, in the process that runs them.

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_pager::{Policy, ReadPages, Rollback, Source, Touched};
use dormouse_snapshot::{FunctionName, WorkingSet};
use dormouse_vmm::{Host, Namer, translations_differ};
use serde::{Deserialize, Serialize};

use crate::allowance::Allowance;
use crate::crossover::Crossover;
use crate::deploy::SavedFunction;
use crate::error::Error;
use crate::interrupters::Interrupters;
use crate::learning::{Learning, kept};
use crate::message::Timings;
use crate::paging::{Paging, STAGED_SETS};

/// What a template is made from: plain values, which another process can be told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The function's name, for threads and log lines.
    pub(crate) name: String,
    pub(crate) state: SavedFunction,
    /// Pages of the snapshot.
    pub(crate) pages: u64,
    /// Those that may hold anything but zeros.
    pub(crate) data: Vec<Range<u64>>,
    /// Pages of the guest's page tables, where they are few enough to be known.
    pub(crate) tables: Option<Vec<u64>>,
    pub(crate) paging: Paging,
    pub(crate) timeout_ms: u64,
    pub(crate) rolls_back: bool,
    /// The working set that is stored with the snapshot, if there is one.
    pub(crate) working_set: Option<WorkingSet>,
    /// What all instances of the pool may hold, to be told to who finds no room.
    pub(crate) budget_bytes: u64,
}

/// Where the snapshot's pages are.
pub(crate) enum Backing {
    /// All of them in a sealed memory file.
    File(Arc<File>),
    /// Read when they are touched.
    Read(Arc<ReadPages>),
}

/// What the instances of one snapshot share.
pub(crate) struct Template {
    plan: Arc<Plan>,
    name: FunctionName,
    source: Source,
    namer: Namer,
    learning: Mutex<Learning>,
    pub(crate) crossover: Crossover,
    pub(crate) guests: Interrupters,
    /// For the chunks that wait to be moved in.
    staged: Allowance,
}

/// How much is known of what runs touch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// Size of the working set; 0 until it is known.
    pub(crate) working_set_pages: u64,
    /// The share of page faults that the working set did not predict, of the pages that it did.
    pub(crate) drift: f64,
}

impl Template {
    /// Makes a template, if this host can restore the snapshot.
    ///
    /// # Errors
    /// [`Error::Host`] where it cannot.
    pub(crate) fn new(
        plan: Arc<Plan>,
        backing: Backing,
        namer: Namer,
        staged: Allowance,
        guests: Interrupters,
    ) -> Result<Self, Error> {
        plan.state.vm.check(Host::open()?.profile())?;
        let name = FunctionName::new(&plan.name)?;
        let data: Arc<[_]> = plan.data.as_slice().into();
        let source = match backing {
            Backing::File(file) => Source::shared(file, plan.pages, data)?,
            Backing::Read(read) => Source::not_local(plan.pages, data, read)?,
        };
        let learning = Learning::new(&source, plan.paging, plan.working_set.clone())?;
        Ok(Self {
            plan,
            name,
            source,
            namer,
            learning: Mutex::new(learning),
            crossover: Crossover::default(),
            guests,
            staged,
        })
    }

    fn learning(&self) -> MutexGuard<'_, Learning> {
        // What it guards is consistent between any two statements.
        self.learning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn name(&self) -> &FunctionName {
        &self.name
    }

    pub(crate) fn state(&self) -> &SavedFunction {
        &self.plan.state
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    pub(crate) fn namer(&self) -> Namer {
        Arc::clone(&self.namer)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.plan.timeout_ms)
    }

    /// What all instances of the pool may hold.
    pub(crate) fn budget_bytes(&self) -> u64 {
        self.plan.budget_bytes
    }

    /// Waits, if it must, until clones of this snapshot no longer share random bytes.
    pub(crate) fn wait_until_unique(&self) {
        let missing_ns = self.plan.state.vm.clock().unique_in_ns();
        if missing_ns > 0 {
            std::thread::sleep(Duration::from_nanos(missing_ns));
        }
    }

    /// How the next clone gets its memory.
    pub(crate) fn policy(&self) -> Policy {
        self.learning().policy()
    }

    /// Whether there is something to learn from the next run.
    pub(crate) fn wants_runs(&self) -> bool {
        self.learning().wants_runs()
    }

    /// Pages another way from now on.
    pub(crate) fn set_paging(&self, paging: Paging) -> Result<(), Error> {
        self.learning().set_paging(&self.source, paging)
    }

    /// Gets ready what the next clone can make use of: where chunks are to be moved in, they are
    /// filled, as long as there is memory for them.
    pub(crate) fn stage_ahead(&self) {
        let Policy::Staged(stage) = self.policy() else {
            return;
        };
        let set_bytes = stage.set_pages() * dormouse_pager::PAGE_BYTES;
        if !self.staged.covers(set_bytes * STAGED_SETS as u64) {
            return;
        }
        // Where it fails, the next clone gets its pages replayed.
        if let Err(error) = stage.refill() {
            tracing::debug!(function = %self.name, %error, "nothing was staged");
        }
    }

    /// How a clone that has run is rolled back; nothing where none may be.
    pub(crate) fn rollback(&self) -> Option<ClonesRollback<'_>> {
        if !self.plan.rolls_back {
            return None;
        }
        let learning = self.learning();
        // A clone that the next run is to be recorded on must be fresh.
        let set = learning.known()?;
        if !learning.policy().can_roll_back(&self.source) {
            return None;
        }
        Some(ClonesRollback {
            tables: self.plan.tables.as_deref()?,
            kept: kept(&set.written),
            most_pages: self.crossover.most_pages(),
        })
    }

    /// Adds a recorded run. With the last one the working set is known: returned to be stored.
    pub(crate) fn learn(&self, run: Touched) -> Option<WorkingSet> {
        let learned = self.learning().learn(&self.source, run);
        learned.unwrap_or_else(|error| {
            tracing::warn!(function = %self.name, %error, "the working set cannot be replayed");
            None
        })
    }

    /// Holds an invocation against the working set.
    pub(crate) fn note_faults(&self, timings: &Timings) {
        if self.learning().note(&self.source, timings) {
            tracing::info!(function = %self.name, "the working set has drifted and is recorded again");
        }
    }

    /// The known working set.
    pub(crate) fn working_set(&self) -> Option<Arc<WorkingSet>> {
        self.learning().known().cloned()
    }

    /// How much is known.
    pub(crate) fn known(&self) -> Known {
        let learning = self.learning();
        Known {
            working_set_pages: learning.known().map_or(0, |set| set.pages()),
            drift: learning.drift(),
        }
    }
}

/// How a clone is rolled back.
pub(crate) struct ClonesRollback<'a> {
    tables: &'a [u64],
    kept: Vec<Range<u64>>,
    most_pages: u64,
}

impl ClonesRollback<'_> {
    /// For the pager.
    pub(crate) fn plan(&self) -> Rollback<'_> {
        Rollback {
            watched: self.tables,
            differs: &translations_differ,
            kept: &self.kept,
            most_copied_pages: self.most_pages,
        }
    }
}
