//! `dormouse snapshot verify`: whether snapshots are as they were published.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dormouse_snapshot::{Error, FunctionName, SnapshotRef, Store};
use schemars::JsonSchema;
use serde::Serialize;

use super::reference::resolve;
use crate::api::open_store;
use crate::exit::{Exit, Failed};
use crate::output::{self, Format};
use crate::progress::Step;

/// Reads snapshots and compares every byte with its digest; what they share is read once
///
/// Ends with 65 where one is damaged.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// What to verify: NAME for all snapshots of a function, NAME@ID or NAME:TAG for one
    #[arg(value_name = "SNAPSHOT", required_unless_present = "all")]
    snapshots: Vec<String>,

    /// Verify the whole store
    #[arg(long, conflicts_with = "snapshots")]
    all: bool,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// The store to work on [env: DORMOUSE_STORE] [default: snapshots/store]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// What a verification has found.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Verification {
    /// Snapshots that are good.
    good: u64,
    /// Blocks of pages that were read and are good, each once.
    blocks: u64,
    /// Bytes that were read for that.
    bytes: u64,
    /// Snapshots that are not good.
    bad: Vec<Bad>,
}

/// A snapshot that is not good.
#[derive(Debug, Serialize, JsonSchema)]
struct Bad {
    /// Which one, as `name@id`.
    snapshot: String,
    /// What is wrong with it, and what to do.
    error: String,
}

/// Runs the command.
pub(super) fn verify(args: &VerifyArgs) -> Result<()> {
    let store = open_store(args.store.clone())?;
    let snapshots = chosen(&store, args)?;
    let step = Step::begin(&format!("verifying {} snapshots", snapshots.len()));
    let mut bad = Vec::new();
    let found = store.verify_each(
        &snapshots,
        |found| {
            let read = output::bytes(found.bytes);
            step.detail(&format!("{} are good, {read} read", found.snapshots));
        },
        |snapshot, error| {
            // Of a whole store, one that was removed meanwhile is nobody's loss.
            if !(args.all && matches!(error, Error::UnknownSnapshot { .. })) {
                bad.push(Bad {
                    snapshot: snapshot.to_string(),
                    error: error.to_string(),
                });
            }
        },
    );
    step.done();
    let verification = Verification {
        good: found.snapshots,
        blocks: found.blocks,
        bytes: found.bytes,
        bad,
    };
    match args.format {
        Format::Json => output::json(&serde_json::to_value(&verification)?)?,
        Format::Table => table(&verification)?,
    }
    match verification.bad.len() {
        0 => Ok(()),
        bad => {
            let all = snapshots.len();
            let message = format!("{bad} of {all} snapshots are not good");
            Err(Failed::new(Exit::Data, message)
                .hint("deploying a function again replaces its newest snapshot")
                .into())
        }
    }
}

/// The snapshots that are to be verified, each once.
fn chosen(store: &Store, args: &VerifyArgs) -> Result<Vec<SnapshotRef>> {
    let stored = store.snapshots()?;
    if args.all {
        return Ok(stored);
    }
    let mut chosen = Vec::new();
    for text in &args.snapshots {
        if text.contains(['@', ':']) {
            chosen.push(resolve(store, text)?);
            continue;
        }
        let function = FunctionName::new(text)?;
        let of_function = stored.iter().filter(|stored| stored.function == function);
        let before = chosen.len();
        chosen.extend(of_function.cloned());
        if chosen.len() == before {
            return Err(Error::UnknownFunction {
                function,
                store: store.path().to_owned(),
            }
            .into());
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

fn table(verification: &Verification) -> Result<()> {
    if !verification.bad.is_empty() {
        let rows: Vec<_> = verification
            .bad
            .iter()
            .map(|bad| [bad.snapshot.as_str(), bad.error.as_str()])
            .collect();
        output::rows(&["NOT GOOD", "WHY"], &rows)?;
    }
    output::properties(&[
        ("good", verification.good.to_string()),
        ("blocks", verification.blocks.to_string()),
        ("read", output::bytes(verification.bytes)),
    ])
}
