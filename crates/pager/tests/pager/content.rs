//! The guest sees the snapshot, whatever the order and whoever asks.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dormouse_pager::{PAGE_BYTES, PagerConfig, Policy, WorkingSetPlan};

use vm_memory::{Bytes, MemoryRegionAddress};

use crate::rig::{Random, Snapshot, StopReaders, flat, pager, with};

#[test]
fn lazy_content_is_equal_in_random_order() {
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let snapshot = Snapshot::random(700, &mut random);
        for (name, source) in snapshot.sources() {
            let mut pager = with(PagerConfig {
                fault_around_pages: [1, 7, 16][seed as usize % 3],
                ..PagerConfig::default()
            });
            let guest = snapshot.guest();
            pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
            let mut order: Vec<u64> = (0..snapshot.pages).collect();
            random.shuffle(&mut order);
            guest.assert_pristine(&snapshot, order);
            assert!(pager.take_error().is_none());
            let stats = pager.detach();
            let brought = stats.pages_continued + stats.pages_copied + stats.pages_zeroed;
            assert_eq!(
                brought, snapshot.pages,
                "{name}, seed {seed}: each page once"
            );
        }
    }
}

#[test]
fn threads_read_and_write_the_same_pages_at_once() {
    let snapshot = Snapshot::random(512, &mut Random::new(1));
    for (name, source) in snapshot.sources() {
        let mut pager = pager();
        let guest = snapshot.guest();
        for round in 0..5 {
            pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
            thread::scope(|scope| {
                for number in 0..6_u64 {
                    let (guest, snapshot) = (&guest, &snapshot);
                    scope.spawn(move || {
                        let mut random = Random::new(round * 100 + number);
                        let mut order: Vec<u64> = (0..snapshot.pages).collect();
                        random.shuffle(&mut order);
                        for page in order {
                            let want = if snapshot.is_data(page) {
                                (page + 1) << 8
                            } else {
                                0
                            };
                            assert_eq!(guest.peek(page), want);
                            if page % 6 == number {
                                guest.poke(page, page);
                            }
                        }
                    });
                }
            });
            for page in 0..snapshot.pages {
                let mut want = snapshot.expected(page);
                want[512..520].copy_from_slice(&page.to_le_bytes());
                assert!(guest.read(page) == want, "{name}: page {page}");
            }
            assert!(pager.take_error().is_none());
        }
    }
}

fn file(end: impl Into<OwnedFd>) -> File {
    File::from(end.into())
}

/// Faults that the kernel takes on a guest's behalf, as KVM does: here `write` reads guest memory
/// and `read` writes it.
#[test]
fn faults_from_kernel_mode_are_served() {
    let snapshot = Snapshot::random(200, &mut Random::new(4));
    for (name, source) in snapshot.sources() {
        let (mut pager, guest) = (pager(), snapshot.guest());
        let (receive, send) = std::io::pipe().unwrap();
        let (mut receive, mut send) = (file(receive), file(send));
        pager.attach(&guest.0, &source, &Policy::Record).unwrap();
        for page in 0..199 {
            let at = MemoryRegionAddress(page * PAGE_BYTES);
            guest.0.write_all_volatile_to(at, &mut send, 4096).unwrap();
            let mut bytes = vec![0; 4096];
            receive.read_exact(&mut bytes).unwrap();
            assert!(bytes == snapshot.expected(page), "{name}: page {page}");
        }
        send.write_all(&[7; 4096]).unwrap();
        let at = MemoryRegionAddress(199 * PAGE_BYTES);
        guest
            .0
            .read_exact_volatile_from(at, &mut receive, 4096)
            .unwrap();
        assert!(guest.read(199) == [7; 4096]);
        let touched = pager.touched().unwrap();
        assert_eq!(touched.order, (0..200).collect::<Vec<_>>());
        assert_eq!(
            (touched.read, touched.written),
            (vec![0..199], vec![199..200]),
            "{name}"
        );
    }
}

#[test]
fn a_new_attach_is_pristine_and_writes_stay_private() {
    let snapshot = Snapshot::random(300, &mut Random::new(2));
    let mut before = vec![0; (snapshot.pages * PAGE_BYTES) as usize];
    read_all(&snapshot.file, &mut before);
    for (_, source) in snapshot.sources() {
        let mut pager = pager();
        let guest = snapshot.guest();
        for _ in 0..4 {
            pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
            guest.assert_pristine(&snapshot, 0..snapshot.pages);
            (0..snapshot.pages).for_each(|page| guest.poke(page, u64::MAX));
        }
        pager.detach();
        for page in 0..snapshot.pages {
            assert!(
                guest.read(page).iter().all(|&byte| byte == 0),
                "blank after detach"
            );
        }
    }
    let mut after = vec![0; before.len()];
    read_all(&snapshot.file, &mut after);
    assert!(before == after, "the shared file changed");
}

fn read_all(file: &File, buffer: &mut [u8]) {
    use std::os::unix::fs::FileExt;
    file.read_exact_at(buffer, 0).unwrap();
}

#[test]
fn different_snapshots_follow_each_other_under_one_shell() {
    let mut random = Random::new(3);
    let snapshots: Vec<_> = (0..4).map(|_| Snapshot::random(256, &mut random)).collect();
    let mut pager = pager();
    let guest = snapshots[0].guest();
    for round in 0..200 {
        let snapshot = &snapshots[random.below(4) as usize];
        let [(_, shared), (_, not_local)] = snapshot.sources();
        let source = if random.below(2) == 0 {
            shared
        } else {
            not_local
        };
        pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
        for _ in 0..20 {
            let page = random.below(snapshot.pages);
            assert!(
                guest.read(page) == snapshot.expected(page),
                "round {round}, page {page}"
            );
        }
        if random.below(3) == 0 {
            pager.detach();
        }
    }
    assert!(pager.take_error().is_none());
}

/// Readers that do not stop for attach and detach see the page of some snapshot or a blank one.
#[test]
fn readers_during_attach_see_whole_pages_and_never_hang() {
    const PAGES: u64 = 64;
    // Where one has data the other has a hole: an event served on the wrong one would show.
    let left = Snapshot::new(PAGES, &[0..32]);
    let right = Snapshot::new(PAGES, &[32..64]);
    let guest = left.guest();
    let done = AtomicBool::new(false);
    let mut pager = pager();
    thread::scope(|scope| {
        for seed in 0..3 {
            let (guest, done) = (&guest, &done);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                while !done.load(Ordering::Relaxed) {
                    let page = random.below(PAGES);
                    let word = guest.peek(page);
                    assert!(word == 0 || word == (page + 1) << 8);
                }
            });
        }
        let _stop = StopReaders(&done);
        let sources = [
            left.shared(),
            right.shared(),
            left.not_local(),
            right.not_local(),
        ];
        let eager = sources.each_ref().map(|source| {
            let plan = WorkingSetPlan::eager(source, &[10..12, 40..42]).unwrap();
            Policy::Eager(Arc::new(plan))
        });
        for round in 0..600 {
            let (snapshot, source) = ([&left, &right][round % 2], &sources[round % 4]);
            let policy = match round % 3 {
                0 => &eager[round % 4],
                1 if round % 4 < 2 => &Policy::Map,
                _ => &Policy::Lazy,
            };
            pager.attach(&guest.0, source, policy).unwrap();
            guest.assert_pristine(snapshot, (0..PAGES).step_by(5));
            if round % 5 == 0 {
                pager.detach();
            }
        }
    });
    assert!(pager.take_error().is_none());
}

#[test]
fn holes_that_were_filled_by_others_are_still_right() {
    let snapshot = Snapshot::new(400, &[10..50, 200..210]);
    // A fault that the kernel serves itself fills the hole, for ever, even in a sealed file.
    let other = snapshot.guest();
    let flags = rustix::mm::MapFlags::PRIVATE;
    let prot = rustix::mm::ProtFlags::READ;
    let bytes = (snapshot.pages * PAGE_BYTES) as usize;
    // SAFETY: a new mapping at an address of the kernel's choice, only read, unmapped below.
    let view = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            bytes,
            prot,
            flags,
            snapshot.file.as_fd(),
            0,
        )
    }
    .unwrap();
    for page in (0..snapshot.pages).step_by(3) {
        // SAFETY: within the mapping above.
        let _ = unsafe {
            view.cast::<u8>()
                .add((page * PAGE_BYTES) as usize)
                .read_volatile()
        };
    }
    // SAFETY: the mapping above, not used any more.
    unsafe { rustix::mm::munmap(view, bytes) }.unwrap();

    let mut pager = pager();
    pager
        .attach(&other.0, &snapshot.shared(), &Policy::Lazy)
        .unwrap();
    other.assert_pristine(&snapshot, 0..snapshot.pages);
    assert!(
        pager.stats().pages_continued > 50,
        "filled holes came from the page cache"
    );
    assert!(pager.take_error().is_none());
}

#[test]
fn a_table_that_calls_holes_data_is_still_right() {
    let exact = Snapshot::new(200, &[20..30, 90..91]);
    let file = Arc::clone(&exact.file);
    let coarse = Snapshot {
        pages: 200,
        data: [0..64, 80..128].into(),
        file,
    };
    let source = coarse.shared();
    let guest = coarse.guest();
    let mut pager = pager();
    pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
    guest.assert_pristine(&exact, (0..200).rev());
    assert_eq!(
        pager.stats().pages_zeroed,
        189,
        "holes were not filled in passing"
    );
    let plan = WorkingSetPlan::new(&source, &[0..200], &[25..35]).unwrap();
    pager
        .attach(&guest.0, &source, &Policy::WorkingSet(Arc::new(plan)))
        .unwrap();
    guest.assert_pristine(&exact, (0..200).rev());
    assert!(pager.take_error().is_none());
}

#[test]
fn fault_around_is_clipped_at_data_and_region_ends() {
    let snapshot = Snapshot::new(37, &[5..20, 35..37]);
    for (_, source) in snapshot.sources() {
        let mut pager = pager();
        let guest = snapshot.guest();
        for (page, want) in [
            (6, 5..16),
            (18, 16..20),
            (36, 35..37),
            (0, 0..5),
            (34, 32..35),
        ] {
            pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
            guest.peek(page);
            let touched = pager.touched().unwrap();
            let mut pages = flat(&touched.read);
            pages.extend(flat(&touched.written));
            assert_eq!(pages, want.collect::<Vec<_>>());
            assert_eq!(touched.order, [page]);
        }
        assert!(pager.take_error().is_none());
    }
}

#[test]
fn clones_share_clean_pages() {
    const PAGES: u64 = 2000;
    let snapshot = Snapshot::new(PAGES, &[0..PAGES]);
    let source = snapshot.shared();
    let clones: Vec<_> = (0..8)
        .map(|_| {
            let (mut pager, guest) = (pager(), snapshot.guest());
            pager.attach(&guest.0, &source, &Policy::Lazy).unwrap();
            (pager, guest)
        })
        .collect();
    thread::scope(|scope| {
        for (number, (_, guest)) in clones.iter().enumerate() {
            let snapshot = &snapshot;
            scope.spawn(move || {
                guest.assert_pristine(snapshot, 0..PAGES);
                (0..10).for_each(|page| guest.poke(page, number as u64));
            });
        }
    });
    for (pager, guest) in &clones {
        let touched = pager.touched().unwrap();
        assert_eq!(
            flat(&touched.written),
            (0..10).collect::<Vec<_>>(),
            "only written is private"
        );
        assert_eq!(pager.stats().pages_copied, 0);
        assert!(guest.peek(10) != 0);
    }
}
