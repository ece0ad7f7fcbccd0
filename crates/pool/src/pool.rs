//! The pool: functions by name, limits, and the way in.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use dormouse_snapshot::{Digest, Entry, FunctionName, Manifest, Store};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{FunctionConfig, PoolConfig};
use crate::deploy;
use crate::error::Error;
use crate::function::Function;
use crate::instance::{Instance, Permits};
use crate::mailbox::Encoded;
use crate::message::{Outcome, Request, StartType};
use crate::stats::{Deployed, FunctionInfo, FunctionStats, PoolStats};

/// Functions of one store, ready to be invoked. A cheap handle.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    config: PoolConfig,
    functions: RwLock<HashMap<FunctionName, Arc<Function>>>,
    /// One opening at a time: it reads a snapshot's memory, and two of the same would do it twice.
    opening: tokio::sync::Mutex<()>,
    /// Cold boots at a time: each keeps a core busy for as long as it takes.
    booting: Semaphore,
    permits: Arc<Semaphore>,
    draining: AtomicBool,
}

/// The right to invoke a function once, with the instance to do it.
pub struct Lease {
    function: Arc<Function>,
    instance: Instance,
    permits: Permits,
    start: StartType,
    arrival: Instant,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("store", &self.inner.store)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("function", self.function.name())
            .finish_non_exhaustive()
    }
}

/// Runs blocking work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::internal("running blocking work")(panic.into())),
    }
}

impl Pool {
    /// Opens a pool over a store. Nothing is read yet: functions are opened when they are first
    /// used.
    #[must_use]
    pub fn new(store: Store, config: PoolConfig) -> Self {
        let inner = Inner {
            store,
            functions: RwLock::default(),
            opening: tokio::sync::Mutex::new(()),
            booting: Semaphore::new(
                std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            ),
            permits: Arc::new(Semaphore::new(config.max_concurrency)),
            draining: AtomicBool::new(false),
            config,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Boots `image` cold, snapshots it and publishes the snapshot as `name`. Where the newest
    /// snapshot of that name has the same image and configuration, nothing is booted.
    ///
    /// # Errors
    /// [`Error::BadOption`], [`Error::BadImage`], [`Error::Init`], [`Error::Host`],
    /// [`Error::Store`]; nothing is published then.
    pub async fn deploy(
        &self,
        name: &str,
        image: Bytes,
        config: FunctionConfig,
    ) -> Result<Deployed, Error> {
        self.refuse_when_draining()?;
        let name = FunctionName::new(name)?;
        check(&config)?;
        let store = self.inner.store.clone();
        let digest_of = image.clone();
        let (existing, wanted, value) = {
            let (store, name, config) = (store.clone(), name.clone(), config.clone());
            blocking(move || {
                let value = serde_json::to_value(&config)
                    .map_err(|e| Error::internal("storing the configuration")(e.into()))?;
                // A snapshot whose image is damaged is none that may stay: a host that cannot restore
                // it would need the image.
                let existing = store.open_newest::<deploy::SavedFunction>(&name).ok();
                let existing = existing.filter(|snapshot| snapshot.image().is_ok());
                let manifest = existing.map(|snapshot| snapshot.manifest);
                Ok((manifest, Digest::of(&digest_of), value))
            })
            .await?
        };
        let is_same = existing.is_some_and(|manifest: Manifest| {
            manifest.image_digest == wanted && manifest.config == value
        });
        if is_same && self.open(&name).await.is_ok() {
            let function = self.function(name.as_str()).await?;
            return Ok(Deployed {
                function,
                created: false,
                boot_us: 0,
                snapshot_us: 0,
            });
        }
        let published = self.boot(&name, image, config).await?;
        // So that the first request finds memory loaded and shells built.
        self.open(&name).await?;
        let function = self.function(name.as_str()).await?;
        Ok(Deployed {
            function,
            created: true,
            boot_us: published.boot_us,
            snapshot_us: published.snapshot_us,
        })
    }

    /// Boots, publishes, and makes the next checkout use the new snapshot.
    async fn boot(
        &self,
        name: &FunctionName,
        image: Bytes,
        config: FunctionConfig,
    ) -> Result<deploy::Published, Error> {
        let _permit = self
            .inner
            .booting
            .acquire()
            .await
            .map_err(|_| Error::Draining)?;
        let (store, function) = (self.inner.store.clone(), name.clone());
        let published =
            blocking(move || deploy::boot_and_publish(&store, &function, &image, &config)).await?;
        // Requests that run on the old snapshot finish there.
        self.write_functions(|functions| functions.remove(name));
        tracing::info!(function = %name, snapshot = %published.id, boot_us = published.boot_us, "published");
        Ok(published)
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
            .opened(&manifest.function)
            .filter(|open| open.manifest().id == manifest.id);
        FunctionInfo {
            name: manifest.function.to_string(),
            snapshot: manifest.id.to_string(),
            created_unix_ms: manifest.created_unix_ms,
            image_digest: manifest.image_digest.to_string(),
            image_bytes: manifest.image_bytes,
            config: serde_json::from_value(manifest.config.clone()).unwrap_or_default(),
            memory_bytes: manifest.memory_bytes,
            data_bytes: manifest.data_pages * dormouse_snapshot::PAGE_BYTES as u64,
            working_set_pages: open.as_ref().map_or(0, |open| open.working_set_pages()),
            stats: open.map_or_else(FunctionStats::default, |open| open.stats()),
        }
    }

    /// Removes a function and all its snapshots. Invocations that run now finish.
    ///
    /// # Errors
    /// As [`Pool::function`].
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let name = FunctionName::new(name)?;
        let (store, stored) = (self.inner.store.clone(), name.clone());
        blocking(move || Ok(store.remove(&stored)?)).await?;
        self.write_functions(|functions| functions.remove(&name));
        Ok(())
    }

    /// Waits for the right to invoke a function: for its turn, and for an instance. Opens the
    /// function's snapshot at its first use; where that cannot be restored on this host, boots the
    /// function cold from the stored image.
    ///
    /// # Errors
    /// [`Error::UnknownFunction`], [`Error::QueueFull`], [`Error::QueueTimeout`],
    /// [`Error::Draining`], [`Error::Store`], [`Error::Host`].
    pub async fn checkout(&self, name: &str) -> Result<Lease, Error> {
        let arrival = Instant::now();
        self.refuse_when_draining()?;
        let name = FunctionName::new(name)?;
        let (function, start) = match self.opened(&name) {
            Some(function) => (function, StartType::Restored),
            None => match self.open(&name).await {
                Err(error) if error.is_not_restorable() => {
                    tracing::info!(function = %name, %error, "booting cold");
                    (self.reboot(&name).await?, StartType::Cold)
                }
                other => (other?, StartType::Restored),
            },
        };
        let permits = self.wait_for_turn(&function).await?;
        let instance = function.instance()?;
        Ok(Lease {
            function,
            instance,
            permits,
            start,
            arrival,
        })
    }

    async fn wait_for_turn(&self, function: &Arc<Function>) -> Result<Permits, Error> {
        let own = Arc::clone(&function.permits);
        let all = Arc::clone(&self.inner.permits);
        if let Ok(own) = Arc::clone(&own).try_acquire_owned()
            && let Ok(all) = Arc::clone(&all).try_acquire_owned()
        {
            return Ok(Permits::new(function, own, all));
        }
        let config = &self.inner.config;
        let waiting = Waiting::new(function);
        if waiting.count > config.max_queue {
            function.refuse();
            return Err(Error::QueueFull {
                name: function.name().to_string(),
                waiting: config.max_queue,
                retry_after: std::time::Duration::from_secs(1),
            });
        }
        let both = async {
            // The function's own first: whoever waits there holds nothing that others need.
            let own: OwnedSemaphorePermit =
                own.acquire_owned().await.map_err(|_| Error::Draining)?;
            let all = all.acquire_owned().await.map_err(|_| Error::Draining)?;
            Ok(Permits::new(function, own, all))
        };
        match tokio::time::timeout(config.queue_timeout, both).await {
            Ok(permits) => permits,
            Err(_) => {
                function.refuse();
                Err(Error::QueueTimeout {
                    name: function.name().to_string(),
                    waited: config.queue_timeout,
                })
            }
        }
    }

    fn opened(&self, name: &FunctionName) -> Option<Arc<Function>> {
        let functions = self
            .inner
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        functions.get(name).cloned()
    }

    fn write_functions<T>(
        &self,
        change: impl FnOnce(&mut HashMap<FunctionName, Arc<Function>>) -> T,
    ) -> T {
        change(
            &mut self
                .inner
                .functions
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    async fn open(&self, name: &FunctionName) -> Result<Arc<Function>, Error> {
        let _one = self.inner.opening.lock().await;
        if let Some(function) = self.opened(name) {
            return Ok(function);
        }
        let (store, ahead) = (self.inner.store.clone(), self.inner.config.shells_ahead);
        let wanted = name.clone();
        let function = blocking(move || Function::open(&store, &wanted, ahead)).await?;
        self.write_functions(|functions| functions.insert(name.clone(), Arc::clone(&function)));
        Ok(function)
    }

    /// Makes a new snapshot from the image that is stored with the old one.
    async fn reboot(&self, name: &FunctionName) -> Result<Arc<Function>, Error> {
        let (store, wanted) = (self.inner.store.clone(), name.clone());
        let (image, config) = blocking(move || {
            let snapshot = store.open_newest::<deploy::SavedFunction>(&wanted)?;
            let config = serde_json::from_value(snapshot.manifest.config.clone())
                .map_err(|e| Error::internal("reading the function's configuration")(e.into()))?;
            Ok((Bytes::from(snapshot.image()?), config))
        })
        .await?;
        self.boot(name, image, config).await?;
        self.open(name).await
    }

    fn refuse_when_draining(&self) -> Result<(), Error> {
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

    /// Refuses new work, waits for what runs, and ends all instances.
    pub async fn drain(&self) {
        self.inner.draining.store(true, Ordering::Relaxed);
        let all = u32::try_from(self.inner.config.max_concurrency).unwrap_or(u32::MAX);
        let _idle = self.inner.permits.acquire_many(all).await;
        self.write_functions(HashMap::clear);
    }

    /// What the pool does now.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let functions = self
            .inner
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut stats: Vec<_> = functions
            .iter()
            .map(|(name, function)| (name.to_string(), function.stats()))
            .collect();
        stats.sort_by(|a, b| a.0.cmp(&b.0));
        PoolStats {
            running: stats.iter().map(|(_, stats)| stats.running).sum(),
            waiting: stats.iter().map(|(_, stats)| stats.waiting).sum(),
            shells: functions
                .values()
                .map(|function| function.idle_instances() as u64)
                .sum(),
            functions: stats,
        }
    }
}

impl Lease {
    /// Runs the function on `request`, for its configured time at most. Should the caller stop
    /// waiting, the invocation ends by itself and is discarded.
    ///
    /// # Errors
    /// [`Error::RequestTooLarge`], or what kept Dormouse (not the function) from running it.
    pub async fn invoke(self, request: Request) -> Result<Outcome, Error> {
        let request = match Encoded::new(&request) {
            Ok(request) => request,
            Err(error) => {
                self.function.park(self.instance);
                return Err(error);
            }
        };
        let answer = self
            .instance
            .send(request, self.start, self.arrival, self.permits);
        answer.await.unwrap_or_else(|_| {
            Err(Error::Internal {
                operation: "running a guest",
                reason: "the instance's thread ended; see the log".to_owned(),
            })
        })
    }
}

/// Counts a waiting request for as long as it lives.
struct Waiting<'a> {
    function: &'a Function,
    count: usize,
}

impl<'a> Waiting<'a> {
    fn new(function: &'a Function) -> Self {
        let count = function.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        Self { function, count }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.function.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Checks what no other part checks.
fn check(config: &FunctionConfig) -> Result<(), Error> {
    let day_ms = 24 * 3600 * 1000;
    let options = [
        ("timeout_ms", config.timeout_ms, day_ms),
        ("init_timeout_ms", config.init_timeout_ms, day_ms),
        ("concurrency", config.concurrency as u64, 4096),
    ];
    for (option, value, limit) in options {
        if !(1..=limit).contains(&value) {
            return Err(Error::BadOption {
                option,
                value: value.to_string(),
                reason: format!("it must be from 1 to {limit}"),
            });
        }
    }
    Ok(())
}
