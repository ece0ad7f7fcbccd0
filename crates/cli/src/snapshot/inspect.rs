//! `dormouse snapshot inspect`.

use std::path::PathBuf;

use anyhow::Result;
use axum::http::Method;
use bytes::Bytes;
use clap::Args;
use dormouse_explain::{Inspection, Picture};
use dormouse_snapshot::{SnapshotRef, Store};

use super::reference::resolve;
use crate::api::{Api, Place, function_path};
use crate::exit::{Exit, Failed};
use crate::output::{self, Format, Function};

/// Explains a snapshot: registers, memory, symbols, working set, clocks, host
///
/// With --server it shows what the server tells of the function.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The snapshot: NAME is the newest of a function, NAME@ID that one
    #[arg(value_name = "REF")]
    reference: String,

    /// Write a picture of guest memory, an .svg or a .png
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    map: Option<PathBuf>,

    /// Read everything of the function and check it; works on the store only
    #[arg(long, conflicts_with = "server")]
    verify: bool,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    place: Place,
}

/// Runs the command.
pub(super) async fn inspect(args: &InspectArgs) -> Result<()> {
    if args.place.server().is_some() {
        return ask_server(args).await;
    }
    if let Some(file) = &args.map {
        Picture::check(file).map_err(|error| Failed::new(Exit::Usage, error.to_string()))?;
    }
    let store = args.place.open_store()?;
    let snapshot = resolve(&store, &args.reference)?;
    let inspection = open(&store, &snapshot)?;
    if args.verify {
        let verified = store.verify(&snapshot.function).map_err(|error| {
            Failed::new(Exit::Data, error.to_string()).hint("deploying again replaces it")
        })?;
        let bytes = output::bytes(verified.bytes);
        eprintln!("verified {bytes} of {}, all good", snapshot.function);
    }
    if let Some(file) = &args.map {
        let layer = inspection.layer();
        // A parent that is gone leaves the image to compare with.
        let parent = layer.and_then(|layer| open(&store, &layer.parent).ok());
        Picture::of(&inspection, parent.as_ref())?.write(file)?;
        eprintln!("drew {}", file.display());
    }
    let explanation = inspection.explain();
    match args.format {
        Format::Json => output::json(&serde_json::to_value(&explanation)?),
        Format::Table => output::sections(&explanation.text()),
    }
}

/// Opens a snapshot to be looked at.
pub(super) fn open(store: &Store, snapshot: &SnapshotRef) -> Result<Inspection> {
    Ok(Inspection::of(store, &snapshot.function, &snapshot.id)?)
}

async fn ask_server(args: &InspectArgs) -> Result<()> {
    let api = Api::open(&args.place)?;
    let path = function_path(&args.reference);
    let result = api.json(Method::GET, &path, Bytes::new()).await;
    api.close().await;
    let info = result?;
    match args.format {
        Format::Json => output::json(&info),
        Format::Table => output::properties(&output::describe(&Function::from_json(&info)?)),
    }
}
