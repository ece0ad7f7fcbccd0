//! Chunks that were staged ahead are moved in, whole, and whatever is in the way of that is only
//! slower.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dormouse_pager::{Error, PAGE_BYTES, Policy, Source, Stage};

use crate::rig::{Guest, Random, Snapshot, StopReaders, alone, flat, maps, pager};

const READ: [Range<u64>; 5] = [10..20, 600..700, 850..860, 1100..1150, 1700..1705];
const WRITTEN: [Range<u64>; 4] = [12..14, 620..640, 870..880, 1750..1751];
/// The dense chunks of these.
const CHUNKS: Range<u64> = 512..1536;
/// Pages of the set outside of them, and in all, gaps that are bridged included.
const REST_PAGES: u64 = 16;
const WHOLE_PAGES: u64 = 186;

fn snapshot() -> Snapshot {
    Snapshot::new(2048, &[0..300, 400..800, 820..1300, 1600..1900])
}

fn stage(source: &Source, capacity: usize) -> Arc<Stage> {
    Arc::new(Stage::new(source, &READ, &WRITTEN, capacity).unwrap())
}

fn is_in_set(page: u64) -> bool {
    READ.iter().chain(&WRITTEN).any(|run| run.contains(&page))
}

/// Does what was recorded.
fn play(guest: &Guest, snapshot: &Snapshot) {
    guest.assert_pristine(snapshot, READ.into_iter().chain(WRITTEN).flatten());
    for page in WRITTEN.into_iter().flatten() {
        guest.poke(page, page);
    }
}

#[test]
fn dense_chunks_are_moved_in_and_the_rest_is_replayed() {
    let snapshot = snapshot();
    for (name, source) in snapshot.sources() {
        let (mut pager, guest, stage) = (pager(), snapshot.guest(), stage(&source, 1));
        let policy = Policy::Staged(Arc::clone(&stage));
        for round in 0..4 {
            assert_eq!(stage.refill().unwrap(), 1);
            assert_eq!(stage.staged_bytes(), 4 << 20);
            let attach = pager.attach(&guest.0, &source, &policy).unwrap();
            assert_eq!(
                (attach.moved_pages, attach.replayed_pages),
                (1024, REST_PAGES),
                "{name}"
            );
            assert_eq!((stage.ready(), stage.staged_bytes()), (0, 0));
            play(&guest, &snapshot);
            // Not even what is outside the set can fault in a chunk.
            guest.assert_pristine(&snapshot, CHUNKS.filter(|&page| !is_in_set(page)));
            let stats = pager.stats();
            assert_eq!((stats.faults_minor, stats.faults_missing), (0, 0), "{name}");
            assert_eq!(stats.pages_moved, 1024);
            let touched = pager.touched().unwrap();
            let written = flat(&touched.written);
            assert!(CHUNKS.chain(12..14).all(|page| written.contains(&page)));
            assert!(touched.order.is_empty());
            guest.assert_pristine(&snapshot, (0..2048).filter(|&page| !is_in_set(page)));
            assert!(pager.take_error().is_none());
            if round % 2 == 0 {
                pager.detach();
                assert!((0..2048).all(|page| guest.peek(page) == 0), "{name}: blank");
            }
        }
    }
}

#[test]
fn without_a_ready_set_all_is_replayed() {
    let snapshot = snapshot();
    for (name, source) in snapshot.sources() {
        let (mut pager, guest) = (pager(), snapshot.guest());
        let policy = Policy::Staged(stage(&source, 1));
        let attach = pager.attach(&guest.0, &source, &policy).unwrap();
        assert_eq!(
            (attach.moved_pages, attach.replayed_pages),
            (0, WHOLE_PAGES),
            "{name}"
        );
        play(&guest, &snapshot);
        let stats = pager.stats();
        assert_eq!((stats.faults_minor, stats.faults_missing), (0, 0), "{name}");
        guest.assert_pristine(&snapshot, (0..2048).filter(|&page| !is_in_set(page)));
    }
}

#[test]
fn a_guest_between_huge_pages_is_replayed_and_the_set_kept() {
    let snapshot = snapshot();
    for (name, source) in snapshot.sources() {
        let (mut pager, stage) = (pager(), stage(&source, 1));
        let policy = Policy::Staged(Arc::clone(&stage));
        stage.refill().unwrap();
        for offset_pages in [1, 511] {
            let guest = snapshot.guest_at(offset_pages * PAGE_BYTES);
            let attach = pager.attach(&guest.0, &source, &policy).unwrap();
            assert_eq!(
                (attach.moved_pages, attach.replayed_pages),
                (0, WHOLE_PAGES),
                "{name}"
            );
            play(&guest, &snapshot);
            guest.assert_pristine(&snapshot, (0..2048).filter(|&page| !is_in_set(page)));
            assert_eq!(stage.ready(), 1);
        }
        let guest = snapshot.guest_at(0);
        let attach = pager.attach(&guest.0, &source, &policy).unwrap();
        assert_eq!(attach.moved_pages, 1024, "{name}");
        guest.assert_pristine(&snapshot, 0..2048);
    }
}

/// What somebody drops from outside comes back from the snapshot, although no file lies under it.
#[test]
fn a_page_that_was_dropped_from_a_chunk_comes_back() {
    let snapshot = snapshot();
    let (mut pager, guest, source) = (pager(), snapshot.guest(), snapshot.shared());
    let stage = stage(&source, 1);
    stage.refill().unwrap();
    pager
        .attach(&guest.0, &source, &Policy::Staged(stage))
        .unwrap();
    guest.drop_pages(&(500..1540));
    guest.assert_pristine(&snapshot, 0..2048);
    assert!(pager.take_error().is_none());
}

#[test]
fn populate_completes_what_was_staged_in_part() {
    let snapshot = snapshot();
    for (name, source) in snapshot.sources() {
        let (mut pager, guest, stage) = (pager(), snapshot.guest(), stage(&source, 1));
        stage.refill().unwrap();
        pager
            .attach(&guest.0, &source, &Policy::Staged(stage))
            .unwrap();
        pager.populate().unwrap();
        let stats = pager.stats();
        let brought = stats.pages_continued + stats.pages_copied + stats.pages_zeroed;
        assert_eq!((stats.pages_moved, brought), (1024, 1024), "{name}");
        guest.assert_pristine(&snapshot, 0..2048);
        assert_eq!(pager.stats(), stats, "{name}: nothing was left to fault on");
    }
}

#[test]
fn a_stage_for_another_source_is_refused() {
    let snapshot = snapshot();
    let (mut pager, guest, stage) = (pager(), snapshot.guest(), stage(&snapshot.shared(), 1));
    stage.refill().unwrap();
    let refused = pager.attach(
        &guest.0,
        &snapshot.shared(),
        &Policy::Staged(Arc::clone(&stage)),
    );
    assert!(matches!(refused, Err(Error::ForeignPlan)), "{refused:?}");
    assert_eq!(stage.ready(), 1);
    let beyond = Stage::new(&snapshot.shared(), &[2000..2049], &[], 1);
    assert!(matches!(beyond, Err(Error::BadRange { .. })), "{beyond:?}");
}

/// Clones take sets while others make them; none is used twice.
#[test]
fn clones_share_one_stage_and_no_page() {
    let snapshot = snapshot();
    let source = snapshot.shared();
    let stage = stage(&source, 2);
    thread::scope(|scope| {
        for number in 0..3_u64 {
            let (stage, source, snapshot) = (&stage, &source, &snapshot);
            scope.spawn(move || {
                let (mut pager, guest) = (pager(), snapshot.guest());
                let policy = Policy::Staged(Arc::clone(stage));
                for _ in 0..20 {
                    pager.attach(&guest.0, source, &policy).unwrap();
                    guest.assert_pristine(snapshot, CHUNKS.step_by(3));
                    CHUNKS.for_each(|page| guest.poke(page, number));
                    stage.refill().unwrap();
                    assert!(stage.ready() <= 2);
                    for page in CHUNKS {
                        assert_eq!(guest.read(page)[512..520], number.to_le_bytes());
                    }
                }
                assert!(pager.take_error().is_none());
            });
        }
    });
}

/// Readers that do not stop for an attach see pages of some snapshot or blank ones, and none hangs
/// on a fault that it took before its chunk was moved in.
#[test]
fn readers_during_a_staged_attach_see_whole_pages_and_never_hang() {
    let left = Snapshot::new(1024, &[0..512]);
    let right = Snapshot::new(1024, &[512..1024]);
    let sources = [left.shared(), right.shared(), left.not_local()];
    let stages = sources
        .each_ref()
        .map(|source| Arc::new(Stage::new(source, &[0..1024], &[], 1).unwrap()));
    let guest = left.guest();
    let done = AtomicBool::new(false);
    let mut pager = pager();
    thread::scope(|scope| {
        for seed in 0..3 {
            let (guest, done) = (&guest, &done);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                while !done.load(Ordering::Relaxed) {
                    // The first one waits for one page all the time, so as to fault on it as soon
                    // as there is anything to fault on.
                    let page = if seed == 0 { 5 } else { random.below(1024) };
                    let word = guest.peek(page);
                    assert!(word == 0 || word == (page + 1) << 8);
                }
            });
        }
        let _stop = StopReaders(&done);
        let mut moved = 0;
        for round in 0..300 {
            let snapshot = [&left, &right, &left][round % 3];
            let (source, stage) = (&sources[round % 3], &stages[round % 3]);
            stage.refill().unwrap();
            let policy = Policy::Staged(Arc::clone(stage));
            let attach = pager.attach(&guest.0, source, &policy).unwrap();
            moved += u32::from(attach.moved_pages == 1024);
            guest.assert_pristine(snapshot, (0..1024).step_by(7));
            if round % 5 == 0 {
                pager.detach();
            }
            assert!(pager.take_error().is_none());
        }
        // A reader that faults while the kernel moves can make it fail, which is seldom.
        assert!(moved > 150, "{moved} of 300");
    });
}

/// Moving keeps huge pages whole, where the host has any to give.
#[test]
fn chunks_arrive_as_huge_pages() {
    if !alone("staging::chunks_arrive_as_huge_pages") {
        return;
    }
    let snapshot = snapshot();
    let (mut pager, guest, source) = (pager(), snapshot.guest(), snapshot.shared());
    let stage = stage(&source, 1);
    stage.refill().unwrap();
    let staged_kib = maps().iter().map(|map| map.huge_kib).sum::<u64>();
    pager
        .attach(&guest.0, &source, &Policy::Staged(Arc::clone(&stage)))
        .unwrap();
    let chunk = guest.address() + CHUNKS.start * PAGE_BYTES;
    let map = maps().into_iter().find(|map| map.start == chunk).unwrap();
    assert_eq!(map.huge_kib, staged_kib);
    // The chunks' mapping goes with the rest.
    pager.detach();
    let map = maps().into_iter().find(|map| map.start == chunk);
    assert!(map.is_none(), "{map:?}");
}
