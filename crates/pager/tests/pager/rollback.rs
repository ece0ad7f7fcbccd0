//! What was written is made as in the snapshot again, in place, and what was mapped ahead is fresh.

use std::sync::Arc;

use dormouse_pager::{Error, PAGE_BYTES, Policy, Rollback, Rolled, WorkingSetPlan};

use crate::rig::{Random, Snapshot, pager};

type Page = [u8; PAGE_BYTES as usize];

fn never(_: &Page, _: &Page) -> bool {
    false
}

const FREE: Rollback<'static> = Rollback {
    watched: &[],
    differs: &never,
    kept: &[],
    most_copied_pages: u64::MAX,
};

#[test]
fn whatever_was_written_is_gone_under_every_policy() {
    let mut pager = pager();
    for seed in 0..40 {
        let mut random = Random::new(9000 + seed);
        let snapshot = Snapshot::random(400, &mut random);
        let (guest, source) = (snapshot.guest(), snapshot.shared());
        let written = [3..9, 40..41];
        let plan = || Arc::new(WorkingSetPlan::new(&source, &[0..30], &written).unwrap());
        let eager = Arc::new(WorkingSetPlan::eager(&source, &written).unwrap());
        for policy in [
            Policy::Lazy,
            Policy::Record,
            Policy::WorkingSet(plan()),
            Policy::Eager(eager),
            Policy::Map,
        ] {
            pager.attach(&guest.0, &source, &policy).unwrap();
            for round in 0..3 {
                let start = random.below(snapshot.pages);
                let end = (start + random.below(60)).min(snapshot.pages);
                (start..end).for_each(|page| guest.poke(page, page));
                for _ in 0..random.below(40) {
                    let page = random.below(snapshot.pages);
                    guest.poke(page, round);
                }
                let rollback = Rollback {
                    kept: &written,
                    ..FREE
                };
                let rolled = pager.roll_back(&rollback).unwrap();
                assert!(matches!(rolled, Rolled::Back(_)), "{}", policy.name());
                guest.assert_pristine(&snapshot, 0..snapshot.pages);
            }
        }
        assert!(pager.take_error().is_none());
    }
}

#[test]
fn expected_pages_stay_and_long_runs_are_given_back() {
    let snapshot = Snapshot::new(300, &[0..200]);
    let (guest, source) = (snapshot.guest(), snapshot.shared());
    let mut pager = pager();
    pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
    let write = || {
        for page in (0..40).chain(100..102).chain(150..290) {
            guest.poke(page, 1);
        }
    };
    write();
    let rollback = Rollback {
        kept: &[0..40],
        ..FREE
    };
    let Rolled::Back(stats) = pager.roll_back(&rollback).unwrap() else {
        panic!("not rolled back")
    };
    assert_eq!((stats.copied_pages, stats.dropped_pages), (42, 140));
    guest.assert_pristine(&snapshot, 0..100);
    let before = pager.stats();
    (0..40).for_each(|page| guest.poke(page, 2));
    let after = pager.stats();
    assert_eq!(after, before, "pages that stayed took a fault");
    guest.poke(200, 2);
    assert!(pager.stats().faults_missing > before.faults_missing);
}

#[test]
fn nothing_is_changed_where_a_rollback_is_not_done() {
    let snapshot = Snapshot::new(100, &[0..50]);
    let (guest, source) = (snapshot.guest(), snapshot.shared());
    let mut pager = pager();
    assert!(matches!(pager.roll_back(&FREE), Err(Error::NotAttached)));
    pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
    for page in [7, 8, 60] {
        guest.poke(page, 99);
    }
    let seen = guest.peek(7);
    let differs = |now: &Page, then: &Page| now != then;
    for (watched, most_copied_pages) in [(&[3, 60][..], u64::MAX), (&[3, 70], 2)] {
        let rollback = Rollback {
            watched,
            differs: &differs,
            most_copied_pages,
            ..FREE
        };
        let rolled = pager.roll_back(&rollback).unwrap();
        assert_eq!(rolled, Rolled::Not { written_pages: 3 });
        assert_eq!(guest.peek(7), seen);
    }
    // A page that was not written is not looked at, one that did not change in what matters is put
    // back.
    let rollback = Rollback {
        watched: &[3, 7],
        differs: &never,
        ..FREE
    };
    assert!(matches!(
        pager.roll_back(&rollback).unwrap(),
        Rolled::Back(_)
    ));
    guest.assert_pristine(&snapshot, 0..snapshot.pages);

    let not_local = snapshot.not_local();
    pager.attach(&guest.0, &not_local, &Policy::Lazy).unwrap();
    guest.poke(7, 1);
    let rolled = pager.roll_back(&FREE).unwrap();
    assert!(matches!(rolled, Rolled::Not { .. }));
}

#[test]
fn what_was_mapped_ahead_is_used_while_nobody_touched_it() {
    let snapshot = Snapshot::new(100, &[0..50]);
    let (guest, source) = (snapshot.guest(), snapshot.shared());
    let plan = WorkingSetPlan::new(&source, &[0..10, 60..62], &[20..22]).unwrap();
    let policy = Policy::WorkingSet(Arc::new(plan));
    let mut pager = pager();
    for is_touched in [false, true, false] {
        pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
        if is_touched {
            guest.poke(30, 1);
            guest.poke(70, 1);
        }
        pager.attach(&guest.0, &source, &policy).unwrap();
        assert_eq!(pager.stats().replayed_pages, 14);
        guest.assert_pristine(&snapshot, 0..snapshot.pages);
        guest.poke(20, 1);
        pager.attach(&guest.0, &source, &Policy::Record).unwrap();
        guest.poke(3, 1);
        assert_eq!(pager.touched().unwrap().order, [3], "recorded page by page");
    }
}
