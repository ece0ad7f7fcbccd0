//! A Dormouse of our own to be measured, and functions for it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::http::Method;
use dormouse_load::FunctionConfig;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::api::{Api, function_path};
use crate::deploy::read_file;
use crate::exit::{Exit, Failed};
use crate::progress::Step;

/// Time for a server to listen.
const START: Duration = Duration::from_secs(30);

/// A `dormouse serve` of our own with an empty store, stopped when it is dropped.
pub(super) struct Local {
    child: Child,
    url: String,
    _folder: TempDir,
}

impl Local {
    /// Starts it, in this very version.
    pub(super) fn start() -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a folder for a store")?;
        let url_file = folder.path().join("url");
        let dormouse = std::env::current_exe().context("cannot find this very program")?;
        let child = Command::new(&dormouse)
            .args(["serve", "--listen", "127.0.0.1:0", "--start-choice"])
            .arg("--store")
            .arg(folder.path().join("store"))
            .arg("--url-file")
            .arg(&url_file)
            .env("RUST_LOG", "warn")
            .env_remove("DORMOUSE_TOKENS")
            // A Ctrl-C is for the measurement, which stops this server when it is done with it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", dormouse.display()))?;
        let mut local = Self {
            child,
            url: String::new(),
            _folder: folder,
        };
        let begun = Instant::now();
        loop {
            if let Ok(url) = fs::read_to_string(&url_file) {
                local.url = url.trim().to_owned();
                return Ok(local);
            }
            let ended = local.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > START {
                let message = "the server of our own does not start; its message stands above";
                return Err(Failed::new(Exit::Unavailable, message).into());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself; then there is nothing to do.
            let _ = kill_process(pid, Signal::TERM);
        }
        // Its end is not ours to judge here.
        let _ = self.child.wait();
    }
}

/// Deploys what a scenario asks for. What is deployed already stays.
pub(super) async fn deploy(
    url: &str,
    functions: &BTreeMap<String, FunctionConfig>,
    images: Option<&Path>,
) -> Result<()> {
    if functions.is_empty() {
        return Ok(());
    }
    let images: PathBuf = images.map(Path::to_owned).ok_or_else(|| {
        Failed::new(Exit::Usage, "the scenario's functions need their images").hint(
            "`cargo xtask functions` builds those of the samples; then give --images \
             functions/target/images, or set DORMOUSE_TEST_IMAGES",
        )
    })?;
    let api = Api::at(url)?;
    for (name, function) in functions {
        let image = read_file(&images.join(&function.image))?;
        for number in 0..function.copies.max(1) {
            let name = if function.copies > 1 {
                format!("{name}-{number}")
            } else {
                name.clone()
            };
            let step = Step::begin(&format!("deploying {name}"));
            let deployed = api
                .json(Method::PUT, &function_path(&name), image.clone())
                .await;
            match &deployed {
                Ok(_) => step.done(),
                Err(_) => step.failed(),
            }
            deployed?;
        }
    }
    Ok(())
}
