//! `dormouse token rm`.

use anyhow::Result;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::{At, failed};
use crate::output::{self, Format};

/// Removes tokens: a running server forgets them within about a second
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The tokens' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    /// How the result is printed; as a table, it is said on stderr only
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    at: At,
}

/// Which tokens were removed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Removed {
    /// Their names.
    removed: Vec<String>,
}

/// Runs the command.
pub(super) fn remove(args: &RmArgs) -> Result<()> {
    let file = args.at.file();
    let mut removed = Vec::new();
    let mut result = Ok(());
    for name in &args.names {
        match file.remove(name) {
            Ok(entry) => {
                eprintln!("removed {}", entry.name);
                removed.push(entry.name);
            }
            Err(error) => {
                result = Err(failed(error).into());
                break;
            }
        }
    }
    if args.format == Format::Json {
        output::json(&serde_json::to_value(Removed { removed })?)?;
    }
    result
}
