//! What was touched is told exactly, and replaying it leaves nothing to fault on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_pager::{Error, Pager, Policy, Source, Touched, WorkingSetPlan};

use crate::rig::{Guest, Random, Snapshot, flat, pager};

/// A guest's run: accesses pages in an order, some of them for writing.
struct Run {
    accesses: Vec<(u64, bool)>,
}

impl Run {
    fn random(pages: u64, random: &mut Random) -> Self {
        let count = 1 + random.below(150);
        let accesses = (0..count)
            .map(|_| (random.below(pages), random.below(3) == 0))
            .collect();
        Self { accesses }
    }

    fn play(&self, guest: &Guest) {
        for &(page, write) in &self.accesses {
            if write {
                guest.poke(page, page)
            } else {
                _ = guest.peek(page)
            }
        }
    }

    fn order(&self) -> Vec<u64> {
        let mut seen = BTreeSet::new();
        self.accesses
            .iter()
            .map(|access| access.0)
            .filter(|&page| seen.insert(page))
            .collect()
    }

    fn written(&self) -> Vec<u64> {
        let written = self
            .accesses
            .iter()
            .filter(|access| access.1)
            .map(|access| access.0);
        written.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn read_only(&self) -> Vec<u64> {
        let written = self.written();
        let touched: BTreeSet<_> = self.accesses.iter().map(|access| access.0).collect();
        touched
            .into_iter()
            .filter(|page| !written.contains(page))
            .collect()
    }
}

fn record(pager: &mut Pager, guest: &Guest, source: &Source, run: &Run) -> Touched {
    pager.attach(&guest.0, source, &Policy::Record).unwrap();
    run.play(guest);
    pager.touched().unwrap()
}

#[test]
fn touched_is_exact_while_recording() {
    let mut pager = pager();
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let snapshot = Snapshot::random(400, &mut random);
        let guest = snapshot.guest();
        let run = Run::random(snapshot.pages, &mut random);
        for (name, source) in snapshot.sources() {
            let touched = record(&mut pager, &guest, &source, &run);
            assert_eq!(touched.order, run.order(), "{name}, seed {seed}: order");
            assert_eq!(
                flat(&touched.written),
                run.written(),
                "{name}, seed {seed}: written"
            );
            assert_eq!(
                flat(&touched.read),
                run.read_only(),
                "{name}, seed {seed}: read"
            );
        }
    }
}

#[test]
fn a_replayed_set_leaves_no_fault() {
    let mut pager = pager();
    for seed in 0..40 {
        let mut random = Random::new(1000 + seed);
        let snapshot = Snapshot::random(400, &mut random);
        let guest = snapshot.guest();
        let run = Run::random(snapshot.pages, &mut random);
        for (name, source) in snapshot.sources() {
            let touched = record(&mut pager, &guest, &source, &run);
            let plan = WorkingSetPlan::new(&source, &touched.read, &touched.written).unwrap();
            let planned_pages = plan.pages();
            let policy = Policy::WorkingSet(Arc::new(plan));
            let attach = pager.attach(&guest.0, &source, &policy).unwrap();
            assert_eq!(attach.replayed_pages, planned_pages);
            run.play(&guest);
            let stats = pager.stats();
            assert_eq!(
                (stats.faults_minor, stats.faults_missing),
                (0, 0),
                "{name}, seed {seed}"
            );
            assert!(pager.touched().unwrap().order.is_empty());

            pager.attach(&guest.0, &source, &policy).unwrap();
            guest.assert_pristine(&snapshot, 0..snapshot.pages);
            assert!(pager.take_error().is_none());
        }
    }
}

/// Written pages are private copies right after the attach: no copy-on-write fault is left.
#[test]
fn the_write_set_is_copied_ahead() {
    let snapshot = Snapshot::new(100, &[0..50]);
    let source = snapshot.shared();
    let plan = WorkingSetPlan::new(&source, &[0..100], &[10..20, 60..70]).unwrap();
    let (mut pager, guest) = (pager(), snapshot.guest());
    pager
        .attach(&guest.0, &source, &Policy::WorkingSet(Arc::new(plan)))
        .unwrap();
    let touched = pager.touched().unwrap();
    assert_eq!(touched.written, [10..20, 60..70]);
    assert_eq!(touched.read, [0..10, 20..60, 70..100]);
    let stats = pager.stats();
    assert_eq!(
        (
            stats.pages_continued,
            stats.pages_copied,
            stats.pages_zeroed
        ),
        (40, 20, 40)
    );
    assert_eq!(stats.replayed_pages, 100);
}

#[test]
fn replay_reads_only_data_pages_that_are_not_local() {
    let snapshot = Snapshot::new(1000, &[0..300, 500..501]);
    let reads = Arc::new(AtomicU64::new(0));
    let source = snapshot.counted(&reads);
    let plan = WorkingSetPlan::new(&source, &[0..200, 400..600], &[250..260]).unwrap();
    let (mut pager, guest) = (pager(), snapshot.guest());
    pager
        .attach(&guest.0, &source, &Policy::WorkingSet(Arc::new(plan)))
        .unwrap();
    assert_eq!(reads.load(Ordering::Relaxed), 211);
    guest.assert_pristine(&snapshot, 0..1000);
    assert_eq!(reads.load(Ordering::Relaxed), 301);
}

#[test]
fn a_plan_for_another_source_is_refused() {
    let snapshot = Snapshot::new(64, &[0..10]);
    let plan = Arc::new(WorkingSetPlan::new(&snapshot.shared(), &[0..10], &[]).unwrap());
    let (mut pager, guest) = (pager(), snapshot.guest());
    let refused = pager.attach(&guest.0, &snapshot.shared(), &Policy::WorkingSet(plan));
    assert!(matches!(refused, Err(Error::ForeignPlan)), "{refused:?}");
    assert!(!pager.is_attached());
}
