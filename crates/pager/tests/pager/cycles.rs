//! Thousands of attachments leave nothing behind.
//!
//! The process is watched as a whole, so this file's one leak test runs itself again in a process
//! of its own, where no other test opens and closes things meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_pager::{Policy, Stage, WorkingSetPlan, probe};

use crate::rig::{Random, Snapshot, alone, pager};

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Descriptors, threads and mappings of this process, once it has no more than so many threads: one that
/// was joined may be listed for a moment still.
fn possessions(threads: usize) -> (usize, usize, usize) {
    let patience = Instant::now() + Duration::from_secs(60);
    while count("/proc/self/task") > threads && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
    let maps = std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count();
    (count("/proc/self/fd"), count("/proc/self/task"), maps)
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn two_thousand_attachments_leak_nothing() {
    if !alone("cycles::two_thousand_attachments_leak_nothing") {
        return;
    }
    let snapshot = Snapshot::random(1024, &mut Random::new(7));
    let sources = [snapshot.shared(), snapshot.not_local()];
    let policies: Vec<_> = sources
        .iter()
        .map(|source| {
            let plan = WorkingSetPlan::new(source, &[0..200], &[100..120]).unwrap();
            Policy::WorkingSet(Arc::new(plan))
        })
        .collect();
    let stages = sources
        .each_ref()
        .map(|source| Arc::new(Stage::new(source, &[0..200], &[100..120], 1).unwrap()));
    let (mut pager, guest) = (pager(), snapshot.guest());
    let threads = count("/proc/self/task");
    let mut random = Random::new(8);
    let mut early = None;
    for cycle in 0..2000 {
        let which = cycle % 2;
        let policy = match cycle % 6 {
            0 => Policy::Record,
            1 | 2 => {
                stages[which].refill().unwrap();
                Policy::Staged(Arc::clone(&stages[which]))
            }
            // The local one.
            4 => Policy::Map,
            _ => policies[which].clone(),
        };
        pager.attach(&guest.0, &sources[which], &policy).unwrap();
        for _ in 0..10 {
            let page = random.below(snapshot.pages);
            guest.poke(page, 1);
        }
        if cycle % 3 == 0 {
            pager.detach();
        }
        if cycle == 200 {
            pager.detach();
            early = Some((possessions(threads), resident_kib()));
        }
    }
    pager.detach();
    let (early, early_kib) = early.unwrap();
    assert_eq!(possessions(threads), early);
    assert!(
        resident_kib() <= early_kib + 1024,
        "{early_kib} KiB, now {}",
        resident_kib()
    );
}

#[test]
fn pagers_come_and_go_without_a_trace() {
    if !alone("cycles::pagers_come_and_go_without_a_trace") {
        return;
    }
    let snapshot = Snapshot::new(64, &[0..32]);
    let source = snapshot.shared();
    let threads = count("/proc/self/task");
    let mut early = None;
    for cycle in 0..200 {
        let guest = snapshot.guest();
        let mut pager = pager();
        pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
        guest.assert_pristine(&snapshot, [5, 40]);
        drop(pager);
        assert_eq!(guest.peek(5), 0, "blank when the pager is gone");
        drop(guest);
        if cycle == 20 {
            early = Some(possessions(threads));
        }
    }
    assert_eq!(Some(possessions(threads)), early);
}

#[test]
fn the_probe_finds_what_the_pager_needs() {
    let support = probe().unwrap_or_else(|error| panic!("these tests need userfaultfd: {error}"));
    assert!(support.usable(), "{support:?}");
    assert!(
        support
            .features
            .iter()
            .filter(|feature| feature.required)
            .count()
            == 2
    );
}
