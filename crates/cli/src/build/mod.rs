//! `dormouse build`: from a function's crate to a Hermit image.
//!
//! ```text
//! compiler (1.85, with std's sources) ──┬─► kernel crate ─► one object, entry points only ─┐
//!                                       └─► function's crate, std and all ─────────────────┴─► image
//! ```
//!
//! Kernel and std are compiled once per compiler, in a cache that all functions share.

mod cache;
mod cargo;
mod function;
mod kernel;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use cache::Cache;
use function::Function;
use toolchain::{Compiler, LinkTools};

/// Builds a function crate into a Hermit image and prints the image's path
///
/// The compiler is the first of: $DORMOUSE_GUEST_RUSTC, the project-local one of `cargo xtask
/// setup`, a rustup toolchain 1.85 with rust-src, the system's. The kernel and std are built once,
/// in $DORMOUSE_BUILD_CACHE or $XDG_CACHE_HOME/dormouse.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The folder of the function's Cargo.toml
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Where to write the image [default: images/NAME in the crate's target folder]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// The binary to build, where the crate has several
    #[arg(long, value_name = "NAME")]
    bin: Option<String>,

    /// Floating-point arithmetic: by software, which runs on every host, or by SSE, which needs
    /// hardware virtualization
    #[arg(long, value_enum, default_value_t = Float::Soft)]
    float: Float,

    /// What the kernel prints on the console; below `error`, crashes stay unexplained
    #[arg(long, value_enum, default_value_t = LogLevel::Error)]
    log_level: LogLevel,
}

/// How a function computes with floating-point numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Float {
    /// By software.
    Soft,
    /// By SSE instructions.
    Hard,
}

/// The least important messages that the kernel prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Nothing.
    Off,
    /// Exceptions and other failures.
    Error,
    /// Warnings too.
    Warn,
    /// The boot's progress too.
    Info,
    /// Details too.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    fn filter(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Builds the image and returns its path.
pub(crate) fn build(args: &BuildArgs) -> Result<PathBuf> {
    let folder = fs::canonicalize(&args.folder)
        .with_context(|| format!("there is no folder {}", args.folder.display()))?;
    if !folder.join("Cargo.toml").is_file() {
        bail!(
            "{} has no Cargo.toml\nhint: name the folder of a function's crate",
            folder.display()
        );
    }
    let compiler = Compiler::find(&folder)?;
    eprintln!(
        "compiler: rustc {} ({}), {}",
        compiler.release(),
        compiler.origin,
        compiler.rustc.display()
    );
    let tools = LinkTools::find(&compiler)?;
    let cache = Cache::open(&compiler)?;
    let function = Function::read(&folder, args.bin.as_deref(), &compiler)?;
    let kernel = kernel::object(&cache, &compiler, &tools, args.log_level)?;
    let image = function.compile(&cache, &compiler, &tools, args.float, &kernel)?;

    let output = args
        .output
        .clone()
        .unwrap_or_else(|| function.target_folder.join("images").join(&function.name));
    put(&image, &output)?;
    Ok(output)
}

/// Copies a file so that no reader sees half of it.
fn put(from: &Path, to: &Path) -> Result<()> {
    let written = || {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let half = to.with_file_name(name);
        fs::copy(from, &half)?;
        fs::rename(&half, to)
    };
    written().with_context(|| format!("cannot write the image to {}", to.display()))
}

/// Leaves a file alone that is right already, so that cargo sees no change.
fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|current| current == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
