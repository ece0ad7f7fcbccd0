//! `dormouse snapshot ls`.

use std::collections::BTreeMap;

use anyhow::Result;
use axum::http::Method;
use bytes::Bytes;
use clap::Args;
use dormouse_snapshot::{FunctionName, SnapshotRef, SnapshotUsage, Store};
use schemars::JsonSchema;
use serde::Serialize;

use super::reference::open_store;
use crate::api::{Api, Place};
use crate::exit::{Exit, Failed};
use crate::output::{self, Format, Function};

/// Lists the functions that have a snapshot, or all snapshots of one
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// The function whose snapshots are listed, from old to new; works on the store only
    name: Option<String>,

    /// List all snapshots of all functions; works on the store only
    #[arg(long, conflicts_with = "name")]
    all: bool,

    /// How the list is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    place: Place,
}

/// One snapshot in a function's history.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct HistoryRow {
    /// The function's name.
    function: String,
    /// The snapshot's id.
    id: String,
    /// Its tags, sorted.
    tags: Vec<String>,
    /// When it was taken, in milliseconds since 1970 (UTC); null where it cannot be read.
    created_unix_ms: Option<u64>,
    /// Guest memory and image in full, in bytes.
    apparent_bytes: u64,
    /// Bytes on disk that only this snapshot uses.
    own_bytes: u64,
    /// Bytes on disk that other snapshots use, too.
    shared_bytes: u64,
    /// What it is a layer on, if it is one.
    parent: Option<String>,
    /// How many snapshots are below it.
    depth: u32,
    /// Which of its deployment's layouts it is, as `2/4`, if there are several.
    layout: Option<String>,
    /// Whether somebody has it open; null where that cannot be told.
    in_use: Option<bool>,
    /// Why it cannot be used, where that is so.
    error: Option<String>,
}

/// Runs the command.
pub(super) async fn list(args: &LsArgs) -> Result<()> {
    if args.name.is_some() || args.all {
        return list_history(args);
    }
    let api = Api::open(&args.place)?;
    let result = api.json(Method::GET, "/v1/functions", Bytes::new()).await;
    api.close().await;
    let list = result?;
    if args.format == Format::Json {
        return output::json(&list["functions"]);
    }
    let functions: Vec<Function> = list["functions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(Function::from_json)
        .collect::<Result<_>>()?;
    if functions.is_empty() {
        eprintln!("there are no functions yet; `dormouse deploy NAME IMAGE` makes one");
        return Ok(());
    }
    output::functions(&functions)
}

fn list_history(args: &LsArgs) -> Result<()> {
    let store = open_store(&args.place, "listing snapshots")?;
    let only = args.name.as_deref().map(FunctionName::new).transpose()?;
    let rows = history(&store, only.as_ref())?;
    if let Some(name) = only.filter(|_| rows.is_empty()) {
        let message = format!("there is no function named {name}");
        return Err(Failed::new(Exit::NoInput, message)
            .hint("`dormouse snapshot ls` lists what there is")
            .into());
    }
    match args.format {
        Format::Json => output::json(&serde_json::to_value(&rows)?),
        Format::Table if rows.is_empty() => {
            eprintln!("there are no snapshots yet; `dormouse deploy NAME IMAGE` makes one");
            Ok(())
        }
        Format::Table => table(&rows),
    }
}

fn history(store: &Store, only: Option<&FunctionName>) -> Result<Vec<HistoryRow>> {
    let usage = store.usage()?;
    let usage: BTreeMap<&SnapshotRef, &SnapshotUsage> =
        usage.snapshots.iter().map(|u| (&u.snapshot, u)).collect();
    let mut tags = BTreeMap::new();
    let mut rows = Vec::new();
    for entry in store.list()? {
        if only.is_some_and(|only| *only != entry.function) {
            continue;
        }
        if !tags.contains_key(&entry.function) {
            let read = store.tags(&entry.function).unwrap_or_else(|error| {
                eprintln!("warning: {error}");
                BTreeMap::new()
            });
            tags.insert(entry.function.clone(), read);
        }
        let of_function = tags.get(&entry.function).into_iter().flatten();
        let own_tags = of_function.filter(|(_, id)| **id == entry.id);
        let snapshot = SnapshotRef {
            function: entry.function.clone(),
            id: entry.id,
        };
        let usage = usage.get(&snapshot);
        let (manifest, error) = match entry.manifest {
            Ok(manifest) => (Some(manifest), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let layer = manifest.as_ref().and_then(|m| m.layer.as_ref());
        rows.push(HistoryRow {
            function: entry.function.to_string(),
            id: entry.id.to_string(),
            tags: own_tags.map(|(tag, _)| tag.to_string()).collect(),
            created_unix_ms: manifest.as_ref().map(|m| m.created_unix_ms),
            apparent_bytes: usage.map_or(0, |usage| usage.apparent_bytes),
            own_bytes: usage.map_or(0, |usage| usage.own_bytes),
            shared_bytes: usage.map_or(0, |usage| usage.shared_bytes),
            parent: layer.map(|layer| layer.parent.to_string()),
            depth: layer.map_or(0, |layer| layer.depth),
            layout: manifest
                .as_ref()
                .and_then(|m| m.layout())
                .map(|layout| layout.to_string()),
            in_use: store.is_in_use(&snapshot).ok(),
            error,
        });
    }
    Ok(rows)
}

fn table(rows: &[HistoryRow]) -> Result<()> {
    let none = || "-".to_owned();
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let parent = row.parent.as_ref();
            let in_use = match row.in_use {
                Some(true) => "yes",
                Some(false) => "no",
                None => "?",
            };
            [
                format!("{}@{}", row.function, row.id),
                Some(row.tags.join(" "))
                    .filter(|tags| !tags.is_empty())
                    .unwrap_or_else(none),
                row.created_unix_ms.map_or_else(none, output::age),
                output::bytes(row.own_bytes),
                output::bytes(row.shared_bytes),
                parent.map_or_else(none, |parent| format!("{parent} ({} below)", row.depth)),
                row.layout.clone().unwrap_or_else(none),
                in_use.to_owned(),
                if row.error.is_some() { "unusable" } else { "" }.to_owned(),
            ]
        })
        .collect();
    let header = [
        "SNAPSHOT", "TAGS", "AGE", "OWN", "SHARED", "LAYER ON", "LAYOUT", "IN USE", "",
    ];
    output::rows(&header, &cells)?;
    for row in rows {
        if let Some(error) = &row.error {
            eprintln!("warning: {error}");
        }
    }
    Ok(())
}
