//! Finding a compiler that can build Hermit guests, and the tools that link them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use super::cargo;

/// The release that builds the pinned kernel. Newer ones reject its source.
const VERSION: &str = "1.85.";

/// The folder that `cargo xtask setup` unpacks the compiler into.
const PROJECT_LOCAL: &str = ".toolchain";

/// A compiler with the sources of std.
#[derive(Debug)]
pub(super) struct Compiler {
    /// The compiler.
    pub(super) rustc: PathBuf,
    /// What `rustc -vV` says.
    pub(super) version: String,
    /// Where it was found, for the user.
    pub(super) origin: &'static str,
    sysroot: PathBuf,
}

impl Compiler {
    /// Finds a usable compiler for the function in `folder`.
    pub(super) fn find(folder: &Path) -> Result<Self> {
        if let Some(rustc) = env::var_os("DORMOUSE_GUEST_RUSTC") {
            return Self::probe(Path::new(&rustc), "$DORMOUSE_GUEST_RUSTC")
                .map_err(|reason| anyhow!("the compiler in DORMOUSE_GUEST_RUSTC {reason}"));
        }
        let mut tried = Vec::new();
        for (rustc, origin) in candidates(folder) {
            match Self::probe(&rustc, origin) {
                Ok(compiler) if compiler.has_version() => return Ok(compiler),
                Ok(compiler) => {
                    tried.push(format!("  {}: {}", rustc.display(), compiler.release()));
                }
                Err(reason) => tried.push(format!("  {}: {reason}", rustc.display())),
            }
        }
        if tried.is_empty() {
            tried.push("  (no other compiler found)".to_owned());
        }
        bail!(
            "no rustc {VERSION}x with the sources of std was found; tried:\n{}\nhint: run `cargo \
             xtask setup` in the Dormouse repository, or `rustup toolchain install 1.85.0 \
             --component rust-src`",
            tried.join("\n")
        )
    }

    fn probe(rustc: &Path, origin: &'static str) -> Result<Self, String> {
        let ask = |arguments: &[&str]| {
            let output = Command::new(rustc)
                .args(arguments)
                .env_remove("LD_LIBRARY_PATH")
                .output()
                .map_err(|error| format!("cannot be run: {error}"))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(format!("does not work: {}", said.trim()));
            }
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let version = ask(&["-vV"])?;
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
        if !sysroot
            .join("lib/rustlib/src/rust/library/std/src/lib.rs")
            .is_file()
        {
            return Err("lacks the sources of std (rust-src)".to_owned());
        }
        Ok(Self {
            rustc: rustc.to_owned(),
            version,
            origin,
            sysroot,
        })
    }

    /// The version number.
    pub(super) fn release(&self) -> &str {
        self.field("release: ")
    }

    fn host(&self) -> &str {
        self.field("host: ")
    }

    fn has_version(&self) -> bool {
        self.release().starts_with(VERSION)
    }

    fn field(&self, name: &str) -> &str {
        self.version
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or("unknown")
    }
}

/// Compilers in the order of preference.
fn candidates(folder: &Path) -> Vec<(PathBuf, &'static str)> {
    let mut found = Vec::new();
    let here = env::current_dir().unwrap_or_default();
    for ancestor in folder.ancestors().chain(here.ancestors()) {
        for rustc in compilers_in(&ancestor.join(PROJECT_LOCAL), "rustc-1.85") {
            found.push((rustc, "project-local, by `cargo xtask setup`"));
        }
    }
    for rustc in compilers_in(&rustup_toolchains(), VERSION) {
        found.push((rustc, "rustup toolchain"));
    }
    let debian = Path::new("/usr/bin/rustc");
    if debian.exists() {
        found.push((debian.to_owned(), "system package"));
    }
    found
}

/// `bin/rustc` of each subfolder of `folder` whose name starts with `prefix`.
fn compilers_in(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut compilers: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join("bin/rustc"))
        .filter(|rustc| rustc.exists())
        .collect();
    compilers.sort();
    compilers
}

fn rustup_toolchains() -> PathBuf {
    env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")))
        .unwrap_or_default()
        .join("toolchains")
}

/// The tools that make one object of the kernel and link it with the function.
#[derive(Debug)]
pub(super) struct LinkTools {
    /// LLVM's linker, as rustup ships it.
    pub(super) rust_lld: PathBuf,
    /// LLVM's objcopy from the same place, or GNU's.
    pub(super) objcopy: PathBuf,
}

impl LinkTools {
    /// Finds them beside the compiler, beside cargo, or in another rustup toolchain.
    pub(super) fn find(compiler: &Compiler) -> Result<Self> {
        let in_sysroot = |sysroot: &Path| {
            sysroot
                .join("lib/rustlib")
                .join(compiler.host())
                .join("bin")
        };
        let mut folders = vec![in_sysroot(&compiler.sysroot)];
        if let Some(toolchain) = cargo::program().parent().and_then(Path::parent) {
            folders.push(in_sysroot(toolchain));
        }
        folders.extend(default_sysroot().as_deref().map(in_sysroot));
        let toolchains = fs::read_dir(rustup_toolchains()).into_iter().flatten();
        folders.extend(toolchains.flatten().map(|entry| in_sysroot(&entry.path())));

        let rust_lld = folders
            .iter()
            .map(|folder| folder.join("rust-lld"))
            .find(|lld| lld.is_file())
            .ok_or_else(|| {
                anyhow!(
                    "rust-lld was found in no Rust toolchain\nhint: it comes with rustup's \
                     toolchains: `rustup toolchain install stable`"
                )
            })?;
        let objcopy = folders
            .iter()
            .map(|folder| folder.join("rust-objcopy"))
            .chain([PathBuf::from("objcopy")])
            .find(|objcopy| runs(objcopy))
            .ok_or_else(|| {
                anyhow!("objcopy was not found\nhint: `apt-get install binutils` brings it")
            })?;
        Ok(Self { rust_lld, objcopy })
    }
}

/// The sysroot of the toolchain that rustup would run.
fn default_sysroot() -> Option<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .ok()?;
    let sysroot = String::from_utf8(output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| PathBuf::from(sysroot.trim()))
}

/// Whether the tool runs as [`super::kernel`] will run it: without the libraries of a cargo that
/// happens to be around it.
fn runs(program: &Path) -> bool {
    Command::new(program)
        .env_remove("LD_LIBRARY_PATH")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}
