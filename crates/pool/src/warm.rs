//! Warming: a clone answers some requests and is snapshotted again, as a layer on the snapshot that it
//! came from.
//!
//! ```text
//! base ── restore ──► run ──► run ──► … ──► "asks for the next request" ── save ──► layer
//! ```
//!
//! The runs are not rolled back: caches that they fill and code that they bring in are what the layer
//! is for. Its clones differ from each other as those of any snapshot: the guest wakes up with another
//! generation and fresh random bytes, since those of the runs are taken out, and the kernel's pool is
//! made to reseed. Its hooks for after a restore run for each of the requests, as they do in clones; those
//! for before the snapshot ran once, when the function was deployed.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dormouse_pager::{Pager, PagerConfig, Policy};
use dormouse_snapshot::{
    Draft, FunctionName, MemoryDraft, Snapshot, SnapshotId, SnapshotRef, Store,
};
use dormouse_vmm::layout::PAGE_BYTES;
use dormouse_vmm::{GuestImage, Shell, Vm};
use serde::Serialize;

use crate::config::{FunctionConfig, PoolConfig};
use crate::console::Tail;
use crate::deploy::{SavedFunction, elapsed_us};
use crate::error::Error;
use crate::function::Function;
use crate::interrupters::Registered;
use crate::loading::Shared;
use crate::machine::{answer, envelope};
use crate::mailbox::Encoded;
use crate::message::Request;
use crate::pool::Pool;
use crate::stats::FunctionInfo;
use crate::tasks::{blocking, detached};
use crate::verify::Verify;

/// The most requests that a function can be warmed with at once.
pub const MAX_WARM_RUNS: u32 = 10_000;

/// What warming a function came to.
#[derive(Debug, Clone, Serialize)]
pub struct Warmed {
    /// The function as it is now: its newest snapshot is the warmed one.
    pub function: FunctionInfo,
    /// The snapshot that it is a layer on, as `name@id`.
    pub parent: String,
    /// How many requests were answered.
    pub runs: u32,
    /// How long the first of them ran.
    pub first_run_us: u64,
    /// How long the last of them ran.
    pub last_run_us: u64,
    /// Restoring the clone and all runs.
    pub warm_us: u64,
    /// Saving and publishing.
    pub snapshot_us: u64,
}

/// What is to be run, and for how long at most.
struct Warming {
    request: Encoded,
    runs: u32,
    limit: Duration,
    /// Gone where nobody waits for it any more.
    caller: Weak<()>,
}

/// A finished layer.
struct Layered {
    id: SnapshotId,
    parent: SnapshotRef,
    first_run_us: u64,
    last_run_us: u64,
    warm_us: u64,
    snapshot_us: u64,
}

impl Pool {
    /// Restores a clone of `from`, or of the newest snapshot of `name`, lets it answer `request`
    /// `runs` times without rolling it back, and publishes it as the newest snapshot of `name`: a
    /// layer on the one that it came from.
    ///
    /// The request, the last answer and the random bytes of the runs are taken out of the mailbox and
    /// the request's buffer before. What the function itself keeps of them, freed memory included,
    /// becomes part of the snapshot and so of every clone: warm with nothing secret.
    ///
    /// # Errors
    /// [`Error::BadOption`] for an impossible name or number, [`Error::UnknownFunction`],
    /// [`Error::UnknownSnapshot`],
    /// [`Error::RequestTooLarge`]; [`Error::Warming`] where a run fails or is answered with a status
    /// of 500 or more, or where all runs together take longer than [`PoolConfig::warm_timeout`];
    /// [`Error::Host`] where the snapshot cannot be restored here; [`Error::DeploysFull`],
    /// [`Error::OverBudget`], [`Error::LowMemory`], [`Error::Store`], [`Error::Draining`]. Nothing is
    /// published then, unless it is the new snapshot that cannot be opened: it is there, and opened by
    /// the next request.
    ///
    /// Where the caller stops waiting, no further run begins, and nothing is published.
    pub async fn warm(
        &self,
        name: &str,
        runs: u32,
        request: Request,
        from: Option<SnapshotRef>,
    ) -> Result<Warmed, Error> {
        self.refuse_when_draining()?;
        let name = FunctionName::new(name)?;
        if !(1..=MAX_WARM_RUNS).contains(&runs) {
            return Err(Error::BadOption {
                option: "runs",
                value: runs.to_string(),
                reason: format!("it must be from 1 to {MAX_WARM_RUNS}"),
            });
        }
        let caller = Arc::new(());
        let warming = Warming {
            request: Encoded::new(&request)?,
            runs,
            limit: self.inner.config.warm_timeout,
            caller: Arc::downgrade(&caller),
        };
        let base = from.as_ref().map_or(&name, |from| &from.function);
        self.must_be_stored(base).await?;
        let place = self.place_to_deploy()?;
        let pool = self.clone();
        let warmed = detached(async move {
            let _place = place;
            pool.warm_here(&name, warming, from).await
        })
        .await;
        drop(caller);
        warmed
    }

    /// The snapshot that `text` names: `name` for the newest one, `name@id`, `name@number` or
    /// `name:tag`.
    ///
    /// # Errors
    /// [`Error::BadOption`] where it names none, [`Error::UnknownFunction`],
    /// [`Error::UnknownSnapshot`], [`Error::Store`].
    pub async fn snapshot_ref(&self, text: &str) -> Result<SnapshotRef, Error> {
        let (store, reference) = (self.inner.store.clone(), text.parse()?);
        blocking(move || Ok(store.resolve(&reference)?)).await
    }

    async fn warm_here(
        &self,
        name: &FunctionName,
        warming: Warming,
        from: Option<SnapshotRef>,
    ) -> Result<Warmed, Error> {
        let slot = self.inner.functions.slot(name);
        let _gate = slot.gate.lock().await;
        let runs = warming.runs;
        let layered = self.publish_layer(name, warming, from).await?;
        // Requests that run on the old snapshot finish there.
        slot.set(None);
        tracing::info!(function = %name, snapshot = %layered.id, parent = %layered.parent, runs, "warmed");
        self.load(name, &slot).await?;
        Ok(Warmed {
            function: self.function(name.as_str()).await?,
            parent: layered.parent.to_string(),
            runs,
            first_run_us: layered.first_run_us,
            last_run_us: layered.last_run_us,
            warm_us: layered.warm_us,
            snapshot_us: layered.snapshot_us,
        })
    }

    /// Warms a clone and publishes it. For the holder of the gate.
    async fn publish_layer(
        &self,
        name: &FunctionName,
        warming: Warming,
        from: Option<SnapshotRef>,
    ) -> Result<Layered, Error> {
        let permit = self.inner.booting.acquire().await;
        let _permit = permit.map_err(|_| Error::Draining)?;
        self.refuse_when_draining()?;
        let (store, newest) = (self.inner.store.clone(), name.clone());
        let snapshot: Snapshot<SavedFunction> = blocking(move || {
            Ok(match from {
                Some(from) => store.open_id(&from.function, &from.id)?,
                None => store.open_newest(&newest)?,
            })
        })
        .await?;
        let memory_bytes = snapshot.manifest.memory_bytes;
        let _charge = self.memory_to_boot(name, memory_bytes).await?;
        let (store, function, shared) = (self.inner.store.clone(), name.clone(), self.shared());
        blocking(move || warm_and_publish(&store, &function, snapshot, &warming, &shared)).await
    }
}

/// Blocks until all is done.
fn warm_and_publish(
    store: &Store,
    name: &FunctionName,
    snapshot: Snapshot<SavedFunction>,
    warming: &Warming,
    shared: &Shared,
) -> Result<Layered, Error> {
    let begun = Instant::now();
    let config = FunctionConfig::stored(&snapshot.manifest)?;
    let host = snapshot.manifest.host.clone();
    let file = snapshot.image()?;
    let alone = PoolConfig {
        shells_ahead: 0,
        rolls_back: false,
        // Damage must not get into another snapshot, where it would pass for good.
        verify: Verify::Always,
        ..PoolConfig::default()
    };
    let function = Function::open(store, snapshot, &alone, shared)?;
    let mut clone = WarmClone::restore(&function)?;
    let Warming { request, runs, .. } = warming;
    let (mut first_run_us, mut last_run_us) = (None, 0);
    for run in 1..=*runs {
        let took = match warming.left(begun) {
            Ok(left) => clone.run(&function, request, left)?,
            Err(reason) => Err(reason),
        };
        last_run_us = took.map_err(|reason| Error::Warming {
            run,
            runs: *runs,
            reason,
            console: clone.console.text(),
        })?;
        first_run_us.get_or_insert(last_run_us);
    }
    let warm_us = elapsed_us(begun);

    let begun = Instant::now();
    let WarmClone { vm, pager, .. } = &mut clone;
    let symbols = GuestImage::parse(&file)?.symbols(vm.load_address());
    let mailbox = function.state().mailbox;
    let state = SavedFunction {
        vm: vm.save(&symbols)?,
        mailbox,
    };
    mailbox.clear(vm, request)?;
    let ram = vm.shell().ram();
    let written = pager.touched()?.written;
    // What cannot be brought in must not be published as zeros.
    pager.populate()?;
    if let Some(error) = pager.take_error() {
        return Err(error.into());
    }
    let mut read = |first_page: u64, buffer: &mut [u8]| {
        let address = ram.base() + first_page * PAGE_BYTES;
        ram.read(address, buffer).map_err(std::io::Error::other)
    };
    let draft = Draft {
        created_unix_ms: dormouse_vmm::real_time_unix_ns() / 1_000_000,
        host,
        config: serde_json::to_value(&config)
            .map_err(|e| Error::internal("storing the configuration")(e.into()))?,
        state: &state,
        memory: MemoryDraft {
            pages: ram.len() / PAGE_BYTES,
            resident: [function.source().data(), &written].concat(),
            read: &mut read,
        },
        image: &file,
        parent: Some(function.reference().clone()),
        compression: config.compression,
    };
    let id = store.publish(name, draft)?;
    Ok(Layered {
        id,
        parent: function.reference().clone(),
        first_run_us: first_run_us.unwrap_or(0),
        last_run_us,
        warm_us,
        snapshot_us: elapsed_us(begun),
    })
}

impl Warming {
    /// How much time there is for the next run, since it was all begun then, or why there is none.
    fn left(&self, begun: Instant) -> Result<Duration, String> {
        if self.caller.strong_count() == 0 {
            return Err("nobody waits for it any more".to_owned());
        }
        let left = self.limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            let limit = self.limit;
            return Err(format!(
                "all runs together may take {limit:?} (--warm-timeout)"
            ));
        }
        Ok(left)
    }
}

/// A clone that is not rolled back. Its runs must all be on one thread.
struct WarmClone {
    vm: Vm,
    pager: Pager,
    console: Tail,
    _registered: Registered,
}

impl WarmClone {
    fn restore(function: &Function) -> Result<Self, Error> {
        let shell = Shell::new(function.state().vm.placement())?;
        let interrupter = shell.interrupter();
        let registered = function.guests.register(interrupter.clone());
        let mut pager = Pager::new(PagerConfig {
            name: function.name().to_string(),
            on_error: Some(Arc::new(move || interrupter.interrupt())),
            ..PagerConfig::default()
        })?;
        function.wait_until_unique();
        let region = Arc::clone(shell.ram().region());
        pager.attach(&region, function.source(), &Policy::Lazy)?;
        let console = Tail::default();
        let output = Box::new(console.clone());
        let vm = Vm::restore(shell, &function.state().vm, output, function.namer())?;
        Ok(Self {
            vm,
            pager,
            console,
            _registered: registered,
        })
    }

    /// Answers a request, in `left` at most. Tells how long that took, microseconds, or how the
    /// function failed.
    fn run(
        &mut self,
        function: &Function,
        request: &Encoded,
        left: Duration,
    ) -> Result<Result<u64, String>, Error> {
        let limit = function.timeout().min(left);
        let mailbox = &function.state().mailbox;
        let asked = envelope(limit)?;
        let put = mailbox.put(&self.vm, request, &asked);
        let begun = Instant::now();
        let result = match put {
            Ok(()) => {
                let stop = self.vm.run(begun + limit)?;
                answer(&self.vm, stop, limit, &asked, &self.console).0
            }
            Err(failure) => Ok(Err(failure)),
        };
        let run_us = elapsed_us(begun);
        if let Some(error) = self.pager.take_error() {
            return Err(error.into());
        }
        Ok(match result? {
            Ok(answer) if answer.status < 500 => Ok(run_us),
            Ok(answer) => Err(format!("it answered with the status {}", answer.status)),
            Err(failure) => Err(failure.to_string()),
        })
    }
}
