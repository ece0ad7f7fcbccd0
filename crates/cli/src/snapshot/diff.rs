//! `dormouse snapshot diff`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dormouse_explain::Difference;

use super::inspect::open;
use super::reference::resolve;
use crate::api::open_store;
use crate::output::{self, Format};

/// Says what differs between two snapshots
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The first snapshot: NAME is the newest of a function, NAME@ID that one
    a: String,

    /// The second
    b: String,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// The store to work on [env: DORMOUSE_STORE] [default: snapshots/store]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// Runs the command. That two snapshots differ is no failure.
pub(super) fn diff(args: &DiffArgs) -> Result<()> {
    let store = open_store(args.store.clone())?;
    let a = open(&store, &resolve(&store, &args.a)?)?;
    let b = open(&store, &resolve(&store, &args.b)?)?;
    let difference = Difference::between(&a, &b)?;
    match args.format {
        Format::Json => output::json(&serde_json::to_value(&difference)?),
        Format::Table if difference.is_empty() => {
            eprintln!("nothing differs");
            Ok(())
        }
        Format::Table => output::sections(&difference.text()),
    }
}
