//! `dormouse token create`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use dormouse_server::{FunctionPattern, NewToken, Scope};
use schemars::JsonSchema;
use serde::Serialize;

use super::{At, failed, functions, scopes};
use crate::exit::{Exit, Failed};
use crate::output::{self, Format};

/// Makes a token and prints it, this once: the file has its hash only
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name: 1 to 63 of A-Z, a-z, 0-9, `.`, `_` and `-`
    name: String,

    /// What it may do: invoke (send requests to functions), deploy (deploy, warm and remove
    /// functions), admin (everything); several with commas
    #[arg(long, value_name = "SCOPE", required = true, value_delimiter = ',')]
    scope: Vec<Scope>,

    /// Only for functions with such names, for example web-*; may be given several times [default:
    /// all functions]
    #[arg(long, value_name = "GLOB")]
    function: Vec<FunctionPattern>,

    /// After this time it is worth nothing, for example 30d [default: never]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    at: At,
}

/// A token that was made.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Created {
    /// The token itself, which is shown only here.
    token: String,
    /// Its name.
    name: String,
    /// What it may do.
    scopes: Vec<String>,
    /// Patterns of the names of the functions that it is for; all where the list is empty.
    functions: Vec<String>,
    /// When it ends, in milliseconds since 1970 (UTC); null where it does not.
    expires_unix_ms: Option<u64>,
}

/// Runs the command.
pub(super) fn create(args: &CreateArgs) -> Result<()> {
    let mut wanted = args.scope.clone();
    wanted.sort_unstable();
    wanted.dedup();
    let new = NewToken {
        name: args.name.clone(),
        scopes: wanted,
        functions: args.function.clone(),
        expires_unix_ms: args.expires.map(end).transpose()?,
    };
    let (token, entry) = args.at.file().create(new).map_err(failed)?;
    match args.format {
        Format::Json => output::json(&serde_json::to_value(Created {
            token: token.reveal().to_owned(),
            name: entry.name.clone(),
            scopes: scopes(&entry),
            functions: functions(&entry),
            expires_unix_ms: entry.expires_unix_ms,
        })?),
        Format::Table => {
            let file = args.at.tokens.display();
            eprintln!(
                "{} may {} from now on; {file} does not have the token itself, so keep it",
                entry.name,
                scopes(&entry).join(" and ")
            );
            output::text(&format!("{}\n", token.reveal()))
        }
    }
}

/// When a token ends that is made now, in milliseconds since 1970.
fn end(after: Duration) -> Result<u64, Failed> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let end = since.unwrap_or_default().checked_add(after);
    end.and_then(|end| u64::try_from(end.as_millis()).ok())
        .ok_or_else(|| {
            let message = format!("{after:?} is longer than time can be counted");
            Failed::new(Exit::Usage, message).hint("leave --expires out for a token without end")
        })
}
