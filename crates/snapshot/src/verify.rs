//! Verification: every byte of some snapshots is read once and compared.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::pack::Pack;
use crate::{Digest, Error, FunctionName, Result, SnapshotRef, Store};

/// What a verification has found good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Snapshots that are good.
    pub snapshots: u64,
    /// Blocks of pages that were read and compared: each once, however many snapshots share it.
    pub blocks: u64,
    /// Bytes that were read for that.
    pub bytes: u64,
}

impl Store {
    /// Reads all snapshots of `function` and compares every digest; what they share is read once.
    ///
    /// # Errors
    /// [`Error::UnknownFunction`] when there is none; the error of the first that is not good.
    pub fn verify(&self, function: &FunctionName) -> Result<Verified> {
        let ids = self.ids(function)?;
        if ids.is_empty() {
            return Err(self.unknown(function));
        }
        let mut unwatched = |_: &Verified| {};
        let mut verifier = Verifier::new(&mut unwatched);
        for id in ids {
            match self.folder(function, id) {
                Err(Error::UnknownSnapshot { .. }) => {} // removed just now
                folder => folder?.verify(&mut verifier)?,
            }
        }
        Ok(verifier.found)
    }

    /// Reads all snapshots of the store and compares every digest; what they share is read once.
    /// Those that are not good are told to `bad`, and the others are verified all the same.
    ///
    /// # Errors
    /// [`Error::Io`] when the store's folder itself cannot be read.
    pub fn verify_all(&self, mut bad: impl FnMut(SnapshotRef, Error)) -> Result<Verified> {
        let all = self.snapshots()?;
        let found = self.verify_each(
            &all,
            |_| {},
            |snapshot, error| {
                // One that was removed just now is not bad.
                if !matches!(error, Error::UnknownSnapshot { .. }) {
                    bad(snapshot, error);
                }
            },
        );
        Ok(found)
    }

    /// Reads `snapshots` and compares every digest; what they share is read once. Those that are
    /// not good, or not there, are told to `bad`, and the others are verified all the same.
    /// `progress` is told after each block and each snapshot what was found good so far.
    pub fn verify_each(
        &self,
        snapshots: &[SnapshotRef],
        mut progress: impl FnMut(&Verified),
        mut bad: impl FnMut(SnapshotRef, Error),
    ) -> Verified {
        let mut verifier = Verifier::new(&mut progress);
        for snapshot in snapshots {
            let folder = self.folder(&snapshot.function, snapshot.id);
            match folder.and_then(|folder| folder.verify(&mut verifier)) {
                Ok(()) => (verifier.progress)(&verifier.found),
                Err(error) => bad(snapshot.clone(), error),
            }
        }
        verifier.found
    }

    /// All snapshots, by function and from old to new. Nothing of them is opened.
    ///
    /// # Errors
    /// [`Error::Io`] when the store's folder cannot be read.
    pub fn snapshots(&self) -> Result<Vec<SnapshotRef>> {
        let mut all = Vec::new();
        for function in self.functions()? {
            let ids = self.ids(&function)?.into_iter();
            all.extend(ids.map(|id| SnapshotRef {
                function: function.clone(),
                id,
            }));
        }
        Ok(all)
    }
}

/// Verifies snapshots that share packs, each pack once.
pub(crate) struct Verifier<'a> {
    seen: HashMap<(u64, u64), Damages>,
    /// Images that were found good, with where their pages are.
    images: HashSet<(Digest, Vec<ImagePlaces>)>,
    progress: &'a mut dyn FnMut(&Verified),
    pub(crate) found: Verified,
}

/// Some consecutive pages of an image: the first one, the pack's device and inode, slot, pages.
pub(crate) type ImagePlaces = [u64; 5];

/// Slots of a pack that are in damaged blocks, and what is wrong with each.
pub(crate) type Damages = Vec<(Range<u64>, String)>;

impl<'a> Verifier<'a> {
    pub(crate) fn new(progress: &'a mut dyn FnMut(&Verified)) -> Self {
        Self {
            seen: HashMap::new(),
            images: HashSet::new(),
            progress,
            found: Verified::default(),
        }
    }

    /// Whether the image with this digest, and its pages in these places, was found good.
    pub(crate) fn has_seen_image(&self, image: &(Digest, Vec<ImagePlaces>)) -> bool {
        self.images.contains(image)
    }

    pub(crate) fn remember_image(&mut self, image: (Digest, Vec<ImagePlaces>)) {
        self.images.insert(image);
    }

    /// What of `pack` is damaged. Who uses none of that is good.
    pub(crate) fn pack(&mut self, pack: &Pack) -> Result<&Damages> {
        // By the file, not by its digest: two files of the same content can be damaged apart.
        match self.seen.entry(pack.inode()?) {
            Entry::Occupied(seen) => Ok(seen.into_mut()),
            Entry::Vacant(place) => {
                let (found, progress) = (&mut self.found, &mut self.progress);
                let damages = pack.verify(|bytes| {
                    found.blocks += 1;
                    found.bytes += bytes;
                    progress(found);
                })?;
                Ok(place.insert(damages))
            }
        }
    }
}
