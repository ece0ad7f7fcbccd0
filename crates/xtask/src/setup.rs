//! What a fresh machine lacks: installed where that is allowed, named where it is not.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::repo::{self, Repo};
use crate::toolchain::{self, runs, update_lists};

/// A Debian package that the build needs.
struct Package {
    name: &'static str,
    why: &'static str,
}

/// Installs and unpacks what is missing, and checks the host. Doing it again changes nothing.
pub(crate) fn run(repo: &Repo) -> Result<()> {
    install(&missing_packages())?;
    toolchain::ensure(repo)?;
    check_devices()
}

/// Installs a C++ compiler if there is none.
pub(crate) fn install_cxx() -> Result<()> {
    if runs("c++") {
        return Ok(());
    }
    install(&[Package {
        name: "g++",
        why: "the fuzz targets are linked with libFuzzer, which is C++",
    }])
}

fn missing_packages() -> Vec<Package> {
    let mut missing = Vec::new();
    if !runs("cc") {
        missing.push(Package {
            name: "gcc libc6-dev",
            why: "Rust programs are linked by it",
        });
    }
    if !has_libclang() {
        missing.push(Package {
            name: libclang_package(),
            why: "bindgen reads the kernel's userfaultfd header with libclang",
        });
    }
    if !runs("strace") {
        missing.push(Package {
            name: "strace",
            why: "a test counts the system calls between a request and its run",
        });
    }
    if !runs("chromium") {
        missing.push(Package {
            name: "chromium fonts-dejavu-core",
            why: "a test opens the load report in a browser, which needs a font for its text",
        });
    }
    missing
}

/// Debian 12's metapackage would also do, but brings more.
fn libclang_package() -> &'static str {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if release.contains("VERSION_CODENAME=bookworm") {
        "libclang1-14"
    } else {
        "libclang-dev"
    }
}

fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let llvm = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut folders: Vec<_> = llvm
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm"))
        .map(|entry| entry.path().join("lib"))
        .collect();
    folders.extend(
        [
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib64",
            "/usr/lib",
            "/usr/local/lib",
        ]
        .map(Into::into),
    );
    folders.iter().any(|folder| {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.map(|file| file.file_name()).any(|name| {
            let name = name.to_string_lossy();
            name.starts_with("libclang") && !name.contains("cpp") && name.contains(".so")
        })
    })
}

fn install(packages: &[Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = packages
        .iter()
        .flat_map(|package| package.name.split(' '))
        .collect();
    let names = names.join(" ");
    for package in packages {
        eprintln!("missing: {} ({})", package.name, package.why);
    }
    let commands =
        format!("  apt-get update\n  apt-get install -y --no-install-recommends {names}");
    if !runs("apt-get") {
        bail!(
            "{names} must be installed, and there is no apt-get here\nhint: install the same with \
             your system's package manager; on Debian it would be:\n{commands}"
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "{names} must be installed, and only root may do it\nhint: run these commands as root \
             and try again:\n{commands}"
        );
    }
    let install = || {
        let mut command = Command::new("apt-get");
        command
            .args(["--quiet", "install", "-y", "--no-install-recommends"])
            .args(names.split(' '))
            .env("DEBIAN_FRONTEND", "noninteractive");
        repo::run(&format!("installing {names} (apt-get install)"), command)
    };
    if install().is_err() {
        update_lists()?;
        install()?;
    }
    Ok(())
}

/// Says what is wrong with the devices that Dormouse lives on. Tests may go without.
fn check_devices() -> Result<()> {
    let mut wrong = Vec::new();
    wrong.extend(device_problem(
        "/dev/kvm",
        "load the module (`modprobe kvm_intel` or `modprobe kvm_amd`), or allow nested \
         virtualization where this is a virtual machine",
    ));
    wrong.extend(device_problem(
        "/dev/userfaultfd",
        "it needs Linux 6.1 or newer with CONFIG_USERFAULTFD",
    ));
    if wrong.is_empty() {
        eprintln!("host: /dev/kvm and /dev/userfaultfd are usable");
        return Ok(());
    }
    for problem in &wrong {
        eprintln!("host: {problem}");
    }
    if std::env::var_os("DORMOUSE_TEST_NO_KVM").is_some() {
        return Ok(());
    }
    bail!(
        "this host cannot run Dormouse: {}\nhint: with DORMOUSE_TEST_NO_KVM=1 the tests skip what \
         needs KVM",
        wrong.join("; ")
    )
}

fn device_problem(path: &str, absent: &str) -> Option<String> {
    match File::options().read(true).write(true).open(path) {
        Ok(_) => None,
        Err(_) if !Path::new(path).exists() => Some(format!("{path} is missing; {absent}")),
        Err(error) => Some(format!(
            "{path} cannot be opened ({error}); run as root, or `sudo setfacl -m u:$USER:rw {path}`"
        )),
    }
}
