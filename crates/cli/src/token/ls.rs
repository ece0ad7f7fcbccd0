//! `dormouse token ls`.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use dormouse_server::TokenEntry;
use schemars::JsonSchema;
use serde::Serialize;

use super::{At, failed, functions, scopes};
use crate::output::{self, Format};

/// Lists the tokens; they themselves are nowhere
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// How the list is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    at: At,
}

/// One token.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenRow {
    /// Its name.
    name: String,
    /// What it may do.
    scopes: Vec<String>,
    /// Patterns of the names of the functions that it is for; all where the list is empty.
    functions: Vec<String>,
    /// When it was made, in milliseconds since 1970 (UTC).
    created_unix_ms: u64,
    /// When it ends, in milliseconds since 1970 (UTC); null where it does not.
    expires_unix_ms: Option<u64>,
    /// Whether that time is over.
    expired: bool,
}

/// Runs the command.
pub(super) fn list(args: &LsArgs) -> Result<()> {
    let tokens = args.at.file().read().map_err(failed)?;
    match args.format {
        Format::Json => {
            let rows: Vec<_> = tokens.iter().map(row).collect();
            output::json(&serde_json::to_value(rows)?)
        }
        Format::Table if tokens.is_empty() => {
            eprintln!("there are no tokens; `dormouse token create` makes one");
            Ok(())
        }
        Format::Table => {
            let cells: Vec<_> = tokens.iter().map(cells).collect();
            output::rows(&["NAME", "MAY", "FUNCTIONS", "AGE", "ENDS"], &cells)
        }
    }
}

fn row(entry: &TokenEntry) -> TokenRow {
    TokenRow {
        name: entry.name.clone(),
        scopes: scopes(entry),
        functions: functions(entry),
        created_unix_ms: entry.created_unix_ms,
        expires_unix_ms: entry.expires_unix_ms,
        expired: entry.has_expired(),
    }
}

fn cells(entry: &TokenEntry) -> [String; 5] {
    let ends = match entry.expires_unix_ms {
        _ if entry.has_expired() => "expired".to_owned(),
        Some(end) => UNIX_EPOCH
            .checked_add(Duration::from_millis(end))
            .map_or_else(|| "never".to_owned(), date),
        None => "never".to_owned(),
    };
    let functions = if entry.covers_all() {
        "all".to_owned()
    } else {
        functions(entry).join(" ")
    };
    [
        entry.name.clone(),
        scopes(entry).join(" "),
        functions,
        output::age(entry.created_unix_ms),
        ends,
    ]
}

/// Nothing past the year 9999 can be written as a date.
fn date(time: std::time::SystemTime) -> String {
    const LAST_UNIX_SECONDS: u64 = 253_402_300_799;
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    if seconds.as_secs() > LAST_UNIX_SECONDS {
        return "never".to_owned();
    }
    humantime::format_rfc3339_seconds(time).to_string()
}
