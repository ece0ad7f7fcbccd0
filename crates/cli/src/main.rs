//! The `dormouse` command: argv, environment, exit codes and the log.
//!
//! stdout is data, stderr is talk. Every error is `error: …` and, where there is a next step, a
//! line `hint: …`; the exit codes are in [`exit`].
#![deny(unsafe_code)]

mod api;
mod bench;
mod build;
mod deploy;
mod doctor;
mod exit;
#[allow(unsafe_code)]
mod heaps;
mod invoke;
mod limits;
mod output;
mod progress;
mod run;
mod schema;
mod serve;
mod shell;
mod snapshot;
mod token;
mod worker;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use exit::{Exit, Failed};

/// Runs Hermit functions in microVMs that start from snapshots
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Build(build::BuildArgs),
    Deploy(deploy::DeployArgs),
    Serve(serve::ServeArgs),
    Invoke(invoke::InvokeArgs),
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    #[command(subcommand)]
    Token(token::TokenCommand),
    Doctor(doctor::DoctorArgs),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    Schema(schema::SchemaArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
}

fn main() -> ExitCode {
    heaps::keep_few();
    let cli = Cli::parse();
    start_log(&cli.command);
    match execute(&cli.command) {
        Ok(code) => code,
        Err(error) => {
            // A function may have had a word in it.
            eprintln!("error: {}", output::shown(&format!("{error:#}")));
            ExitCode::from(Exit::of(&error) as u8)
        }
    }
}

fn execute(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => return run::run(args),
        Command::Build(args) => {
            let image = build::build(args)
                .map_err(|error| Failed::new(Exit::Data, format!("{error:#}")))?;
            output::text(&format!("{}\n", image.display()))?;
        }
        Command::Deploy(args) => wait(deploy::deploy(args))?,
        Command::Serve(args) => wait(serve::serve(args))?,
        Command::Invoke(args) => wait(invoke::invoke(args))?,
        Command::Snapshot(command) => wait(snapshot::snapshot(command))?,
        Command::Token(command) => token::token(command)?,
        Command::Doctor(args) => doctor::doctor(args)?,
        Command::Bench(command) => bench::bench(command)?,
        Command::Schema(args) => schema::schema(args)?,
        Command::Completions(args) => shell::completions(args)?,
        Command::Man(args) => shell::man(args)?,
        Command::Worker(args) => worker::worker(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for what talks to a server or to the pool.
fn wait(command: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

/// The log goes to stderr: a server's from `info` on, a command's from `warn` on.
fn start_log(command: &Command) {
    let level = if matches!(command, Command::Serve(_) | Command::Worker(_)) {
        "info,hermit_entry=warn"
    } else {
        "warn"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
