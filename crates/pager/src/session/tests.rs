//! Sessions on descriptors that a pager does not open, where the kernel says what it seldom says.

#![expect(
    clippy::single_range_in_vec_init,
    reason = "sets of one range are meant"
)]

use std::ops::Range;
use std::slice::from_ref;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};

use super::*;
use crate::WorkingSetPlan;
use crate::fd::{FEATURE_MOVE, event_buffer};
use crate::huge::HugeArea;
use crate::mapping::MemoryFile;
use crate::stage::Stage;

/// `UFFD_FEATURE_EVENT_REMOVE`. A pager does not ask for it, so its fills are never turned away;
/// with it, they are while somebody drops pages and the event of that waits to be read.
const EVENT_REMOVE: u64 = 1 << 3;

const PAGES: u64 = 1024;

fn source(data: Range<u64>) -> Source {
    let data: Arc<[Range<u64>]> = [data].into();
    let file = MemoryFile::for_tests(PAGES, &data).into_file();
    Source::shared(file, PAGES, data).unwrap()
}

/// A session of its own, with a snapshot mapped and registered.
struct Rig {
    fd: Uffd,
    counters: Counters,
    session: Session,
    range: HostRange,
    source: Source,
}

impl Rig {
    fn new(fd: Uffd, source: Source) -> Self {
        let mut rig = Self {
            fd,
            counters: Counters::default(),
            session: Session::default(),
            range: HostRange::for_tests(PAGES),
            source,
        };
        rig.start();
        rig
    }

    fn start(&mut self) {
        let (tools, range) = (tools(&self.fd, &self.counters), self.range.clone());
        self.session.map(tools, range, &self.source, 16).unwrap();
        self.session.register(tools, false).unwrap();
    }

    fn replay(&mut self, read: &[Range<u64>], written: &[Range<u64>]) -> Result<u64, Error> {
        let plan = WorkingSetPlan::new(&self.source, read, written).unwrap();
        let tools = tools(&self.fd, &self.counters);
        self.session.replay(tools, plan.steps())
    }

    fn move_in(&mut self, stage: &Stage) -> Result<u64, Error> {
        let tools = tools(&self.fd, &self.counters);
        self.session.move_in(tools, stage)
    }

    fn assert_pristine(&self, pages: Range<u64>) {
        for page in pages {
            let is_data = self.source.data()[0].contains(&page);
            let want = if is_data { page + 1 } else { 0 };
            assert_eq!(self.range.read_for_tests(page), want, "page {page}");
        }
    }
}

fn tools<'a>(fd: &'a Uffd, counters: &'a Counters) -> Tools<'a> {
    Tools { fd, counters }
}

fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::Os { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

/// Drops the range's pages in another thread, which the kernel holds until its event is read.
fn dropping(fd: &Uffd, range: &HostRange) -> thread::JoinHandle<Result<(), Error>> {
    let range = range.clone();
    let dropper = thread::spawn(move || range.drop_pages());
    poll(&mut [PollFd::new(fd, PollFlags::IN)], None).unwrap();
    dropper
}

fn let_go(fd: &Uffd, dropper: thread::JoinHandle<Result<(), Error>>) {
    fd.read_events(&mut event_buffer(), |_| {}).unwrap();
    dropper.join().unwrap().unwrap();
}

#[test]
fn being_told_again_for_ever_is_an_error() {
    let mut rig = Rig::new(Uffd::for_tests(EVENT_REMOVE), source(0..512));
    let dropper = dropping(&rig.fd, &rig.range);
    let mut retries = 0;
    for (read, written) in [
        (10..20, 0..0),
        (0..0, 30..40),
        (610..620, 0..0),
        (0..0, 630..640),
    ] {
        let error = rig.replay(from_ref(&read), from_ref(&written)).unwrap_err();
        assert_eq!(errno(&error), Some(libc::EAGAIN), "{error}");
        retries += u64::from(MAX_RETRIES);
        assert_eq!(rig.counters.snapshot().retries, retries);
    }
    let_go(&rig.fd, dropper);
    let filled = rig.replay(&[10..20, 610..620], &[30..40, 630..640]);
    assert_eq!(filled.unwrap(), 40);
    assert_eq!(rig.counters.snapshot().retries, retries);
    rig.assert_pristine(10..20);
    rig.assert_pristine(30..40);
    rig.assert_pristine(610..620);
    rig.assert_pristine(630..640);
}

#[test]
fn fills_go_on_once_they_are_let() {
    let Rig {
        fd,
        counters,
        mut session,
        range,
        source,
    } = Rig::new(Uffd::for_tests(EVENT_REMOVE), source(0..512));
    let plan = WorkingSetPlan::new(&source, &[0..1024], &[100..200]).unwrap();
    let dropper = dropping(&fd, &range);
    thread::scope(|scope| {
        scope.spawn(|| {
            while counters.snapshot().retries == 0 {
                thread::yield_now();
            }
            let_go(&fd, dropper);
        });
        // On a busy machine that may take longer than one replay tries.
        while let Err(error) = session.replay(tools(&fd, &counters), plan.steps()) {
            assert_eq!(errno(&error), Some(libc::EAGAIN), "{error}");
        }
    });
    // What came in before the pages were dropped at last is gone again.
    session.replay(tools(&fd, &counters), plan.steps()).unwrap();
    for page in 0..PAGES {
        let want = if page < 512 { page + 1 } else { 0 };
        assert_eq!(range.read_for_tests(page), want);
    }
}

#[test]
fn moves_are_judged_like_all_fills() {
    let fd = Uffd::for_tests(EVENT_REMOVE | FEATURE_MOVE);
    let counters = Counters::default();
    let tools = tools(&fd, &counters);
    let mut set = HugeArea::new(2).unwrap();
    set.populate().unwrap().fill(1);
    let range = HostRange::for_tests(PAGES);
    range.map_blank().unwrap();
    let (address, bytes) = (range.address(), range.bytes());
    fd.register(address, bytes, Mode::Missing).unwrap();

    let dropper = dropping(&fd, &range);
    let error = moving::move_pages(tools, &range, &set, 0).unwrap_err();
    assert_eq!(errno(&error), Some(libc::EAGAIN), "{error}");
    assert_eq!(counters.snapshot().retries, u64::from(MAX_RETRIES));
    let_go(&fd, dropper);

    set.drop_page_for_tests(700);
    let error = moving::move_pages(tools, &range, &set, 0).unwrap_err();
    assert_eq!(errno(&error), Some(libc::ENOENT), "{error}");
    assert_eq!(range.read_for_tests(699), u64::from_ne_bytes([1; 8]));
    let part = range.part(&(701..PAGES)).unwrap();
    moving::move_pages(tools, &part, &set, 701 * PAGE_BYTES).unwrap();
    assert_eq!(range.read_for_tests(1023), u64::from_ne_bytes([1; 8]));
    set.populate().unwrap();
    let error = moving::move_pages(tools, &part, &set, 0).unwrap_err();
    assert_eq!(errno(&error), Some(libc::EEXIST), "{error}");
}

#[test]
fn fills_go_on_behind_what_is_there_already() {
    let mut rig = Rig::new(Uffd::new().unwrap(), source(0..512));
    let (few_read, few_written) = ([10..11, 610..611], [110..111, 710..712]);
    assert_eq!(rig.replay(&few_read, &few_written).unwrap(), 5);
    let (read, written) = ([0..20, 600..620], [100..120, 700..720]);
    assert_eq!(rig.replay(&read, &written).unwrap(), 75);
    assert_eq!(rig.replay(&[0..1024], &[]).unwrap(), PAGES - 80);
    rig.assert_pristine(0..PAGES);
    let stats = rig.counters.snapshot();
    let counts = (
        stats.pages_continued,
        stats.pages_copied,
        stats.pages_zeroed,
    );
    assert_eq!(counts, (492, 40, 492));
}

#[test]
fn a_kernel_that_cannot_move_leaves_the_stage_alone() {
    let stage = |rig: &Rig| {
        let stage = Stage::new(&rig.source, &[0..512], &[], 1).unwrap();
        assert_eq!(stage.refill().unwrap(), 1);
        stage
    };
    let mut old = Rig::new(Uffd::for_tests(0), source(0..100));
    let kept = stage(&old);
    assert_eq!(old.move_in(&kept).unwrap(), 0);
    assert_eq!(kept.ready(), 1);
    old.replay(&[0..1024], &[]).unwrap();
    old.assert_pristine(0..PAGES);

    let mut new = Rig::new(Uffd::for_tests(FEATURE_MOVE), source(0..100));
    let used = stage(&new);
    assert_eq!(new.move_in(&used).unwrap(), 512);
    assert_eq!(used.ready(), 0);
    new.assert_pristine(0..512);
    assert_eq!(new.move_in(&used).unwrap(), 0);
}

/// The crate's invariant, where a part of the range is mapped anew.
#[test]
fn no_event_outlives_the_chunk_that_it_was_raised_on() {
    let mut rig = Rig::new(Uffd::for_tests(FEATURE_MOVE), source(0..PAGES));
    let stage = Stage::new(&rig.source, &[0..512], &[], 1).unwrap();
    stage.refill().unwrap();
    let range = rig.range.clone();
    let reader = thread::spawn(move || range.read_for_tests(7));
    poll(&mut [PollFd::new(&rig.fd, PollFlags::IN)], None).unwrap();
    assert_eq!(rig.move_in(&stage).unwrap(), 512);
    // Woken, it may have been fast enough to find the chunk's pages still missing.
    while !reader.is_finished() {
        let tools = tools(&rig.fd, &rig.counters);
        rig.fd
            .read_events(&mut event_buffer(), |event| {
                assert_eq!(event.kind, Kind::Missing);
                rig.session.serve(tools, event, |error| panic!("{error}"));
            })
            .unwrap();
        thread::yield_now();
    }
    let word = reader.join().unwrap();
    assert!(word == 8 || word == 0, "{word}");
    rig.assert_pristine(0..512);
}
