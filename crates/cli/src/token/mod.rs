//! `dormouse token`: who may ask a server, a verb a file.

mod create;
mod given;
mod ls;
mod rm;

pub(crate) use create::Created;
pub(crate) use given::Given;
pub(crate) use ls::TokenRow;
pub(crate) use rm::Removed;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use dormouse_server::{TokenEntry, TokenError, TokenFile};

use crate::exit::{Exit, Failed};

/// Makes, lists and removes the tokens that clients of a server need
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    Create(create::CreateArgs),
    Ls(ls::LsArgs),
    Rm(rm::RmArgs),
}

/// Runs the command.
pub(crate) fn token(command: &TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create(args) => create::create(args),
        TokenCommand::Ls(args) => ls::list(args),
        TokenCommand::Rm(args) => rm::remove(args),
    }
}

/// Where the tokens are
#[derive(Debug, Args)]
struct At {
    /// The tokens file, the one that `dormouse serve --tokens` has
    #[arg(long, value_name = "FILE", env = "DORMOUSE_TOKENS")]
    tokens: PathBuf,
}

impl At {
    fn file(&self) -> TokenFile {
        TokenFile::at(&self.tokens)
    }
}

/// An error with the exit code that goes with it.
pub(crate) fn failed(error: TokenError) -> Failed {
    use std::io::ErrorKind;
    let exit = match &error {
        TokenError::Io { cause, .. } if cause.kind() == ErrorKind::NotFound => Exit::NoInput,
        TokenError::Io { .. } => Exit::Unavailable,
        TokenError::Unknown { .. } => Exit::NoInput,
        TokenError::BadName { .. } | TokenError::NoScope { .. } | TokenError::Exists { .. } => {
            Exit::Usage
        }
        TokenError::OpenToOthers { .. }
        | TokenError::NotAFile { .. }
        | TokenError::TooLarge { .. }
        | TokenError::Invalid { .. } => Exit::Data,
        _ => Exit::Internal,
    };
    Failed::new(exit, error.to_string())
}

fn scopes(entry: &TokenEntry) -> Vec<String> {
    entry.scopes.iter().map(ToString::to_string).collect()
}

fn functions(entry: &TokenEntry) -> Vec<String> {
    entry.functions.iter().map(ToString::to_string).collect()
}
