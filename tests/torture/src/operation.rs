//! What is done to a store, and how it ended.

use std::path::Path;
use std::time::Duration;

use dormouse_snapshot::{
    Compression, Error, FunctionName, IfTagged, SnapshotId, SnapshotRef, Store, Tag,
};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

use crate::content::{Content, Differs};
use crate::limits::Limits;
use crate::parcel::Parcel;

/// One thing that a store can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Publish a snapshot.
    Publish {
        /// Of this function.
        function: FunctionName,
        /// With this content.
        content: Content,
        /// As a layer on the function's newest snapshot, if there is one.
        layer: bool,
    },
    /// Take in a snapshot that another store has published.
    Import {
        /// Of this function.
        function: FunctionName,
        /// With this content.
        content: Content,
        /// As the snapshot of this number there.
        sequence: u32,
    },
    /// Remove a function.
    Remove(FunctionName),
    /// Remove one snapshot.
    RemoveSnapshot {
        /// Of this function.
        function: FunctionName,
        /// The one in this place from old to new, counted round and round.
        place: usize,
        /// Its tags go with it; else they keep it.
        drop_tags: bool,
    },
    /// Give a tag to a function's newest snapshot.
    Tag(FunctionName, Tag),
    /// Take a tag away.
    Untag(FunctionName, Tag),
    /// Remove what is over limits.
    Gc {
        /// The limits.
        limits: Limits,
        /// Only tell what it would do.
        dry_run: bool,
    },
    /// Flatten a function's newest snapshot.
    Flatten(FunctionName),
    /// Save a working set for a function's newest snapshot: which one, 1 to 30.
    SaveWorkingSet(FunctionName, u64),
    /// Clear away what others have left.
    CleanLeftovers,
    /// Verify the whole store.
    Verify,
    /// Open a function's newest snapshot and read all of it.
    Read(FunctionName),
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// There is a new snapshot, of this content where the operation did not say which.
    Published(SnapshotId),
    /// The working set of this snapshot is saved.
    Saved(SnapshotId),
    /// This snapshot was taken in.
    Imported {
        /// Which one.
        id: SnapshotId,
        /// It was there before.
        already_there: bool,
    },
    /// This snapshot is removed.
    Removed(SnapshotId),
    /// This snapshot has the tag.
    Tagged(SnapshotId),
    /// This snapshot had the tag.
    Untagged(SnapshotId),
    /// What was over limits is removed, or would be.
    Collected {
        /// Which ones.
        removed: Vec<SnapshotRef>,
        /// Bytes on disk that are left.
        store_bytes: u64,
    },
    /// It is done.
    Done,
    /// There is no such snapshot, or no such tag.
    Unknown(String),
    /// It must not be, as something else is in the store.
    Refused(String),
    /// It failed.
    Failed(String),
    /// It gave something wrong as right.
    Wrong(String),
}

impl Operation {
    /// Does it.
    #[must_use]
    pub fn run(&self, store: &Store) -> Outcome {
        self.attempt(store).unwrap_or_else(|error| {
            let message = format!("{error:#}");
            if error.downcast_ref::<Differs>().is_some() {
                return Outcome::Wrong(message);
            }
            match error.downcast_ref() {
                Some(
                    Error::UnknownFunction { .. }
                    | Error::UnknownSnapshot { .. }
                    | Error::UnknownTag { .. },
                ) => Outcome::Unknown(message),
                Some(Error::InUse { .. } | Error::HasLayers { .. } | Error::Tagged { .. }) => {
                    Outcome::Refused(message)
                }
                Some(Error::Refused { .. }) if matches!(self, Self::Import { .. }) => {
                    Outcome::Refused(message)
                }
                _ => Outcome::Failed(message),
            }
        })
    }

    /// Makes what it needs beside the store, below a folder that is there: so that this is not part
    /// of it.
    ///
    /// # Errors
    /// Where that cannot be made.
    pub fn prepare(&self, place: &Path) -> anyhow::Result<()> {
        if let Self::Import {
            function,
            content,
            sequence,
        } = self
        {
            Parcel::get(place, function, *content, *sequence)?;
        }
        Ok(())
    }

    fn attempt(&self, store: &Store) -> anyhow::Result<Outcome> {
        let newest = |function: &FunctionName| store.manifest(function).map(|found| found.id);
        Ok(match self {
            Self::Publish {
                function,
                content,
                layer,
            } => {
                let parent = match layer.then(|| newest(function)) {
                    None | Some(Err(Error::UnknownFunction { .. })) => None,
                    Some(id) => Some(SnapshotRef {
                        function: function.clone(),
                        id: id?,
                    }),
                };
                Outcome::Published(content.publish(store, function, parent)?)
            }
            Self::Import {
                function,
                content,
                sequence,
            } => {
                let beside = store.path().parent().unwrap_or(store.path());
                let parcel = Parcel::get(beside, function, *content, *sequence)?;
                Outcome::Imported {
                    id: parcel.snapshot().id,
                    already_there: parcel.import(store)?,
                }
            }
            Self::Remove(function) => {
                store.remove(function)?;
                Outcome::Done
            }
            Self::RemoveSnapshot {
                function,
                place,
                drop_tags,
            } => {
                let mut snapshots = store.snapshots()?;
                snapshots.retain(|snapshot| snapshot.function == *function);
                let Some(snapshot) = snapshots.get(place % snapshots.len().max(1)) else {
                    return Ok(Outcome::Unknown(format!("{function} has no snapshots")));
                };
                let if_tagged = match drop_tags {
                    true => IfTagged::DropTags,
                    false => IfTagged::Refuse,
                };
                store.remove_id(snapshot, if_tagged)?;
                Outcome::Removed(snapshot.id)
            }
            Self::Tag(function, tag) => {
                let id = newest(function)?;
                let function = function.clone();
                store.tag(&SnapshotRef { function, id }, tag)?;
                Outcome::Tagged(id)
            }
            Self::Untag(function, tag) => Outcome::Untagged(store.untag(function, tag)?),
            Self::Gc { limits, dry_run } => {
                let report = store.gc(&limits.config(), limits.now(), *dry_run)?;
                Outcome::Collected {
                    removed: report
                        .removed
                        .into_iter()
                        .map(|gone| gone.snapshot)
                        .collect(),
                    store_bytes: report.store_bytes,
                }
            }
            Self::Flatten(function) => {
                let id = newest(function)?;
                Outcome::Published(store.flatten(function, &id, Compression::Zstd)?)
            }
            Self::SaveWorkingSet(function, version) => {
                let id = newest(function)?;
                store.save_working_set(function, &id, &Content::working_set(*version))?;
                Outcome::Saved(id)
            }
            Self::CleanLeftovers => {
                store.clean_leftovers(Duration::ZERO)?;
                Outcome::Done
            }
            Self::Verify => {
                let mut first = None;
                store.verify_all(|snapshot, error| {
                    first.get_or_insert(anyhow::anyhow!("{snapshot}: {error}"));
                })?;
                first.map_or(Ok(Outcome::Done), Err)?
            }
            Self::Read(function) => {
                Content::check_newest(store, function)?;
                Outcome::Done
            }
        })
    }

    /// The function that it is about, if it is about one.
    #[must_use]
    pub fn function(&self) -> Option<&FunctionName> {
        match self {
            Self::Publish { function, .. }
            | Self::Import { function, .. }
            | Self::Remove(function)
            | Self::RemoveSnapshot { function, .. }
            | Self::Tag(function, _)
            | Self::Untag(function, _)
            | Self::Flatten(function)
            | Self::SaveWorkingSet(function, _)
            | Self::Read(function) => Some(function),
            Self::Gc { .. } | Self::CleanLeftovers | Self::Verify => None,
        }
    }

    /// What it is called in tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Publish { layer: false, .. } => "publish",
            Self::Publish { layer: true, .. } => "publish a layer",
            Self::Import { .. } => "import",
            Self::Remove(_) => "remove",
            Self::RemoveSnapshot {
                drop_tags: false, ..
            } => "remove a snapshot",
            Self::RemoveSnapshot {
                drop_tags: true, ..
            } => "remove a snapshot and its tags",
            Self::Tag(..) => "tag",
            Self::Untag(..) => "untag",
            Self::Gc { dry_run: false, .. } => "gc",
            Self::Gc { dry_run: true, .. } => "gc (dry run)",
            Self::Flatten(_) => "flatten",
            Self::SaveWorkingSet(..) => "save a working set",
            Self::CleanLeftovers => "clean leftovers",
            Self::Verify => "verify",
            Self::Read(_) => "read",
        }
    }

    /// Any operation on one of the `functions`.
    #[must_use]
    pub fn any(rng: &mut ChaCha8Rng, functions: &[FunctionName]) -> Self {
        let Some(function) = functions.choose(rng).cloned() else {
            return Self::Verify;
        };
        match rng.random_range(0..28) {
            0..=5 => Self::publish(rng, function, false),
            6..=9 => Self::publish(rng, function, true),
            10 => Self::Remove(function),
            11..=13 => Self::RemoveSnapshot {
                function,
                place: rng.random_range(0..8),
                drop_tags: rng.random_bool(0.5),
            },
            14 | 15 => Self::Flatten(function),
            16 | 17 => Self::SaveWorkingSet(function, rng.random_range(1..=30)),
            18 | 19 => match any_tag(rng) {
                Some(tag) => Self::Tag(function, tag),
                None => Self::Verify,
            },
            20 => match any_tag(rng) {
                Some(tag) => Self::Untag(function, tag),
                None => Self::Verify,
            },
            21 | 22 => Self::Import {
                function,
                content: Content(rng.random_range(0..32)),
                sequence: rng.random_range(1..=6),
            },
            23 => Self::Read(function),
            _ => Self::any_on_the_store(rng),
        }
    }

    fn any_on_the_store(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..5) {
            0 => Self::Verify,
            1 => Self::CleanLeftovers,
            which => Self::Gc {
                limits: Limits::any(rng),
                dry_run: which == 2,
            },
        }
    }

    /// A publish of some content that is much like others.
    #[must_use]
    pub fn publish(rng: &mut ChaCha8Rng, function: FunctionName, layer: bool) -> Self {
        Self::Publish {
            function,
            content: Content(rng.random_range(0..32)),
            layer,
        }
    }
}

/// One of few tags, so that they are moved and found.
pub(crate) fn any_tag(rng: &mut ChaCha8Rng) -> Option<Tag> {
    let tag = ["stable", "old.1"].choose(rng)?;
    Tag::new(tag).ok()
}
