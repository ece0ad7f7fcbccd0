//! `dormouse completions` and `dormouse man`: what shells and `man` want to know of the command
//! line, generated from the command line itself.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::exit::{Exit, Failed};
use crate::{Cli, output};

/// Prints the completion script of a shell
///
/// For bash: dormouse completions bash > ~/.local/share/bash-completion/completions/dormouse
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Writes the man pages, one for each command, into a folder
///
/// For example: dormouse man ~/.local/share/man/man1
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder, which is created if it is missing
    dir: PathBuf,
}

/// Runs `completions`.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dormouse", &mut script);
    output::raw(&script)
}

/// Runs `man`.
pub(crate) fn man(args: &ManArgs) -> Result<()> {
    let write = || {
        std::fs::create_dir_all(&args.dir)?;
        clap_mangen::generate_to(Cli::command(), &args.dir)
    };
    write()
        .map_err(|error| {
            let message = format!(
                "cannot write man pages into {}: {error}",
                args.dir.display()
            );
            Failed::new(Exit::Unavailable, message).hint("choose a folder that can be written to")
        })
        .context("the man pages are not complete")
}
