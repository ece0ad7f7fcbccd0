//! Running cargo so that nothing of the caller's own build leaks into a guest's.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, anyhow};

use super::toolchain::Compiler;
use crate::progress::Step;

/// `CARGO_*` variables that say how to reach a registry or how to talk, not what to build.
const HARMLESS: [&str; 7] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTR",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
    "CARGO_ALIAS_",
];

/// The cargo that runs us, or the one on the path.
pub(super) fn program() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// A cargo command that compiles with `compiler` and inherits no build settings.
pub(super) fn command(compiler: &Compiler, folder: &Path) -> Command {
    let mut command = Command::new(program());
    for (name, _) in env::vars_os() {
        if leaks(&name) {
            command.env_remove(name);
        }
    }
    command
        .current_dir(folder)
        .env("RUSTC", &compiler.rustc)
        // -Zbuild-std and custom targets, with a compiler whose version is known.
        .env("RUSTC_BOOTSTRAP", "1")
        // Set and empty: flags in the user's cargo configuration do not count either. They could
        // enable instructions that run wrongly where ring 0 is emulated (lzcnt, bmi, popcnt).
        .env("CARGO_ENCODED_RUSTFLAGS", "")
        // Without a lock file, choose releases that this compiler can build.
        .env("CARGO_RESOLVER_INCOMPATIBLE_RUST_VERSIONS", "fallback");
    command
}

/// The arguments that every compilation needs besides its target.
pub(super) fn colour() -> &'static str {
    if std::io::stderr().is_terminal() {
        "--color=always"
    } else {
        "--color=never"
    }
}

fn leaks(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    if name.starts_with("CARGO_") {
        return !HARMLESS.iter().any(|prefix| name.starts_with(prefix));
    }
    name.starts_with("RUSTC")
        || name.starts_with("RUSTDOC")
        || matches!(
            &*name,
            "CARGO" | "RUSTFLAGS" | "RUST_TARGET_PATH" | "LD_LIBRARY_PATH" | "MAKEFLAGS"
        )
}

/// Runs a command under a spinner. Its warnings are passed on; where it fails, the error is what
/// it said and one hint.
pub(super) fn run(mut command: Command, step: &str, on_failure: &str) -> Result<Output> {
    let step = Step::begin(step);
    let output = command.output().with_context(|| {
        format!(
            "cannot start {}; is it installed and on the PATH?",
            command.get_program().display()
        )
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        step.done();
        eprint!("{said}");
        return Ok(output);
    }
    step.failed();
    Err(anyhow!(
        "{on_failure}\n{}\nhint: {}",
        said.trim_end(),
        hint(&said)
    ))
}

/// One next step for what the compiler said.
fn hint(said: &str) -> &'static str {
    let says = |text: &str| said.contains(text);
    if says("undefined symbol: sys_") {
        "the Hermit kernel is built without networking: std::net cannot be used in a function; \
         the host speaks HTTP for it"
    } else if says("undefined symbol") {
        "a dependency needs a C library or a system call that Hermit does not have"
    } else if says("failed to download") || says("Could not resolve") || says("failed to get") {
        "the first build downloads crates from crates.io; check the network and try again"
    } else if says("requires rustc") || says("is unstable") || says("unstable library feature") {
        "functions are compiled with rustc 1.85; choose an older release of that crate with \
         `cargo update NAME --precise VERSION`"
    } else if says("rust-lld") || says("linking with") {
        "the linker failed; `--float soft` and `--float hard` builds do not mix, and C code is not \
         supported"
    } else {
        "functions are compiled with rustc 1.85 for the Hermit target; see the messages above"
    }
}

/// Joins an option and a path, which need not be UTF-8.
pub(super) fn option_with_path(option: &str, path: &Path) -> OsString {
    let mut joined = OsString::from(option);
    joined.push(path);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_settings_leak_and_registry_settings_do_not() {
        for name in [
            "CARGO",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_MANIFEST_DIR",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
        ] {
            assert!(leaks(OsStr::new(name)), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "PATH",
            "HOME",
            "RUSTUP_HOME",
        ] {
            assert!(!leaks(OsStr::new(name)), "{name}");
        }
    }
}
