//! Hurting stores: builds `dormouse-torture` and runs it.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::repo::{Repo, run_openly};

/// What to hurt.
#[derive(Debug, Subcommand)]
pub(crate) enum TortureCommand {
    /// Hurt snapshot stores in every way that a host can; ends with 1 on the first thing lost or
    /// wrong
    Store(StoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Cases of all kinds together
    #[arg(long, value_name = "N", default_value_t = 1000)]
    iterations: u64,
    /// What all choices follow from; the same seed makes the same cases
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Only this kind: kills, errors, full-disk, power-loss, damage, races or function
    #[arg(long, value_name = "KIND")]
    only: Option<String>,
}

/// Runs it. Functions are hurt as well, so the sample functions must have been built.
pub(crate) fn run(repo: &Repo, command: &TortureCommand) -> Result<()> {
    let TortureCommand::Store(args) = command;
    let mut torture = repo.cargo();
    torture
        .args([
            "run",
            "--quiet",
            "--package",
            "dormouse-torture",
            "--",
            "store",
        ])
        .args(["--iterations", &args.iterations.to_string()])
        .args(["--seed", &args.seed.to_string()]);
    if let Some(kind) = &args.only {
        torture.args(["--only", kind]);
    }
    if std::env::var_os("DORMOUSE_TEST_IMAGES").is_none() {
        torture
            .arg("--images")
            .arg(repo.path("functions/target/images"));
    }
    run_openly("torturing snapshot stores", torture)
}
