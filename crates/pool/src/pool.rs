//! The pool: functions by name, limits, and the way in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dormouse_snapshot::{Digest, Entry, FunctionName, Manifest, Store};
use tokio::sync::{RwLock, Semaphore};

use crate::budget::{self, Budget};
use crate::catalog::{Catalog, Slot};
use crate::config::{FunctionConfig, PoolConfig};
use crate::damage::Damages;
use crate::deploy::{Published, SavedFunction, elapsed_us};
use crate::error::Error;
use crate::group::Group;
use crate::host_memory::{self, HostMemory, Watch};
use crate::interrupters::Interrupters;
use crate::layouts;
use crate::loading::Shared;
use crate::message::{Preparation, Start};
use crate::stats::{Deployed, FunctionInfo, FunctionStats, PoolStats};
use crate::tasks::{blocking, detached};
use crate::template::Known;
use crate::turns::Turns;
use crate::worker::Workers;

/// Functions of one store, ready to be invoked. A cheap handle.
#[derive(Clone)]
pub struct Pool {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) config: PoolConfig,
    pub(crate) functions: Catalog,
    pub(crate) budget: Budget,
    /// Cold boots at a time: each keeps a core busy for as long as it takes.
    pub(crate) booting: Arc<Semaphore>,
    boots_at_once: usize,
    pub(crate) turns: Arc<Turns>,
    /// Deployments and warmings that run or wait.
    pub(crate) deploys: Arc<Semaphore>,
    _watch: Watch,
    guests: Interrupters,
    damages: Damages,
    workers: Workers,
    storing: Arc<RwLock<()>>,
    draining: AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("store", &self.inner.store)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Opens a pool over a store. Nothing is read yet: functions are opened when they are first
    /// used.
    #[must_use]
    pub fn new(store: Store, config: PoolConfig) -> Self {
        let boots_at_once = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let memory = Arc::new(HostMemory::default());
        let floor_bytes = config.memory_floor_bytes;
        let budget_bytes = config
            .memory_budget_bytes
            .unwrap_or_else(budget::usual_limit_bytes);
        let inner = |pool: &Weak<Inner>| Inner {
            _watch: host_memory::watch(pool, &memory, floor_bytes),
            store,
            functions: Catalog::default(),
            booting: Arc::new(Semaphore::new(boots_at_once)),
            boots_at_once,
            turns: Turns::new(config.max_concurrency),
            deploys: Arc::new(Semaphore::new(config.max_deploys)),
            guests: Interrupters::default(),
            damages: Damages::default(),
            workers: Workers::new(&config, budget_bytes),
            storing: Arc::default(),
            budget: Budget::new(budget_bytes, Arc::clone(&memory)),
            draining: AtomicBool::new(false),
            config,
        };
        Self {
            inner: Arc::new_cyclic(inner),
        }
    }

    /// Boots `image` cold, snapshots it and publishes the snapshot as `name`. Where the newest
    /// snapshot of that name has the same image and configuration, nothing is booted.
    ///
    /// # Errors
    /// [`Error::BadOption`], [`Error::BadImage`], [`Error::Init`], [`Error::Host`],
    /// [`Error::DeploysFull`], [`Error::OverBudget`], [`Error::LowMemory`], [`Error::Store`]; nothing
    /// is published then.
    pub async fn deploy(
        &self,
        name: &str,
        image: Bytes,
        config: FunctionConfig,
    ) -> Result<Deployed, Error> {
        self.refuse_when_draining()?;
        let name = FunctionName::new(name)?;
        config.check()?;
        let place = self.place_to_deploy()?;
        let pool = self.clone();
        detached(async move {
            let _place = place;
            let deployed = pool.deploy_here(&name, image, config).await;
            if deployed.is_err() {
                pool.inner.functions.forget(&name);
            }
            deployed
        })
        .await
    }

    async fn deploy_here(
        &self,
        name: &FunctionName,
        image: Bytes,
        config: FunctionConfig,
    ) -> Result<Deployed, Error> {
        let slot = self.inner.functions.slot(name);
        let mut boots = slot.gate.lock().await;
        // A snapshot that cannot be opened is made anew.
        let is_kept =
            self.is_deployed(name, &image, &config).await? && self.load_whole(name, &slot).await;
        let published = if is_kept {
            None
        } else {
            let published = self.boot(name, &slot, image, config).await?;
            boots.forget();
            // So that the first request finds memory loaded and shells built.
            self.load(name, &slot).await?;
            Some(published)
        };
        Ok(Deployed {
            function: self.function(name.as_str()).await?,
            created: published.is_some(),
            boot_us: published.as_ref().map_or(0, |published| published.boot_us),
            snapshot_us: published
                .as_ref()
                .map_or(0, |published| published.snapshot_us),
        })
    }

    /// Whether what `name` is served with is of this image with this configuration, and whole.
    async fn is_deployed(
        &self,
        name: &FunctionName,
        image: &Bytes,
        config: &FunctionConfig,
    ) -> Result<bool, Error> {
        let store = self.inner.store.clone();
        let (name, image, config) = (name.clone(), image.clone(), config.clone());
        blocking(move || {
            let Ok(newest) = store.open_newest::<SavedFunction>(&name) else {
                return Ok(false);
            };
            let is_same = FunctionConfig::stored(&newest.manifest)
                .is_ok_and(|stored| config.is_served_by(&stored));
            // A snapshot whose image is damaged is none that may stay: a host that cannot restore it
            // would need the image.
            Ok(newest.manifest.image_digest == Digest::of(&image)
                && is_same
                && newest.image().is_ok()
                && store.served(&name)?.len() == config.layouts as usize)
        })
        .await
    }

    /// Boots, publishes, and closes the function, so that its new snapshot is opened next. For the
    /// holder of the gate.
    async fn boot(
        &self,
        name: &FunctionName,
        slot: &Slot,
        image: Bytes,
        config: FunctionConfig,
    ) -> Result<Published, Error> {
        let permit = self.inner.booting.acquire().await;
        let _permit = permit.map_err(|_| Error::Draining)?;
        self.refuse_when_draining()?;
        let _charge = self.memory_to_boot(name, config.memory_bytes).await?;
        let (store, function) = (self.inner.store.clone(), name.clone());
        let shared = self.shared();
        let published = blocking(move || {
            layouts::boot_and_publish(&store, &function, &image, &config, &shared)
        })
        .await?;
        // Requests that run on the old snapshot finish there.
        slot.set(None);
        tracing::info!(function = %name, snapshot = %published.id, boot_us = published.boot_us, "published");
        Ok(published)
    }

    async fn open_newest(&self, name: &FunctionName) -> Result<Arc<Group>, Error> {
        let (store, config) = (self.inner.store.clone(), self.inner.config.clone());
        let (wanted, shared) = (name.clone(), self.shared());
        blocking(move || Group::open(&store, &wanted, &config, &shared)).await
    }

    /// What every function of this pool has a part in.
    pub(crate) fn shared(&self) -> Shared {
        Shared {
            guests: self.inner.guests.clone(),
            budget: self.inner.budget.clone(),
            damages: self.inner.damages.clone(),
            workers: self.inner.workers.clone(),
            storing: Arc::clone(&self.inner.storing),
        }
    }

    /// Opens the newest snapshot, if the function is not open. For the holder of the gate.
    pub(crate) async fn load(&self, name: &FunctionName, slot: &Slot) -> Result<Arc<Group>, Error> {
        if let Some(function) = slot.opened() {
            if function.check_undamaged().is_ok() {
                return Ok(function);
            }
            slot.set(None);
        }
        let function = match self.open_newest(name).await {
            Err(Error::OverBudget { needed_bytes, .. } | Error::LowMemory { needed_bytes, .. }) => {
                // What others give back may be enough for it.
                drop(self.wait_for(name, needed_bytes).await?);
                self.open_newest(name).await?
            }
            opened => opened?,
        };
        slot.set(Some(Arc::clone(&function)));
        Ok(function)
    }

    /// The same, with all layouts. False where the function cannot be opened, or lacks one of them.
    async fn load_whole(&self, name: &FunctionName, slot: &Slot) -> bool {
        if slot.opened().is_some_and(|group| !group.is_whole()) {
            slot.set(None);
        }
        let loaded = self.load(name, slot).await;
        loaded.is_ok_and(|group| group.is_whole())
    }

    /// All functions of the store, by name. Those whose newest snapshot is damaged are left out and
    /// logged.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn functions(&self) -> Result<Vec<FunctionInfo>, Error> {
        let store = self.inner.store.clone();
        let entries = blocking(move || Ok(store.list()?)).await?;
        let mut newest: Vec<Entry> = Vec::new();
        for entry in entries {
            match newest
                .iter_mut()
                .find(|known| known.function == entry.function)
            {
                Some(known) if known.id < entry.id => *known = entry,
                Some(_) => {}
                None => newest.push(entry),
            }
        }
        newest.sort_by(|a, b| a.function.cmp(&b.function));
        let infos = newest.into_iter().filter_map(|entry| match entry.manifest {
            Ok(manifest) => Some(self.info(&manifest)),
            Err(error) => {
                tracing::warn!(function = %entry.function, snapshot = %entry.id, %error, "damaged");
                None
            }
        });
        Ok(infos.collect())
    }

    /// One function.
    ///
    /// # Errors
    /// [`Error::UnknownFunction`], [`Error::BadOption`] for an impossible name, [`Error::Store`].
    pub async fn function(&self, name: &str) -> Result<FunctionInfo, Error> {
        let name = FunctionName::new(name)?;
        let store = self.inner.store.clone();
        let manifest = blocking(move || Ok(store.manifest(&name)?)).await?;
        Ok(self.info(&manifest))
    }

    fn info(&self, manifest: &Manifest) -> FunctionInfo {
        let open = self
            .inner
            .functions
            .opened(&manifest.function)
            .filter(|open| open.is_of(manifest.id));
        let known = open
            .as_ref()
            .map_or_else(Known::default, |open| open.newest().known());
        FunctionInfo {
            name: manifest.function.to_string(),
            snapshot: manifest.id.to_string(),
            created_unix_ms: manifest.created_unix_ms,
            image_digest: manifest.image_digest.to_string(),
            image_bytes: manifest.image_bytes,
            config: FunctionConfig::stored(manifest).unwrap_or_default(),
            memory_bytes: manifest.memory_bytes,
            data_bytes: manifest.data_pages * dormouse_snapshot::PAGE_BYTES as u64,
            working_set_pages: known.working_set_pages,
            working_set_drift: known.drift,
            stats: open.map_or_else(FunctionStats::default, |open| open.newest().traffic.stats()),
        }
    }

    /// Removes a function and all its snapshots. Invocations that run now finish.
    ///
    /// # Errors
    /// As [`Pool::function`]; [`Error::HasLayers`] where snapshots of other functions are layers on
    /// its own.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let name = FunctionName::new(name)?;
        self.must_be_stored(&name).await?;
        let slot = self.inner.functions.slot(&name);
        let pool = self.clone();
        detached(async move {
            let gate = slot.gate.lock().await;
            let (store, removed) = (pool.inner.store.clone(), name.clone());
            blocking(move || Ok(store.remove(&removed)?)).await?;
            slot.set(None);
            drop(gate);
            drop(slot);
            pool.inner.functions.forget(&name);
            Ok(())
        })
        .await
    }

    /// Opens a function for its first request here, which `start` can make this one; boots it cold
    /// where it must. Tells what was done for that.
    pub(crate) async fn open(
        &self,
        name: &FunctionName,
        start: Start,
    ) -> Result<(Arc<Group>, Preparation), Error> {
        self.must_be_stored(name).await?;
        let slot = self.inner.functions.slot(name);
        let config = &self.inner.config;
        let _waiter = slot.wait(name, config.max_queue)?;
        let (pool, wanted) = (self.clone(), name.clone());
        let opening = detached(async move {
            let mut boots = slot.gate.lock().await;
            let mut preparation = Preparation::default();
            if matches!(start, Start::First | Start::FirstUncached) {
                let begun = Instant::now();
                pool.close(&wanted, &slot, start).await?;
                preparation.clear_us = Some(elapsed_us(begun));
            }
            if let Some(function) = slot.opened() {
                return Ok((function, preparation));
            }
            let mut begun = Instant::now();
            let function = match pool.load(&wanted, &slot).await {
                Err(error) if error.is_not_restorable() => {
                    boots.check(&wanted, Instant::now())?;
                    tracing::info!(function = %wanted, %error, "booting cold");
                    let published = pool.reboot(&wanted, &slot).await;
                    let published =
                        published.inspect_err(|error| boots.note(error, Instant::now()))?;
                    boots.forget();
                    preparation.boot_us = Some(published.boot_us + published.snapshot_us);
                    begun = Instant::now();
                    pool.load(&wanted, &slot).await?
                }
                loaded => loaded?,
            };
            preparation.open_us = Some(elapsed_us(begun));
            Ok((function, preparation))
        });
        // What takes longer goes on, and later requests find it done.
        let opened = tokio::time::timeout(config.queue_timeout, opening).await;
        opened.unwrap_or_else(|_| Err(Error::queue_timeout(name, config.queue_timeout)))
    }

    /// Closes a function, as a deploy does, and waits until what is idle of it is gone; lets its files
    /// go from the page cache if `start` says so. Requests that run finish on what they have. For
    /// the holder of the gate.
    async fn close(&self, name: &FunctionName, slot: &Slot, start: Start) -> Result<(), Error> {
        let closed = slot.opened();
        slot.set(None);
        if let Some(function) = &closed {
            function.end_idle().await;
        }
        let (store, name) = (self.inner.store.clone(), name.clone());
        blocking(move || {
            drop(closed);
            if start == Start::FirstUncached {
                store.evict(&name)?;
            }
            Ok(())
        })
        .await
    }

    /// Refuses names that nothing is stored under, before anything is kept for them.
    pub(crate) async fn must_be_stored(&self, name: &FunctionName) -> Result<(), Error> {
        let (store, name) = (self.inner.store.clone(), name.clone());
        blocking(move || match store.manifest(&name) {
            Err(error @ dormouse_snapshot::Error::UnknownFunction { .. }) => Err(error.into()),
            _ => Ok(()),
        })
        .await
    }

    /// Makes a new snapshot from the image that is stored with the old one. For the holder of the
    /// gate.
    async fn reboot(&self, name: &FunctionName, slot: &Slot) -> Result<Published, Error> {
        let (store, wanted) = (self.inner.store.clone(), name.clone());
        let (image, config) = blocking(move || {
            let snapshot = store.open_newest::<SavedFunction>(&wanted)?;
            let config = FunctionConfig::stored(&snapshot.manifest)?;
            Ok((Bytes::from(snapshot.image()?), config))
        })
        .await?;
        self.boot(name, slot, image, config).await
    }

    pub(crate) fn refuse_when_draining(&self) -> Result<(), Error> {
        if self.is_draining() {
            Err(Error::Draining)
        } else {
            Ok(())
        }
    }

    /// True once [`Pool::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Relaxed)
    }

    /// Refuses new work, waits for what runs, boots and is stored, for `grace` at most, stops the guests
    /// that are left, and ends all instances.
    pub async fn drain(&self, grace: Duration) {
        /// A guest that begins to run just after it was stopped is stopped again.
        const STOP_EVERY: Duration = Duration::from_millis(100);

        self.inner.draining.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        let count = |permits: usize| u32::try_from(permits).unwrap_or(u32::MAX);
        let mut patience = grace;
        loop {
            let idle = async {
                self.inner.turns.idle().await;
                let boots = count(self.inner.boots_at_once);
                let _boots = self.inner.booting.acquire_many(boots).await;
            };
            if tokio::time::timeout(patience, idle).await.is_ok() {
                break;
            }
            self.inner.guests.interrupt_all();
            patience = STOP_EVERY;
        }
        // What was learned is the next pool's. A disk that hangs keeps nobody for longer than a guest.
        let left = grace.saturating_sub(begun.elapsed());
        let _ = tokio::time::timeout(left, self.inner.storing.write()).await;
        self.inner.functions.clear();
    }

    /// What the pool does now.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let functions = self.inner.functions.all();
        let stats: Vec<_> = functions
            .iter()
            .map(|(name, function)| (name.to_string(), function.newest().traffic.stats()))
            .collect();
        PoolStats {
            running: stats.iter().map(|(_, stats)| stats.running).sum(),
            waiting: stats.iter().map(|(_, stats)| stats.waiting).sum(),
            shells: functions
                .iter()
                .map(|(_, function)| function.idle_instances() as u64)
                .sum(),
            memory_budget_bytes: self.inner.budget.limit_bytes(),
            memory_held_bytes: self.inner.budget.held_bytes(),
            memory_is_low: self.inner.budget.host().is_low(),
            refused_over_budget: self.inner.budget.refused_over_budget(),
            refused_low_memory: self.inner.budget.refused_low_memory(),
            damaged_snapshots: self.inner.damages.count(),
            functions: stats,
        }
    }
}
