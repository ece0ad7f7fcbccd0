//! The judge of fills, and the kernel that it judges.

#![expect(
    clippy::single_range_in_vec_init,
    reason = "sets of one range are meant"
)]

use super::*;
use crate::PAGE_BYTES;
use crate::huge::HUGE_PAGES;
use crate::mapping::{HostRange, MemoryFile};

#[test]
fn a_negated_errno_is_never_taken_for_a_count() {
    let negated = -i64::from(libc::EAGAIN);
    assert_eq!(progress(libc::EAGAIN, negated, 65536), Progress::Again);
    // What a cast of that count to an unsigned number and back would look like.
    assert_eq!(
        progress(libc::EAGAIN, negated as usize as i64, 65536),
        Progress::Again
    );
    assert_eq!(progress(libc::EAGAIN, 65536 + 4096, 65536), Progress::Again);
    assert_eq!(progress(0, i64::MAX, 65536), Progress::Again);
}

#[test]
fn partial_and_full_counts_are_progress() {
    assert_eq!(progress(libc::EAGAIN, 8192, 65536), Progress::Bytes(8192));
    assert_eq!(progress(0, 65536, 65536), Progress::Bytes(65536));
}

#[test]
fn errnos_keep_their_meaning() {
    for (errno, meaning) in [
        (libc::EEXIST, Progress::Present),
        (libc::EFAULT, Progress::Absent),
        (libc::ENOENT, Progress::Gone),
        (libc::ESRCH, Progress::Gone),
        (libc::ENOMEM, Progress::Failed(libc::ENOMEM)),
    ] {
        assert_eq!(progress(errno, -i64::from(errno), 4096), meaning);
    }
}

impl Uffd {
    /// With more or fewer features than [`Uffd::new`] asks for.
    pub(crate) fn for_tests(more_features: u64) -> Self {
        Self::with(more_features).unwrap()
    }
}

/// An area of one huge page, filled, and as much guest memory to move it to.
fn area_and_range(fd: &Uffd) -> (HugeArea, HostRange) {
    let mut area = HugeArea::new(1).unwrap();
    area.populate().unwrap().fill(7);
    let range = HostRange::for_tests(HUGE_PAGES);
    range.map_blank().unwrap();
    fd.register(range.address(), range.bytes(), Mode::Missing)
        .unwrap();
    (area, range)
}

const SEVENS: u64 = 0x0707_0707_0707_0707;

#[test]
fn a_move_stops_at_a_gap_in_the_area() {
    let fd = Uffd::for_tests(FEATURE_MOVE);
    let (mut area, range) = area_and_range(&fd);
    area.drop_page_for_tests(5);
    let rest = |from: u64| (HUGE_PAGES - from) * PAGE_BYTES;
    let move_from = |page: u64| {
        let offset_bytes = page * PAGE_BYTES;
        fd.fill_move(range.page(page), &area, offset_bytes, rest(page))
    };
    assert_eq!(move_from(0), Progress::Bytes(5 * PAGE_BYTES));
    assert_eq!(move_from(5), Progress::Gone);
    assert_eq!(move_from(6), Progress::Bytes(rest(6)));
    assert_eq!(range.read_for_tests(4), SEVENS);
    assert_eq!(range.read_for_tests(511), SEVENS);
}

#[test]
fn a_move_replaces_nothing() {
    let fd = Uffd::for_tests(FEATURE_MOVE);
    let (area, range) = area_and_range(&fd);
    assert_eq!(
        fd.fill_zero(range.page(3), PAGE_BYTES, true),
        Progress::Bytes(PAGE_BYTES)
    );
    let bytes = range.bytes();
    assert_eq!(
        fd.fill_move(range.address(), &area, 0, bytes),
        Progress::Bytes(3 * PAGE_BYTES)
    );
    let page = 3 * PAGE_BYTES;
    assert_eq!(
        fd.fill_move(range.page(3), &area, page, bytes - page),
        Progress::Present
    );
    assert_eq!(range.read_for_tests(2), SEVENS);
    assert_eq!(range.read_for_tests(3), 0);
}

#[test]
fn nothing_is_filled_where_nothing_is_registered() {
    let fd = Uffd::for_tests(FEATURE_MOVE);
    let (area, range) = area_and_range(&fd);
    let (address, bytes) = (range.address(), range.bytes());
    fd.unregister(address, bytes).unwrap();
    let copy = fd.fill_copy(address, CopySource::Bytes(&[7; 4096]), 4096, true, false);
    assert_eq!(copy, Progress::Gone);
    assert_eq!(fd.fill_zero(address, bytes, true), Progress::Gone);
    // The kernel's word for the same, here.
    let moved = fd.fill_move(address, &area, 0, bytes);
    assert_eq!(moved, Progress::Failed(libc::EINVAL));
    assert_eq!(range.read_for_tests(0), 0);
    let file = MemoryFile::for_tests(HUGE_PAGES, &[0..HUGE_PAGES]);
    range.map_file(&file).unwrap();
    assert_eq!(fd.fill_continue(address, bytes, true), Progress::Gone);
}
