//! `dormouse snapshot`: what is in the store.

use anyhow::Result;
use axum::http::Method;
use bytes::Bytes;
use clap::{Args, Subcommand};
use dormouse_snapshot::FunctionName;

use crate::api::{Api, Place, function_path};
use crate::deploy::{DeployArgs, deploy};
use crate::exit::{Exit, Failed};
use crate::output::{self, Format, Function};
use crate::tune::{TuneArgs, tune};

/// Makes, lists, inspects, tunes and removes snapshots
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Boots an image and publishes its snapshot; the same as `dormouse deploy`
    Create(DeployArgs),
    Ls(LsArgs),
    Inspect(InspectArgs),
    Tune(TuneArgs),
    Rm(RmArgs),
}

/// Lists the functions that have a snapshot
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// How the list is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    place: Place,
}

/// Shows what is known of a function's snapshot
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The function's name
    name: String,

    /// Read everything and check it; works on the store only
    #[arg(long, conflicts_with = "server")]
    verify: bool,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    place: Place,
}

/// Removes functions and their snapshots
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The functions' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    #[command(flatten)]
    place: Place,
}

/// Runs the command.
pub(crate) async fn snapshot(command: &SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Create(args) => deploy(args).await,
        SnapshotCommand::Ls(args) => list(args).await,
        SnapshotCommand::Inspect(args) => inspect(args).await,
        SnapshotCommand::Tune(args) => tune(args),
        SnapshotCommand::Rm(args) => remove(args).await,
    }
}

async fn list(args: &LsArgs) -> Result<()> {
    let api = Api::open(&args.place)?;
    let result = api.json(Method::GET, "/v1/functions", Bytes::new()).await;
    api.close().await;
    let list = result?;
    if args.format == Format::Json {
        return output::json(&list["functions"]);
    }
    let functions: Vec<Function> = list["functions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(Function::from_json)
        .collect::<Result<_>>()?;
    if functions.is_empty() {
        eprintln!("there are no functions yet; `dormouse deploy NAME IMAGE` makes one");
        return Ok(());
    }
    output::functions(&functions)
}

async fn inspect(args: &InspectArgs) -> Result<()> {
    let api = Api::open(&args.place)?;
    let path = function_path(&args.name);
    let result = api.json(Method::GET, &path, Bytes::new()).await;
    api.close().await;
    let mut info = result?;

    let mut rows = output::describe(&Function::from_json(&info)?);
    if args.place.server().is_none() {
        let store = args.place.open_store()?;
        let name = FunctionName::new(&args.name)?;
        let manifest = store.manifest(&name)?;
        rows.push(("state", output::bytes(manifest.state_bytes)));
        rows.push(("format", format!("version {}", manifest.format_version)));
        rows.push(("host", manifest.host.clone()));
        info["manifest"] = serde_json::to_value(&manifest)?;
        if args.verify {
            let verified = store.verify(&name).map_err(|error| {
                Failed::new(Exit::Data, error.to_string()).hint("deploying again replaces it")
            })?;
            rows.push(("verified", output::bytes(verified.bytes)));
            info["verified_bytes"] = verified.bytes.into();
        }
    }
    match args.format {
        Format::Json => output::json(&info),
        Format::Table => output::properties(&rows),
    }
}

async fn remove(args: &RmArgs) -> Result<()> {
    let api = Api::open(&args.place)?;
    let mut result = Ok(());
    for name in &args.names {
        let removed = api
            .json(Method::DELETE, &function_path(name), Bytes::new())
            .await;
        match removed {
            Ok(_) => eprintln!("removed {name}"),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    api.close().await;
    result
}
