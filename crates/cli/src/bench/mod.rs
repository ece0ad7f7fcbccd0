//! `dormouse bench`: measures the engine, loads any HTTP target, compares and shows what came out.

mod compare;
mod engine;
mod live;
mod load;
mod local;
mod readme;
mod sizes;
mod trace;

use anyhow::Result;
use clap::Subcommand;

/// Measures: the restore engine beside its floors, or any HTTP server under load
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    Engine(engine::EngineArgs),
    Sizes(sizes::SizesArgs),
    Load(load::LoadArgs),
    Report(load::ReportArgs),
    Compare(compare::CompareArgs),
    Trace(trace::TraceArgs),
    #[command(hide = true)]
    Boot(engine::BootArgs),
}

/// Runs the command.
pub(crate) fn bench(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Engine(args) => engine::engine(args),
        BenchCommand::Sizes(args) => sizes::sizes(args),
        BenchCommand::Load(args) => load::load(args),
        BenchCommand::Report(args) => load::report(args),
        BenchCommand::Compare(args) => compare::compare(args),
        BenchCommand::Trace(args) => trace::trace(args),
        BenchCommand::Boot(args) => engine::boot(args),
    }
}
