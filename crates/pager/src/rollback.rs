//! Making an attached snapshot pristine again in place, for the next run of the same guest.
//!
//! ```text
//!   private pages of the range (PAGEMAP_SCAN) = all that the guest, KVM or the VMM has written
//!        │
//!        ├── a watched page whose content differs in what matters ──► nothing is done: attach anew
//!        ├── worth keeping, or alone ──► the snapshot's content is copied back into the page
//!        └── a long run that nobody expects again ──► dropped, and memory given back
//! ```
//!
//! No dirty log is kept and nothing is write-protected again: a page that was written once stays
//! private, and is put right after every run. So the next run takes no fault for it, in the host or
//! in KVM, and there is nothing to arm before a run. What a copy costs (0.1–0.3 µs a page) is far
//! below one fault (14 µs and more).

use std::ops::Range;

use crate::session::{Session, Tools};
use crate::source::Origin;
use crate::{Error, PAGE_BYTES, ranges};

/// A run of written pages that is not worth keeping is dropped from this length on: below it, the
/// system call costs more than the copies, and so little memory is kept that it does not count.
const DROPPED_RUN_PAGES: u64 = 16;

/// Tells of two contents of a page, the guest's and the snapshot's, whether they differ in ways
/// that a rollback in place cannot undo.
pub type Differs<'a> = dyn Fn(&[u8; PAGE_BYTES as usize], &[u8; PAGE_BYTES as usize]) -> bool + 'a;

/// What a rollback has to know of the guest.
#[derive(Clone, Copy)]
pub struct Rollback<'a> {
    /// Pages, ascending, that are looked at before they are put back: page tables.
    pub watched: &'a [u64],
    /// Looks at one of them.
    pub differs: &'a Differs<'a>,
    /// Pages that the next run is expected to write, sorted and disjoint: they are kept at hand.
    pub kept: &'a [Range<u64>],
    /// With more pages to copy back than this, attaching anew is cheaper.
    pub most_copied_pages: u64,
}

impl std::fmt::Debug for Rollback<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rollback")
            .field("watched", &self.watched.len())
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

/// What a rollback came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Rolled {
    /// The snapshot is pristine again.
    Back(RollbackStats),
    /// Nothing was changed: the snapshot must be attached anew.
    Not {
        /// Private pages.
        written_pages: u64,
    },
}

/// What a rollback did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RollbackStats {
    /// Pages whose content was copied back, zero pages included.
    pub copied_pages: u64,
    /// Pages that were dropped.
    pub dropped_pages: u64,
}

impl Session {
    /// Makes the attached range pristine, or says that it must be attached anew. `written` are the private pages of the range, as of now.
    pub(crate) fn roll_back(
        &mut self,
        tools: Tools<'_>,
        written: &[Range<u64>],
        rollback: &Rollback<'_>,
    ) -> Result<Rolled, Error> {
        let written_pages = ranges::count(written);
        let not = Ok(Rolled::Not { written_pages });
        let (attached, faults) = self.attached_and_faults().ok_or(Error::NotAttached)?;
        let Origin::Shared(file) = attached.source.origin() else {
            return not;
        };
        if !attached.moved.is_empty() {
            return not;
        }
        let layout = attached.source.layout();
        let range = &attached.range;

        let (mut now, mut then) = ([0; PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
        for &page in rollback.watched {
            if !ranges::contains(written, page) {
                continue;
            }
            range.read_page(page, &mut now);
            file.read(page, &mut then)
                .map_err(|source| Error::ReadPages {
                    first_page: page,
                    pages: 1,
                    source,
                })?;
            if (rollback.differs)(&now, &then) {
                return not;
            }
        }

        let unexpected = ranges::subtract(written, rollback.kept);
        let dropped: Vec<_> = unexpected
            .into_iter()
            .filter(|run| run.end - run.start >= DROPPED_RUN_PAGES)
            .collect();
        let dropped_pages = ranges::count(&dropped);
        let copied_pages = written_pages - dropped_pages;
        if copied_pages > rollback.most_copied_pages {
            return not;
        }
        for pages in &dropped {
            range.drop_part(pages)?;
            faults.dropped(pages.clone());
        }
        for pages in ranges::subtract(written, &dropped) {
            ranges::split(layout.data, pages, layout.pages, |part, is_data| {
                if is_data {
                    range.copy_part(&part, file);
                } else {
                    range.zero_part(&part);
                }
            });
        }
        faults.rolled_back();
        self.gave_back(dropped_pages);
        tools.counters.reset();
        Ok(Rolled::Back(RollbackStats {
            copied_pages,
            dropped_pages,
        }))
    }
}
