//! `cargo xtask soak`: a server under twice the load that it bears, for a long time, while its workers
//! are killed and its functions and snapshots come and go.
//!
//! ```text
//! deploy ─► closed loop: what is borne? ─► overload, shortly ─► idle: what is held?
//!        ─► overload ║ kills ║ publications ║ removals ─► idle: what is held? ─► summary
//! ```
//!
//! Every answer is looked at: it must be the right one, or an error that api/errors.md has for it.

mod chaos;
mod client;
mod judge;
mod load;
mod requests;
mod resources;
mod summary;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::progress::Step;
use crate::readme::{self, Block};
use crate::repo::Repo;
use crate::server::Server;
use crate::{functions, setup};
use chaos::{Chaos, Events};
use client::Client;
use judge::Judge;
use load::{Load, Report, Tally};
use requests::{FUNCTIONS, Requests};
use resources::Resources;
use summary::Summary;

#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// How long the overload lasts
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// What requests, kills and all else are drawn from; what comes of them also depends on time
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Requests per second to offer [default: twice what is borne]
    #[arg(long, value_name = "N", value_parser = positive)]
    rps: Option<f64>,
    /// Where the server is to run its instances, as for `dormouse serve`; with `none` there are no
    /// workers to be killed
    #[arg(long, value_name = "WHERE")]
    isolation: Option<Isolation>,
    /// Write the summary into this README, between its marks
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Build without optimisation: sooner ready, slower, and no figures for a README
    #[arg(long, conflicts_with = "readme")]
    debug: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Isolation {
    /// In worker processes
    Process,
    /// In its own process
    None,
}

/// Where README.md has the summary.
const README: Block = Block {
    name: "soak",
    title: "A soak, as `cargo xtask soak … --readme README.md` wrote it here",
};
/// What the server says, in the repository.
const LOG: &str = "target/soak/server.log";
/// How many requests may wait for a function, and for how long: short, so that what is too much is
/// refused soon, and little waits in the client.
const QUEUE: &str = "32";
const QUEUE_TIMEOUT: Duration = Duration::from_secs(2);
/// What a function may take where its options say nothing else (api/openapi.yaml).
const FUNCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than both together a request may take before it counts as hung.
const HANG: Duration = Duration::from_secs(10);
/// Invocations of one function that may run at once, where its options say nothing else
/// (api/openapi.yaml), and so be lost with one worker.
const PLACES: u64 = 8;
/// How much more than is borne is offered.
const OVERLOAD: f64 = 2.0;
/// How long anything is waited for that must settle.
const PATIENCE: Duration = Duration::from_secs(180);

/// The closed loop until it counts: by then the first answers, which take longest, are out.
const WARM_UP: Duration = Duration::from_secs(5);
/// The closed loop.
const CLOSED: Duration = Duration::from_secs(10);
/// The overload before the first look at what is held: what only overload makes grow is there then.
const FIRST_OVERLOAD: Duration = Duration::from_secs(20);

/// Runs the soak; an error where anything went wrong.
pub(crate) fn run(repo: &Repo, args: &SoakArgs) -> Result<()> {
    setup::run(repo)?;
    let dormouse = functions::dormouse(repo, !args.debug)?;
    let images = match std::env::var_os("DORMOUSE_TEST_IMAGES") {
        Some(images) => PathBuf::from(images),
        None => functions::build(repo, &dormouse)?,
    };
    let summary = measure(repo, &dormouse, &images, args)?;
    println!("{}", summary.text(&readme::machine(), args.seed));
    refuse(&summary)?;
    match &args.readme {
        Some(readme) => README.write(readme, &summary.tables(true)),
        None => Ok(()),
    }
}

/// Soaks for some minutes what is built already, and writes the summary into a README.
pub(crate) fn write(
    repo: &Repo,
    dormouse: &Path,
    images: &Path,
    minutes: u64,
    readme: &Path,
) -> Result<()> {
    let args = SoakArgs {
        minutes,
        seed: 1,
        rps: None,
        isolation: None,
        readme: None,
        debug: false,
    };
    let summary = measure(repo, dormouse, images, &args)?;
    refuse(&summary)?;
    README.write(readme, &summary.tables(true))
}

/// Ends where anything went wrong.
fn refuse(summary: &Summary) -> Result<()> {
    ensure!(
        summary.wrong.is_empty(),
        "something went wrong, {} in all\n{}\nhint: {LOG} has what the server said",
        summary.wrong.len(),
        summary.wrong.join("\n")
    );
    Ok(())
}

fn measure(repo: &Repo, dormouse: &Path, images: &Path, args: &SoakArgs) -> Result<Summary> {
    let length = Duration::from_secs(args.minutes * 60);
    let judge = Judge::read(repo)?;
    let server = start(repo, dormouse, args.isolation)?;
    let chaos = Chaos {
        dormouse,
        images,
        url: server.url(),
        store: server.store(),
        server: server.pid(),
        judge: &judge,
        is_over: AtomicBool::new(false),
        events: Mutex::default(),
    };
    let step = Step::begin("deploying the functions");
    for function in &FUNCTIONS {
        let options = format!("?{}", function.options);
        let name = function.name;
        let is_done = chaos.deploy(name, name, options.trim_end_matches('?'))?;
        ensure!(is_done, "{name} was refused on an idle server");
    }
    step.done();
    let patience = FUNCTION_TIMEOUT + QUEUE_TIMEOUT + HANG;
    let mut requests = Requests::new(args.seed, &Client::new(server.url(), patience))?;
    let load = Load {
        url: server.url(),
        patience,
        judge: &judge,
    };

    let step = Step::begin("a closed loop: what is borne?");
    let warm_up = load.closed(&mut requests, WARM_UP)?;
    let closed = load.closed(&mut requests, CLOSED)?;
    let borne = closed.rate();
    step.done();
    let offered = args.rps.unwrap_or(borne * OVERLOAD);
    let step = Step::begin(&format!("overload: {offered:.0} requests per second"));
    let pace = (offered, args.seed);
    let first = load.open(&mut requests, pace, FIRST_OVERLOAD, |_| {})?;
    step.done();
    // Before anything was done to it: there is nothing to be learned from a soak then.
    for (part, report) in [
        ("warming up", &warm_up),
        ("closed loop", &closed),
        ("first overload", &first),
    ] {
        if let Some(mistakes) = mistakes(part, report) {
            bail!("{mistakes}\nhint: {LOG} has what the server said");
        }
    }
    let step = Step::begin("idle: what is held?");
    let before = Resources::settled(server.pid(), PATIENCE, |_| true)?;
    step.done();

    eprintln!("soaking for {} s", length.as_secs());
    let pace = (offered, args.seed.wrapping_add(1));
    let report = thread::scope(|scope| {
        scope.spawn(|| chaos.run(args.seed));
        let report = load.open(&mut requests, pace, length, |total| {
            tell(&total, server.pid());
        });
        chaos.is_over.store(true, Ordering::Relaxed);
        report
    })?;
    let step = Step::begin("idle: what is held now?");
    let is_enough = |now: &Resources| now.excess(&before).is_empty();
    let after = Resources::settled(server.pid(), PATIENCE, is_enough)?;
    step.done();

    let kills = judge.kills.count();
    let events = chaos.events;
    let events = events.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut wrong = after.excess(&before);
    if let Err(error) = server.stop() {
        wrong.push(format!("{error:#}"));
    }
    wrong.extend(mistakes("the soak", &report));
    wrong.extend(events.wrong.iter().cloned());
    wrong.extend(unfulfilled(&report, &events, kills, args.isolation));
    Ok(Summary {
        borne,
        offered,
        report,
        kills,
        events,
        before,
        after,
        wrong,
    })
}

/// Starts the server over an empty store; what it says goes into a file beside it.
fn start(repo: &Repo, dormouse: &Path, isolation: Option<Isolation>) -> Result<Server> {
    let folder = repo.path("target/soak");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let log = File::create(repo.path(LOG)).with_context(|| format!("cannot create {LOG}"))?;
    let queue_timeout = format!("{}s", QUEUE_TIMEOUT.as_secs());
    let mut options = vec!["--listen", "127.0.0.1:0"];
    options.extend(["--queue", QUEUE, "--queue-timeout", &queue_timeout]);
    if let Some(isolation) = isolation {
        let isolation = match isolation {
            Isolation::Process => "process",
            Isolation::None => "none",
        };
        options.extend(["--isolation", isolation]);
    }
    Server::start(dormouse, &folder, options, Stdio::from(log))
        .with_context(|| format!("{LOG} has what the server said"))
}

/// How it goes, while it goes.
fn tell(total: &Tally, server: u32) {
    let front = Resources::now(server)
        .map(|now| now.front)
        .unwrap_or_default();
    eprintln!(
        "{} offered: {} answered, {} refused, {} failed, {} lost, {} wrong, {} hung; \
         the server: {} MiB, {} descriptors, {} threads",
        total.asked,
        total.answered,
        total.refused,
        total.failed,
        total.lost,
        total.wrong,
        total.hung,
        front.pss_kib >> 10,
        front.descriptors,
        front.threads
    );
}

/// Requests of a part that were neither answered nor refused rightly, where there are any.
fn mistakes(part: &str, report: &Report) -> Option<String> {
    let Tally { wrong, hung, .. } = report.total();
    let examples = report.examples.join("\n  ");
    (wrong + hung > 0).then(|| {
        format!("{part}: {wrong} requests went wrong and {hung} hung, for example\n  {examples}")
    })
}

/// What must happen for the soak to say anything, and what may not happen too often.
fn unfulfilled(
    report: &Report,
    events: &Events,
    kills: u64,
    isolation: Option<Isolation>,
) -> Vec<String> {
    let mut sentences = Vec::new();
    let lost = report.total().lost;
    if lost > kills * PLACES {
        sentences.push(format!(
            "{lost} requests were lost with {kills} workers that run {PLACES} at most"
        ));
    }
    if kills == 0 && isolation != Some(Isolation::None) {
        sentences.push("no worker was found that could be killed".to_owned());
    }
    for (function, tally) in FUNCTIONS.iter().zip(&report.tallies) {
        if tally.answered == 0 {
            sentences.push(format!("{} answered nothing", function.name));
        }
    }
    if report.total().refused == 0 {
        sentences.push("nothing was refused: this was no overload".to_owned());
    }
    for (what, number) in [
        ("published", events.deployed + events.warmed),
        ("removed", events.functions_removed),
    ] {
        if number == 0 {
            sentences.push(format!("no function was {what}"));
        }
    }
    sentences
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.0..1e6).contains(&number) && number > 0.0 => Ok(number),
        _ => Err("a number above 0 is needed".to_owned()),
    }
}
