//! `dormouse snapshot ls`.

use anyhow::Result;
use axum::http::Method;
use bytes::Bytes;
use clap::Args;

use crate::api::{Api, Place};
use crate::output::{self, Format, Function};

/// Lists the functions that have a snapshot
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// How the list is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    place: Place,
}

/// Runs the command.
pub(super) async fn list(args: &LsArgs) -> Result<()> {
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
