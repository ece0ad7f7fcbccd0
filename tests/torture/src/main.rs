//! `dormouse-torture`: hurts a snapshot store, and ends with 1 on the first thing lost or wrong.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use dormouse_torture::{Kind, Report, Torture};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Hurt snapshot stores in every way that a host can
    Store {
        /// Cases of all kinds together
        #[arg(long, value_name = "N", default_value_t = 1000)]
        iterations: u64,
        /// What all choices follow from; the same seed makes the same cases
        #[arg(long, value_name = "S", default_value_t = 1)]
        seed: u64,
        /// Only this kind, with as many cases as it has among all
        #[arg(long, value_name = "KIND")]
        only: Option<Kind>,
        /// Folder for the stores; one in memory by default
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
        /// Folder of the built sample functions
        #[arg(long, value_name = "DIR", env = "DORMOUSE_TEST_IMAGES")]
        images: PathBuf,
    },
    /// Be the process that is hurt
    #[command(hide = true)]
    Work {
        folder: PathBuf,
        script: String,
        #[arg(long)]
        traced: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let (iterations, seed, only, folder, images) = match command {
        Command::Work {
            folder,
            script,
            traced,
        } => return dormouse_torture::work(&folder, &script, traced),
        Command::Store {
            iterations,
            seed,
            only,
            folder,
            images,
        } => (iterations, seed, only, folder, images),
    };
    let place = match folder {
        Some(folder) => tempfile::tempdir_in(folder),
        // What is flushed is known without a disk, and flushing one takes its time.
        None if Path::new("/dev/shm").is_dir() => tempfile::tempdir_in("/dev/shm"),
        None => tempfile::tempdir(),
    };
    let place = place.context("cannot make a folder for the stores")?;
    let torture = Torture {
        program: std::env::current_exe().context("cannot find this program")?,
        place: place.path().to_owned(),
        images,
        may_skip_guests: std::env::var_os("DORMOUSE_TEST_NO_KVM").is_some_and(|value| value == "1"),
        iterations,
        seed,
        only,
    };
    let mut report = Report::default();
    let ended = torture.run(&mut report);
    println!("{report}");
    ended?;
    let (done, skipped) = (report.total(), report.skipped());
    match skipped {
        0 => println!("{done} cases: nothing lost, nothing wrong, no panic"),
        _ => println!(
            "{done} cases: nothing lost, nothing wrong, no panic; {skipped} cases SKIPPED, as said above"
        ),
    }
    Ok(ExitCode::SUCCESS)
}
