//! `dormouse snapshot flatten`: a snapshot that shares nothing with others.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dormouse_snapshot::{Compression, SnapshotRef};
use schemars::JsonSchema;
use serde::Serialize;

use super::reference::resolve;
use crate::api::open_store;
use crate::output::{self, Format};
use crate::progress::Step;

/// Publishes a function's newest snapshot anew with all its pages: no layer, and nothing shared
///
/// The one that it was made from stays as it is.
#[derive(Debug, Args)]
pub(crate) struct FlattenArgs {
    /// The snapshot: NAME, or NAME@ID or NAME:TAG where that is the newest
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,

    /// How the pages are stored: none or zstd
    #[arg(long, value_name = "HOW", default_value_t)]
    compress: Compression,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// The store to work on [env: DORMOUSE_STORE] [default: snapshots/store]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// What flattening came to.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Flattened {
    /// What was flattened, as `name@id`.
    from: String,
    /// The new snapshot, as `name@id`.
    snapshot: String,
    /// How its pages are stored, `none` or `zstd`.
    compression: String,
}

/// Runs the command.
pub(super) fn flatten(args: &FlattenArgs) -> Result<()> {
    let store = open_store(args.store.clone())?;
    let from = resolve(&store, &args.snapshot)?;
    let step = Step::begin(&format!("flattening {from}"));
    let id = match store.flatten(&from.function, &from.id, args.compress) {
        Ok(id) => {
            step.done();
            id
        }
        Err(error) => {
            step.failed();
            return Err(error.into());
        }
    };
    let flattened = Flattened {
        snapshot: SnapshotRef {
            function: from.function.clone(),
            id,
        }
        .to_string(),
        from: from.to_string(),
        compression: args.compress.to_string(),
    };
    match args.format {
        Format::Json => output::json(&serde_json::to_value(&flattened)?),
        Format::Table => output::properties(&[
            ("from", flattened.from),
            ("snapshot", flattened.snapshot),
            ("compression", flattened.compression),
        ]),
    }
}
