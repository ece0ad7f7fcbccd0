//! `dormouse worker`: the process that a function's guests run in.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use dormouse_pool::{Isolation, WorkerProgram};

/// The command that a worker is started with.
pub(crate) const COMMAND: &str = "worker";

/// What a worker is told of the environment: how much to log.
const ENVIRONMENT: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];

/// The file that this process runs, also once another one has taken its name (`proc_pid_exe(5)`): the two
/// must understand each other.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Runs guests for the process that started it; not to be called by hand
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {}

/// Where guests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum IsolationArg {
    /// Each function's guests in a process of its own, which can neither open files nor connect
    #[default]
    Process,
    /// In this process: a guest that gets out of its virtual machine has all that the server has
    None,
}

/// Runs the command.
pub(crate) fn worker(_: &WorkerArgs) -> Result<()> {
    dormouse_pool::work().context("this process was not started by a dormouse server")
}

impl IsolationArg {
    /// What it means to a pool.
    pub(crate) fn isolation(self) -> Isolation {
        match self {
            Self::None => Isolation::None,
            Self::Process => Isolation::Process(WorkerProgram {
                path: OWN_PROGRAM.into(),
                name: "dormouse".to_owned(),
                args: vec![COMMAND.to_owned()],
                environment: ENVIRONMENT
                    .into_iter()
                    .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
                    .collect(),
            }),
        }
    }
}
