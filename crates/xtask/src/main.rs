//! `cargo xtask`: set-up, demo, tests and claims of this repository, each in one command.
//!
//! This crate must build on a fresh machine: nothing that it depends on needs libclang, which
//! [`setup`] installs for the rest of the workspace.
#![forbid(unsafe_code)]

mod claims;
mod demo;
mod functions;
mod fuzz;
mod golden;
mod progress;
mod readme;
mod repo;
mod server;
mod setup;
mod soak;
mod test;
mod toolchain;
mod torture;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use repo::Repo;

/// Set-up, demo and tests of Dormouse
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the builds need and check what the host offers
    Setup,
    /// Build everything, deploy the sample functions and invoke them over HTTP
    Demo(demo::DemoArgs),
    /// Check every number of README.md against a fresh run, or renew them
    Claims(claims::ClaimsArgs),
    /// Set up, then run every check and test
    Test,
    /// Feed hostile files to every parser of the snapshot format
    Fuzz(fuzz::FuzzArgs),
    /// Write the golden snapshots anew (snapshots/golden)
    Golden,
    /// Hurt what must not break
    #[command(subcommand)]
    Torture(torture::TortureCommand),
    /// Serve more requests than can be served, for a long time, while much goes wrong
    Soak(soak::SoakArgs),
    /// Set up, then build the sample functions into functions/target/images
    Functions,
}

fn main() -> ExitCode {
    match run(&Xtask::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(xtask: &Xtask) -> Result<()> {
    let repo = Repo::find();
    match &xtask.command {
        Command::Setup => setup::run(&repo),
        Command::Demo(args) => demo::run(&repo, args),
        Command::Claims(args) => claims::run(&repo, args),
        Command::Test => test::run_all(&repo),
        Command::Fuzz(args) => fuzz::run_named(&repo, args),
        Command::Golden => golden::run_all(&repo),
        Command::Torture(command) => torture::run(&repo, command),
        Command::Soak(args) => soak::run(&repo, args),
        Command::Functions => {
            setup::run(&repo)?;
            let dormouse = functions::dormouse(&repo, false)?;
            functions::build(&repo, &dormouse).map(|_| ())
        }
    }
}
