//! What all rows share: the images, a store that ends with the run, and how much is measured.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dormouse_pool::{Answer, Engine, FunctionConfig, Outcome, Pool, PoolConfig, Request};
use dormouse_snapshot::Store;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::Options;
use crate::Error;

/// Where measurements are taken.
pub(crate) struct Lab {
    options: Options,
    folder: TempDir,
    store: Store,
    runtime: Runtime,
    deployed: Mutex<HashSet<String>>,
}

impl Lab {
    pub(super) fn new(options: Options) -> Result<Self, Error> {
        let folder = tempfile::tempdir().map_err(Error::system("creating a store"))?;
        let store = Store::open(folder.path())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::system("starting an async runtime"))?;
        Ok(Self {
            options,
            folder,
            store,
            runtime,
            deployed: Mutex::default(),
        })
    }

    /// A lab for what needs no server and no choice of rows.
    pub(crate) fn of_images(images: &Path) -> Result<Self, Error> {
        Self::new(Options {
            images: images.to_owned(),
            dormouse: PathBuf::new(),
            rows: None,
            quick: false,
        })
    }

    /// Whether a row is asked for.
    pub(super) fn wants(&self, name: &str) -> bool {
        let rows = self.options.rows.as_ref();
        rows.is_none_or(|pattern| pattern.matches(name))
    }

    /// How many measurements to take: `full`, or few in a quick run.
    pub(super) fn rounds(&self, full: usize) -> usize {
        if self.options.quick {
            (full / 10).clamp(3, 30)
        } else {
            full
        }
    }

    /// The command.
    pub(super) fn dormouse(&self) -> &Path {
        &self.options.dormouse
    }

    /// The store's folder.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The store.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Where a sample function's image is.
    pub(super) fn image_path(&self, function: &str) -> PathBuf {
        self.options.images.join(function)
    }

    /// Waits for what is async.
    pub(super) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// A pool over the store.
    pub(super) fn pool(&self, config: PoolConfig) -> Pool {
        Pool::new(self.store.clone(), config)
    }

    /// Boots a sample function and publishes its snapshot as `name`, once.
    pub(crate) fn deploy(
        &self,
        name: &str,
        sample: &str,
        config: FunctionConfig,
    ) -> Result<(), Error> {
        let mut deployed = self.deployed.lock().unwrap_or_else(PoisonError::into_inner);
        if deployed.insert(name.to_owned()) {
            self.deploy_again(name, sample, config)?;
        }
        Ok(())
    }

    /// The same also where `name` is there already.
    pub(crate) fn deploy_again(
        &self,
        name: &str,
        sample: &str,
        config: FunctionConfig,
    ) -> Result<(), Error> {
        let pool = self.pool(PoolConfig {
            shells_ahead: 0,
            ..PoolConfig::default()
        });
        let path = self.image_path(sample);
        let image = std::fs::read(&path).map_err(|source| Error::Image { path, source })?;
        self.wait(async {
            pool.deploy(name, image.into(), config).await?;
            pool.drain(Duration::from_secs(1)).await;
            Ok::<_, Error>(())
        })
    }

    /// An instance of a sample function that has learned what `request` touches, driven by hand.
    pub(super) fn engine(
        &self,
        name: &str,
        sample: &str,
        config: FunctionConfig,
        request: &Request,
    ) -> Result<Engine, Error> {
        self.deploy(name, sample, config)?;
        let mut engine = Engine::open(&self.store, name)?;
        engine.learn(request)?;
        Ok(engine)
    }
}

/// `GET` on a function.
pub(super) fn request(target: &str) -> Request {
    Request {
        method: "GET".to_owned(),
        target: target.to_owned(),
        ..Request::default()
    }
}

/// The answer of a function that has to give a good one.
pub(super) fn good(function: &str, outcome: Outcome) -> Result<Answer, Error> {
    let wrong = |answer: String| Error::Answer {
        what: function.to_owned(),
        answer,
    };
    match outcome.result {
        Ok(answer) if (200..300).contains(&answer.status) => Ok(answer),
        Ok(answer) => Err(wrong(format!("status {}", answer.status))),
        Err(failure) => Err(wrong(failure.to_string())),
    }
}
