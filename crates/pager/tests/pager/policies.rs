//! What each policy promises beyond right content.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use dormouse_pager::{Error, PAGE_BYTES, PagerConfig, Policy, WorkingSetPlan};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::rig::{Random, Snapshot, flat, pager, with};

/// Pages that hold anything in the shared file.
fn file_pages(snapshot: &Snapshot) -> u64 {
    snapshot.file.metadata().unwrap().blocks() * 512 / PAGE_BYTES
}

#[test]
fn a_mapped_snapshot_is_served_by_the_kernel() {
    let snapshot = Snapshot::random(300, &mut Random::new(20));
    let source = snapshot.shared();
    let (mut pager, guest) = (pager(), snapshot.guest());
    for _ in 0..3 {
        pager.attach(&guest.0, &source, &Policy::Map).unwrap();
        guest.assert_pristine(&snapshot, 0..snapshot.pages);
        (0..snapshot.pages).for_each(|page| guest.poke(page, u64::MAX));
        let stats = pager.stats();
        assert_eq!((stats.faults_minor, stats.faults_missing), (0, 0));
        assert!(stats.attach_us > 0);
    }
    // What the next one maps is its own again.
    pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
    guest.assert_pristine(&snapshot, 0..snapshot.pages);
    assert!(pager.stats().faults_minor > 0);
    pager.attach(&guest.0, &source, &Policy::Map).unwrap();
    pager.detach();
    assert!((0..snapshot.pages).all(|page| guest.read(page).iter().all(|&byte| byte == 0)));
}

#[test]
fn what_the_kernel_brought_in_is_touched_as_well() {
    // More than the kernel brings in around a fault lies between what is read and what is not.
    let snapshot = Snapshot::new(1024, &[0..512]);
    let (mut pager, guest) = (pager(), snapshot.guest());
    pager
        .attach(&guest.0, &snapshot.shared(), &Policy::Map)
        .unwrap();
    assert!(pager.touched().unwrap().read.is_empty());
    guest.assert_pristine(&snapshot, 0..50);
    guest.poke(20, 1);
    guest.poke(600, 1);
    let touched = pager.touched().unwrap();
    assert_eq!(touched.written, [20..21, 600..601]);
    let read = flat(&touched.read);
    assert!((0..50).all(|page| page == 20 || read.contains(&page)));
    assert!(
        (200..500)
            .chain(700..1024)
            .all(|page| !read.contains(&page))
    );
    assert!(touched.order.is_empty());
}

#[test]
fn populate_completes_a_mapped_snapshot_and_fills_no_hole() {
    let snapshot = Snapshot::new(800, &[100..300, 700..800]);
    let (mut pager, guest) = (pager(), snapshot.guest());
    pager
        .attach(&guest.0, &snapshot.shared(), &Policy::Map)
        .unwrap();
    guest.assert_pristine(&snapshot, [5, 150]);
    guest.poke(151, 7);
    guest.poke(400, 7);
    let before = file_pages(&snapshot);
    assert_eq!(before, 302, "the two holes that were touched");
    pager.populate().unwrap();
    assert_eq!(file_pages(&snapshot), before);
    let touched = pager.touched().unwrap();
    assert_eq!(touched.written, [151..152, 400..401]);
    assert_eq!(touched.read, [0..151, 152..400, 401..800]);
    assert_eq!((guest.read(151)[512], guest.read(400)[512]), (7, 7));
    let others = (0..800).filter(|page| ![151, 400].contains(page));
    guest.assert_pristine(&snapshot, others);
    assert_eq!(
        file_pages(&snapshot),
        before,
        "nothing was left to fault on"
    );
    assert!(pager.take_error().is_none());
}

/// Where the thread of this name may run.
fn cores_of(thread: &str) -> CpuSet {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        let name = std::fs::read_to_string(task.path().join("comm"));
        if name.is_ok_and(|name| name.trim() == thread) {
            let tid = task.file_name().to_string_lossy().parse().unwrap();
            return sched_getaffinity(Pid::from_raw(tid)).unwrap();
        }
    }
    panic!("no thread {thread}");
}

#[test]
fn the_handler_follows_its_caller_from_core_to_core() {
    const NAME: &str = "follows-me";
    let snapshot = Snapshot::new(1000, &[0..1000]);
    let guest = snapshot.guest();
    let mut pager = with(PagerConfig {
        name: NAME.to_owned(),
        ..PagerConfig::default()
    });
    pager
        .attach(&guest.0, &snapshot.shared(), &Policy::Lazy)
        .unwrap();
    let anywhere = cores_of(NAME);
    let cores: Vec<_> = (0..CpuSet::MAX_CPU)
        .filter(|&core| anywhere.is_set(core))
        .collect();
    for (round, &core) in cores.iter().chain(&cores).enumerate().take(100) {
        let mut here = CpuSet::new();
        here.set(core);
        sched_setaffinity(None, &here).unwrap();
        for _ in 0..2 {
            pager.follow().unwrap();
            assert_eq!(cores_of(NAME), here);
        }
        guest.assert_pristine(&snapshot, [round as u64 * 10]);
    }
    pager.pin_to(None).unwrap();
    assert_eq!(cores_of(NAME), anywhere);
    pager.follow().unwrap();
    assert_eq!(cores_of(NAME).count(), 1, "also after it was let go");
    sched_setaffinity(None, &anywhere).unwrap();
}

#[test]
fn pages_that_are_not_local_cannot_be_mapped() {
    let snapshot = Snapshot::new(64, &[0..10]);
    let (mut pager, guest) = (pager(), snapshot.guest());
    let refused = pager.attach(&guest.0, &snapshot.not_local(), &Policy::Map);
    assert!(
        matches!(refused, Err(Error::NotShared { policy: "map" })),
        "{refused:?}"
    );
    assert!(!pager.is_attached());
}

#[test]
fn an_eager_attach_brings_in_all_data_and_no_hole() {
    let snapshot = Snapshot::new(2000, &[10..700, 1200..1201, 1500..2000]);
    for (name, source) in snapshot.sources() {
        let plan = WorkingSetPlan::eager(&source, &[100..110, 800..801]).unwrap();
        let policy = Policy::Eager(Arc::new(plan));
        let (mut pager, guest) = (pager(), snapshot.guest());
        let attach = pager.attach(&guest.0, &source, &policy).unwrap();
        assert_eq!(attach.replayed_pages, 1192, "{name}");
        let stats = pager.stats();
        let copied = if name == "shared" { 11 } else { 1192 };
        assert_eq!(
            (stats.pages_continued, stats.pages_copied),
            (1192 - copied, copied),
            "{name}"
        );
        let data = (0..2000).filter(|&page| snapshot.is_data(page));
        guest.assert_pristine(&snapshot, data);
        guest.poke(800, 0);
        let stats = pager.stats();
        assert_eq!((stats.faults_minor, stats.faults_missing), (0, 0), "{name}");
        guest.assert_pristine(&snapshot, 0..2000);
        let stats = pager.stats();
        assert!(stats.faults_missing > 0, "{name}: holes stay lazy");
        assert!(pager.take_error().is_none());
    }
}

#[test]
fn an_eager_policy_takes_no_partial_plan() {
    let snapshot = Snapshot::new(64, &[0..10]);
    let (mut pager, guest, source) = (pager(), snapshot.guest(), snapshot.shared());
    let partial = Arc::new(WorkingSetPlan::new(&source, &[0..9], &[]).unwrap());
    let refused = pager.attach(&guest.0, &source, &Policy::Eager(Arc::clone(&partial)));
    assert!(matches!(refused, Err(Error::PartialPlan)), "{refused:?}");
    pager
        .attach(&guest.0, &source, &Policy::WorkingSet(partial))
        .unwrap();
    let foreign = WorkingSetPlan::eager(&snapshot.shared(), &[]).unwrap();
    let refused = pager.attach(&guest.0, &source, &Policy::Eager(Arc::new(foreign)));
    assert!(matches!(refused, Err(Error::ForeignPlan)), "{refused:?}");
}
