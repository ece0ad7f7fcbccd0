//! Processes that guests run in.
//!
//! The process that serves holds neither KVM nor guest memory: each function's instances run in a
//! process of their own, as do a boot and a warming, which end with it. Such a *worker* is started ahead.
//! Before it hears of any function it opens KVM and userfaultfd, and then gives up the right to open
//! anything else (`dormouse_jail`). What it needs of a function comes through its socket: the plan of
//! its clones, and the snapshot's memory as a sealed file.
//!
//! ```text
//!   front                                       worker
//!   Spares ── spawn ──────────────────────────► opens, confines itself, "ready"
//!   Keeper ── template, memory file ──────────► Template
//!          ── instance, a socket of its own ──► Desk, Machine: a thread
//!   Instance ── request ──────────────────────► invoke
//!            ◄── answer, then how it waits ────
//!   Keeper  ◄── "may it hold more?" ──────────  (and pages that are not local, the image's symbols)
//! ```
//! Each instance has a socket of its own beside the worker's, so that a request wakes the thread that
//! answers it and no other. What a worker says is hostile, as what a guest says is.
//!
//! A worker that ends takes the requests with it that it runs. [`Keeper`] starts another in its place.

mod accounts;
mod fault;
mod filters;
mod inside;
mod keeper;
mod link;
mod log;
mod process;
mod wire;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use accounts::Account;
pub(crate) use fault::Fault;
pub(crate) use filters::confine_pager;
pub use inside::work;
pub(crate) use keeper::Keeper;
pub(crate) use link::{Link, within};
use process::{Help, Spares};

use crate::allowance::Allowance;
use crate::cold::{self, Cold, ColdJob};
use crate::config::{FunctionConfig, PoolConfig};
use crate::deploy;
use crate::error::Error;
use crate::interrupters::Interrupters;
use crate::loading::{Loaded, namer};
use crate::saved::{Saved, memory_file};
use crate::template::{Known, Plan, Template};
use crate::warm::{self, WarmedClone, Warming, WarmingRuns};

/// Where guests run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Isolation {
    /// In this process.
    #[default]
    None,
    /// Each function in a process of its own, which has nothing but what it needs.
    Process(WorkerProgram),
}

/// The program of a worker, which does nothing but call [`work`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerProgram {
    /// The executable.
    pub path: PathBuf,
    /// Its name, as lists of processes have it.
    pub name: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
}

/// How the guests of a pool are run.
#[derive(Debug, Clone)]
pub(crate) enum Workers {
    Here,
    Processes(Arc<Spares>),
}

/// What a worker is told. What travels beside it is said here.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Clones of a snapshot are wanted. Its memory file, where there is one.
    Template(Arc<Plan>),
    /// An image, and a file for the guest's memory.
    Boot(FunctionConfig),
    /// An image, a file for the guest's memory, and the snapshot's memory file, where there is one.
    Warm(Arc<Plan>, WarmingRuns),
    /// An image.
    Cold(ColdJob),
    /// Another instance is wanted. Its socket.
    Instance {
        number: u64,
    },
    Reply(Reply),
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// It is confined, by these layers, and waits for what it is to do.
    Ready(Result<String, Fault>),
    Ask(Ask),
    Template(Result<Known, Fault>),
    Booted(Result<(Saved, u64), Fault>),
    Warmed(Result<WarmedClone, Fault>),
    /// The guest of a cold start is ready and runs now.
    ColdBooted,
    Cold(Result<Cold, Fault>),
}

/// What a worker asks for while it works, one thing at a time.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// May an instance, or what is staged for all of them, hold so many bytes?
    Cover { instance: Option<u64>, bytes: u64 },
    /// The image, for its symbols.
    Image,
    /// Pages of the snapshot, where they are not in a file.
    Pages { first: u64, count: u64 },
}

/// What it is answered.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// So many bytes it may hold.
    Covered(u64),
    /// The image is beside it, unless it cannot be had.
    Image,
    Pages(Result<Vec<u8>, String>),
}

/// How long a boot may take beyond what the function may: to read the image and to save the guest.
const BEYOND_INIT: Duration = Duration::from_secs(60);

impl Workers {
    /// `budget_bytes` is what all instances may hold together.
    pub(crate) fn new(config: &PoolConfig, budget_bytes: u64) -> Self {
        // A pool that keeps no shells ready keeps no processes ready either.
        let ahead = config.shells_ahead > 0;
        match &config.isolation {
            Isolation::None => Self::Here,
            Isolation::Process(program) => {
                Self::Processes(Spares::new(program, ahead, budget_bytes))
            }
        }
    }

    /// As [`deploy::boot`].
    pub(crate) fn boot(
        &self,
        image: &[u8],
        config: &FunctionConfig,
        guests: &Interrupters,
        memory: &File,
    ) -> Result<(Saved, u64), Error> {
        let Self::Processes(spares) = self else {
            return deploy::boot(image, config, guests, memory);
        };
        let process = spares.take()?;
        let _registered = guests.register(process.stopper());
        let image = file_of(image)?;
        let order = Order::Boot(config.clone());
        process.send(&order, &[image.as_fd(), memory.as_fd()])?;
        let limit = Duration::from_millis(config.init_timeout_ms) + BEYOND_INIT;
        match process.converse(&Help::default(), limit, &|| true)? {
            Report::Booted(booted) => {
                let (saved, boot_us) = booted?;
                saved.check(config.memory_bytes)?;
                Ok((saved, boot_us))
            }
            other => Err(process.nonsense(&other)),
        }
    }

    /// As [`warm::warm_up`], of a snapshot that was loaded.
    pub(crate) fn warm(
        &self,
        loaded: &Loaded,
        image: &[u8],
        warming: Warming,
        guests: &Interrupters,
        memory: &File,
    ) -> Result<WarmedClone, Error> {
        let is_wanted = || warming.caller.strong_count() > 0;
        let plan = Arc::clone(&loaded.plan);
        let Self::Processes(spares) = self else {
            let named = image.to_vec();
            let namer = namer(plan.state.vm.load_address(), move || Some(named.clone()));
            let (backing, guests) = (loaded.backing(), guests.clone());
            let template = Template::new(plan, backing, namer, Allowance::unlimited(), guests)?;
            return warm::warm_up(&template, image, &warming.runs, &is_wanted, memory);
        };
        let abandoned = warming.abandoned();
        let process = spares.take()?;
        let _registered = guests.register(process.stopper());
        let image = file_of(image)?;
        let mut files = vec![image.as_fd(), memory.as_fd()];
        files.extend(loaded.file.as_ref().map(AsFd::as_fd));
        let limit = warming.runs.limit().saturating_add(BEYOND_INIT);
        process.send(&Order::Warm(plan, warming.runs), &files)?;
        let help = Help {
            pages: Some(loaded.pages.clone()),
            ..Help::default()
        };
        match process.converse(&help, limit, &is_wanted) {
            Ok(Report::Warmed(warmed)) => {
                let warmed = warmed?;
                warmed.saved().check(loaded.manifest.memory_bytes)?;
                Ok(warmed)
            }
            Ok(other) => Err(process.nonsense(&other)),
            Err(_) if !is_wanted() => Err(abandoned),
            Err(error) => Err(error),
        }
    }

    /// As [`cold::answer_cold`].
    pub(crate) fn cold(
        &self,
        image: &[u8],
        job: ColdJob,
        guests: &Interrupters,
        booted: impl FnOnce(),
    ) -> Result<Cold, Error> {
        let Self::Processes(spares) = self else {
            return cold::answer_cold(image, &job, guests, booted);
        };
        let process = spares.take()?;
        let _registered = guests.register(process.stopper());
        let image = file_of(image)?;
        let limit = job.limit() + BEYOND_INIT;
        process.send(&Order::Cold(job), &[image.as_fd()])?;
        let help = Help::default();
        let mut report = process.converse(&help, limit, &|| true)?;
        if matches!(report, Report::ColdBooted) {
            booted();
            report = process.converse(&help, limit, &|| true)?;
        }
        match report {
            Report::Cold(cold) => Ok(cold?),
            other => Err(process.nonsense(&other)),
        }
    }
}

/// A file in memory that holds `bytes`.
fn file_of(bytes: &[u8]) -> Result<File, Error> {
    let file = memory_file("dormouse-image")?;
    let written = file.write_all_at(bytes, 0);
    written.map_err(|e| Error::internal("copying an image")(e.into()))?;
    Ok(file)
}
