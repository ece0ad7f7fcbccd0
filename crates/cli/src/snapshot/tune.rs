//! `dormouse snapshot tune`: finds the fastest way of paging for a function.

use std::path::PathBuf;

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use dormouse_pool::{Request, Spread, TuneConfig, Tuned, set_paging};

use crate::api::open_store;
use crate::deploy::read_file;
use crate::exit::{Exit, Failed};
use crate::output::{self, Format};
use crate::progress::Step;

/// Measures every way of paging on a function, and writes the fastest into its snapshot's manifest
///
/// Works on the store itself; a server takes the new manifest up when it next opens the function.
/// The machine should be idle.
#[derive(Debug, Args)]
pub(crate) struct TuneArgs {
    /// The function's name
    name: String,

    /// The file that holds the request's body; `-` is stdin
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,

    /// The HTTP method [default: GET, or POST where there is a payload]
    #[arg(short = 'X', long)]
    method: Option<String>,

    /// Path and query as the function sees them
    #[arg(short, long, value_name = "PATH", default_value = "/")]
    path: String,

    /// Invocations by each way with everything in memory
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    runs: usize,

    /// Invocations by each way with nothing of the snapshot in the page cache
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    cold_runs: usize,

    /// Measure only, and leave the manifest as it is
    #[arg(long)]
    dry_run: bool,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// The store to work on [env: DORMOUSE_STORE] [default: snapshots/store]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn tune(args: &TuneArgs) -> Result<()> {
    let body = match &args.payload {
        Some(file) => read_file(file)?,
        None => Bytes::new(),
    };
    let usual = if args.payload.is_some() {
        "POST"
    } else {
        "GET"
    };
    let request = Request {
        method: args.method.clone().unwrap_or_else(|| usual.to_owned()),
        target: args.path.clone(),
        body,
        ..Request::default()
    };
    let config = TuneConfig {
        warm_runs: args.runs,
        cold_runs: args.cold_runs,
    };
    let store = open_store(args.store.clone())?;

    let step = Step::begin(&format!("measuring {}", args.name));
    let measured = dormouse_pool::tune(&store, &args.name, &request, &config, |done, all| {
        step.progress(done, all);
    });
    let tuned = match measured {
        Ok(tuned) => {
            step.done();
            tuned
        }
        Err(error) => {
            step.failed();
            return Err(failed(&error).into());
        }
    };
    if !args.dry_run {
        let id = set_paging(&store, &args.name, tuned.winner).map_err(|error| failed(&error))?;
        eprintln!("{} is written into {} as {id}", tuned.winner, args.name);
    }
    match args.format {
        Format::Json => output::json(&serde_json::to_value(&tuned)?),
        Format::Table => table(&tuned),
    }
}

fn failed(error: &dormouse_pool::Error) -> Failed {
    use dormouse_pool::Error;
    let exit = match error {
        Error::UnknownFunction { .. } => Exit::NoInput,
        Error::BadOption { .. } | Error::RequestTooLarge { .. } => Exit::Usage,
        Error::Unanswered { .. } => Exit::Function,
        Error::Host { .. } => Exit::Unavailable,
        _ => Exit::Data,
    };
    Failed::new(exit, error.to_string())
}

fn table(tuned: &Tuned) -> Result<()> {
    let spread = |spread: &Spread| {
        let Spread {
            median_us,
            lower_us,
            upper_us,
        } = spread;
        (format!("{median_us}"), format!("{lower_us}–{upper_us}"))
    };
    let rows: Vec<[String; 9]> = tuned
        .rows
        .iter()
        .map(|row| {
            let mark = if row.paging == tuned.winner { " *" } else { "" };
            let (warm, warm_spread) = spread(&row.warm);
            let (next, next_spread) = spread(&row.next);
            let (cold, cold_spread) = row.cold.as_ref().map(spread).unwrap_or_default();
            [
                format!("{}{mark}", row.paging),
                warm,
                warm_spread,
                next,
                next_spread,
                cold,
                cold_spread,
                row.faults.to_string(),
                output::bytes(row.private_bytes),
            ]
        })
        .collect();
    let header = [
        "PAGING",
        "WARM, US",
        "QUARTILES",
        "NEXT, US",
        "QUARTILES",
        "COLD, US",
        "QUARTILES",
        "FAULTS",
        "PRIVATE",
    ];
    output::rows(&header, &rows)
}
