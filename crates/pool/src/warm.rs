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

use std::fs::File;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dormouse_pager::{Pager, PagerConfig, Policy};
use dormouse_snapshot::{FunctionName, Snapshot, SnapshotId, SnapshotRef, Store};
use dormouse_vmm::{GuestImage, Shell, Vm};
use serde::{Deserialize, Serialize};

use crate::config::PoolConfig;
use crate::console::Tail;
use crate::deploy::{SavedFunction, elapsed_us};
use crate::error::Error;
use crate::ids::Ids;
use crate::interrupters::Registered;
use crate::layouts;
use crate::loading::{Loaded, Shared};
use crate::machine::answer;
use crate::mailbox::Encoded;
use crate::message::Request;
use crate::pool::Pool;
use crate::saved::{Saved, memory_file};
use crate::stats::FunctionInfo;
use crate::tasks::{blocking, detached};
use crate::template::Template;
use crate::verify::Verify;
use crate::worker::confine_pager;

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

/// What is to be run, for whom.
pub(crate) struct Warming {
    pub(crate) runs: WarmingRuns,
    /// Gone where nobody waits for it any more.
    pub(crate) caller: Weak<()>,
}

/// What is to be run, and for how long at most.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WarmingRuns {
    request: Encoded,
    runs: u32,
    limit_ms: u64,
    ids: Ids,
}

/// Why no further run begins.
pub(crate) const NOBODY_WAITS: &str = "nobody waits for it any more";

impl Warming {
    /// How a warming ends whose caller went away.
    pub(crate) fn abandoned(&self) -> Error {
        Error::Warming {
            run: 0,
            runs: self.runs.runs,
            reason: NOBODY_WAITS.to_owned(),
            console: String::new(),
        }
    }
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
    /// [`Error::BadOption`] for an impossible name or number, and for a snapshot that is one of several
    /// layouts; [`Error::UnknownFunction`], [`Error::UnknownSnapshot`],
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
                option: "runs".into(),
                value: runs.to_string(),
                reason: format!("it must be from 1 to {MAX_WARM_RUNS}"),
            });
        }
        let caller = Arc::new(());
        let warming = Warming {
            runs: WarmingRuns {
                request: Encoded::new(&request)?,
                runs,
                limit_ms: u64::try_from(self.inner.config.warm_timeout.as_millis())
                    .unwrap_or(u64::MAX),
                ids: Ids::block(runs),
            },
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
        let runs = warming.runs.runs;
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
        layouts::refuse(&snapshot.manifest, "warm it")?;
        let memory_bytes = snapshot.manifest.memory_bytes;
        let _charge = self.memory_to_boot(name, memory_bytes).await?;
        let (store, function, shared) = (self.inner.store.clone(), name.clone(), self.shared());
        blocking(move || warm_and_publish(&store, &function, snapshot, warming, &shared)).await
    }
}

/// Blocks until all is done.
fn warm_and_publish(
    store: &Store,
    name: &FunctionName,
    snapshot: Snapshot<SavedFunction>,
    warming: Warming,
    shared: &Shared,
) -> Result<Layered, Error> {
    let begun = Instant::now();
    let file = snapshot.image()?;
    let alone = PoolConfig {
        shells_ahead: 0,
        rolls_back: false,
        // Damage must not get into another snapshot, where it would pass for good.
        verify: Verify::Always,
        ..PoolConfig::default()
    };
    let loaded = Loaded::new(snapshot, &alone, shared)?;
    let parent = loaded.reference.clone();
    let memory = memory_file("dormouse-warmed")?;
    let warmed = shared
        .workers
        .warm(&loaded, &file, warming, &shared.guests, &memory)?;
    let warm_us = elapsed_us(begun);
    let config = &loaded.config;
    let saved = &warmed.saved;
    let stored = (config, None);
    let id = saved.publish(store, name, stored, &file, &memory, Some(parent.clone()))?;
    Ok(Layered {
        id,
        parent,
        first_run_us: warmed.first_run_us,
        last_run_us: warmed.last_run_us,
        warm_us,
        snapshot_us: elapsed_us(begun).saturating_sub(warm_us),
    })
}

/// A clone that answered its requests, saved.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WarmedClone {
    saved: Saved,
    first_run_us: u64,
    last_run_us: u64,
}

impl WarmedClone {
    pub(crate) fn saved(&self) -> &Saved {
        &self.saved
    }
}

/// Restores a clone, has it answer all requests, and saves it, with its memory in `memory`. Blocks until
/// that is done.
///
/// # Errors
/// [`Error::Warming`], or what kept the clone from being restored, run or saved.
pub(crate) fn warm_up(
    template: &Template,
    file: &[u8],
    warming: &WarmingRuns,
    is_wanted: &dyn Fn() -> bool,
    memory: &File,
) -> Result<WarmedClone, Error> {
    let begun = Instant::now();
    let mut clone = WarmClone::restore(template)?;
    let WarmingRuns { request, runs, .. } = warming;
    let (mut first_run_us, mut last_run_us) = (None, 0);
    for run in 1..=*runs {
        let took = match warming.left(begun, is_wanted) {
            Ok(left) => clone.run(template, request, warming.ids.nth(run - 1), left)?,
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
    let WarmClone { vm, pager, .. } = &mut clone;
    let symbols = GuestImage::parse(file)?.symbols(vm.load_address());
    let mailbox = template.state().mailbox;
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
    let resident = [template.source().data(), &written].concat();
    Ok(WarmedClone {
        saved: Saved::new(state, ram, resident, memory)?,
        first_run_us: first_run_us.unwrap_or(0),
        last_run_us,
    })
}

impl WarmingRuns {
    /// How long all of them may take together.
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms)
    }

    /// How much time there is for the next run, since it was all begun then, or why there is none.
    fn left(&self, begun: Instant, is_wanted: &dyn Fn() -> bool) -> Result<Duration, String> {
        if !is_wanted() {
            return Err(NOBODY_WAITS.to_owned());
        }
        let limit = self.limit();
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
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
    fn restore(template: &Template) -> Result<Self, Error> {
        let shell = Shell::new(template.state().vm.placement())?;
        let interrupter = shell.interrupter();
        let stop = interrupter.clone();
        let registered = template.guests.register(move || stop.interrupt());
        let mut pager = Pager::new(PagerConfig {
            name: template.name().to_string(),
            on_error: Some(Arc::new(move || interrupter.interrupt())),
            on_start: Some(Arc::new(confine_pager)),
            ..PagerConfig::default()
        })?;
        template.wait_until_unique();
        let region = Arc::clone(shell.ram().region());
        pager.attach(&region, template.source(), &Policy::Lazy)?;
        let console = Tail::default();
        let output = Box::new(console.clone());
        let vm = Vm::restore(shell, &template.state().vm, output, template.namer())?;
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
        template: &Template,
        request: &Encoded,
        ids: Ids,
        left: Duration,
    ) -> Result<Result<u64, String>, Error> {
        let limit = template.timeout().min(left);
        let mailbox = &template.state().mailbox;
        let asked = ids.envelope(limit)?;
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
