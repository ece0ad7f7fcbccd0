//! A server in this process, over a store of its own or a given one.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use dormouse_pool::{Pool, PoolConfig, PoolStats};
use dormouse_server::{App, Limits};
use dormouse_snapshot::Store;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{Client, Reply, host, image, panics};

/// What a server may be told.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The pool's limits.
    pub pool: PoolConfig,
    /// The server's limits.
    pub limits: Limits,
    /// Threads of the async runtime.
    pub workers: usize,
    /// The store's folder; one of its own where there is none.
    pub store: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            pool: PoolConfig::default(),
            limits: Limits::default(),
            workers: 2,
            store: None,
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    client: Client,
    pool: Pool,
    store: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<std::io::Result<()>>>,
    runtime: Option<Runtime>,
    _folder: Option<TempDir>,
}

impl Server {
    /// A server over an empty store; nothing where guests cannot run.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::with(Setup::default())
    }

    /// A server over the store in `folder`. Requests wait there as long as it takes to boot a function
    /// anew whose snapshot does not fit.
    #[must_use]
    pub fn over(folder: &Path) -> Option<Self> {
        Self::with(Setup {
            pool: PoolConfig {
                queue_timeout: Duration::from_secs(100),
                ..PoolConfig::default()
            },
            store: Some(folder.to_owned()),
            ..Setup::default()
        })
    }

    /// A server that is told this.
    ///
    /// # Panics
    /// Where it cannot start.
    #[must_use]
    pub fn with(setup: Setup) -> Option<Self> {
        if !host::runs_guests() {
            return None;
        }
        panics::watch();
        let folder = match &setup.store {
            Some(_) => None,
            None => Some(tempfile::tempdir().expect("a folder")),
        };
        let path = folder.as_ref().map(|folder| folder.path().to_owned());
        let store = setup.store.or(path).expect("one of both");
        let pool = Pool::new(Store::open(&store).expect("a store"), setup.pool);
        let runtime = Builder::new_multi_thread()
            .worker_threads(setup.workers)
            .thread_name("server")
            .thread_keep_alive(Duration::from_millis(50))
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (stop, stopped) = oneshot::channel::<()>();
        let app = App::new(pool.clone(), setup.limits);
        let served = runtime.spawn(dormouse_server::serve(listener, app, async {
            let _ = stopped.await;
        }));
        Some(Self {
            client: Client::new(&url),
            pool,
            store,
            stop: Some(stop),
            served: Some(served),
            runtime: Some(runtime),
            _folder: folder,
        })
    }

    /// A client of this server.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Another client, with connections of its own.
    #[must_use]
    pub fn new_client(&self) -> Client {
        Client::new(self.client.url())
    }

    /// The store's folder.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Deploys a sample function under its own name.
    ///
    /// # Panics
    /// Where it cannot be deployed.
    #[track_caller]
    pub fn deploy(&self, sample: &str) -> Reply {
        self.deploy_as(sample, sample, "")
    }

    /// Deploys a sample function under a name, with options (a query with its question mark).
    ///
    /// # Panics
    /// Where it cannot be deployed.
    #[track_caller]
    pub fn deploy_as(&self, name: &str, sample: &str, options: &str) -> Reply {
        let reply = self.client.put(name, options, &image(sample)).ok();
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply
    }

    /// What the pool does now.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// Tells the server to stop, and does not wait for it.
    pub fn begin_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Stops the server: requests that run are finished.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.begin_stop();
        let (Some(runtime), Some(served)) = (self.runtime.take(), self.served.take()) else {
            return;
        };
        let ended = runtime.block_on(served);
        drop(runtime);
        if thread::panicking() {
            return;
        }
        ended
            .expect("the server does not panic")
            .expect("it ends well");
        panics::assert_none();
    }
}
