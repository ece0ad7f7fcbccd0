//! `dormouse snapshot`: what is in the store, a verb a file.

mod create;
mod diff;
mod export;
mod flatten;
mod gc;
mod import;
mod inspect;
mod ls;
mod reference;
mod rm;
mod tag;
mod tune;
mod verify;

pub(crate) use export::ExportReport;
pub(crate) use import::ImportReport;

use anyhow::Result;
use clap::Subcommand;

pub(crate) use flatten::Flattened;
pub(crate) use gc::Collected;
pub(crate) use ls::HistoryRow;
pub(crate) use rm::Gone;
pub(crate) use tag::Tagged;
pub(crate) use verify::Verification;

/// Makes, lists, explains, compares, verifies, flattens, tunes, tags, moves and removes snapshots
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    Create(create::CreateArgs),
    Ls(ls::LsArgs),
    Inspect(inspect::InspectArgs),
    Diff(diff::DiffArgs),
    Verify(verify::VerifyArgs),
    Flatten(flatten::FlattenArgs),
    Tune(tune::TuneArgs),
    Tag(tag::TagArgs),
    Export(export::ExportArgs),
    Import(import::ImportArgs),
    Rm(rm::RmArgs),
    Gc(gc::GcArgs),
}

/// Runs the command.
pub(crate) async fn snapshot(command: &SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Create(args) => create::create(args).await,
        SnapshotCommand::Ls(args) => ls::list(args).await,
        SnapshotCommand::Inspect(args) => inspect::inspect(args).await,
        SnapshotCommand::Diff(args) => diff::diff(args),
        SnapshotCommand::Verify(args) => verify::verify(args),
        SnapshotCommand::Flatten(args) => flatten::flatten(args),
        SnapshotCommand::Tune(args) => tune::tune(args),
        SnapshotCommand::Tag(args) => tag::tag(args),
        SnapshotCommand::Export(args) => export::export(args),
        SnapshotCommand::Import(args) => import::import_snapshot(args),
        SnapshotCommand::Rm(args) => rm::remove(args).await,
        SnapshotCommand::Gc(args) => gc::collect(args),
    }
}
