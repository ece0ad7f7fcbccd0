//! Instances of functions: the only composer of [`dormouse_vmm`], [`dormouse_snapshot`] and
//! [`dormouse_pager`].
//!
//! Outside, everything is `async` and message-shaped: a request's bytes and a deadline in, an
//! [`Outcome`] out. Inside, every VM lives on an OS thread of its own.
#![forbid(unsafe_code)]

mod admission;
mod allowance;
mod backoff;
mod budget;
mod catalog;
mod cold;
mod config;
mod console;
mod crossover;
mod damage;
mod deploy;
mod desk;
mod engine;
mod error;
mod function;
mod group;
mod host_memory;
mod ids;
#[cfg(test)]
#[path = "../tests/images/mod.rs"]
mod images;
mod instance;
mod interrupters;
mod layouts;
mod learning;
mod loading;
mod machine;
mod mailbox;
mod message;
mod moment;
mod pace;
mod paging;
mod pool;
mod room;
mod saved;
mod stats;
mod tasks;
mod template;
mod traffic;
mod tune;
mod turns;
mod verify;
mod warm;
mod worker;

pub use admission::Lease;
pub use config::{FunctionConfig, PoolConfig};
pub use deploy::SavedFunction;
pub use dormouse_vmm::{Crash, CrashKind};
pub use engine::{Engine, Parts};
pub use error::{Error, Failure};
pub use message::{Answer, Header, Outcome, Request, Start, StartType, Timings};
pub use paging::Paging;
pub use pool::Pool;
pub use stats::{Deployed, FunctionInfo, FunctionStats, PoolStats};
pub use tune::{Spread, TuneConfig, TuneRow, Tuned, set_paging, tune};
pub use verify::Verify;
pub use warm::{MAX_WARM_RUNS, Warmed};
pub use worker::{Isolation, WorkerProgram, work};
