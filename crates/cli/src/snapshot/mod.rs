//! `dormouse snapshot`: what is in the store, a verb a file.

mod gc;
mod inspect;
mod ls;
mod reference;
mod rm;
mod tag;
mod tune;

use anyhow::Result;
use clap::Subcommand;

use crate::deploy::{DeployArgs, deploy};

/// Makes, lists, inspects, tunes, tags and removes snapshots
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Boots an image and publishes its snapshot; the same as `dormouse deploy`
    Create(DeployArgs),
    Ls(ls::LsArgs),
    Inspect(inspect::InspectArgs),
    Tune(tune::TuneArgs),
    Tag(tag::TagArgs),
    Rm(rm::RmArgs),
    Gc(gc::GcArgs),
}

/// Runs the command.
pub(crate) async fn snapshot(command: &SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Create(args) => deploy(args).await,
        SnapshotCommand::Ls(args) => ls::list(args).await,
        SnapshotCommand::Inspect(args) => inspect::inspect(args).await,
        SnapshotCommand::Tune(args) => tune::tune(args),
        SnapshotCommand::Tag(args) => tag::tag(args),
        SnapshotCommand::Rm(args) => rm::remove(args).await,
        SnapshotCommand::Gc(args) => gc::collect(args),
    }
}
