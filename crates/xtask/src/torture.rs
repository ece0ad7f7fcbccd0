//! Hurting stores, by `dormouse-torture`, and hosts, by guests that do their worst.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::repo::{Repo, run_openly};

/// What to hurt.
#[derive(Debug, Subcommand)]
pub(crate) enum TortureCommand {
    /// Hurt snapshot stores in every way that a host can; ends with 1 on the first thing lost or
    /// wrong
    Store(StoreArgs),
    /// Let guests do their worst to their host; ends with 1 at the first panic, hang or leak
    Guest(GuestArgs),
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

#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// How long, all kinds of guest together
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// What the guests' choices follow from; what races hit does not
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
}

/// Runs it. Both need the built sample functions.
pub(crate) fn run(repo: &Repo, command: &TortureCommand) -> Result<()> {
    match command {
        TortureCommand::Store(args) => hurt_stores(repo, args),
        TortureCommand::Guest(args) => hurt_hosts(repo, args),
    }
}

/// Runs the tests of hostile guests for as long as is wanted: half of it bare ones, half of it
/// functions behind a pool.
fn hurt_hosts(repo: &Repo, args: &GuestArgs) -> Result<()> {
    for package in ["dormouse-vmm", "dormouse-pool"] {
        let mut torture = repo.cargo();
        torture
            .args(["test", "--quiet", "--package", package, "--test", "hostile"])
            .args(["--", "--ignored", "--exact", "--nocapture"])
            .arg("for_as_long_as_told")
            .env("DORMOUSE_TORTURE_SECONDS", (args.minutes * 30).to_string())
            // As many heaps as `dormouse serve` keeps. With one for each of its threads the C library holds
            // on to so much that has been given back that no leak can be told from it.
            .env("MALLOC_ARENA_MAX", "2")
            .env("DORMOUSE_TORTURE_SEED", args.seed.to_string());
        if std::env::var_os("DORMOUSE_TEST_IMAGES").is_none() {
            let images = repo.path("functions/target/images");
            torture.env("DORMOUSE_TEST_IMAGES", images);
        }
        let seed = args.seed;
        run_openly(
            &format!("hostile guests of {package}, seed {seed}"),
            torture,
        )?;
    }
    Ok(())
}

/// Functions are hurt as well.
fn hurt_stores(repo: &Repo, args: &StoreArgs) -> Result<()> {
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
