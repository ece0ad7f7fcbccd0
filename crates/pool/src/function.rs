//! One function that is in use: its snapshot, its instances, what its requests share.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_snapshot::{FunctionName, Lease, Manifest, Snapshot, SnapshotRef, Store, WorkingSet};

use crate::allowance::Allowance;
use crate::budget::{Charge, FIRST_RUN_BYTES, INSTANCE_BYTES, SharedCharge};
use crate::config::{FunctionConfig, PoolConfig};
use crate::damage::Health;
use crate::deploy::SavedFunction;
use crate::desk;
use crate::error::Error;
use crate::instance::{Instance, Parked};
use crate::loading::{Loaded, Pages, Shared, namer, stored_image};
use crate::template::{Known, Template};
use crate::traffic::Traffic;
use crate::worker::{Keeper, Workers, within};

pub(crate) struct Function {
    name: FunctionName,
    reference: SnapshotRef,
    store: Store,
    manifest: Manifest,
    config: FunctionConfig,
    shared: Shared,
    /// Nobody removes the snapshot from its function's history as long as it is served.
    _lease: Lease,
    idle: Mutex<Vec<Instance>>,
    instances_ahead: usize,
    health: Health,
    /// For the memory that all clones share.
    _charge: Charge,
    /// What runs held of late, at most.
    peak_bytes: AtomicU64,
    known: Mutex<Known>,
    /// Shared with whoever else answers this function's requests.
    pub(crate) traffic: Arc<Traffic>,
    // Last: instances end before what they are made of.
    home: Home,
}

/// Where instances run.
enum Home {
    Here(Arc<Template>),
    Worker(Keeper),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes guard is consistent between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What clones of a loaded snapshot are made of, in this process.
pub(crate) fn template_here(
    loaded: &Loaded,
    store: &Store,
    shared: &Shared,
) -> Result<Template, Error> {
    let plan = Arc::clone(&loaded.plan);
    let (store, reference) = (store.clone(), loaded.reference.clone());
    let image = move || stored_image(&store, &reference).ok();
    let namer = namer(plan.state.vm.load_address(), image);
    let staged = allowance(&SharedCharge::new(shared.budget.empty()));
    Template::new(plan, loaded.backing(), namer, staged, shared.guests.clone())
}

/// What may be held by who holds `charge`, in this process.
fn allowance(charge: &SharedCharge) -> Allowance {
    let charge = charge.clone();
    Allowance::new(Box::new(move |bytes| {
        let mut charge = charge.lock();
        charge.cover(bytes);
        charge.bytes()
    }))
}

impl Function {
    /// Makes a function of `snapshot`, whose requests are part of `traffic` where there is some
    /// already. Blocks while it reads the snapshot's memory, and while its
    /// worker process gets ready, if it is to have one.
    ///
    /// # Errors
    /// [`Error::Host`] where the snapshot cannot be restored here (boot cold then);
    /// [`Error::OtherAbi`]; [`Error::Store`] where it is damaged.
    pub(crate) fn open(
        store: &Store,
        snapshot: Snapshot<SavedFunction>,
        pool: &PoolConfig,
        shared: &Shared,
        traffic: Option<&Arc<Traffic>>,
    ) -> Result<Arc<Self>, Error> {
        let loaded = Loaded::new(snapshot, pool, shared)?;
        let (home, known, following) = match &shared.workers {
            Workers::Here => {
                let template = template_here(&loaded, store, shared)?;
                let known = template.known();
                (Home::Here(Arc::new(template)), known, None)
            }
            Workers::Processes(spares) => {
                let (keeper, known, following) =
                    Keeper::new(spares, &loaded, store, &shared.budget)?;
                (Home::Worker(keeper), known, Some(following))
            }
        };
        let Loaded {
            reference,
            manifest,
            config,
            pages,
            file,
            lease,
            charge,
            ..
        } = loaded;
        let function = Arc::new(Self {
            name: reference.function.clone(),
            reference,
            store: store.clone(),
            manifest,
            traffic: traffic
                .cloned()
                .unwrap_or_else(|| Arc::new(Traffic::new(config.concurrency))),
            config,
            shared: shared.clone(),
            _lease: lease,
            idle: Mutex::new(Vec::new()),
            instances_ahead: pool.shells_ahead,
            health: pages.health.clone(),
            _charge: charge,
            peak_bytes: AtomicU64::new(FIRST_RUN_BYTES),
            known: Mutex::new(known),
            home,
        });
        function.verify_later(&pages, file.as_ref());
        if let Some(following) = following {
            following.begin(&function)?;
        }
        function.refill();
        Ok(function)
    }

    /// Has what was loaded into `file` verified beside all else, where that was not done at once.
    pub(crate) fn verify_later(self: &Arc<Self>, pages: &Pages, file: Option<&Arc<File>>) {
        let found = Arc::downgrade(self);
        pages.verify_later(file, &self.reference, move || {
            if let Some(function) = found.upgrade() {
                function.shed_idle();
            }
        });
    }

    /// Refuses, once the snapshot was found to be damaged.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn check_undamaged(&self) -> Result<(), Error> {
        self.health.check()
    }

    pub(crate) fn name(&self) -> &FunctionName {
        &self.name
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn config(&self) -> &FunctionConfig {
        &self.config
    }

    /// What all functions of the pool share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// What keeps it in worker processes, if it is in such.
    pub(crate) fn keeper(&self) -> Option<&Keeper> {
        match &self.home {
            Home::Here(_) => None,
            Home::Worker(keeper) => Some(keeper),
        }
    }

    /// The image that the snapshot was made from, as it is stored.
    pub(crate) fn image(&self) -> Result<Vec<u8>, Error> {
        stored_image(&self.store, &self.reference)
    }

    /// An idle instance, or a new one.
    pub(crate) async fn instance(&self) -> Result<Instance, Error> {
        if let Some(instance) = self.idle_instance() {
            return Ok(instance);
        }
        match &self.home {
            Home::Here(template) => self.spawn(template),
            Home::Worker(keeper) => keeper.instance(self.charge_for_one()).await,
        }
    }

    fn idle_instance(&self) -> Option<Instance> {
        let mut idle = lock(&self.idle);
        while let Some(instance) = idle.pop() {
            // Its thread or its process may have died since.
            if instance.is_alive() {
                return Some(instance);
            }
        }
        None
    }

    /// For what an instance costs: taken ahead where there is room, or reserved with a request.
    fn charge_for_one(&self) -> SharedCharge {
        let charge = SharedCharge::new(self.shared.budget.empty());
        charge.lock().cover(INSTANCE_BYTES);
        charge
    }

    /// Starts an instance's thread in this process, which builds its shell at once.
    fn spawn(&self, template: &Arc<Template>) -> Result<Instance, Error> {
        let (link, mut desk) = within();
        let charge = self.charge_for_one();
        let allowance = allowance(&charge);
        let template = Arc::clone(template);
        std::thread::Builder::new()
            .name(format!("vcpu {}", self.name))
            .spawn(move || desk::serve(&template, allowance, &mut desk))
            .map_err(|e| Error::internal("starting a vCPU thread")(e.into()))?;
        Ok(Instance::new(Instance::next_number(), link, charge, None))
    }

    /// What to say of an instance that is gone without a word.
    pub(crate) fn lost(&self) -> Error {
        match &self.home {
            Home::Worker(keeper) if keeper.is_over() => Error::Draining,
            Home::Worker(_) => Error::WorkerLost {
                how: "the log says how".to_owned(),
            },
            Home::Here(_) => Error::Internal {
                operation: "running a guest".into(),
                reason: "the instance's thread is gone".to_owned(),
            },
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

    /// Learns from how an instance ended up.
    pub(crate) fn note(&self, parked: &Parked) {
        if parked.known.drift.is_finite() {
            *lock(&self.known) = parked.known;
        }
        if let Some(bytes) = parked.wrote_bytes {
            self.expect_bytes(bytes);
        }
    }

    /// A run held so much: expect as much of the next ones, and forget it slowly. Never more than
    /// there is of the guest.
    fn expect_bytes(&self, bytes: u64) {
        let bytes = bytes.min(self.manifest.memory_bytes);
        let forget = |old: u64| Some(bytes.max(old - old / 16));
        // It always is updated: the closure never says no.
        let _ = self
            .peak_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, forget);
    }

    /// Asks all idle instances for the memory of their clones.
    pub(crate) fn reclaim(&self) {
        for instance in &mut *lock(&self.idle) {
            instance.give_back();
        }
    }

    /// Does what is due with instances that wait: memory is given back, and those end that have waited
    /// for long, where more are idle than are kept ready.
    pub(crate) fn rest(&self) {
        let mut idle = lock(&self.idle);
        let mut kept = idle.len();
        idle.retain_mut(|instance| {
            let stays = instance.is_alive() && (instance.rest() || kept <= self.instances_ahead);
            kept -= usize::from(!stays);
            stays
        });
    }

    /// Ends all idle instances.
    pub(crate) fn shed_idle(&self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        drop(idle);
    }

    /// Ends all idle instances and waits until they are gone.
    pub(crate) async fn end_idle(&self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        for instance in idle {
            instance.end().await;
        }
    }

    /// Takes an instance back. Where more wait then than may ever run at once, the one that has waited
    /// longest ends.
    pub(crate) fn park(&self, instance: Instance) {
        let surplus = {
            let mut idle = lock(&self.idle);
            idle.push(instance);
            (idle.len() > self.config.concurrency).then(|| idle.remove(0))
        };
        drop(surplus);
    }

    /// Builds instances ahead until there are as many as configured. Where a runtime is.
    pub(crate) fn refill(&self) {
        let wanted = self.instances_ahead.min(self.config.concurrency);
        let missing = wanted.saturating_sub(self.idle_instances());
        for _ in 0..missing {
            if self.shared.budget.try_charge(INSTANCE_BYTES).is_none() {
                return;
            }
            let spawned = match &self.home {
                Home::Here(template) => Some(self.spawn(template)),
                Home::Worker(keeper) => keeper.instance_now(self.charge_for_one()),
            };
            match spawned {
                Some(Ok(instance)) => self.park(instance),
                Some(Err(error)) => {
                    tracing::warn!(function = %self.name, %error, "no instance could be built ahead");
                    return;
                }
                // Its next worker has it refilled.
                None => return,
            }
        }
    }

    /// Keeps the working set with the snapshot.
    pub(crate) fn store_working_set(&self, set: &WorkingSet) {
        let id = self.manifest.id;
        if let Err(error) = self.store.save_working_set(&self.name, &id, set) {
            tracing::warn!(function = %self.name, %error, "the working set was not stored");
        }
    }

    /// How much is known of what runs touch.
    pub(crate) fn known(&self) -> Known {
        *lock(&self.known)
    }

    pub(crate) fn idle_instances(&self) -> usize {
        lock(&self.idle).len()
    }
}
