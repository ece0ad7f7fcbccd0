//! `dormouse deploy` and `dormouse snapshot create`: boot an image, snapshot it, publish it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use axum::http::Method;
use bytes::Bytes;
use clap::Args;
use dormouse_pool::{FunctionConfig, Paging};
use dormouse_server::{bytes_from_text, config_from_options, query_from_config};
use dormouse_snapshot::{Compression, Layout};
use serde_json::Value;

use crate::api::{Api, Place, function_path};
use crate::exit::{Exit, Failed};
use crate::output::{self, Format, Function};
use crate::progress::Step;

/// Boots an image, snapshots it when it is ready, and publishes the snapshot under a name
///
/// The same image with the same options again changes nothing.
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// The function's name
    name: String,

    /// The Hermit image
    image: PathBuf,

    #[command(flatten)]
    options: DeployOptions,
}

/// How a function is deployed.
#[derive(Debug, Args)]
pub(crate) struct DeployOptions {
    #[command(flatten)]
    guest: GuestArgs,

    /// How long one invocation may run, for example 500ms
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10s")]
    timeout: Duration,

    /// How long the boot may take until the function is ready
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "60s")]
    init_timeout: Duration,

    /// How many invocations may run at once
    #[arg(long, value_name = "NUMBER", default_value_t = 8)]
    concurrency: usize,

    /// Boot and snapshot it so often, each time at another base, and let requests take turns between
    /// these snapshots; each takes memory as a function of its own does
    #[arg(
        long, value_name = "NUMBER", default_value_t = 1, conflicts_with = "base",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(Layout::MOST))
    )]
    layouts: u32,

    /// How clones get their memory: lazy, working-set, staged, map or eager [default: what was found
    /// by `dormouse snapshot tune`, or working-set]
    #[arg(long, value_name = "HOW")]
    paging: Option<Paging>,

    /// How the snapshot's pages are stored that the store does not have yet: none or zstd
    #[arg(long, value_name = "HOW", default_value_t)]
    compress: Compression,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,

    #[command(flatten)]
    pub(crate) place: Place,

    /// Arguments of the function's `main`
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// What every way to start a guest takes.
#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// Guest memory: at least 16MiB, a multiple of 2MiB
    #[arg(long, value_name = "SIZE", value_parser = bytes_from_text, default_value = "64MiB")]
    pub(crate) memory: u64,

    /// Guest-physical base address, a multiple of 2 MiB [default: random]
    #[arg(long, value_name = "ADDRESS")]
    base: Option<String>,

    /// A variable of the guest's environment; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
}

impl GuestArgs {
    /// The base, the environment and `args`, read as the API reads them.
    pub(crate) fn config(&self, args: &[String]) -> Result<FunctionConfig> {
        let mut options: Vec<(&str, &str)> = Vec::new();
        options.extend(self.base.iter().map(|base| ("base", base.as_str())));
        options.extend(self.env.iter().map(|env| ("env", env.as_str())));
        options.extend(args.iter().map(|arg| ("arg", arg.as_str())));
        let config = config_from_options(&options)
            .map_err(|error| Failed::new(Exit::Usage, error.to_string()))?;
        Ok(FunctionConfig {
            memory_bytes: self.memory,
            ..config
        })
    }
}

/// Runs the command.
pub(crate) async fn deploy(args: &DeployArgs) -> Result<()> {
    let api = Api::open(&args.options.place)?;
    let deployed = publish(&api, &args.name, &args.image, &args.options).await;
    api.close().await;
    report(&deployed?, args.options.format)
}

/// Boots `image` and publishes it as `name`. Returns what the API says.
pub(crate) async fn publish(
    api: &Api,
    name: &str,
    image: &Path,
    options: &DeployOptions,
) -> Result<Value> {
    let image = read_file(image)?;
    let config = FunctionConfig {
        timeout_ms: millis(options.timeout),
        init_timeout_ms: millis(options.init_timeout),
        concurrency: options.concurrency,
        layouts: options.layouts,
        paging: options.paging,
        compression: options.compress,
        ..options.guest.config(&options.args)?
    };
    let path = format!("{}?{}", function_path(name), query_from_config(&config));
    let step = Step::begin(&format!("booting and snapshotting {name}"));
    let result = api.json(Method::PUT, &path, image).await;
    match &result {
        Ok(_) => step.done(),
        Err(_) => step.failed(),
    }
    result
}

/// Reads a whole file of the user's.
pub(crate) fn read_file(path: &Path) -> Result<Bytes> {
    std::fs::read(path).map(Bytes::from).map_err(|error| {
        Failed::new(
            Exit::NoInput,
            format!("cannot read {}: {error}", path.display()),
        )
        .into()
    })
}

/// Says and prints what a deployment came to.
pub(crate) fn report(deployed: &Value, format: Format) -> Result<()> {
    tell(deployed)?;
    match format {
        Format::Json => output::json(deployed),
        Format::Table => output::functions(&[Function::from_json(&deployed["function"])?]),
    }
}

/// Says what a deployment came to.
pub(crate) fn tell(deployed: &Value) -> Result<()> {
    let function = Function::from_json(&deployed["function"])?;
    let ms = |name: &str| deployed[name].as_u64().unwrap_or_default() as f64 / 1e3;
    if deployed["created"].as_bool() == Some(true) {
        eprintln!(
            "{} is deployed: booted in {:.1} ms, snapshotted in {:.1} ms",
            function.name,
            ms("boot_us"),
            ms("snapshot_us")
        );
    } else {
        eprintln!(
            "{} was deployed already with this image and these options",
            function.name
        );
    }
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
