//! What is kept of a store's history: the limits, and what became of them.

use std::fmt;
use std::time::Duration;

use crate::{Reference, SnapshotRef, Tag};

/// How much of its history a store keeps. A limit that is not set limits nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionConfig {
    /// How many snapshots each function keeps: its newest ones. The layouts of one deployment count
    /// as one.
    pub keep_last: Option<u32>,
    /// How old snapshots may become, counted from when they were taken.
    pub max_age: Option<Duration>,
    /// How many bytes on disk the store may have, as [`StoreUsage`](crate::StoreUsage) counts them.
    /// The oldest snapshots of all functions go until it has no more.
    pub max_bytes: Option<u64>,
}

/// A limit that a snapshot is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// [`RetentionConfig::keep_last`].
    KeepLast,
    /// [`RetentionConfig::max_age`].
    MaxAge,
    /// [`RetentionConfig::max_bytes`].
    MaxBytes,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::KeepLast => "newer ones fill the count",
            Self::MaxAge => "too old",
            Self::MaxBytes => "the store is too large",
        })
    }
}

/// What keeps a snapshot that is over a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protection {
    /// It is the newest of its function.
    Newest,
    /// It has tags.
    Tagged(Vec<Tag>),
    /// It is a layout of the same deployment as this one, which is the newest or has tags.
    LayoutOf(SnapshotRef),
    /// Snapshots that are kept are layers on it.
    Parent(Vec<SnapshotRef>),
    /// Somebody has a [`Lease`](crate::Lease) on it.
    InUse,
    /// The function's tags cannot be read, so that it may have some.
    UnknownTags(String),
    /// It cannot be told whether somebody has a lease on it.
    UnknownUse(String),
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("the newest"),
            Self::LayoutOf(other) => write!(f, "a layout beside {other}"),
            Self::Tagged(tags) => write!(f, "tagged {}", list(tags)),
            Self::Parent(layers) => write!(f, "parent of {}", list(layers)),
            Self::InUse => f.write_str("in use"),
            Self::UnknownTags(reason) | Self::UnknownUse(reason) => f.write_str(reason),
        }
    }
}

/// The first few of `things`: lines stay short whatever a store holds.
pub(crate) fn list<T: fmt::Display>(things: &[T]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<_> = things.iter().take(SHOWN).map(T::to_string).collect();
    let more = things.len().saturating_sub(SHOWN);
    let tail = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    shown.join(", ") + &tail
}

/// A snapshot that was removed, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// The limit that it was over.
    pub limit: Limit,
    /// Bytes on disk that this freed. Packs count where the last snapshot that uses them goes.
    pub freed_bytes: u64,
}

/// A snapshot that was kept although it is over a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// The limit that it is over.
    pub limit: Limit,
    /// What keeps it; never empty.
    pub protections: Vec<Protection>,
}

/// What [`Store::gc`](crate::Store::gc) did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcReport {
    /// What was removed, in this order.
    pub removed: Vec<Removed>,
    /// What was kept over a limit, by function and from old to new.
    pub kept: Vec<Kept>,
    /// Tags whose snapshots are gone, and which were removed too.
    pub dangling_tags: Vec<Reference>,
    /// Folders that were left over from processes that died, and were deleted.
    pub leftovers: u64,
    /// Bytes on disk that removing snapshots freed.
    pub freed_bytes: u64,
    /// Bytes on disk that the store has left, counted as [`StoreUsage`](crate::StoreUsage) does.
    pub store_bytes: u64,
}
