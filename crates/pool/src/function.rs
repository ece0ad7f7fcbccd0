//! One function that is in use: its snapshot, its instances, its working set.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dormouse_pager::{Policy, Source, Touched, WorkingSetPlan};
use dormouse_snapshot::{FunctionName, Manifest, Snapshot, Store, WorkingSet};
use dormouse_vmm::{GuestImage, Host, Namer, Symbols};
use tokio::sync::Semaphore;

use crate::config::FunctionConfig;
use crate::deploy::SavedFunction;
use crate::error::{Error, Failure};
use crate::instance::Instance;
use crate::interrupters::Interrupters;
use crate::message::Outcome;
use crate::stats::FunctionStats;

/// Snapshots up to this size are kept in memory, shared by all clones; the pages of larger ones are
/// read when they are touched.
const RESIDENT_LIMIT_BYTES: u64 = 1 << 30;

/// How many invocations are recorded before the working set is replayed.
const RECORDED_RUNS: usize = 3;

/// In how many of them a page must have been touched to belong to the working set: what one odd
/// request touches alone, its large body for example, is not worth bringing in for all.
const AGREEING_RUNS: usize = 2;

pub(crate) struct Function {
    name: FunctionName,
    store: Store,
    manifest: Manifest,
    config: FunctionConfig,
    state: SavedFunction,
    source: Source,
    namer: Namer,
    working_set: Mutex<Learning>,
    idle: Mutex<Vec<Instance>>,
    instances_ahead: usize,
    pub(crate) guests: Interrupters,
    /// As many permits as the function may have invocations at once.
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) waiting: AtomicUsize,
    /// Holders of all permits that an invocation needs.
    pub(crate) running: Arc<AtomicUsize>,
    counters: Counters,
}

/// How far the working set is known.
enum Learning {
    /// What the runs recorded so far touched.
    Recording(Vec<WorkingSet>),
    /// Known, and replayed.
    Known {
        pages: u64,
        plan: Arc<WorkingSetPlan>,
    },
    /// Not to be had; pages come in when they are touched.
    Unknown,
}

#[derive(Default)]
struct Counters {
    invocations: AtomicU64,
    failures: AtomicU64,
    timeouts: AtomicU64,
    refused: AtomicU64,
    restore_us: AtomicU64,
    run_us: AtomicU64,
    faults: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes guard is consistent between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Function {
    /// Opens the newest snapshot of `name`. Blocks while it reads the snapshot's memory.
    ///
    /// # Errors
    /// [`Error::UnknownFunction`]; [`Error::Host`] where the snapshot cannot be restored here (boot
    /// cold then); [`Error::Store`] where it is damaged.
    pub(crate) fn open(
        store: &Store,
        name: &FunctionName,
        instances_ahead: usize,
        guests: Interrupters,
    ) -> Result<Arc<Self>, Error> {
        let snapshot: Snapshot<SavedFunction> = store.open_newest(name)?;
        snapshot.state.vm.check(Host::open()?.profile())?;
        let config = FunctionConfig::stored(&snapshot.manifest)?;
        if let Some(error) = &snapshot.working_set_error {
            tracing::warn!(function = %name, %error, "the working set is unusable and is recorded again");
        }

        let memory = Arc::new(snapshot.memory);
        let data: Arc<[_]> = memory.data().into();
        let source =
            if memory.data_pages() * dormouse_snapshot::PAGE_BYTES as u64 <= RESIDENT_LIMIT_BYTES {
                Source::shared(Arc::new(memory.load()?), memory.pages(), data)?
            } else {
                let file = Arc::clone(&memory);
                let read = move |page: u64, buffer: &mut [u8]| {
                    file.read_verified(page, buffer)
                        .map_err(std::io::Error::other)
                };
                Source::not_local(memory.pages(), data, Arc::new(read))?
            };
        let working_set = match &snapshot.working_set {
            Some(known) => Learning::known(&source, known)?,
            None => Learning::Recording(Vec::new()),
        };
        let namer = namer(
            store.clone(),
            name.clone(),
            snapshot.id,
            snapshot.state.vm.load_address(),
        );
        let function = Arc::new(Self {
            name: name.clone(),
            store: store.clone(),
            manifest: snapshot.manifest,
            permits: Arc::new(Semaphore::new(config.concurrency)),
            config,
            state: snapshot.state,
            source,
            namer,
            working_set: Mutex::new(working_set),
            idle: Mutex::new(Vec::new()),
            instances_ahead,
            guests,
            waiting: AtomicUsize::new(0),
            running: Arc::default(),
            counters: Counters::default(),
        });
        function.refill();
        Ok(function)
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

    pub(crate) fn namer(&self) -> Namer {
        Arc::clone(&self.namer)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.config.timeout_ms)
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

    /// Takes an instance back.
    pub(crate) fn park(&self, instance: Instance) {
        lock(&self.idle).push(instance);
    }

    /// Builds instances ahead until there are as many as configured.
    pub(crate) fn refill(self: &Arc<Self>) {
        let wanted = self.instances_ahead.min(self.config.concurrency);
        let missing = wanted.saturating_sub(self.idle_instances());
        for _ in 0..missing {
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
        match &*lock(&self.working_set) {
            Learning::Recording(_) => Policy::Record,
            Learning::Known { plan, .. } => Policy::WorkingSet(Arc::clone(plan)),
            Learning::Unknown => Policy::Lazy,
        }
    }

    /// Adds a recorded run. With the last one the working set is known: returned to be stored.
    pub(crate) fn learn(&self, run: Touched) -> Option<WorkingSet> {
        let mut learning = lock(&self.working_set);
        let Learning::Recording(runs) = &mut *learning else {
            return None;
        };
        runs.push(WorkingSet::from_touched(
            run.order.into_iter().chain(run.read.into_iter().flatten()),
            run.written.into_iter().flatten(),
        ));
        if runs.len() < RECORDED_RUNS {
            return None;
        }
        let set = agreed(runs);
        match Learning::known(&self.source, &set) {
            Ok(known) => {
                *learning = known;
                Some(set)
            }
            Err(error) => {
                tracing::warn!(function = %self.name, %error, "the working set cannot be replayed");
                *learning = Learning::Unknown;
                None
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

    /// Size of the known working set.
    pub(crate) fn working_set_pages(&self) -> u64 {
        match &*lock(&self.working_set) {
            Learning::Recording(_) | Learning::Unknown => 0,
            Learning::Known { pages, .. } => *pages,
        }
    }

    pub(crate) fn idle_instances(&self) -> usize {
        lock(&self.idle).len()
    }

    /// Counts a refused request.
    pub(crate) fn refuse(&self) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a finished invocation.
    pub(crate) fn record(&self, outcome: &Result<Outcome, Error>) {
        let add = |counter: &AtomicU64, value| counter.fetch_add(value, Ordering::Relaxed);
        add(&self.counters.invocations, 1);
        let Ok(outcome) = outcome else {
            add(&self.counters.failures, 1);
            return;
        };
        add(&self.counters.restore_us, outcome.timings.restore_us);
        add(&self.counters.run_us, outcome.timings.run_us);
        add(&self.counters.faults, outcome.timings.faults);
        match &outcome.result {
            Ok(_) => {}
            Err(Failure::TimedOut { .. }) => {
                add(&self.counters.timeouts, 1);
            }
            Err(_) => {
                add(&self.counters.failures, 1);
            }
        }
    }

    pub(crate) fn stats(&self) -> FunctionStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FunctionStats {
            invocations: get(&self.counters.invocations),
            failures: get(&self.counters.failures),
            timeouts: get(&self.counters.timeouts),
            refused: get(&self.counters.refused),
            running: self.running.load(Ordering::Relaxed) as u64,
            waiting: self.waiting.load(Ordering::Relaxed) as u64,
            restore_us_total: get(&self.counters.restore_us),
            run_us_total: get(&self.counters.run_us),
            faults_total: get(&self.counters.faults),
        }
    }
}

impl Learning {
    fn known(source: &Source, set: &WorkingSet) -> Result<Self, Error> {
        let plan = WorkingSetPlan::new(source, &set.read, &set.written)?;
        Ok(Self::Known {
            pages: set.pages(),
            plan: Arc::new(plan),
        })
    }
}

/// What enough of the runs touched, in the order in which the first of them did.
fn agreed(runs: &[WorkingSet]) -> WorkingSet {
    let mut touched: HashMap<u64, usize> = HashMap::new();
    let mut written: HashMap<u64, usize> = HashMap::new();
    for run in runs {
        for &page in &run.order {
            *touched.entry(page).or_default() += 1;
        }
        for page in run.written.iter().cloned().flatten() {
            *written.entry(page).or_default() += 1;
        }
    }
    let enough = |counts: &HashMap<u64, usize>, page: &u64| {
        counts
            .get(page)
            .is_some_and(|&count| count >= AGREEING_RUNS)
    };
    let order = runs.iter().flat_map(|run| run.order.iter().copied());
    WorkingSet::from_touched(
        order.filter(|page| enough(&touched, page)),
        written
            .keys()
            .copied()
            .filter(|page| enough(&written, page)),
    )
}

/// Names addresses by the stored image's symbols, which are read when the first name is asked for.
fn namer(
    store: Store,
    name: FunctionName,
    id: dormouse_snapshot::SnapshotId,
    load_address: u64,
) -> Namer {
    let symbols: OnceLock<Symbols> = OnceLock::new();
    Arc::new(move |address| {
        let symbols = symbols.get_or_init(|| {
            let snapshot = store.open_id::<SavedFunction>(&name, &id).ok();
            let file = snapshot.and_then(|snapshot| snapshot.image().ok());
            let image = file.and_then(|file| GuestImage::parse(&file).ok());
            image
                .map(|image| image.symbols(load_address))
                .unwrap_or_default()
        });
        symbols.name(address)
    })
}
