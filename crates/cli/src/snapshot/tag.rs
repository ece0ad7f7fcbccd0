//! `dormouse snapshot tag`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use dormouse_snapshot::{Reference, Tag};
use schemars::JsonSchema;
use serde::Serialize;

use super::reference::resolve;
use crate::api::open_store;
use crate::exit::{Exit, Failed};
use crate::output::{self, Format};

/// Gives a snapshot a tag, or takes one away
///
/// A snapshot with a tag is kept by `snapshot gc`, and can be named NAME:TAG. A tag belongs to one
/// snapshot of its function: giving it to another moves it.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// The snapshot: NAME (its newest), NAME@ID, NAME@NUMBER or NAME:TAG
    #[arg(value_name = "REF", required_unless_present = "remove")]
    reference: Option<String>,

    /// The tag: 1 to 63 of a-z, 0-9, `.`, `-` and `_`, starting with a letter or a digit
    #[arg(required_unless_present = "remove")]
    tag: Option<String>,

    /// Take this tag away; the snapshot stays
    #[arg(long, value_name = "NAME:TAG", conflicts_with_all = ["reference", "tag"])]
    remove: Option<String>,

    /// How the result is printed; as a table, it is said on stderr only
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// The store to work on [env: DORMOUSE_STORE] [default: snapshots/store]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// What was done to a tag.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Tagged {
    /// The tag, as NAME:TAG.
    tag: String,
    /// The snapshot that has it now, as NAME@ID; null where it was taken away.
    snapshot: Option<String>,
    /// The snapshot that had it before.
    before: Option<String>,
}

/// Runs the command.
pub(super) fn tag(args: &TagArgs) -> Result<()> {
    let store = open_store(args.store.clone())?;
    if let Some(text) = &args.remove {
        let Reference::Tag(function, tag) = text.parse()? else {
            let message = format!("{text:?} does not name a tag");
            bail!(Failed::new(Exit::Usage, message).hint("write NAME:TAG"));
        };
        let id = store.untag(&function, &tag)?;
        eprintln!("{function}@{id} is no longer {function}:{tag}");
        return args.print(&Tagged {
            tag: format!("{function}:{tag}"),
            snapshot: None,
            before: Some(format!("{function}@{id}")),
        });
    }
    let (Some(text), Some(tag)) = (&args.reference, &args.tag) else {
        bail!(Failed::new(Exit::Usage, "a snapshot and a tag are needed"));
    };
    let tag: Tag = tag.parse()?;
    let snapshot = resolve(&store, text)?;
    let before = store.tag(&snapshot, &tag)?;
    let function = &snapshot.function;
    match before.filter(|before| *before != snapshot.id) {
        Some(before) => eprintln!("{snapshot} is {function}:{tag}, which was {before}"),
        None => eprintln!("{snapshot} is {function}:{tag}"),
    }
    args.print(&Tagged {
        tag: format!("{function}:{tag}"),
        snapshot: Some(snapshot.to_string()),
        before: before.map(|id| format!("{function}@{id}")),
    })
}

impl TagArgs {
    fn print(&self, tagged: &Tagged) -> Result<()> {
        match self.format {
            Format::Json => output::json(&serde_json::to_value(tagged)?),
            Format::Table => Ok(()),
        }
    }
}
