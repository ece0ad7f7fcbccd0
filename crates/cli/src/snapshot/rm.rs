//! `dormouse snapshot rm`.

use anyhow::Result;
use axum::http::Method;
use bytes::Bytes;
use clap::Args;

use crate::api::{Api, Place, function_path};

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
pub(super) async fn remove(args: &RmArgs) -> Result<()> {
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
