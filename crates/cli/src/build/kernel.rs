//! The Hermit kernel as one object file, built once per compiler and log level.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSymbol};

use super::LogLevel;
use super::cache::Cache;
use super::cargo;
use super::toolchain::{Compiler, LinkTools};

/// The crate that wraps the kernel, laid out in the cache.
const SOURCES: [(&str, &str); 3] = [
    ("Cargo.toml", include_str!("kernel/Cargo.toml.in")),
    ("Cargo.lock", include_str!("kernel/Cargo.lock.in")),
    ("src/lib.rs", include_str!("kernel/lib.rs.in")),
];

const TARGET: &str = "x86_64-unknown-none";

/// The kernel's object for functions to link. Its name holds the hash of all that it is made of,
/// because cargo links a function anew only when its arguments change.
pub(super) fn object(
    cache: &Cache,
    compiler: &Compiler,
    tools: &LinkTools,
    log_level: LogLevel,
) -> Result<PathBuf> {
    let mut hasher = blake3::Hasher::new();
    for (_, source) in SOURCES {
        hasher.update(source.as_bytes());
    }
    hasher.update(compiler.version.as_bytes());
    hasher.update(log_level.filter().as_bytes());
    let key = hasher.finalize().to_hex();
    let object = cache
        .folder("objects")?
        .join(format!("hermit-kernel-{}.o", &key[..16]));
    if object.is_file() {
        return Ok(object);
    }

    let archive = compile(cache, compiler, log_level)?;
    let whole = object.with_extension("whole.tmp");
    let hidden = object.with_extension("tmp");
    link_whole(tools, &archive, &whole)?;
    keep_entry_points(tools, &whole, &hidden)?;
    fs::rename(&hidden, &object).with_context(|| format!("cannot write {}", object.display()))?;
    fs::remove_file(&whole).with_context(|| format!("cannot remove {}", whole.display()))?;
    Ok(object)
}

fn compile(cache: &Cache, compiler: &Compiler, log_level: LogLevel) -> Result<PathBuf> {
    let folder = cache.folder("kernel")?;
    for (name, source) in SOURCES {
        super::write_if_changed(&folder.join(name), source)?;
    }
    let target_dir = cache.folder("target")?;
    let mut command = cargo::command(compiler, &folder);
    command
        .args(["build", "--release", "--quiet", "--locked", cargo::colour()])
        .args(["--target", TARGET])
        .args(["-Zbuild-std=core,alloc"])
        .args(["-Zbuild-std-features=compiler-builtins-mem"])
        .arg("--target-dir")
        .arg(&target_dir)
        // The kernel reads both while it is compiled: what it logs, and without colour codes.
        .env("HERMIT_LOG_LEVEL_FILTER", log_level.filter())
        .env("NO_COLOR", "1");
    cargo::run(
        command,
        "building the Hermit kernel (about a minute, once)",
        "the Hermit kernel cannot be built",
    )?;
    Ok(target_dir.join(TARGET).join("release/libdormouse_kernel.a"))
}

/// Makes one relocatable object of all that the archive holds.
fn link_whole(tools: &LinkTools, archive: &Path, whole: &Path) -> Result<()> {
    let mut command = Command::new(&tools.rust_lld);
    command
        .args(["-flavor", "gnu", "-r", "--whole-archive"])
        .arg(archive)
        .arg("-o")
        .arg(whole);
    run_tool(command)
}

/// Makes everything local but the kernel's entry points: it has its own copies of `core` and
/// `alloc`, whose symbols must not meet those of the function's std.
fn keep_entry_points(tools: &LinkTools, whole: &Path, hidden: &Path) -> Result<()> {
    let bytes = fs::read(whole).with_context(|| format!("cannot read {}", whole.display()))?;
    let file = object::File::parse(&*bytes)
        .with_context(|| format!("{} is no object file", whole.display()))?;
    let entry_points: Vec<&str> = file
        .symbols()
        .filter(|symbol| symbol.is_global() && symbol.is_definition())
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| *name == "_start" || name.starts_with("sys_"))
        .collect();
    if !entry_points.contains(&"_start") {
        bail!(
            "the kernel's object {} has no entry point `_start`",
            whole.display()
        );
    }
    let list = hidden.with_extension("symbols");
    fs::write(&list, entry_points.join("\n"))
        .with_context(|| format!("cannot write {}", list.display()))?;
    let mut command = Command::new(&tools.objcopy);
    command
        .arg(cargo::option_with_path("--keep-global-symbols=", &list))
        .arg(whole)
        .arg(hidden);
    run_tool(command)?;
    fs::remove_file(&list).with_context(|| format!("cannot remove {}", list.display()))
}

fn run_tool(mut command: Command) -> Result<()> {
    let output = command
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{} failed:\n{}",
            command.get_program().display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(())
}
