//! Whatever fails, it is reported and nobody hangs.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use dormouse_pager::{
    Error, OnError, PAGE_BYTES, PagerConfig, Policy, Source, Stage, WorkingSetPlan,
};

use crate::rig::{Guest, Snapshot, pager, unsealed, with};

fn counting() -> (Arc<AtomicU64>, OnError) {
    let count = Arc::new(AtomicU64::new(0));
    let notified = Arc::clone(&count);
    (
        count,
        Arc::new(move || _ = notified.fetch_add(1, Ordering::SeqCst)),
    )
}

/// Reads a page in another thread; fails the test if that hangs.
fn read_in_time(guest: &Guest, page: u64) -> Vec<u8> {
    let (send, receive) = mpsc::channel();
    let guest = guest.clone();
    thread::spawn(move || send.send(guest.read(page)));
    receive
        .recv_timeout(Duration::from_secs(10))
        .expect("the reader hangs")
}

#[test]
fn a_source_that_fails_is_reported_and_releases_the_reader() {
    let snapshot = Snapshot::new(64, &[0..64]);
    let source = snapshot.reading(|_, _| Err(io::Error::other("the cable is cut")));
    let (notified, on_error) = counting();
    let mut pager = with(PagerConfig {
        on_error: Some(on_error),
        ..PagerConfig::default()
    });
    let guest = snapshot.guest();
    pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
    read_in_time(&guest, 20);
    assert_eq!(notified.load(Ordering::SeqCst), 1);
    let error = pager.take_error().expect("an error");
    assert!(
        matches!(
            error,
            Error::ReadPages {
                first_page: 16,
                pages: 16,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("the cable is cut"), "{error}");
    // All the rest is let go as well, without asking the source again.
    for page in 0..64 {
        read_in_time(&guest, page);
    }
    assert_eq!(notified.load(Ordering::SeqCst), 1);

    // The shell itself is as good as new.
    assert!(pager.is_alive());
    pager
        .attach(&guest.0, &snapshot.shared(), &Policy::Lazy)
        .unwrap();
    guest.assert_pristine(&snapshot, 0..64);
    assert!(pager.take_error().is_none());
}

#[test]
fn a_file_that_shrank_is_a_short_read() {
    let snapshot = Snapshot::new(64, &[0..64]);
    let file = unsealed(64, &[0..64]);
    file.set_len(32 * PAGE_BYTES).unwrap();
    let source =
        snapshot.reading(move |first, buffer| file.read_exact_at(buffer, first * PAGE_BYTES));
    let (mut pager, guest) = (pager(), snapshot.guest());
    pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
    guest.assert_pristine(&snapshot, 0..32);
    assert!(pager.take_error().is_none());
    read_in_time(&guest, 40);
    let error = pager.take_error().expect("an error");
    let kind = match error {
        Error::ReadPages { source, .. } => source.kind(),
        other => panic!("{other}"),
    };
    assert_eq!(kind, io::ErrorKind::UnexpectedEof);

    // What is read ahead of the run fails before there is one.
    let eager = Policy::Eager(Arc::new(WorkingSetPlan::eager(&source, &[]).unwrap()));
    let Err(Error::ReadPages { source, .. }) = pager.attach(&guest.0, &source, &eager) else {
        panic!("it cannot all be in");
    };
    assert_eq!(source.kind(), io::ErrorKind::UnexpectedEof);
    assert!(!pager.is_attached());
}

#[test]
fn a_replay_that_fails_leaves_a_blank_region() {
    let snapshot = Snapshot::new(1024, &[0..1024]);
    let file = Arc::clone(&snapshot.file);
    let gone = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&gone);
    let source = snapshot.reading(move |first, buffer| {
        if flag.load(Ordering::SeqCst) {
            return Err(io::Error::other("gone"));
        }
        file.read_exact_at(buffer, first * PAGE_BYTES)
    });
    let plan = WorkingSetPlan::new(&source, &[3..64], &[]).unwrap();
    let eager = WorkingSetPlan::eager(&source, &[]).unwrap();
    let stage = || Arc::new(Stage::new(&source, &[3..10, 600..700], &[], 1).unwrap());
    let (ready, empty) = (stage(), stage());
    ready.refill().unwrap();
    let (mut pager, guest) = (pager(), snapshot.guest());
    gone.store(true, Ordering::SeqCst);
    for policy in [
        Policy::WorkingSet(Arc::new(plan)),
        Policy::Eager(Arc::new(eager)),
        Policy::Staged(ready),
        Policy::Staged(Arc::clone(&empty)),
    ] {
        let result = pager.attach(&guest.0, &source, &policy);
        assert!(
            matches!(
                result,
                Err(Error::ReadPages {
                    first_page: 0..=3,
                    ..
                })
            ),
            "{result:?}"
        );
        assert!(!pager.is_attached());
        for page in [3, 650] {
            assert!(read_in_time(&guest, page).iter().all(|&byte| byte == 0));
        }
    }
    let result = empty.refill();
    assert!(
        matches!(
            result,
            Err(Error::ReadPages {
                first_page: 512,
                ..
            })
        ),
        "{result:?}"
    );
}

/// Pages that are mapped over while their fault is being served: the fill finds nothing registered.
#[test]
fn a_region_that_is_mapped_over_during_a_fill_does_not_hang() {
    let snapshot = Snapshot::new(64, &[0..64]);
    let guest = snapshot.guest();
    let (file, region) = (Arc::clone(&snapshot.file), guest.clone());
    let source = snapshot.reading(move |first, buffer| {
        region.map_over();
        file.read_exact_at(buffer, first * PAGE_BYTES)
    });
    let (notified, on_error) = counting();
    let mut pager = with(PagerConfig {
        on_error: Some(on_error),
        ..PagerConfig::default()
    });
    for populate in [false, true] {
        pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
        let error = if populate {
            pager.populate().unwrap_err()
        } else {
            read_in_time(&guest, 20);
            pager.take_error().expect("an error")
        };
        match error {
            Error::Os {
                operation, source, ..
            } => {
                assert_eq!(operation, "UFFDIO_COPY");
                assert_eq!(source.raw_os_error(), Some(2), "ENOENT");
            }
            other => panic!("{other}"),
        }
        (0..64).for_each(|page| _ = read_in_time(&guest, page));
    }
    assert_eq!(notified.load(Ordering::SeqCst), 1);
    let plan = Arc::new(WorkingSetPlan::new(&source, &[0..64], &[]).unwrap());
    let result = pager.attach(&guest.0, &source, &Policy::WorkingSet(plan));
    assert!(matches!(result, Err(Error::Os { .. })), "{result:?}");
    // The shell itself is as good as new.
    pager
        .attach(&guest.0, &snapshot.shared(), &Policy::Lazy)
        .unwrap();
    guest.assert_pristine(&snapshot, 0..64);
    assert!(pager.take_error().is_none());
}

#[test]
fn a_handler_that_panics_releases_its_guest_and_is_noticed() {
    let snapshot = Snapshot::new(1024, &[0..1024]);
    let file = Arc::clone(&snapshot.file);
    let broken = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&broken);
    let source = snapshot.reading(move |first, buffer| {
        assert!(!flag.load(Ordering::SeqCst), "a bug in the reader");
        file.read_exact_at(buffer, first * PAGE_BYTES)
    });
    let plan = WorkingSetPlan::new(&source, &[100..110], &[]).unwrap();
    let stage = Arc::new(Stage::new(&source, &[100..110, 600..700], &[], 1).unwrap());
    stage.refill().unwrap();
    for policy in [
        Policy::Lazy,
        Policy::Record,
        Policy::WorkingSet(Arc::new(plan)),
        Policy::Staged(stage),
    ] {
        let (notified, on_error) = counting();
        let mut pager = with(PagerConfig {
            on_error: Some(on_error),
            ..PagerConfig::default()
        });
        let guest = snapshot.guest();
        broken.store(false, Ordering::SeqCst);
        let attach = pager.attach(&guest.0, &source, &policy).unwrap();
        broken.store(true, Ordering::SeqCst);
        read_in_time(&guest, 20);
        read_in_time(&guest, 50);
        // What was in before is still right.
        let in_before = if attach.replayed_pages > 0 {
            100..110
        } else {
            0..0
        };
        guest.assert_pristine(&snapshot, in_before);
        let moved_in = if attach.moved_pages > 0 {
            512..1024
        } else {
            0..0
        };
        guest.assert_pristine(&snapshot, moved_in);
        assert_eq!(notified.load(Ordering::SeqCst), 1, "{}", policy.name());
        assert!(!pager.is_alive());
        let error = pager.take_error().expect("an error");
        assert!(matches!(&error, Error::HandlerPanicked { message } if message.contains("a bug")));

        broken.store(false, Ordering::SeqCst);
        let refused = pager.populate();
        assert!(
            matches!(refused, Err(Error::HandlerDead)),
            "zeros may have been read: {refused:?}"
        );
        let refused = pager.attach(&guest.0, &snapshot.shared(), &Policy::Map);
        assert!(matches!(refused, Err(Error::HandlerDead)), "{refused:?}");
        pager.detach();
    }
}

#[test]
fn a_notifier_that_panics_does_not_keep_the_reader() {
    let snapshot = Snapshot::new(64, &[0..64]);
    let source = snapshot.reading(|_, _| Err(io::Error::other("gone")));
    let on_error: OnError = Arc::new(|| panic!("a bug in the notifier"));
    let mut pager = with(PagerConfig {
        on_error: Some(on_error),
        ..PagerConfig::default()
    });
    let guest = snapshot.guest();
    pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
    read_in_time(&guest, 20);
    assert!(pager.take_error().is_some());
    assert!(pager.is_alive());
}

#[test]
fn populate_brings_in_the_rest_and_ends_the_faults() {
    let snapshot = Snapshot::new(500, &[3..90, 200..330]);
    for (_, source) in snapshot.sources() {
        let (mut pager, guest) = (pager(), snapshot.guest());
        pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
        guest.assert_pristine(&snapshot, [0, 40, 210, 499]);
        guest.poke(41, 7);
        let before = pager.stats();
        pager.populate().unwrap();
        pager.populate().unwrap();
        assert_eq!(guest.read(41)[512], 7, "what was written stays");
        guest.assert_pristine(&snapshot, (0..500).filter(|&page| page != 41));
        let after = pager.stats();
        assert_eq!(after.faults_minor, before.faults_minor);
        assert_eq!(after.faults_missing, before.faults_missing);
        let brought = after.pages_continued + after.pages_copied + after.pages_zeroed;
        assert_eq!(brought, 500);
        pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
        guest.assert_pristine(&snapshot, 0..500);
    }
}

#[test]
fn a_region_that_was_replaced_behind_our_back_does_not_hang() {
    let snapshot = Snapshot::new(64, &[0..64]);
    let guest = snapshot.guest();
    let (mut first, mut second) = (pager(), pager());
    first
        .attach(&guest.0, &snapshot.shared(), &Policy::Lazy)
        .unwrap();
    read_in_time(&guest, 0);
    second
        .attach(&guest.0, &snapshot.shared(), &Policy::Lazy)
        .unwrap();
    // The first pager's registration is gone, and its populate finds that out.
    let result = first.populate();
    assert!(matches!(result, Err(Error::Os { .. })), "{result:?}");
    guest.assert_pristine(&snapshot, 0..64);
    assert!(second.take_error().is_none());
}

#[test]
fn bad_sources_are_refused_with_a_reason() {
    let file = Arc::new(unsealed(10, &[]));
    let refused = Source::shared(Arc::clone(&file), 10, [].into());
    assert!(matches!(refused, Err(Error::NotSealed)), "{refused:?}");
    let not_memfd = Arc::new(std::fs::File::open("/proc/self/exe").unwrap());
    assert!(Source::shared(not_memfd, 1, [].into()).is_err());

    let snapshot = Snapshot::new(10, &[]);
    let refused = Source::shared(Arc::clone(&snapshot.file), 11, [].into());
    assert!(matches!(
        refused,
        Err(Error::ShortFile {
            have_pages: 10,
            want_pages: 11
        })
    ));
    for bad in [vec![5..5], vec![3..6, 5..7], vec![8..11], vec![5..6, 1..2]] {
        let refused = Source::shared(Arc::clone(&snapshot.file), 10, bad.clone().into());
        assert!(
            matches!(refused, Err(Error::BadRange { table: "data", .. })),
            "{bad:?}"
        );
    }

    let other = Snapshot::new(11, &[]);
    let refused = pager().attach(&snapshot.guest().0, &other.shared(), &Policy::Lazy);
    assert!(
        matches!(refused, Err(Error::SizeMismatch { .. })),
        "{refused:?}"
    );
}

#[test]
fn what_needs_an_attachment_says_so() {
    let mut pager = pager();
    assert!(matches!(pager.touched(), Err(Error::NotAttached)));
    assert!(matches!(pager.populate(), Err(Error::NotAttached)));
    assert_eq!(pager.detach(), dormouse_pager::Stats::default());
    assert!(pager.pin_to(Some(1 << 20)).is_err());
    assert!(pager.pin_to(Some(0)).is_ok());
    assert!(pager.pin_to(None).is_ok());
    assert!(pager.follow().is_ok());
}
