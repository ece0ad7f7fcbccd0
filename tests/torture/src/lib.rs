//! Hurts snapshot stores in every way that a host can, and checks that nothing is lost and nothing
//! is wrong.
//!
//! A [worker](work) is a process that does [`Operation`]s on a store. The [`drive`]r kills it at a
//! system call, lets its system calls fail, fills its disk, loses what it has not flushed, damages
//! its files, and lets several of them run against each other; the [`Model`] knows what must be in
//! the store then.
#![forbid(unsafe_code)]

mod content;
mod damage;
mod drive;
mod full_disk;
mod function;
mod kills;
mod limits;
mod model;
mod operation;
mod parcel;
mod power_loss;
mod races;
mod report;
mod scene;
mod seals;
mod tracee;
mod worker;
mod write_errors;

pub use content::Content;
pub use drive::{Kind, Torture};
pub use kills::every_call as kill_at_every_call;
pub use limits::Limits;
pub use model::Model;
pub use operation::{Operation, Outcome};
pub use power_loss::after_every_death as lose_power_after_every_death;
pub use report::Report;
pub use scene::Scene;
pub use worker::work;
pub use write_errors::every_call as fail_every_call;
