//! Layouts: snapshots of one function that were booted at different bases, and are served together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::removal::Brief;
use crate::{FunctionName, Manifest, Result, SnapshotId, Store};

/// Which of a function's layouts a snapshot is. Its manifest has it as `config.layout`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// What all layouts of one deployment have in common, and nobody else: 1 to 64 characters.
    pub group: String,
    /// Which one this is, from 0.
    pub index: u32,
    /// How many there are.
    pub of: u32,
}

impl Layout {
    /// The most layouts that a function may have.
    pub const MOST: u32 = 16;

    /// The name of its member in a manifest's `config`.
    pub const MEMBER: &str = "layout";

    /// The layout in a manifest's `config`; nothing where there is none, or none that can be.
    pub(crate) fn of_config(config: &serde_json::Value) -> Option<Self> {
        let layout = Self::deserialize(config.get(Self::MEMBER)?).ok()?;
        let Self { group, index, of } = &layout;
        let is_good = (2..=Self::MOST).contains(of)
            && index < of
            && (1..=64).contains(&group.chars().count());
        is_good.then_some(layout)
    }
}

/// As people count: `2/4`.
impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.of)
    }
}

impl Manifest {
    /// Which of its function's layouts the snapshot is, where it was deployed with several.
    #[must_use]
    pub fn layout(&self) -> Option<Layout> {
        Layout::of_config(&self.config)
    }
}

impl Store {
    /// The snapshots that `function` is served with, the newest last: its newest one; where that is
    /// one of several layouts, all of them. Where one of these is missing, as after a crash between
    /// two of them, the newest snapshot alone.
    ///
    /// # Errors
    /// As [`manifest`](Self::manifest).
    pub fn served(&self, function: &FunctionName) -> Result<Vec<SnapshotId>> {
        let newest = self.manifest(function)?;
        Ok(match newest.layout() {
            Some(layout) => {
                let layouts = self.layouts(function)?;
                complete(&layouts, &layout).unwrap_or_else(|| vec![newest.id])
            }
            None => vec![newest.id],
        })
    }

    /// The snapshots of `function` that are one of several layouts, from old to new.
    pub(crate) fn layouts(&self, function: &FunctionName) -> Result<Vec<(SnapshotId, Layout)>> {
        let ids = self.ids(function)?;
        let read = |id: SnapshotId| {
            let brief = Brief::read(&self.snapshot_folder(function, id));
            Some((id, brief.layout?))
        };
        Ok(ids.into_iter().filter_map(read).collect())
    }
}

/// The newest snapshot of each layout in the group of `layout`, from old to new, if none is missing.
/// `layouts` are from old to new. There are several of one layout where it was published again.
pub(crate) fn complete(
    layouts: &[(SnapshotId, Layout)],
    layout: &Layout,
) -> Option<Vec<SnapshotId>> {
    let of_group = layouts
        .iter()
        .filter(|(_, other)| other.group == layout.group && other.of == layout.of);
    // Of equal keys the last one stays.
    let by_index: BTreeMap<u32, SnapshotId> =
        of_group.map(|(id, other)| (other.index, *id)).collect();
    if by_index.len() as u32 != layout.of {
        return None;
    }
    let mut ids: Vec<_> = by_index.into_values().collect();
    ids.sort_unstable();
    Some(ids)
}
