//! A server over a pool with an empty store: all that needs no guest.

use dormouse_pool::{Pool, PoolConfig};
use dormouse_server::{App, Limits};
use dormouse_snapshot::Store;
use tempfile::TempDir;

/// An application and the folder of its store.
pub(crate) fn app(limits: Limits) -> (App, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let pool = Pool::new(store, PoolConfig::default());
    (App::new(pool, limits), folder)
}
