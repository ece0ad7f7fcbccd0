//! What is done to a store, and how it ended.

use std::time::Duration;

use dormouse_snapshot::{Compression, Error, FunctionName, SnapshotId, SnapshotRef, Store};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

use crate::content::{Content, Differs};

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
    /// Remove a function.
    Remove(FunctionName),
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
    /// It is done.
    Done,
    /// There is no such snapshot.
    Unknown(String),
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
                Some(Error::UnknownFunction { .. } | Error::UnknownSnapshot { .. }) => {
                    Outcome::Unknown(message)
                }
                _ => Outcome::Failed(message),
            }
        })
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
            Self::Remove(function) => {
                store.remove(function)?;
                Outcome::Done
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
            | Self::Remove(function)
            | Self::Flatten(function)
            | Self::SaveWorkingSet(function, _)
            | Self::Read(function) => Some(function),
            Self::CleanLeftovers | Self::Verify => None,
        }
    }

    /// What it is called in tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Publish { layer: false, .. } => "publish",
            Self::Publish { layer: true, .. } => "publish a layer",
            Self::Remove(_) => "remove",
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
        match rng.random_range(0..16) {
            0..=4 => Self::publish(rng, function, false),
            5..=7 => Self::publish(rng, function, true),
            8 | 9 => Self::Remove(function),
            10 | 11 => Self::Flatten(function),
            12 | 13 => Self::SaveWorkingSet(function, rng.random_range(1..=30)),
            14 => Self::Read(function),
            _ => Self::any_on_the_store(rng),
        }
    }

    fn any_on_the_store(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_bool(0.5) {
            true => Self::Verify,
            false => Self::CleanLeftovers,
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
