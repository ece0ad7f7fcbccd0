//! Where the kernel, std and the functions' crates are compiled, shared by all functions.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{FlockOperation, flock};

use super::toolchain::Compiler;
use crate::progress::Step;

/// A folder that one build uses at a time.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    /// Locked until it is closed.
    _lock: File,
}

impl Cache {
    /// Opens the cache for this compiler and waits until no other build uses it.
    pub(super) fn open(compiler: &Compiler) -> Result<Self> {
        let base = base().ok_or_else(|| {
            anyhow!("no place for the build cache\nhint: set DORMOUSE_BUILD_CACHE to a folder")
        })?;
        let key = blake3::hash(compiler.version.as_bytes()).to_hex();
        let root = base.join(format!("rustc-{}-{}", compiler.release(), &key[..8]));
        create(&root)?;
        let path = root.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let step = Step::begin("waiting for another build to finish");
            flock(&lock, FlockOperation::LockExclusive)
                .with_context(|| format!("cannot lock {}", path.display()))?;
            step.done();
        }
        Ok(Self { root, _lock: lock })
    }

    /// A folder in the cache, created where it is missing.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join(name);
        create(&folder)?;
        Ok(folder)
    }
}

fn base() -> Option<PathBuf> {
    let folder = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = folder("DORMOUSE_BUILD_CACHE").or_else(|| {
        let caches =
            folder("XDG_CACHE_HOME").or_else(|| env::home_dir().map(|home| home.join(".cache")))?;
        Some(caches.join("dormouse"))
    })?;
    // Cargo runs in folders of its own, so a relative path would mean several places.
    std::path::absolute(base).ok()
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| {
        format!(
            "cannot create {}\nhint: set DORMOUSE_BUILD_CACHE to a folder that can be written",
            folder.display()
        )
    })
}
