//! `dormouse snapshot rm`.

use anyhow::Result;
use axum::http::Method;
use bytes::Bytes;
use clap::Args;
use dormouse_snapshot::{Error, IfTagged};
use schemars::JsonSchema;
use serde::Serialize;

use super::reference::{open_store, resolve};
use crate::api::{Api, Place, function_path};
use crate::exit::{Exit, Failed};
use crate::output::{self, Format};

/// Removes functions with all their snapshots, or single snapshots
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// What goes: NAME, a function with all its snapshots; NAME@ID, NAME@NUMBER or NAME:TAG, one
    /// snapshot, on the store only
    #[arg(required = true, value_name = "NAME|REF")]
    names: Vec<String>,

    /// Remove a single snapshot although it has tags, and these with it
    #[arg(long)]
    force: bool,

    /// How the result is printed; as a table, it is said on stderr only
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    place: Place,
}

/// What was removed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Gone {
    /// Functions by their names, and single snapshots as NAME@ID.
    removed: Vec<String>,
}

/// Runs the command.
pub(super) async fn remove(args: &RmArgs) -> Result<()> {
    // All that can be wrong with the command line comes before anything is removed.
    if args.names.iter().any(|name| is_reference(name)) {
        open_store(&args.place, "removing single snapshots")?;
    }
    let api = Api::open(&args.place)?;
    let mut result = Ok(());
    let mut gone = Gone {
        removed: Vec::new(),
    };
    for name in &args.names {
        let removed = if is_reference(name) {
            remove_one(args, name)
        } else {
            let path = function_path(name);
            let removed = api.json(Method::DELETE, &path, Bytes::new()).await;
            removed.map(|_| name.clone())
        };
        match removed {
            Ok(removed) => {
                eprintln!("removed {removed}");
                gone.removed.push(removed);
            }
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    api.close().await;
    if args.format == Format::Json {
        output::json(&serde_json::to_value(&gone)?)?;
    }
    result
}

fn is_reference(name: &str) -> bool {
    name.contains(['@', ':'])
}

fn remove_one(args: &RmArgs, text: &str) -> Result<String> {
    let store = args.place.open_store()?;
    let snapshot = resolve(&store, text)?;
    let if_tagged = if args.force {
        IfTagged::DropTags
    } else {
        IfTagged::Refuse
    };
    match store.remove_id(&snapshot, if_tagged) {
        Err(error @ Error::Tagged { .. }) => {
            let failed = Failed::new(Exit::Usage, error.to_string());
            Err(failed.hint("--force removes them with the snapshot").into())
        }
        removed => Ok(removed.map(|()| snapshot.to_string())?),
    }
}
