//! `dormouse snapshot create`: a deployment, and on it, where that is wanted, a warmed layer.

use std::path::PathBuf;

use anyhow::Result;
use axum::http::Method;
use bytes::Bytes;
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::api::{Api, function_path};
use crate::deploy::{DeployOptions, publish, read_file, report, tell};
use crate::output::{self, Format, Function};
use crate::progress::Step;

/// Boots an image and publishes its snapshot, as `dormouse deploy` does, and warms it where that is
/// wanted
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The function's name
    name: String,

    /// The Hermit image
    #[arg(required_unless_present = "from")]
    image: Option<PathBuf>,

    /// Start from this snapshot instead of an image: NAME, NAME@ID or NAME:TAG
    #[arg(
        long,
        value_name = "SNAPSHOT",
        requires = "warm",
        conflicts_with_all = [
            "image", "memory", "base", "env", "timeout", "init_timeout", "concurrency", "layouts",
            "paging", "compress", "args",
        ]
    )]
    from: Option<String>,

    /// Let one clone answer so many requests, and publish what that leaves as a layer on the snapshot.
    /// What the function keeps of them is in every clone then: nothing secret should be
    #[arg(
        long, value_name = "NUMBER", conflicts_with = "layouts",
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    warm: Option<u32>,

    /// The file that holds the body of these requests
    #[arg(long, value_name = "FILE", requires = "warm")]
    payload: Option<PathBuf>,

    /// Path and query of these requests, as the function sees them [default: /]
    #[arg(long, value_name = "PATH", requires = "warm")]
    warm_path: Option<String>,

    #[command(flatten)]
    options: DeployOptions,
}

/// Runs the command.
pub(super) async fn create(args: &CreateArgs) -> Result<()> {
    // Before anything is booted.
    let payload = match &args.payload {
        Some(file) => read_file(file)?,
        None => Bytes::new(),
    };
    let api = Api::open(&args.options.place)?;
    let created = publish_and_warm(&api, args, payload).await;
    api.close().await;
    match (created?, args.warm) {
        (warmed, Some(_)) => report_warmed(&warmed, args.options.format),
        (deployed, None) => report(&deployed, args.options.format),
    }
}

async fn publish_and_warm(api: &Api, args: &CreateArgs, payload: Bytes) -> Result<Value> {
    let mut deployed = Value::Null;
    if let Some(image) = &args.image {
        deployed = publish(api, &args.name, image, &args.options).await?;
    }
    let Some(runs) = args.warm else {
        return Ok(deployed);
    };
    if args.image.is_some() {
        tell(&deployed)?;
    }
    let mut path = format!("{}/warm?runs={runs}", function_path(&args.name));
    for (option, value) in [("path", &args.warm_path), ("from", &args.from)] {
        if let Some(value) = value {
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            path.push_str(&format!("&{option}={value}"));
        }
    }
    let step = Step::begin(&format!("warming {} with {runs} requests", args.name));
    let result = api.json(Method::POST, &path, payload).await;
    match &result {
        Ok(_) => step.done(),
        Err(_) => step.failed(),
    }
    result
}

fn report_warmed(warmed: &Value, format: Format) -> Result<()> {
    let function = Function::from_json(&warmed["function"])?;
    let ms = |name: &str| warmed[name].as_u64().unwrap_or_default() as f64 / 1e3;
    eprintln!(
        "{} is warmed, on {}: its first request took {:.1} ms, its last {:.1} ms",
        function.name,
        warmed["parent"].as_str().unwrap_or("its parent"),
        ms("first_run_us"),
        ms("last_run_us")
    );
    match format {
        Format::Json => output::json(warmed),
        Format::Table => output::functions(&[function]),
    }
}
