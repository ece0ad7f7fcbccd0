//! `dormouse snapshot inspect`.

use anyhow::Result;
use axum::http::Method;
use bytes::Bytes;
use clap::Args;
use dormouse_snapshot::FunctionName;

use crate::api::{Api, Place, function_path};
use crate::exit::{Exit, Failed};
use crate::output::{self, Format, Function};

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

/// Runs the command.
pub(super) async fn inspect(args: &InspectArgs) -> Result<()> {
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
