//! `dormouse snapshot rm`.

use anyhow::Result;
use axum::http::Method;
use bytes::Bytes;
use clap::Args;
use dormouse_snapshot::{Error, IfTagged};

use super::reference::{open_store, resolve};
use crate::api::{Api, Place, function_path};
use crate::exit::{Exit, Failed};

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

    #[command(flatten)]
    place: Place,
}

/// Runs the command.
pub(super) async fn remove(args: &RmArgs) -> Result<()> {
    // All that can be wrong with the command line comes before anything is removed.
    if args.names.iter().any(|name| is_reference(name)) {
        open_store(&args.place, "removing single snapshots")?;
    }
    let api = Api::open(&args.place)?;
    let mut result = Ok(());
    for name in &args.names {
        let removed = if is_reference(name) {
            remove_one(args, name)
        } else {
            let path = function_path(name);
            let removed = api.json(Method::DELETE, &path, Bytes::new()).await;
            removed.map(|_| name.clone())
        };
        match removed {
            Ok(removed) => eprintln!("removed {removed}"),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    api.close().await;
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
