//! `dormouse bench load` and `bench report`: drive a target, and show what came out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use dormouse_load::{
    ClosedConfig, Error, HowConfig, OpenConfig, RateConfig, Record, RequestConfig, RunConfig,
    ScenarioConfig, Stop, Target, report, session,
};
use tokio::signal::unix::{SignalKind, signal};

use super::live::Live;
use super::local::{self, Local};
use super::readme::Readme;
use crate::exit::{Exit, Failed};
use crate::output::{self, Format};

/// Drives an HTTP server, Dormouse or any other, and tells where the time went
///
/// Either by a scenario (benches/scenarios has some, benches/LOAD.md describes them) or by one run
/// that the options describe: `dormouse bench load --url http://127.0.0.1:8080/path --rate 500`.
/// Ctrl-C ends a run and keeps what was measured; a second one waits for nothing.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The scenario, a TOML file
    #[arg(conflicts_with_all = ["rate", "concurrency"])]
    scenario: Option<PathBuf>,

    /// The target; without a scenario, with the request's path
    #[arg(long, value_name = "URL", conflicts_with = "serve")]
    url: Option<String>,

    /// Start a Dormouse with an empty store as the target, and stop it afterwards
    #[arg(long)]
    serve: bool,

    /// The folder with the images of the scenario's functions
    #[arg(long, value_name = "DIR", env = "DORMOUSE_TEST_IMAGES")]
    images: Option<PathBuf>,

    /// Send so many requests per second, whether or not they are answered (open loop)
    #[arg(long, value_name = "NUMBER", conflicts_with = "concurrency")]
    rate: Option<f64>,

    /// How requests come at that rate
    #[arg(long, value_enum, default_value_t = Spacing::Poisson)]
    arrivals: Spacing,

    /// Send each request after an answer, by so many clients side by side (closed loop)
    #[arg(long, value_name = "NUMBER")]
    concurrency: Option<u32>,

    /// How long is measured; of a scenario, all its runs
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,

    /// What is sent before, and not measured; of a scenario, before each run
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    warmup: Option<Duration>,

    /// A header of the request; may be given several times
    #[arg(long, value_name = "NAME: VALUE", conflicts_with = "scenario")]
    header: Vec<String>,

    /// The request's method
    #[arg(long, conflicts_with = "scenario")]
    method: Option<String>,

    /// Bytes of the request's body
    #[arg(long, value_name = "NUMBER", conflicts_with = "scenario")]
    body_bytes: Option<usize>,

    /// How many connections may be open at once
    #[arg(long, value_name = "NUMBER")]
    connections: Option<u32>,

    /// How many threads send
    #[arg(long, value_name = "NUMBER")]
    threads: Option<u32>,

    /// What takes longer has failed
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,

    /// Write the record into this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Write a report for browsers into this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    #[command(flatten)]
    readme: ReadmeArgs,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// How requests come at a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Spacing {
    /// At random, as from many clients that know nothing of each other.
    Poisson,
    /// Evenly.
    Constant,
}

/// Where else the table goes.
#[derive(Debug, Args)]
struct ReadmeArgs {
    /// Also write the table into this file, between its marks
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,

    /// The marks: `<!-- NAME:begin -->` and `<!-- NAME:end -->`
    #[arg(long, value_name = "NAME", default_value = "load", requires = "readme")]
    readme_block: String,
}

impl ReadmeArgs {
    fn place(&self) -> Option<Readme<'_>> {
        let path = self.readme.as_deref()?;
        Some(Readme {
            path,
            block: &self.readme_block,
        })
    }
}

/// Shows a record again
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The record that `bench load --out` wrote
    record: PathBuf,

    /// Write a report for browsers into this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    #[command(flatten)]
    readme: ReadmeArgs,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Runs `bench load`.
pub(super) fn load(args: &LoadArgs) -> Result<()> {
    for file in [&args.out, &args.html].into_iter().flatten() {
        // Before minutes are spent on what could not be written.
        writable(file)?;
    }
    if let Some(readme) = args.readme.place() {
        readme.check()?;
    }
    let (mut scenario, url) = match &args.scenario {
        Some(path) => {
            let scenario = ScenarioConfig::read(path).map_err(failed)?;
            let url = args.url.clone().or_else(|| scenario.url.clone());
            (scenario, url)
        }
        None => args.one_run()?,
    };
    for how in scenario.hows() {
        args.change(how);
    }
    let local = args.serve.then(Local::start).transpose()?;
    let url = local.as_ref().map(|local| local.url().to_owned()).or(url);
    let url = url.ok_or_else(|| {
        Failed::new(Exit::Usage, "there is no target")
            .hint("give --url, or --serve for a Dormouse that is started for this measurement")
    })?;
    let target = Target::parse(&url).map_err(failed)?;
    let plans = scenario.plans(&target).map_err(failed)?;
    crate::wait(local::deploy(
        &url,
        &scenario.functions,
        args.images.as_deref(),
    ))?;

    let stop = Stop::default();
    stop_at_ctrl_c(&stop)?;
    let mut live = Live::new();
    let (record, error) = session(&scenario.title, plans, &target, &stop, |event| {
        live.show(&event)
    });
    live.end();
    drop(local);
    if record.runs.is_empty()
        && let Some(error) = error
    {
        return Err(failed(error));
    }

    let written = write(&record, args.out.as_deref(), args.html.as_deref());
    print(&record, args.format)?;
    written?;
    if let Some(readme) = args.readme.place() {
        readme.write(&report::readme_block(&record))?;
    }
    if stop.is_asked() {
        eprintln!("it was ended early: the report is of what had been measured");
    }
    error.map_or(Ok(()), |error| Err(failed(error)))
}

/// Runs `bench report`.
pub(super) fn report(args: &ReportArgs) -> Result<()> {
    let record = read(&args.record)?;
    write(&record, None, args.html.as_deref())?;
    if let Some(readme) = args.readme.place() {
        readme.write(&report::readme_block(&record))?;
    }
    print(&record, args.format)
}

impl LoadArgs {
    /// The scenario that the options describe, and its target.
    fn one_run(&self) -> Result<(ScenarioConfig, Option<String>)> {
        let usage = |message: &str| Failed::new(Exit::Usage, message.to_owned());
        let Some(url) = &self.url else {
            return Err(usage("a scenario or --url is needed").into());
        };
        // All behind the host is the request's.
        let host = url.find("://").map_or(0, |place| place + 3);
        let slash = url[host..].find(['/', '?']).map(|place| host + place);
        let (target, path) = url.split_at(slash.unwrap_or(url.len()));
        let (open, closed) = match (self.rate, self.concurrency) {
            (Some(rate), None) => {
                let rate = RateConfig {
                    rate: Some(rate),
                    of_capacity: None,
                };
                let open = match self.arrivals {
                    Spacing::Poisson => OpenConfig::Poisson(rate),
                    Spacing::Constant => OpenConfig::Constant(rate),
                };
                (Some(open), None)
            }
            (None, Some(concurrency)) => (
                None,
                Some(ClosedConfig {
                    concurrency,
                    think: Duration::ZERO,
                    requests: None,
                }),
            ),
            _ => {
                return Err(
                    usage("--rate (open loop) or --concurrency (closed loop) is needed").into(),
                );
            }
        };
        let mut request = RequestConfig::get("request", path);
        request.method = self.method.clone();
        request.body_bytes = self.body_bytes;
        for header in &self.header {
            let (name, value) = header
                .split_once(':')
                .ok_or_else(|| usage(&format!("{header:?} is no header like \"name: value\"")))?;
            request
                .headers
                .insert(name.trim().to_owned(), value.trim().to_owned());
        }
        let run = RunConfig {
            name: "run".to_owned(),
            open,
            closed,
            trace: None,
            requests: Vec::new(),
            how: HowConfig::default(),
        };
        let scenario = ScenarioConfig::of_one(url, request, run);
        Ok((scenario, Some(target.to_owned())))
    }

    /// What the command line says counts more than the scenario.
    fn change(&self, how: &mut HowConfig) {
        how.duration = self.duration.unwrap_or(how.duration);
        how.warmup = self.warmup.unwrap_or(how.warmup);
        how.connections = self.connections.unwrap_or(how.connections);
        how.threads = self.threads.unwrap_or(how.threads);
        how.timeout = self.timeout.unwrap_or(how.timeout);
    }
}

/// Asks for the end at each SIGINT and SIGTERM.
fn stop_at_ctrl_c(stop: &Stop) -> Result<()> {
    let stop = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    stop.ask();
                }
            });
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Reads a record.
pub(super) fn read(path: &Path) -> Result<Record> {
    Record::read(path).map_err(|error| {
        let exit = if path.exists() {
            Exit::Data
        } else {
            Exit::NoInput
        };
        Failed::new(exit, error.to_string()).into()
    })
}

fn folder(path: &Path) -> &Path {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Sees whether a file could be written.
fn writable(path: &Path) -> Result<()> {
    let in_folder = tempfile::NamedTempFile::new_in(folder(path));
    let reason = match in_folder {
        Ok(_) if path.is_dir() => "it is a folder".to_owned(),
        Ok(_) => return Ok(()),
        Err(error) => error.to_string(),
    };
    let message = format!("cannot write {}: {reason}", path.display());
    Err(Failed::new(Exit::Unavailable, message).into())
}

/// Writes what was asked for. A record that cannot be written there goes to the temporary folder, so
/// that no measurement is lost.
fn write(record: &Record, out: Option<&Path>, html: Option<&Path>) -> Result<()> {
    let mut failures = Vec::new();
    if let Some(out) = out
        && let Err(error) = record.write(out)
    {
        let saved =
            std::env::temp_dir().join(format!("dormouse-load-{}.json", record.began_unix_ms));
        failures.push(match record.write(&saved) {
            Ok(()) => format!("{error}; the record is in {}", saved.display()),
            Err(second) => {
                // The last place that is left.
                eprintln!("{}", serde_json::to_string(record)?);
                format!("{error}, and {second}; the record stands above")
            }
        });
    }
    if let Some(html) = html
        && let Err(error) = record.write_html(html)
    {
        failures.push(format!(
            "{error}; `dormouse bench report` makes it from the record"
        ));
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(Failed::new(Exit::Unavailable, failures.join("; ")).into())
}

fn print(record: &Record, format: Format) -> Result<()> {
    match format {
        Format::Table => output::text(&format!("{}\n", report::table(record).trim_end())),
        Format::Json => output::json(&serde_json::to_value(record)?),
    }
}

pub(super) fn failed(error: Error) -> anyhow::Error {
    let exit = match &error {
        Error::Url { .. } | Error::Setting { .. } => Exit::Usage,
        Error::Unreachable { .. } => Exit::Unavailable,
        Error::Scenario { .. } | Error::Trace(_) => Exit::Data,
        _ => Exit::Internal,
    };
    Failed::new(exit, error.to_string()).into()
}
