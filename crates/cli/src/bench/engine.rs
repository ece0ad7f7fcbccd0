//! `dormouse bench engine`: measures the restore engine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use dormouse_benches::engine::{self, Options, Pattern};
use dormouse_benches::{Error, report};

use super::readme::Readme;
use crate::exit::{Exit, Failed};
use crate::output::{self, Format};
use crate::progress::Step;

/// Boots an image until it is ready and prints how many microseconds of that its guest ran
///
/// What `bench engine` starts processes for.
#[derive(Debug, Args)]
pub(crate) struct BootArgs {
    /// The Hermit image
    image: PathBuf,
}

/// Measures each stage of the restore engine beside its floor: the same work by bare system calls
///
/// It needs the sample functions' images and makes a store that ends with it. benches/METHOD.md
/// says what each row means.
#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    /// The folder with the sample functions' images
    #[arg(long, value_name = "DIR", env = "DORMOUSE_TEST_IMAGES")]
    images: Option<PathBuf>,

    /// Only rows with names like this, for example 'rollback/*'
    #[arg(long, value_name = "GLOB", value_parser = Pattern::new)]
    rows: Option<Pattern>,

    /// A tenth of the measurements: enough to see that all works
    #[arg(long)]
    quick: bool,

    /// End with 1 where a row is over its limit
    #[arg(long)]
    check: bool,

    /// Also write the table into this file, between its marks
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,

    /// How the rows are printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Runs `bench boot`.
pub(super) fn boot(args: &BootArgs) -> Result<()> {
    let guest_us = engine::boot(&args.image).map_err(failed)?;
    output::text(&format!("{guest_us}\n"))
}

/// Runs `bench engine`.
pub(super) fn engine(args: &EngineArgs) -> Result<()> {
    let options = Options {
        images: args.images.clone().ok_or_else(no_images)?,
        dormouse: std::env::current_exe().context("cannot find this very program")?,
        rows: args.rows.clone(),
        quick: args.quick,
    };
    if let Some(rows) = &args.rows
        && !engine::names().any(|name| rows.matches(name))
    {
        let names: Vec<_> = engine::names().collect();
        let none = Failed::new(Exit::Usage, format!("no row has a name like {rows}"));
        return Err(none.hint(format!("there are {}", names.join(", "))).into());
    }

    if let Some(readme) = &args.readme {
        // Before minutes are spent on what could not be written.
        self::readme(readme).check()?;
    }
    let mut step: Option<Step> = None;
    let measured = engine::measure(&options, |title| {
        if let Some(done) = step.replace(Step::begin(&format!("measuring {title}"))) {
            done.done();
        }
    });
    match (step, &measured) {
        (Some(step), Ok(_)) => step.done(),
        (Some(step), Err(_)) => step.failed(),
        (None, _) => {}
    }
    let record = measured.map_err(failed)?;

    for warning in record.machine.warnings() {
        eprintln!("warning: {warning}");
    }
    match args.format {
        Format::Table => {
            output::text(&format!("{}\n\n{}", record.machine, report::table(&record)))?
        }
        Format::Json => output::json(&serde_json::to_value(&record)?)?,
    }
    if let Some(readme) = &args.readme {
        self::readme(readme).write(&report::readme_block(&record))?;
    }
    let over = record.over();
    if args.check && !over.is_empty() {
        let message = format!("over their limits: {}", over.join(", "));
        return Err(Failed::new(Exit::Function, message).into());
    }
    Ok(())
}

pub(super) fn no_images() -> Failed {
    Failed::new(Exit::Usage, "the sample functions' images are needed").hint(
        "`cargo xtask functions` builds them; then give --images functions/target/images, or set \
         DORMOUSE_TEST_IMAGES",
    )
}

pub(super) fn failed(error: Error) -> anyhow::Error {
    match error {
        Error::Image { .. } => Failed::new(Exit::NoInput, error.to_string())
            .hint("`cargo xtask functions` builds the images into functions/target/images")
            .into(),
        Error::Vmm(_) => Failed::new(Exit::Unavailable, error.to_string())
            .hint("`dormouse doctor` shows what the host lacks")
            .into(),
        other => other.into(),
    }
}

fn readme(path: &Path) -> Readme<'_> {
    Readme {
        path,
        block: "engine",
    }
}
