//! The compiler for Hermit guests: Debian's rustc 1.85 with the sources of std, unpacked into the
//! repository. Nothing is installed, nothing needs root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::repo::{Repo, run};

/// The suffix picks 1.85 over the security suite's newer releases, which cannot build the kernel.
const PACKAGES: [&str; 11] = [
    "rustc-web/bookworm",
    "libstd-rust-web-1.85/bookworm",
    "libstd-rust-web-dev/bookworm",
    "rust-web-src/bookworm",
    "libllvm19",
    "libedit2",
    "libbsd0",
    "libmd0",
    "libxml2",
    "libicu72",
    "libz3-4",
];
const SOURCES: &str = "rust-web-src_";
/// Of the compiler's own sources only std's are needed.
const SOURCES_KEPT: [&str; 2] = ["./usr/lib/rustlib", "./usr/src/rustc-1.85.0/library"];
const NAME: &str = "rustc-1.85.0";

/// Finds the libraries beside itself, wherever the folder is.
const WRAPPER: &str = r#"#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/../root/usr
LD_LIBRARY_PATH=$root/lib/x86_64-linux-gnu exec "$root/bin/rustc" "$@"
"#;

/// Unpacks the compiler unless there is one that `dormouse build` accepts.
pub(crate) fn ensure(repo: &Repo) -> Result<()> {
    if let Some(rustc) = std::env::var_os("DORMOUSE_GUEST_RUSTC") {
        eprintln!(
            "guest compiler: {} (DORMOUSE_GUEST_RUSTC)",
            Path::new(&rustc).display()
        );
        return Ok(());
    }
    let folder = repo.path(".toolchain");
    let unpacked = folder.join(NAME);
    if unpacked.join("bin/rustc").is_file() {
        eprintln!("guest compiler: {}", unpacked.display());
        return Ok(());
    }
    if let Some(sysroot) = rustup_toolchain() {
        eprintln!("guest compiler: {}", sysroot.display());
        return Ok(());
    }
    if !has_packages() {
        bail!(
            "the guest compiler, rustc 1.85 with the sources of std, cannot be unpacked: this is \
             no Debian 12 with apt-get\nhint: run these commands and try again:\n  rustup \
             toolchain install 1.85.0 --component rust-src"
        );
    }
    eprintln!(
        "guest compiler: unpacking Debian's rustc 1.85 into {} (153 MB to download, 494 MB \
         unpacked), because Hermit's kernel and std are compiled by it",
        unpacked.display()
    );
    remove_leftovers(&folder)?;
    let half = folder.join(format!("{UNPACKING}{}", std::process::id()));
    unpack(&half)?;
    // Whole or not at all; another set-up may have been faster.
    if let Err(error) = fs::rename(&half, &unpacked) {
        fs::remove_dir_all(&half).with_context(|| format!("cannot remove {}", half.display()))?;
        if !unpacked.join("bin/rustc").is_file() {
            return Err(error).with_context(|| format!("cannot create {}", unpacked.display()));
        }
    }
    Ok(())
}

const UNPACKING: &str = "unpacking-";

fn unpack(folder: &Path) -> Result<()> {
    let debs = folder.join("debs");
    let root = folder.join("root");
    let bin = folder.join("bin");
    for folder in [&debs, &root, &bin] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    download(&debs)?;
    let mut packages: Vec<PathBuf> = fs::read_dir(&debs)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    packages.sort();
    let mut script = String::from("set -e\n");
    for package in &packages {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        let kept = if name.starts_with(SOURCES) {
            SOURCES_KEPT.join(" ")
        } else {
            String::new()
        };
        script.push_str(&format!(
            "dpkg-deb --fsys-tarfile 'debs/{name}' | tar -x -C root {kept}\n"
        ));
    }
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(folder);
    run("unpacking the guest compiler", command)?;

    let wrapper = bin.join("rustc");
    fs::write(&wrapper, WRAPPER)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new(&wrapper);
    command.arg("--version");
    let version = run("trying the guest compiler", command)?;
    if !version.starts_with(b"rustc 1.85.") {
        bail!(
            "the unpacked compiler is {}, not rustc 1.85",
            String::from_utf8_lossy(&version).trim()
        );
    }
    if !root
        .join("usr/lib/rustlib/src/rust/library/std/src/lib.rs")
        .is_file()
    {
        bail!("the unpacked compiler lacks the sources of std");
    }
    fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))
}

fn download(folder: &Path) -> Result<()> {
    let download = || {
        let mut command = Command::new("apt-get");
        command
            // Root's own folders are closed to apt's user.
            .args(["--quiet", "-o", "APT::Sandbox::User=root", "download"])
            .args(PACKAGES)
            .current_dir(folder);
        run("downloading the guest compiler", command)
    };
    if download().is_err() {
        // The package lists are missing or out of date.
        update_lists()?;
        download()?;
    }
    Ok(())
}

/// Brings apt's package lists up to date.
pub(crate) fn update_lists() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "apt's package lists are missing or out of date, and only root may update them\nhint: \
             run this command and try again:\n  sudo apt-get update"
        );
    }
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "update"]);
    run("updating apt's package lists (apt-get update)", command).map(|_| ())
}

fn has_packages() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let says = |line: &str| release.lines().any(|found| found == line);
    says("VERSION_CODENAME=bookworm") && runs("apt-get") && runs("dpkg-deb")
}

/// True where a program can be started.
pub(crate) fn runs(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A rustup toolchain 1.85 that has the sources of std.
fn rustup_toolchain() -> Option<PathBuf> {
    let toolchains = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".rustup")))?
        .join("toolchains");
    fs::read_dir(toolchains)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|toolchain| {
            let name = toolchain.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("1.85.")
                && toolchain
                    .join("lib/rustlib/src/rust/library/std/src/lib.rs")
                    .is_file()
        })
}

/// Removes what set-ups left behind that were killed.
fn remove_leftovers(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(UNPACKING)) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}
