//! Snapshots as they are named on the command line.

use anyhow::{Result, bail};
use dormouse_snapshot::{Reference, SnapshotRef, Store};

use crate::api::Place;
use crate::exit::{Exit, Failed};

/// The snapshot that `text` names: `NAME`, `NAME@ID`, `NAME@NUMBER` or `NAME:TAG`.
pub(super) fn resolve(store: &Store, text: &str) -> Result<SnapshotRef> {
    let reference: Reference = text.parse()?;
    Ok(store.resolve(&reference)?)
}

/// The store in `place`, for what no server does.
pub(super) fn open_store(place: &Place, what: &str) -> Result<Store> {
    if place.server().is_some() {
        let message = format!("{what} works on a store, not over a server");
        bail!(
            Failed::new(Exit::Usage, message)
                .hint("run it where the store is, with --store DIR and without DORMOUSE_SERVER")
        );
    }
    place.open_store()
}
