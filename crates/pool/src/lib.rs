//! Instances of functions: the only composer of [`dormouse_vmm`], [`dormouse_snapshot`] and
//! [`dormouse_pager`].
//!
//! Outside, everything is `async` and message-shaped: a request's bytes and a deadline in, an
//! [`Outcome`] out. Inside, every VM lives on an OS thread of its own.
#![forbid(unsafe_code)]

mod catalog;
mod config;
mod console;
mod crossover;
mod deploy;
mod engine;
mod error;
mod function;
mod instance;
mod interrupters;
mod learning;
mod machine;
mod mailbox;
mod message;
mod pool;
mod stats;

pub use config::{FunctionConfig, PoolConfig};
pub use engine::{Engine, Parts};
pub use error::{Error, Failure};
pub use message::{Answer, Header, Outcome, Request, StartType, Timings};
pub use pool::{Lease, Pool};
pub use stats::{Deployed, FunctionInfo, FunctionStats, PoolStats};
