//! All kinds of torture, one after the other.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::report::Report;
use crate::worker::Worker;
use crate::{damage, full_disk, function, kills, power_loss, races, write_errors};

/// What is done to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Kill a process at a system call.
    Kills,
    /// Let system calls on files fail.
    Errors,
    /// Fill a real disk.
    FullDisk,
    /// Lose what was not flushed.
    PowerLoss,
    /// Flip, cut off, append, delete and mix up bytes of files.
    Damage,
    /// Let processes run against each other, and kill some.
    Races,
    /// Damage a deployed function, and invoke it.
    Function,
}

/// Of a thousand cases, how many are of a kind.
const SHARES: &[(Kind, u64)] = &[
    (Kind::Kills, 330),
    (Kind::Errors, 250),
    (Kind::FullDisk, 20),
    (Kind::PowerLoss, 220),
    (Kind::Damage, 160),
    (Kind::Races, 18),
    (Kind::Function, 2),
];

/// How many cases of a kind there are to be.
#[derive(Debug)]
pub(crate) struct Cases {
    begun: u64,
    most: u64,
}

impl Cases {
    pub(crate) fn new(most: u64) -> Self {
        Self { begun: 0, most }
    }

    pub(crate) fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// Begins another case, if there is to be one.
    pub(crate) fn next(&mut self) -> bool {
        let goes_on = !self.are_over();
        self.begun += u64::from(goes_on);
        goes_on
    }

    pub(crate) fn are_over(&self) -> bool {
        self.begun >= self.most
    }

    pub(crate) fn left(&self) -> u64 {
        self.most.saturating_sub(self.begun)
    }

    pub(crate) fn begun(&self) -> u64 {
        self.begun
    }
}

/// What is to be done.
#[derive(Debug)]
pub struct Torture {
    /// This program, which is started as a worker.
    pub program: PathBuf,
    /// A folder for stores.
    pub place: PathBuf,
    /// Where the built sample functions are.
    pub images: PathBuf,
    /// Whether a host that cannot run guests is good enough.
    pub may_skip_guests: bool,
    /// Cases of all kinds together.
    pub iterations: u64,
    /// What all choices follow from.
    pub seed: u64,
    /// Only this kind, with as many cases as it has among all.
    pub only: Option<Kind>,
}

impl Torture {
    /// Does it.
    ///
    /// # Errors
    /// On the first thing that is lost or wrong, with all that is needed to do it again.
    pub fn run(&self, report: &mut Report) -> Result<()> {
        for (number, (kind, share)) in (0..).zip(SHARES) {
            if self.only.is_some_and(|only| only != *kind) {
                continue;
            }
            let cases = (self.iterations * share).div_ceil(1000);
            let name = kind.to_possible_value();
            let name = name.as_ref().map_or("", |value| value.get_name());
            // Each kind has its own, so that it is the same alone as among the others.
            let seed = self.seed.wrapping_mul(1000).wrapping_add(number);
            let (begun, before) = (Instant::now(), report.total());
            self.run_kind(*kind, seed, Cases::new(cases), report)
                .with_context(|| {
                    format!(
                        "found by: cargo xtask torture store --iterations {} --seed {} --only {name}",
                        self.iterations, self.seed
                    )
                })?;
            let done = report.total() - before;
            eprintln!("{name}: {done} cases in {:.1?}", begun.elapsed());
        }
        Ok(())
    }

    fn run_kind(&self, kind: Kind, seed: u64, cases: Cases, report: &mut Report) -> Result<()> {
        let worker = Worker::new(&self.program);
        let place: &Path = &self.place;
        match kind {
            Kind::Kills => kills::run(&worker, place, seed, cases, report),
            Kind::Errors => write_errors::run(&worker, place, seed, cases, report),
            Kind::FullDisk => full_disk::run(place, seed, cases, report),
            Kind::PowerLoss => power_loss::run(&worker, place, seed, cases, report),
            Kind::Damage => damage::run(place, seed, cases, report),
            Kind::Races => races::run(&worker, place, seed, cases, report),
            Kind::Function => function::run(
                place,
                &self.images,
                self.may_skip_guests,
                seed,
                cases,
                report,
            ),
        }
    }
}
