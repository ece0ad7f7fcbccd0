//! Building the `dormouse` command, and the sample functions with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::repo::{Repo, run, run_openly};

/// Builds the `dormouse` command and returns where it is.
pub(crate) fn dormouse(repo: &Repo, release: bool) -> Result<PathBuf> {
    let mut command = repo.cargo();
    command.args(["build", "--package", "dormouse-cli"]);
    if release {
        command.arg("--release");
    }
    built_dormouse("building dormouse", command)
}

/// Builds every test, and the `dormouse` command with them, whose place is returned: what the tests
/// need is not built twice.
pub(crate) fn dormouse_and_tests(repo: &Repo) -> Result<PathBuf> {
    let mut command = repo.cargo();
    command.args(["test", "--workspace", "--no-run"]);
    built_dormouse("building dormouse and its tests", command)
}

/// Runs a build and finds the `dormouse` command in what it says.
fn built_dormouse(step: &str, mut build: Command) -> Result<PathBuf> {
    build.args(["--message-format=json-render-diagnostics", "--quiet"]);
    let messages = run(step, build)?;
    let messages = String::from_utf8_lossy(&messages);
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "dormouse")
        // Its own unit tests are an executable of that name, too.
        .filter(|message| message["profile"]["test"] == false)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| anyhow!("cargo did not say where it put dormouse"))
}

/// Builds all sample functions and returns the folder of their images.
pub(crate) fn build(repo: &Repo, dormouse: &Path) -> Result<PathBuf> {
    let images = repo.path("functions/target/images");
    for function in list(repo)? {
        let name = function.file_name().unwrap_or_default().to_string_lossy();
        let mut command = Command::new(dormouse);
        command
            .arg("build")
            .arg(&function)
            .arg("--output")
            .arg(images.join(&*name))
            .stdout(std::process::Stdio::null());
        if std::env::var_os("DORMOUSE_BUILD_CACHE").is_none() {
            command.env("DORMOUSE_BUILD_CACHE", repo.path("functions/target/build"));
        }
        run_openly(&format!("function {name}"), command)?;
    }
    Ok(images)
}

/// Folders of the sample functions.
fn list(repo: &Repo) -> Result<Vec<PathBuf>> {
    let folder = repo.path("functions");
    let mut functions: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("Cargo.toml").is_file())
        .collect();
    functions.sort();
    Ok(functions)
}
