//! `dormouse snapshot import`: a snapshot that comes from another store.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use dormouse_archive::{Error, import, import_from};
use schemars::JsonSchema;
use serde::Serialize;

use super::export::failed;
use crate::api::open_store;
use crate::output::{self, Format};
use crate::progress::Step;

/// Takes a snapshot into the store that `dormouse snapshot export` has written
///
/// It keeps its function's name and its id. Everything is verified before the store shows it; who
/// made it is not, so import only what you would deploy. A server takes it up when it next opens the
/// function.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The file or the OCI image layout; `-` is a file from stdin
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Which snapshot of the layout: its tag, or the digest of its image manifest
    #[arg(long)]
    tag: Option<String>,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// The store to work on [env: DORMOUSE_STORE] [default: snapshots/store]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// What `--format json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ImportReport {
    /// The function.
    function: String,
    /// The snapshot's id.
    id: String,
    /// The store had this very snapshot before, and was not changed.
    already_there: bool,
    /// Bytes in the snapshot's files.
    bytes: u64,
    /// Bytes of those files that the store had already and did not store again.
    linked_bytes: u64,
}

/// Runs the command.
pub(super) fn import_snapshot(args: &ImportArgs) -> Result<()> {
    let store = open_store(args.store.clone())?;
    let is_stdin = args.path == Path::new("-");
    let place = if is_stdin {
        "stdin".to_owned()
    } else {
        args.path.display().to_string()
    };
    let tag = args.tag.as_deref();
    let step = Step::begin(&format!("importing {place}"));
    let mut progress = |done, all| step.bytes(done, all);
    let imported = match (is_stdin, tag) {
        (false, tag) => import(&store, &args.path, tag, &mut progress),
        (true, None) => import_from(&store, io::stdin().lock(), &place, &mut progress),
        (true, Some(_)) => Err(Error::NoTags { place }),
    };
    let imported = match imported {
        Ok(imported) => {
            step.done();
            imported
        }
        Err(error) => {
            step.failed();
            return Err(failed(error).into());
        }
    };
    let report = ImportReport {
        function: imported.function.to_string(),
        id: imported.id.to_string(),
        already_there: imported.already_there,
        bytes: imported.bytes,
        linked_bytes: imported.linked_bytes,
    };
    if report.already_there {
        eprintln!("the store had this snapshot already");
    }
    match args.format {
        Format::Json => output::json(&serde_json::to_value(&report)?),
        Format::Table => output::properties(&[
            ("function", report.function),
            ("snapshot", report.id),
            ("size", output::bytes(report.bytes)),
            ("shared", output::bytes(report.linked_bytes)),
        ]),
    }
}
