//! A `dormouse serve` of our own, over a store that begins empty.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::progress::Step;

/// The server's process, stopped when it is dropped.
pub(crate) struct Server {
    child: Child,
    url: String,
    store: PathBuf,
}

impl Server {
    /// Starts one in `folder`, which is emptied. What it says goes to `output`.
    pub(crate) fn start(
        dormouse: &Path,
        folder: &Path,
        options: impl IntoIterator<Item = impl AsRef<OsStr>>,
        output: Stdio,
    ) -> Result<Self> {
        let store = folder.join("store");
        let url_file = folder.join("url");
        // A fresh store: a function that was deployed already would not be booted again.
        if store.exists() {
            fs::remove_dir_all(&store)
                .with_context(|| format!("cannot remove {}", store.display()))?;
        }
        if url_file.exists() {
            fs::remove_file(&url_file)
                .with_context(|| format!("cannot remove {}", url_file.display()))?;
        }
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;

        let step = Step::begin("starting the server");
        let child = Command::new(dormouse)
            .arg("serve")
            .args(options)
            .arg("--store")
            .arg(&store)
            .arg("--url-file")
            .arg(&url_file)
            // What the caller's own servers are told does not count here.
            .env_remove("DORMOUSE_TOKENS")
            .env_remove("DORMOUSE_ISOLATION")
            .env_remove("DORMOUSE_VERIFY")
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", dormouse.display()))?;
        let mut server = Self {
            child,
            url: String::new(),
            store,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(url) = fs::read_to_string(&url_file) {
                server.url = url.trim().to_owned();
                step.done();
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended at once ({status}); its message says why");
            }
            if Instant::now() > deadline {
                bail!("the server did not start within 30 s");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where it listens, without a slash at the end.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its store's folder.
    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until somebody else stops it.
    pub(crate) fn wait(mut self) -> Result<()> {
        self.child.wait()?;
        Ok(())
    }

    /// Stops it and waits for its end.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.terminate();
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the server ended with {status}");
        }
        Ok(())
    }

    fn terminate(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself; then there is nothing to do.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.terminate();
        // Its end is not ours to judge here.
        let _ = self.child.wait();
    }
}
