//! Pages that are in the store already, for a publisher that need not write them again.
//!
//! A snapshot that uses pages of another one gets a hard link to the pack that holds them. So every
//! folder is complete by itself, removing a snapshot never takes a page away from another, and the
//! file system counts who uses what.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::block::BlockBytes;
use crate::draft::DraftPages;
use crate::pack::{Pack, PageKey};
use crate::table::MAX_PACKS;
use crate::{Digest, FunctionName, PAGE_BYTES, Result, SnapshotRef, Store, files};

/// A pack lends pages only if at least one in so many of its pages is wanted: while a borrower
/// lives, the whole pack stays, whoever wrote it.
const LEAST_SHARE: u64 = 8;

/// Where looking for more packs ends (16 GiB of pages): what is not known is stored again.
const MOST_KNOWN_PAGES: u64 = 1 << 22;

/// The packs in a store, and where in them each page is.
#[derive(Default)]
pub(crate) struct Known {
    packs: Vec<KnownPack>,
    places: HashMap<PageKey, (u32, u64)>,
    seen: HashSet<Digest>,
}

struct KnownPack {
    path: PathBuf,
    digest: Digest,
    pages: u64,
    of_parent: bool,
}

impl Known {
    /// What the store has: first what `parent` is made of, then the snapshots of `function`, then
    /// the others', newest first. What cannot be read lends nothing.
    pub(crate) fn find(
        store: &Store,
        function: &FunctionName,
        parent: Option<&SnapshotRef>,
    ) -> Result<Self> {
        let mut known = Self::default();
        if let Some(parent) = parent {
            known.add_folder(&store.snapshot_folder(&parent.function, parent.id), true);
        }
        let mut functions = store.functions()?;
        functions.sort_by_key(|other| other != function);
        for other in functions {
            for id in store.ids(&other).unwrap_or_default().into_iter().rev() {
                known.add_folder(&store.snapshot_folder(&other, id), false);
            }
        }
        Ok(known)
    }

    fn add_folder(&mut self, folder: &Path, of_parent: bool) {
        // Whatever is wrong with another snapshot is found by whoever opens or verifies it.
        let names = files::names(folder).unwrap_or_default();
        for name in names.iter().filter(|name| Pack::is_name(name)) {
            let _ = self.add_pack(folder.join(name), of_parent);
        }
    }

    fn add_pack(&mut self, path: PathBuf, of_parent: bool) -> Result<()> {
        let pack = Pack::open(path, None)?;
        let Some(digest) = pack.digest().copied() else {
            return Ok(());
        };
        let is_too_much = self.places.len() as u64 + pack.pages() > MOST_KNOWN_PAGES;
        if self.seen.contains(&digest) || is_too_much && !of_parent {
            return Ok(());
        }
        let number = self.packs.len() as u32;
        for (slot, key) in (0..).zip(pack.keys()?) {
            self.places.entry(key).or_insert((number, slot));
        }
        self.seen.insert(digest);
        self.packs.push(KnownPack {
            path: pack.path().to_owned(),
            digest,
            pages: pack.pages(),
            of_parent,
        });
        Ok(())
    }

    /// Links the packs into `folder` that are worth it for `pages`.
    pub(crate) fn lend(self, folder: &Path, pages: &mut DraftPages<'_>) -> Result<Lent> {
        if self.packs.is_empty() {
            return Ok(Lent::default());
        }
        let mut wanted = vec![0u64; self.packs.len()];
        let mut counted = HashSet::new();
        pages.for_each(folder, |_, page| {
            // Pages of the pack count, not how often one of them is used.
            if let Some(place) = self.places.get(&PageKey::of(page))
                && counted.insert(*place)
            {
                wanted[place.0 as usize] += 1;
            }
            Ok(())
        })?;
        let mut order: Vec<usize> = (0..self.packs.len()).collect();
        order.sort_by_key(|pack| std::cmp::Reverse(wanted[*pack]));
        let mut lent = Lent {
            places: self.places,
            ..Lent::default()
        };
        for number in order {
            let known = &self.packs[number];
            let is_worth_it = wanted[number] > 0
                && (known.of_parent || wanted[number] * LEAST_SHARE >= known.pages);
            // One is left for the pages that nobody has.
            if is_worth_it && (lent.packs.len() as u64) < MAX_PACKS - 1 {
                lent.link(number as u32, known, folder);
            }
        }
        Ok(lent)
    }
}

/// Packs that are linked into the folder of a snapshot that is being published.
#[derive(Default)]
pub(crate) struct Lent {
    places: HashMap<PageKey, (u32, u64)>,
    /// The linked packs, by their number among the known ones.
    numbers: HashMap<u32, u32>,
    packs: Vec<LentPack>,
}

struct LentPack {
    pack: Pack,
    digest: Digest,
    buf: BlockBytes,
    in_buf: Option<u64>,
}

impl Lent {
    fn link(&mut self, number: u32, known: &KnownPack, folder: &Path) {
        // It may be gone by now, or the file system may have no links left or none at all. What
        // was linked is opened by its new name: it is what the snapshot will use.
        let path = folder.join(Pack::name(&known.digest));
        if std::fs::hard_link(&known.path, &path).is_err() {
            return;
        }
        match Pack::open(path.clone(), Some(&known.digest)) {
            Ok(pack) => {
                self.numbers.insert(number, self.packs.len() as u32);
                self.packs.push(LentPack {
                    pack,
                    digest: known.digest,
                    buf: BlockBytes::default(),
                    in_buf: None,
                });
            }
            Err(_) => drop(std::fs::remove_file(path)),
        }
    }

    /// Where `page` is, if it is: the number among the lent packs and the slot. The bytes have
    /// been compared, so a damaged pack lends no damaged page.
    pub(crate) fn find(&mut self, key: &PageKey, page: &[u8]) -> Option<(u32, u64)> {
        let (known, slot) = self.places.get(key)?;
        let number = *self.numbers.get(known)?;
        let lender = self.packs.get_mut(number as usize)?;
        let block = lender.pack.block(*slot)?;
        if lender.in_buf != Some(block.first_slot) {
            lender.in_buf = None;
            lender.pack.read_block(block, &mut lender.buf, true).ok()?;
            lender.in_buf = Some(block.first_slot);
        }
        let at = (slot - block.first_slot) as usize * PAGE_BYTES;
        (lender.buf.pages().get(at..at + PAGE_BYTES)? == page).then_some((number, *slot))
    }

    /// The digests of the lent packs by their number.
    pub(crate) fn digests(&self) -> impl ExactSizeIterator<Item = &Digest> {
        self.packs.iter().map(|lent| &lent.digest)
    }
}
