//! `dormouse snapshot gc`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use dormouse_server::bytes_from_text;
use dormouse_snapshot::{GcReport, Limit, RetentionConfig};
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::open_store;
use crate::output::{self, Format};

/// Removes snapshots that are over the limits given, and what died processes have left
///
/// The newest snapshot of each function is never removed, nor are those that have tags, that are in
/// use, or that are the parents of layers that stay. Several layouts of one deployment count as one,
/// and stay together. Without limits only leftovers go.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Keep this many snapshots of each function: its newest ones
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    keep_last: Option<u32>,

    /// Remove snapshots that were taken longer ago, for example 30d or `12h 30m`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,

    /// Remove the oldest snapshots until the store has no more on disk, for example 10GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes_from_text)]
    max_size: Option<u64>,

    /// Change nothing, and tell what would be removed
    #[arg(long)]
    dry_run: bool,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// The store to work on [env: DORMOUSE_STORE] [default: snapshots/store]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// What was done, or would be.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Collected {
    /// Whether nothing was changed.
    dry_run: bool,
    /// What was removed, in this order.
    removed: Vec<RemovedRow>,
    /// What was kept although it is over a limit.
    kept: Vec<KeptRow>,
    /// Tags whose snapshots are gone, as NAME:TAG; they were removed too.
    dangling_tags: Vec<String>,
    /// Folders that died processes had left, and that were deleted.
    leftovers: u64,
    /// Bytes on disk that removing snapshots freed.
    freed_bytes: u64,
    /// Bytes on disk that the store has left.
    store_bytes: u64,
}

/// One snapshot that was removed.
#[derive(Debug, Serialize, JsonSchema)]
struct RemovedRow {
    /// The snapshot, as NAME@ID.
    snapshot: String,
    /// The limit that it was over: `keep-last`, `max-age` or `max-size`.
    limit: &'static str,
    /// Bytes on disk that this freed; what snapshots share counts where the last of them goes.
    freed_bytes: u64,
}

/// One snapshot that was kept over a limit.
#[derive(Debug, Serialize, JsonSchema)]
struct KeptRow {
    /// The snapshot, as NAME@ID.
    snapshot: String,
    /// The limit that it is over: `keep-last`, `max-age` or `max-size`.
    limit: &'static str,
    /// What keeps it, in words.
    because: Vec<String>,
}

/// The limit by the name of its option.
fn option(limit: Limit) -> &'static str {
    match limit {
        Limit::KeepLast => "keep-last",
        Limit::MaxAge => "max-age",
        Limit::MaxBytes => "max-size",
    }
}

impl Collected {
    fn new(report: &GcReport, dry_run: bool) -> Self {
        let removed = report.removed.iter().map(|removed| RemovedRow {
            snapshot: removed.snapshot.to_string(),
            limit: option(removed.limit),
            freed_bytes: removed.freed_bytes,
        });
        let kept = report.kept.iter().map(|kept| KeptRow {
            snapshot: kept.snapshot.to_string(),
            limit: option(kept.limit),
            because: kept.protections.iter().map(ToString::to_string).collect(),
        });
        Self {
            dry_run,
            removed: removed.collect(),
            kept: kept.collect(),
            dangling_tags: report
                .dangling_tags
                .iter()
                .map(ToString::to_string)
                .collect(),
            leftovers: report.leftovers,
            freed_bytes: report.freed_bytes,
            store_bytes: report.store_bytes,
        }
    }
}

/// Runs the command.
pub(super) fn collect(args: &GcArgs) -> Result<()> {
    let config = RetentionConfig {
        keep_last: args.keep_last,
        max_age: args.max_age,
        max_bytes: args.max_size,
    };
    if config == RetentionConfig::default() {
        eprintln!(
            "no limit is given, so only leftovers go; --keep-last, --max-age and --max-size are \
             limits"
        );
    }
    let store = open_store(args.store.clone())?;
    let report = store.gc(&config, SystemTime::now(), args.dry_run)?;
    let collected = Collected::new(&report, args.dry_run);
    match args.format {
        Format::Json => output::json(&serde_json::to_value(&collected)?)?,
        Format::Table => table(&collected)?,
    }
    summary(&collected);
    Ok(())
}

fn table(collected: &Collected) -> Result<()> {
    let gone = if collected.dry_run {
        "would go"
    } else {
        "removed"
    };
    let removed = collected.removed.iter().map(|row| {
        let freed = output::bytes(row.freed_bytes);
        let reason = format!("over --{}", row.limit);
        [row.snapshot.clone(), gone.to_owned(), freed, reason]
    });
    let kept = collected.kept.iter().map(|row| {
        let reason = format!("over --{}, but {}", row.limit, row.because.join(", "));
        [
            row.snapshot.clone(),
            "kept".to_owned(),
            String::new(),
            reason,
        ]
    });
    let rows: Vec<_> = removed.chain(kept).collect();
    if rows.is_empty() {
        return Ok(());
    }
    output::rows(&["SNAPSHOT", "", "FREED", "REASON"], &rows)
}

fn summary(collected: &Collected) {
    let (done, frees) = if collected.dry_run {
        ("would remove", "would free")
    } else {
        ("removed", "freed")
    };
    eprintln!(
        "{done} {} snapshots, {} tags of nothing and {} leftovers; {frees} {} and leave {}",
        collected.removed.len(),
        collected.dangling_tags.len(),
        collected.leftovers,
        output::bytes(collected.freed_bytes),
        output::bytes(collected.store_bytes),
    );
}
