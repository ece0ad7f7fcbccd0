//! One function that is in use: its snapshot, its instances, its working set.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_pager::{Policy, Rollback, Source, Touched};
use dormouse_snapshot::{
    FunctionName, Lease, Manifest, MemoryImage, Snapshot, SnapshotRef, Store, WorkingSet,
};
use dormouse_vmm::{Host, Namer, translations_differ};

use crate::budget::{Budget, Charge, FIRST_RUN_BYTES, INSTANCE_BYTES};
use crate::config::{FunctionConfig, PoolConfig};
use crate::crossover::Crossover;
use crate::damage::Health;
use crate::deploy::SavedFunction;
use crate::error::Error;
use crate::instance::Instance;
use crate::interrupters::Interrupters;
use crate::learning::{Learning, kept};
use crate::loading::{self, Loaded, Shared, namer};
use crate::message::Timings;
use crate::paging::{Paging, STAGED_SETS};
use crate::traffic::Traffic;
use crate::verify::Verify;

pub(crate) struct Function {
    name: FunctionName,
    reference: SnapshotRef,
    store: Store,
    manifest: Manifest,
    config: FunctionConfig,
    state: SavedFunction,
    memory: Arc<MemoryImage>,
    /// Nobody removes the snapshot from its function's history as long as it is served.
    _lease: Lease,
    source: Source,
    namer: Namer,
    learning: Mutex<Learning>,
    /// Pages of the guest's page tables, where they are few enough to be known.
    tables: Option<Vec<u64>>,
    pub(crate) crossover: Crossover,
    idle: Mutex<Vec<Instance>>,
    instances_ahead: usize,
    rolls_back: bool,
    pub(crate) guests: Interrupters,
    pub(crate) budget: Budget,
    health: Health,
    /// For the memory that all clones share.
    _charge: Charge,
    /// For the chunks that wait to be moved in.
    staged: Mutex<Charge>,
    /// What runs held of late, at most.
    peak_bytes: AtomicU64,
    /// Shared with whoever else answers this function's requests.
    pub(crate) traffic: Arc<Traffic>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes guard is consistent between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Function {
    /// Makes a function of `snapshot`. Blocks while it reads the snapshot's memory.
    ///
    /// # Errors
    /// [`Error::Host`] where the snapshot cannot be restored here (boot cold then);
    /// [`Error::OtherAbi`]; [`Error::Store`] where it is damaged.
    pub(crate) fn open(
        store: &Store,
        snapshot: Snapshot<SavedFunction>,
        pool: &PoolConfig,
        shared: &Shared,
    ) -> Result<Arc<Self>, Error> {
        let reference = SnapshotRef {
            function: snapshot.manifest.function.clone(),
            id: snapshot.id,
        };
        let Shared { guests, budget, .. } = shared.clone();
        snapshot.state.vm.check(Host::open()?.profile())?;
        let config = FunctionConfig::stored(&snapshot.manifest)?;
        if let Some(error) = &snapshot.working_set_error {
            tracing::warn!(snapshot = %reference, %error, "the working set is unusable and is recorded again");
        }

        let Loaded {
            memory,
            source,
            health,
            verify,
            charge,
        } = Loaded::new(snapshot.memory, &reference, pool.verify, shared)?;
        let learning = Learning::new(
            &source,
            config.paging.unwrap_or_default(),
            snapshot.working_set,
        )?;
        let tables = snapshot
            .state
            .vm
            .table_pages(|page, bytes| memory.read_verified(page, bytes))?;
        let read = |page, bytes: &mut [u8; _]| Ok(memory.read_verified(page, bytes)?);
        let SavedFunction { vm, mailbox } = &snapshot.state;
        mailbox.check_abi(vm, read)?;
        let namer = namer(
            store.clone(),
            reference.clone(),
            snapshot.state.vm.load_address(),
        );
        let function = Arc::new(Self {
            name: reference.function.clone(),
            reference: reference.clone(),
            store: store.clone(),
            manifest: snapshot.manifest,
            traffic: Arc::new(Traffic::new(config.concurrency)),
            config,
            state: snapshot.state,
            memory,
            _lease: snapshot.lease,
            source,
            namer,
            learning: Mutex::new(learning),
            tables,
            crossover: Crossover::default(),
            idle: Mutex::new(Vec::new()),
            instances_ahead: pool.shells_ahead,
            rolls_back: pool.rolls_back,
            guests,
            staged: Mutex::new(budget.empty()),
            budget,
            health,
            _charge: charge,
            peak_bytes: AtomicU64::new(FIRST_RUN_BYTES),
        });
        if verify == Verify::Background {
            let found = Arc::downgrade(&function);
            let end_idle = move || {
                if let Some(function) = found.upgrade() {
                    function.shed_idle();
                }
            };
            let health = function.health.clone();
            loading::verify_later(
                &function.memory,
                &function.source,
                &reference,
                health,
                end_idle,
            );
        }
        function.refill();
        Ok(function)
    }

    /// Refuses, once the snapshot was found to be damaged.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn check_undamaged(&self) -> Result<(), Error> {
        self.health.check()
    }

    /// The snapshot that this is made of.
    pub(crate) fn reference(&self) -> &SnapshotRef {
        &self.reference
    }

    pub(crate) fn name(&self) -> &FunctionName {
        &self.name
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn state(&self) -> &SavedFunction {
        &self.state
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Reads a page of the snapshot's memory, verified.
    pub(crate) fn read_page(&self, page: u64, bytes: &mut [u8]) -> Result<(), Error> {
        Ok(self.memory.read_verified(page, bytes)?)
    }

    pub(crate) fn namer(&self) -> Namer {
        Arc::clone(&self.namer)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.config.timeout_ms)
    }

    pub(crate) fn config(&self) -> &FunctionConfig {
        &self.config
    }

    /// The image that the snapshot was made from, as it is stored.
    pub(crate) fn image(&self) -> Result<Vec<u8>, Error> {
        let id = &self.manifest.id;
        let snapshot: Snapshot<SavedFunction> = self.store.open_id(&self.name, id)?;
        Ok(snapshot.image()?)
    }

    /// Waits, if it must, until clones of this snapshot no longer share random bytes.
    pub(crate) fn wait_until_unique(&self) {
        let missing_ns = self.state.vm.clock().unique_in_ns();
        if missing_ns > 0 {
            std::thread::sleep(Duration::from_nanos(missing_ns));
        }
    }

    /// An idle instance, or a new one.
    pub(crate) fn instance(self: &Arc<Self>) -> Result<Instance, Error> {
        match lock(&self.idle).pop() {
            Some(instance) => Ok(instance),
            None => Instance::spawn(self),
        }
    }

    /// What a run is expected to hold, an instance that has to be built for it included.
    pub(crate) fn expected_bytes(&self) -> u64 {
        let instance_bytes = match self.idle_instances() {
            0 => INSTANCE_BYTES,
            _ => 0,
        };
        self.peak_bytes.load(Ordering::Relaxed) + instance_bytes
    }

    /// A run held so much: expect as much of the next ones, and forget it slowly. Never more than
    /// there is of the guest.
    pub(crate) fn expect_bytes(&self, bytes: u64) {
        let bytes = bytes.min(self.manifest.memory_bytes);
        let forget = |old: u64| Some(bytes.max(old - old / 16));
        // It always is updated: the closure never says no.
        let _ = self
            .peak_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, forget);
    }

    /// Asks all idle instances for the memory of their clones.
    pub(crate) fn reclaim(&self) {
        for instance in &*lock(&self.idle) {
            instance.give_back();
        }
    }

    /// Ends all idle instances.
    pub(crate) fn shed_idle(&self) {
        lock(&self.idle).clear();
    }

    /// Ends all idle instances and waits until they are gone.
    pub(crate) async fn end_idle(&self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        let ends: Vec<_> = idle.into_iter().map(Instance::end).collect();
        for end in ends {
            // An error is what it ends with: nothing is ever sent.
            let _ = end.await;
        }
    }

    /// Takes an instance back.
    pub(crate) fn park(&self, instance: Instance) {
        lock(&self.idle).push(instance);
    }

    /// Drops the handle of an instance that has ended by itself, if it is idle.
    pub(crate) fn forget(&self, number: u64) {
        lock(&self.idle).retain(|instance| instance.number() != number);
    }

    /// Ends an idle instance, where more are idle than are kept ready.
    pub(crate) fn retire_idle(&self, number: u64) {
        let mut idle = lock(&self.idle);
        if idle.len() > self.instances_ahead {
            idle.retain(|instance| instance.number() != number);
        }
    }

    /// Builds instances ahead until there are as many as configured.
    pub(crate) fn refill(self: &Arc<Self>) {
        let wanted = self.instances_ahead.min(self.config.concurrency);
        let missing = wanted.saturating_sub(self.idle_instances());
        for _ in 0..missing {
            if self.budget.try_charge(INSTANCE_BYTES).is_none() {
                return;
            }
            match Instance::spawn(self) {
                Ok(instance) => self.park(instance),
                Err(error) => {
                    tracing::warn!(function = %self.name, %error, "no instance could be built ahead");
                    return;
                }
            }
        }
    }

    /// How the next clone gets its memory.
    pub(crate) fn policy(&self) -> Policy {
        lock(&self.learning).policy()
    }

    /// Whether there is something to learn from the next run.
    pub(crate) fn wants_runs(&self) -> bool {
        lock(&self.learning).wants_runs()
    }

    /// Pages another way from now on.
    pub(crate) fn set_paging(&self, paging: Paging) -> Result<(), Error> {
        lock(&self.learning).set_paging(&self.source, paging)
    }

    /// Gets ready what the next clone can make use of: where chunks are to be moved in, they are
    /// filled, as long as there is memory for them.
    pub(crate) fn stage_ahead(&self) {
        let Policy::Staged(stage) = self.policy() else {
            return;
        };
        let set_bytes = stage.set_pages() * dormouse_pager::PAGE_BYTES;
        if !lock(&self.staged).cover(set_bytes * STAGED_SETS as u64) {
            return;
        }
        // Where it fails, the next clone gets its pages replayed.
        if let Err(error) = stage.refill() {
            tracing::debug!(function = %self.name, %error, "nothing was staged");
        }
    }

    /// How a clone that has run is rolled back; nothing where none may be.
    pub(crate) fn rollback(&self) -> Option<ClonesRollback<'_>> {
        if !self.rolls_back {
            return None;
        }
        let learning = lock(&self.learning);
        // A clone that the next run is to be recorded on must be fresh.
        let set = learning.known()?;
        if !learning.policy().can_roll_back(&self.source) {
            return None;
        }
        Some(ClonesRollback {
            tables: self.tables.as_deref()?,
            kept: kept(&set.written),
            most_pages: self.crossover.most_pages(),
        })
    }

    /// Adds a recorded run. With the last one the working set is known: returned to be stored.
    pub(crate) fn learn(&self, run: Touched) -> Option<WorkingSet> {
        let learned = lock(&self.learning).learn(&self.source, run);
        learned.unwrap_or_else(|error| {
            tracing::warn!(function = %self.name, %error, "the working set cannot be replayed");
            None
        })
    }

    /// Holds an invocation against the working set.
    pub(crate) fn note_faults(&self, timings: &Timings) {
        if lock(&self.learning).note(&self.source, timings) {
            tracing::info!(function = %self.name, "the working set has drifted and is recorded again");
        }
    }

    /// Keeps the working set with the snapshot.
    pub(crate) fn store_working_set(&self, set: &WorkingSet) {
        let id = self.manifest.id;
        if let Err(error) = self.store.save_working_set(&self.name, &id, set) {
            tracing::warn!(function = %self.name, %error, "the working set was not stored");
        }
    }

    /// Size of the known working set.
    pub(crate) fn working_set_pages(&self) -> u64 {
        lock(&self.learning).known().map_or(0, |set| set.pages())
    }

    /// The share of page faults that the working set did not predict, of the pages that it did.
    pub(crate) fn working_set_drift(&self) -> f64 {
        lock(&self.learning).drift()
    }

    /// The known working set.
    pub(crate) fn working_set(&self) -> Option<Arc<WorkingSet>> {
        lock(&self.learning).known().cloned()
    }

    pub(crate) fn idle_instances(&self) -> usize {
        lock(&self.idle).len()
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
