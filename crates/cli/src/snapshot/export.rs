//! `dormouse snapshot export`: a snapshot on its way to another store.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use dormouse_archive::{Existing, Exported, Progress, export_file, export_oci, export_to};
use dormouse_snapshot::{SnapshotRef, Store};
use schemars::JsonSchema;
use serde::Serialize;

use super::reference::resolve;
use crate::api::open_store;
use crate::exit::{Exit, Failed};
use crate::output::{self, Format};
use crate::progress::Step;

/// Writes a snapshot into one file or an OCI image layout, for `dormouse snapshot import`
///
/// It holds the guest's memory, with whatever secrets are in it. Equal snapshots give equal files.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The snapshot: NAME for the function's newest, NAME@ID, NAME@NUMBER or NAME:TAG
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,

    /// The file that it is written to; `-` is stdout
    #[arg(short, long, value_name = "FILE", required_unless_present = "oci")]
    output: Option<PathBuf>,

    /// The folder of an OCI image layout, which is made or added to
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    oci: Option<PathBuf>,

    /// The snapshot's tag in the layout [default: NAME@ID]
    #[arg(long, requires = "oci")]
    tag: Option<String>,

    /// Replace the file, or what has the tag, where it is there already
    #[arg(long)]
    overwrite: bool,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// The store to work on [env: DORMOUSE_STORE] [default: snapshots/store]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// What `--format json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ExportReport {
    /// The function.
    function: String,
    /// The snapshot's id.
    id: String,
    /// The file or folder.
    output: PathBuf,
    /// What it is.
    form: Form,
    /// Bytes in the snapshot's files.
    bytes: u64,
    /// Bytes that were written; fewer where a layout has some of the files already.
    written_bytes: u64,
}

/// The two ways of moving a snapshot.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Form {
    /// One file.
    File,
    /// An OCI image layout.
    OciLayout,
}

/// Runs the command.
pub(super) fn export(args: &ExportArgs) -> Result<()> {
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    if to_stdout && (args.format == Format::Json || io::stdout().is_terminal()) {
        let message = "stdout cannot take the snapshot: it is a terminal, or has to print JSON";
        let failed = Failed::new(Exit::Usage, message);
        return Err(failed.hint("name a file with --output").into());
    }
    let store = open_store(args.store.clone())?;
    let snapshot = resolve(&store, &args.snapshot)?;

    let step = Step::begin(&format!("exporting {snapshot}"));
    let exported = write(args, &store, &snapshot, &mut |done, all| {
        step.bytes(done, all);
    });
    let (exported, output, form) = match exported {
        Ok(exported) => {
            step.done();
            exported
        }
        Err(error) => {
            step.failed();
            return Err(failed(error).into());
        }
    };
    if to_stdout {
        return Ok(());
    }
    let report = ExportReport {
        function: snapshot.function.to_string(),
        id: snapshot.id.to_string(),
        output: output.to_owned(),
        form,
        bytes: exported.bytes,
        written_bytes: exported.written_bytes,
    };
    match args.format {
        Format::Json => output::json(&serde_json::to_value(&report)?),
        Format::Table => output::properties(&[
            ("snapshot", snapshot.to_string()),
            ("output", output.display().to_string()),
            ("size", output::bytes(report.bytes)),
            ("written", output::bytes(report.written_bytes)),
        ]),
    }
}

fn write<'a>(
    args: &'a ExportArgs,
    store: &Store,
    snapshot: &SnapshotRef,
    progress: Progress<'_>,
) -> dormouse_archive::Result<(Exported, &'a Path, Form)> {
    let existing = if args.overwrite {
        Existing::Replace
    } else {
        Existing::Keep
    };
    match (&args.oci, &args.output) {
        (Some(folder), _) => {
            let tag = args.tag.as_deref();
            let exported = export_oci(store, snapshot, folder, tag, existing, progress)?;
            Ok((exported, folder, Form::OciLayout))
        }
        (None, Some(file)) if file.as_path() != Path::new("-") => {
            let exported = export_file(store, snapshot, file, existing, progress)?;
            Ok((exported, file, Form::File))
        }
        (None, _) => {
            let exported = export_to(store, snapshot, io::stdout().lock(), progress)?;
            Ok((exported, Path::new("-"), Form::File))
        }
    }
}

/// The error as the command ends with it.
pub(super) fn failed(error: dormouse_archive::Error) -> Failed {
    use dormouse_archive::Error;
    let message = error.to_string();
    let exit = match error {
        Error::Store(error) => Exit::of(&error.into()),
        Error::Exists { .. } | Error::TagTaken { .. } => {
            return Failed::new(Exit::Usage, message).hint("--overwrite replaces it");
        }
        Error::Ambiguous { .. } => {
            return Failed::new(Exit::Usage, message).hint("--tag TAG chooses");
        }
        Error::Occupied { .. } | Error::BadTag { .. } | Error::NoTags { .. } => Exit::Usage,
        Error::UnknownTag { .. } => Exit::NoInput,
        Error::Io { reason, .. } if reason.kind() == io::ErrorKind::NotFound => Exit::NoInput,
        Error::Io { .. } => Exit::Unavailable,
        // The rest is about what was read.
        _ => Exit::Data,
    };
    Failed::new(exit, message)
}
