//! `dormouse bench sizes`: what snapshots take on disk.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dormouse_benches::sizes;

use super::engine::{failed, no_images};
use super::readme::Readme;
use crate::output::{self, Format};
use crate::progress::Step;

/// Deploys every sample function and shows the bytes of their snapshots: raw, without zeros,
/// deduplicated and compressed
///
/// It needs the sample functions' images and makes a store that ends with it.
#[derive(Debug, Args)]
pub(crate) struct SizesArgs {
    /// The folder with the sample functions' images
    #[arg(long, value_name = "DIR", env = "DORMOUSE_TEST_IMAGES")]
    images: Option<PathBuf>,

    /// Also write the table into this file, between its marks
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,

    /// How the table is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Runs the command.
pub(super) fn sizes(args: &SizesArgs) -> Result<()> {
    let images = args.images.clone().ok_or_else(no_images)?;
    let readme = args.readme.as_ref().map(|path| Readme {
        path,
        block: "sizes",
    });
    if let Some(readme) = &readme {
        // Before a minute is spent on what could not be written.
        readme.check()?;
    }
    let mut step: Option<Step> = None;
    let measured = sizes::measure(&images, |function| {
        if let Some(done) = step.replace(Step::begin(&format!("deploying {function} twice"))) {
            done.done();
        }
    });
    match (step, &measured) {
        (Some(step), Ok(_)) => step.done(),
        (Some(step), Err(_)) => step.failed(),
        (None, _) => {}
    }
    let sizes = measured.map_err(failed)?;
    match args.format {
        Format::Table => output::text(&format!("{}\n\n{}", sizes.machine, sizes.table()))?,
        Format::Json => output::json(&serde_json::to_value(&sizes)?)?,
    }
    match readme {
        Some(readme) => readme.write(&sizes.readme_block()),
        None => Ok(()),
    }
}
