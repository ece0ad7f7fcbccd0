//! Hot stretches of a snapshot, copied into huge pages before anybody asks.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::faults::Fill;
use crate::huge::{HUGE_PAGES, HugeArea};
use crate::{Error, PAGE_BYTES, Source, WorkingSetPlan, ranges};

/// Pages of the working set in a 2 MiB chunk from which on the chunk is staged.
///
/// An attach is faster from 10 pages on: a chunk, or several side by side, takes 10 to 25 µs to move
/// in, a page of the set about 2 µs to replay. But each chunk costs 2 MiB and 0.3 to 2 ms of copying
/// ahead, so it is staged only where it saves near 0.1 ms of each request. (`cargo run --release -p
/// dormouse-pager --example cost` measures all of these.)
const DENSE_PAGES: u64 = 50;

/// The dense 2 MiB chunks of one snapshot's working set, ready to be moved under its clones.
///
/// A *set* is a private copy of all dense chunks, in huge pages. It is made off the request path,
/// by [`refill`](Self::refill), and used up by one attach under
/// [`Policy::Staged`](crate::Policy::Staged). One stage serves all clones of a snapshot.
///
/// A chunk is complete: its pages outside the working set are in as well. What a request gains in
/// time is paid in memory, 2 MiB for each chunk of each clone and of each set that waits, and in
/// more processor time than it saves, although at another time: for hosts that have both to spare.
#[derive(Debug)]
pub struct Stage {
    source: Source,
    /// The dense chunks in pages, neighbours merged; one after the other in a set.
    chunks: Arc<[Range<u64>]>,
    /// The whole working set, for when no set is ready.
    whole: WorkingSetPlan,
    /// What is outside the chunks.
    rest: WorkingSetPlan,
    capacity: usize,
    sets: Mutex<Sets>,
}

#[derive(Debug, Default)]
struct Sets {
    ready: Vec<HugeArea>,
    /// Used up, to be filled again: cheaper to keep than to unmap, on the attaching thread above all.
    spent: Vec<HugeArea>,
    /// Sets that are being made.
    filling: usize,
}

impl Stage {
    /// Finds the dense chunks of a recorded working set; sets are made by [`refill`](Self::refill)
    /// only, up to `capacity` at a time.
    ///
    /// A chunk counts from the snapshot's first page. It is dense with 50 pages of the set, and
    /// never one that the snapshot's end cuts. There may be none; then nothing is staged.
    ///
    /// # Errors
    /// As [`WorkingSetPlan::new`].
    pub fn new(
        source: &Source,
        read: &[Range<u64>],
        written: &[Range<u64>],
        capacity: usize,
    ) -> Result<Self, Error> {
        let whole = WorkingSetPlan::new(source, read, written)?;
        let (read, written) = (ranges::normalize(read), ranges::normalize(written));
        let both: Vec<_> = read.iter().chain(&written).cloned().collect();
        let chunks = dense_chunks(&ranges::normalize(&both), source.pages());
        let rest = WorkingSetPlan::new(
            source,
            &ranges::subtract(&read, &chunks),
            &ranges::subtract(&written, &chunks),
        )?;
        Ok(Self {
            source: source.clone(),
            chunks: chunks.into(),
            whole,
            rest,
            capacity,
            sets: Mutex::default(),
        })
    }

    /// Makes sets until as many are ready, or being made by others, as the capacity says; returns
    /// how many. Takes the time of copying them.
    ///
    /// # Errors
    /// [`Error::ReadPages`] from the source, or [`Error::Os`] when there is no memory.
    pub fn refill(&self) -> Result<usize, Error> {
        let mut made = 0;
        while let Some(slot) = self.free_slot() {
            let set = self.fill()?;
            self.sets().ready.push(set);
            drop(slot);
            made += 1;
        }
        Ok(made)
    }

    /// Sets that are ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.sets().ready.len()
    }

    /// Memory that the ready sets hold, in bytes.
    #[must_use]
    pub fn staged_bytes(&self) -> u64 {
        self.ready() as u64 * self.set_pages() * PAGE_BYTES
    }

    /// Pages in one set: those that an attach need not bring in; 0 if no chunk is dense.
    #[must_use]
    pub fn set_pages(&self) -> u64 {
        self.chunks.iter().map(|run| run.end - run.start).sum()
    }

    /// Takes a ready set, if there is one. Never waits for one that is being made.
    pub(crate) fn take(&self) -> Option<HugeArea> {
        self.sets().ready.pop()
    }

    /// Takes back a set all of whose pages were moved away.
    pub(crate) fn give_back(&self, spent: HugeArea) {
        let mut sets = self.sets();
        if sets.spent.len() < self.capacity {
            sets.spent.push(spent);
        }
    }

    pub(crate) fn chunks(&self) -> &Arc<[Range<u64>]> {
        &self.chunks
    }

    /// Whether the stage was made for this source.
    pub(crate) fn fits(&self, source: &Source) -> bool {
        self.whole.fits(source)
    }

    /// What is left to be replayed.
    pub(crate) fn steps(&self, chunks_are_in: bool) -> &[Fill] {
        if chunks_are_in {
            self.rest.steps()
        } else {
            self.whole.steps()
        }
    }

    fn free_slot(&self) -> Option<Slot<'_>> {
        let mut sets = self.sets();
        if self.chunks.is_empty() || sets.ready.len() + sets.filling >= self.capacity {
            return None;
        }
        sets.filling += 1;
        Some(Slot(self))
    }

    /// Copies the chunks into a set.
    fn fill(&self) -> Result<HugeArea, Error> {
        let spent = self.sets().spent.pop();
        let mut set = match spent {
            Some(spent) => spent,
            None => HugeArea::new(self.set_pages() / HUGE_PAGES)?,
        };
        let mut rest = set.populate()?;
        for run in self.chunks.iter() {
            let (chunk, after) = rest.split_at_mut(((run.end - run.start) * PAGE_BYTES) as usize);
            rest = after;
            let mut result = Ok(());
            let layout = self.source.layout();
            ranges::split(layout.data, run.clone(), layout.pages, |pages, is_data| {
                if is_data && result.is_ok() {
                    let at = |page| ((page - run.start) * PAGE_BYTES) as usize;
                    let buffer = &mut chunk[at(pages.start)..at(pages.end)];
                    result = self.source.read(pages.start, buffer);
                }
            });
            result?;
        }
        Ok(set)
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to make one set; given back also when that fails.
struct Slot<'a>(&'a Stage);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.sets().filling -= 1;
    }
}

/// The whole chunks of `pages` that hold enough of `set`, which is sorted; neighbours merged.
fn dense_chunks(set: &[Range<u64>], pages: u64) -> Vec<Range<u64>> {
    let mut chunks: Vec<Range<u64>> = Vec::new();
    let mut counted: Option<(u64, u64)> = None;
    let mut close = |counted: Option<(u64, u64)>| {
        let Some((chunk, count)) = counted else {
            return;
        };
        let run = chunk * HUGE_PAGES..(chunk + 1) * HUGE_PAGES;
        if count < DENSE_PAGES || run.end > pages {
            return;
        }
        match chunks.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => chunks.push(run),
        }
    };
    for range in set {
        let mut at = range.start;
        while at < range.end {
            let chunk = at / HUGE_PAGES;
            let end = range.end.min((chunk + 1) * HUGE_PAGES);
            match &mut counted {
                Some((same, count)) if *same == chunk => *count += end - at,
                _ => close(counted.replace((chunk, end - at))),
            }
            at = end;
        }
    }
    close(counted);
    chunks
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "sets of one range are meant"
    )]

    use std::io;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;

    impl Stage {
        /// Takes a page out of a ready set, as nothing does.
        pub(crate) fn spoil_for_tests(&self, page: u64) {
            self.sets().ready[0].drop_page_for_tests(page);
        }
    }

    fn source(pages: u64) -> Source {
        Source::not_local(pages, Arc::new([0..pages]), Arc::new(|_, _| Ok(()))).unwrap()
    }

    #[test]
    fn chunks_are_dense_from_the_threshold_on() {
        let chunks = |set: &[Range<u64>]| dense_chunks(set, 2000);
        assert!(chunks(&[]).is_empty());
        assert!(chunks(&[0..49]).is_empty());
        assert_eq!(chunks(&[0..50]), [0..512]);
        assert_eq!(chunks(&[462..512]), [0..512]);
        assert!(chunks(&[463..561]).is_empty(), "49 pages on either side");
        assert_eq!(chunks(&[462..562]), [0..1024], "neighbours are one run");
        assert_eq!(
            chunks(&[10..20, 100..140, 1030..1100]),
            [0..512, 1024..1536]
        );
        assert_eq!(chunks(&[0..2000]), [0..1536], "the last chunk is cut");
    }

    #[test]
    fn a_page_in_both_sets_counts_once() {
        let source = source(1024);
        let stage = |read, written| Stage::new(&source, read, written, 1).unwrap().set_pages();
        assert_eq!(stage(&[0..40], &[0..49]), 0);
        assert_eq!(stage(&[0..40], &[10..50]), 512);
    }

    #[test]
    fn what_is_staged_is_not_replayed() {
        let stage = Stage::new(&source(2048), &[0..60, 600..610], &[20..100, 605..606], 1).unwrap();
        let pages = |chunks_are_in| {
            let steps = stage.steps(chunks_are_in).iter();
            steps
                .map(|step| step.pages.end - step.pages.start)
                .sum::<u64>()
        };
        assert_eq!((pages(false), pages(true)), (110, 10));
    }

    #[test]
    fn a_stage_holds_what_it_may_and_no_more() {
        let stage = Stage::new(&source(2048), &[0..1024], &[], 3).unwrap();
        assert_eq!((stage.ready(), stage.staged_bytes()), (0, 0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| stage.refill().unwrap());
            }
        });
        assert_eq!((stage.ready(), stage.staged_bytes()), (3, 3 * 1024 * 4096));
        assert_eq!(stage.refill().unwrap(), 0);
        let taken = stage.take().unwrap();
        assert_eq!(stage.refill().unwrap(), 1);
        drop(taken);
        let sparse = Stage::new(&source(2048), &[0..10], &[], 3).unwrap();
        assert_eq!((sparse.refill().unwrap(), sparse.set_pages()), (0, 0));
        let none = Stage::new(&source(2048), &[0..1024], &[], 0).unwrap();
        assert_eq!(none.refill().unwrap(), 0);
    }

    /// A set is a copy of the data, zeros between; also in an area that was used before.
    #[test]
    fn sets_hold_the_snapshots_pages() {
        let data: Arc<[Range<u64>]> = Arc::new([100..130, 500..600]);
        let ones: Arc<crate::ReadPages> = Arc::new(|_, buffer| {
            buffer.fill(1);
            Ok(())
        });
        let source = Source::not_local(1024, data, ones).unwrap();
        let stage = Stage::new(&source, &[0..1024], &[], 1).unwrap();
        let mut addresses = Vec::new();
        for _ in 0..2 {
            stage.refill().unwrap();
            let mut set = stage.take().unwrap();
            addresses.push(set.address());
            assert_eq!((set.address() % (2 << 20), set.bytes()), (0, 4 << 20));
            for (page, bytes) in (0..).zip(set.populate().unwrap().chunks(4096)) {
                let is_data = source.data().iter().any(|run| run.contains(&page));
                let want = u8::from(is_data);
                assert!(bytes.iter().all(|&byte| byte == want), "page {page}");
            }
            (0..1024).for_each(|page| set.drop_page_for_tests(page));
            stage.give_back(set);
        }
        assert_eq!(addresses[0], addresses[1]);
    }

    #[test]
    fn a_set_that_cannot_be_made_takes_nobodys_place() {
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let read: Arc<crate::ReadPages> =
            Arc::new(move |_, _| match counted.fetch_add(1, Ordering::Relaxed) {
                0 => Err(io::Error::other("the cable is cut")),
                1 => panic!("a bug in the reader"),
                _ => Ok(()),
            });
        let source = Source::not_local(1024, Arc::new([0..512]), read).unwrap();
        let stage = Stage::new(&source, &[0..512], &[], 1).unwrap();
        let failed = stage.refill();
        assert!(
            matches!(
                failed,
                Err(Error::ReadPages {
                    first_page: 0,
                    pages: 512,
                    ..
                })
            ),
            "{failed:?}"
        );
        let panicked = thread::scope(|scope| scope.spawn(|| stage.refill()).join());
        assert!(panicked.is_err());
        assert_eq!((stage.refill().unwrap(), stage.ready()), (1, 1));
    }
}
