//! What the end-to-end tests stand on: a real [`Server`] over a real store, real HTTP [`Client`]s,
//! the real [`Dormouse`] command, and looks into this process and into snapshots.
//!
//! Tests boot real guests under KVM. Where the host cannot do that a test fails with the reason; with
//! `DORMOUSE_TEST_NO_KVM=1` it says `skipped` instead: [`Server::start`] and [`Dormouse::over`] are
//! `None` then. Only what runs no guest ([`Dormouse::without_guests`]) works everywhere.
#![forbid(unsafe_code)]

mod client;
mod dormouse;
mod guest_memory;
mod host;
mod images;
mod panics;
mod parallel;
mod process;
mod server;
mod snapshots;
mod terminal;
mod trace;
mod workers;

pub use client::{Client, Problem, Reply};
pub use dormouse::{Dormouse, Ended, Serving};
pub use guest_memory::GuestMemory;
pub use images::image;
pub use parallel::{eventually, in_parallel};
pub use process::Usage;
pub use server::{Server, Setup};
pub use snapshots::{Edited, copy_folder, edit, files_below, unix_ms};
pub use trace::Trace;
pub use workers::{Worker, workers};
