//! One instance of a function, driven by hand.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use dormouse_snapshot::{FunctionName, Lease, SnapshotRef, Store, WorkingSet};
use dormouse_vmm::GuestRam;

use crate::allowance::Allowance;
use crate::config::PoolConfig;
use crate::error::Error;
use crate::function::template_here;
use crate::ids::Ids;
use crate::loading::{Loaded, Pages, Shared};
use crate::machine::Machine;
use crate::mailbox::Encoded;
use crate::message::{Outcome, Request, Timings};
use crate::moment::Moment;
use crate::paging::Paging;
use crate::template::Template;
use crate::verify::Verify;

/// One instance of a function, driven by hand: what a [`Pool`](crate::Pool) does for a request, step
/// by step, on the calling thread. For those who measure the steps or look at what they leave.
///
/// ```text
/// open ──► restore ──► run ──► roll_back ──► run ──► …
///             ▲                    │ false
///             └────────────────────┘
/// ```
///
/// All calls must come from one thread: KVM expects a vCPU to stay on its own.
pub struct Engine {
    template: Template,
    pages: Pages,
    store: Store,
    reference: SnapshotRef,
    machine: Machine,
    _lease: Lease,
}

/// What lies under an [`Engine`], for those who do the same with bare system calls.
#[derive(Debug)]
pub struct Parts {
    /// A descriptor of the vCPU.
    pub vcpu: OwnedFd,
    /// The guest's memory, which stays mapped as long as this lives.
    pub ram: GuestRam,
    /// The page, counted from the base, that the guest's mailbox is in.
    pub mailbox_page: u64,
    /// The snapshot's sealed memory file, where its memory is in one.
    pub file: Option<Arc<File>>,
    /// Pages that are not zero in the snapshot, counted from the base.
    pub data: Vec<Range<u64>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("function", self.template.name())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the newest snapshot of `name` and builds a shell for it.
    ///
    /// # Errors
    /// As [`Pool::checkout`](crate::Pool::checkout), but nothing is booted.
    pub fn open(store: &Store, name: &str) -> Result<Self, Error> {
        let name = FunctionName::new(name)?;
        let alone = PoolConfig {
            shells_ahead: 0,
            // Nothing goes on in the background that would be measured as well.
            verify: Verify::Always,
            ..PoolConfig::default()
        };
        let shared = Shared::alone();
        let loaded = Loaded::new(store.open_newest(&name)?, &alone, &shared)?;
        let template = template_here(&loaded, store, &shared)?;
        let machine = Machine::build(&template, &Arc::new(Allowance::unlimited()))?;
        Ok(Self {
            template,
            pages: loaded.pages,
            store: store.clone(),
            reference: loaded.reference,
            machine,
            _lease: loaded.lease,
        })
    }

    /// Pages another way from the next restore on.
    ///
    /// # Errors
    /// Where that cannot be prepared; all stays as it is.
    pub fn set_paging(&mut self, paging: Paging) -> Result<(), Error> {
        self.template.set_paging(paging)
    }

    /// Gets ready what the next restore can make use of: a pool does so after each answer.
    pub fn stage(&mut self) {
        self.template.stage_ahead();
    }

    /// Pages that the clone at hand holds alone.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn private_pages(&self) -> Result<u64, Error> {
        self.machine.private_pages()
    }

    /// Records `request` until the working set is known, and stores it with the snapshot.
    ///
    /// # Errors
    /// As [`Engine::run`]; [`Error::Unanswered`] where the function fails on it.
    pub fn learn(&mut self, request: &Request) -> Result<(), Error> {
        while self.template.wants_runs() {
            let outcome = self.run(request)?;
            outcome
                .result
                .map_err(|failure| Error::Unanswered { failure })?;
            if let Some(set) = self.machine.recycle(&self.template)? {
                self.store_working_set(&set);
            }
        }
        Ok(())
    }

    fn store_working_set(&self, set: &WorkingSet) {
        let SnapshotRef { function, id } = &self.reference;
        if let Err(error) = self.store.save_working_set(function, id, set) {
            tracing::warn!(%function, %error, "the working set was not stored");
        }
    }

    /// Makes a fresh clone, whatever was there: maps the snapshot, replays the working set, and sets
    /// the vCPU's state. Returns the times of that.
    ///
    /// # Errors
    /// What kept it from being restored.
    pub fn restore(&mut self) -> Result<Timings, Error> {
        let mut timings = Timings::default();
        let begun = Instant::now();
        let policy = self.template.policy();
        self.machine.unset()?;
        self.machine
            .restore(&self.template, &policy, &mut timings)?;
        timings.restore_us = crate::deploy::elapsed_us(begun);
        Ok(timings)
    }

    /// Makes the shell ready for the next clone: sets the vCPU's state, gives all memory back, and maps
    /// the snapshot. What a pool does after an answer where it does not roll back.
    ///
    /// # Errors
    /// What kept the state from being set.
    pub fn make_ready(&mut self) -> Result<(), Error> {
        self.machine.make_ready(&self.template)
    }

    /// Makes a clone in a shell that is ready: what a request waits for. Returns the times of that.
    ///
    /// # Errors
    /// What kept it from being restored.
    pub fn wake(&mut self) -> Result<Timings, Error> {
        let mut timings = Timings::default();
        let policy = self.template.policy();
        self.machine
            .restore(&self.template, &policy, &mut timings)?;
        Ok(timings)
    }

    /// Runs the function on `request`, in the clone at hand if nobody used it, else in a fresh one.
    ///
    /// # Errors
    /// [`Error::RequestTooLarge`], or what kept Dormouse (not the function) from running it.
    pub fn run(&mut self, request: &Request) -> Result<Outcome, Error> {
        let request = Encoded::new(request)?;
        self.machine
            .invoke(&self.template, &request, Ids::next(), Moment::now())
    }

    /// Rolls the clone back in place. False where it must be restored afresh instead: that is
    /// cheaper, or it changed its page tables, or its working set is not known yet.
    ///
    /// # Errors
    /// What kept it from being rolled back; it must be restored then.
    pub fn roll_back(&mut self) -> Result<bool, Error> {
        self.machine.reset(&self.template)
    }

    /// Pages, counted from the guest's base, whose content is not the snapshot's. Empty after
    /// [`Engine::restore`] and [`Engine::roll_back`], or something is wrong. Reads all of the
    /// guest's memory, which brings all of it in.
    ///
    /// # Errors
    /// Where memory cannot be read.
    pub fn changed_pages(&mut self) -> Result<Vec<u64>, Error> {
        self.machine
            .changed_pages(|page, bytes| self.pages.read_verified(page, bytes))
    }

    /// Parts of the vCPU's state that are not the snapshot's, by name; see
    /// [`Engine::changed_pages`].
    ///
    /// # Errors
    /// Where KVM does not tell.
    pub fn changed_state(&mut self) -> Result<Vec<&'static str>, Error> {
        self.machine.changed_state(&self.template)
    }

    /// The working set, once it is known.
    #[must_use]
    pub fn working_set(&self) -> Option<Arc<WorkingSet>> {
        self.template.working_set()
    }

    /// What lies under the engine. Nothing unless there is a clone at hand that has not run.
    ///
    /// # Errors
    /// [`Error::Host`] where there are no descriptors left.
    pub fn parts(&self) -> Result<Option<Parts>, Error> {
        let Some(vm) = self.machine.clone_at_hand() else {
            return Ok(None);
        };
        let ram = vm.shell().ram();
        let mailbox = vm.translate(self.template.state().mailbox.address());
        let Some(mailbox) = mailbox.and_then(|address| address.checked_sub(ram.base())) else {
            return Ok(None);
        };
        Ok(Some(Parts {
            vcpu: vm.shell().vcpu_descriptor()?,
            ram: ram.clone(),
            mailbox_page: mailbox / dormouse_snapshot::PAGE_BYTES as u64,
            file: self.template.source().file().cloned(),
            data: self.template.source().data().to_vec(),
        }))
    }
}
