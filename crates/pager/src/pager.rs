//! The face of the crate.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestRegionMmap;

use crate::fd::pagemap::Pagemap;
use crate::handler::{Handler, Shared};
use crate::mapping::HostRange;
use crate::rollback::{Rollback, Rolled};
use crate::session::Session;
use crate::{AttachStats, Error, Policy, Source, Stats, ranges};

/// Called on the handler's thread when a guest cannot get its right memory any more, before the
/// guest is let go: kick the vCPU here. Must not block and must not call the pager.
pub type OnError = Arc<dyn Fn() + Send + Sync>;

/// Asked on the handler's thread how much the guest may hold: gets the pages that it may hold alone by
/// now (those that faults brought in and those that the replay copied), and says whether it may have
/// them. Where not, the pager reports [`Error::OverLimit`]. Must not block and must not call the
/// pager.
pub type OnGrowth = Arc<dyn Fn(u64) -> bool + Send + Sync>;

/// Called once, on the handler's thread, before it does anything: to confine it, for example.
pub type OnStart = Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>;

/// How to make a [`Pager`].
#[derive(Clone)]
pub struct PagerConfig {
    /// Name of the handler's thread; Linux shows 15 bytes of it.
    pub name: String,
    /// Pages brought in together at a fault, an aligned block clipped to data or hole; at least 1.
    pub fault_around_pages: u64,
    /// Core for the handler's thread; best the vCPU's.
    pub pin_to: Option<usize>,
    /// Learns of errors at once.
    pub on_error: Option<OnError>,
    /// Limits what a guest may hold.
    pub on_growth: Option<OnGrowth>,
    /// The first thing that the handler's thread does. Where it fails, there is no pager.
    pub on_start: Option<OnStart>,
}

impl Default for PagerConfig {
    fn default() -> Self {
        let name = "dormouse-pager".to_owned();
        Self {
            name,
            fault_around_pages: 16,
            pin_to: None,
            on_error: None,
            on_growth: None,
            on_start: None,
        }
    }
}

impl fmt::Debug for PagerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PagerConfig")
            .field("name", &self.name)
            .field("fault_around_pages", &self.fault_around_pages)
            .field("pin_to", &self.pin_to)
            .finish_non_exhaustive()
    }
}

/// Which pages were used since the attach.
///
/// Under [`Policy::Record`] exact: `read` are the pages that were read and not written, `written`
/// those that were written (by anyone, the VMM included). Under other policies pages that came in
/// by fault-around or replay count as read, and pages that the replay copied count as written.
/// Under [`Policy::Map`] `order` is empty, and the fault-around is the kernel's.
/// Where a source is not local, telling written from read needs Linux 6.7; before, all its pages
/// with data that were touched count as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Pages in the order of their faults, each once. Pages that a replay brought in had no fault.
    pub order: Vec<u64>,
    /// Pages that were read only, ascending.
    pub read: Vec<Range<u64>>,
    /// Pages that were written, ascending.
    pub written: Vec<Range<u64>>,
}

/// Puts snapshots under one VM shell's memory, one after the other.
pub struct Pager {
    shared: Arc<Shared>,
    handler: Handler,
    pagemap: &'static Pagemap,
    fault_around_pages: u64,
}

impl Pager {
    /// Opens userfaultfd and starts the handler's thread. Meant to be done ahead of time.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with a remedy, or [`Error::Os`].
    pub fn new(config: PagerConfig) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(config.on_error, config.on_growth)?);
        let pagemap = Pagemap::of_this_process()?;
        let handler = Handler::spawn(&config.name, config.on_start, Arc::clone(&shared))?;
        let fault_around_pages = config.fault_around_pages.max(1);
        // From here on dropping it stops the thread.
        let pager = Self {
            shared,
            handler,
            pagemap,
            fault_around_pages,
        };
        if config.pin_to.is_some() {
            pager.pin_to(config.pin_to)?;
        }
        Ok(pager)
    }

    /// Binds the handler's thread to a core, or lets it run anywhere again.
    ///
    /// # Errors
    /// [`Error::Os`] when there is no such core for this process.
    pub fn pin_to(&self, core: Option<usize>) -> Result<(), Error> {
        self.handler.pin_to(core)
    }

    /// Binds the handler's thread to the core that the calling thread runs on: call it on the vCPU's
    /// thread before a run. A fault then costs no wake-up of another core. Where nothing changed
    /// since the last call it costs one `getcpu`.
    ///
    /// # Errors
    /// [`Error::Os`] when the handler may not run there.
    pub fn follow(&self) -> Result<(), Error> {
        self.handler.follow()
    }

    /// Replaces the notifier of [`PagerConfig::on_error`].
    pub fn set_on_error(&self, on_error: Option<OnError>) {
        self.shared.set_on_error(on_error);
    }

    /// Puts a pristine snapshot over the region and replays its working set.
    ///
    /// All that was in the region before is gone; what was attached before is detached. The guest
    /// must not run meanwhile. A former error that nobody took is forgotten.
    ///
    /// Where the same shared source is attached already and nobody has touched any of it, only the
    /// replay is left to do: so attach under [`Policy::Lazy`] ahead, which costs no memory.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`], [`Error::ForeignPlan`], [`Error::PartialPlan`],
    /// [`Error::NotShared`], [`Error::HandlerDead`], [`Error::Os`], or [`Error::ReadPages`] from
    /// the replay. The region is blank then, or as before where nothing was done yet.
    pub fn attach(
        &mut self,
        region: &GuestRegionMmap,
        source: &Source,
        policy: &Policy,
    ) -> Result<AttachStats, Error> {
        policy.check(source)?;
        let record = matches!(policy, Policy::Record);
        let around_pages = if record { 1 } else { self.fault_around_pages };
        let range = HostRange::new(region);
        if range.bytes() != source.length_bytes() {
            let (range_bytes, snapshot_pages) = (range.bytes(), source.pages());
            return Err(Error::SizeMismatch {
                range_bytes,
                snapshot_pages,
            });
        }

        let tools = self.shared.tools();
        let mut session = self.shared.session()?;
        let start = Instant::now();
        self.shared.counters.reset();
        self.shared.take_error();
        let mut attach = || {
            let is_ready = !matches!(policy, Policy::Map) && session.is_untouched(&range, source);
            let map = |session: &mut Session| {
                session.map(tools, range.clone(), source, around_pages)?;
                let mapped = start.elapsed();
                if !matches!(policy, Policy::Map) {
                    session.register(tools, record)?;
                }
                Ok(mapped)
            };
            let mapped = if is_ready {
                session.begin(source, around_pages);
                start.elapsed()
            } else {
                map(&mut session)?
            };
            let registered = start.elapsed();
            let mut moved_pages = 0;
            if let Policy::Staged(stage) = policy {
                // It is only a faster way: whatever keeps it from working, the replay will do.
                moved_pages = match session.move_in(tools, stage) {
                    Ok(pages) => pages,
                    Err(_) => map(&mut session).map(|_| 0)?,
                };
            }
            let moved = start.elapsed();
            let replayed_pages = session.replay(tools, policy.steps(moved_pages > 0))?;
            let all = start.elapsed();
            let us = |time: Duration| time.as_micros() as u64;
            self.shared.counters.attached(all, all - moved);
            Ok(AttachStats {
                map_us: us(mapped),
                register_us: us(registered - mapped),
                move_us: us(moved - registered),
                replay_us: us(all - moved),
                attach_us: us(all),
                moved_pages,
                replayed_pages,
            })
        };
        attach().inspect_err(|_| {
            // The first error says more.
            let _ = session.detach(tools);
        })
    }

    /// Whether a snapshot is attached.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.shared.session_anyway().attached().is_some()
    }

    /// Which pages were used since the attach. The guest should not run meanwhile.
    ///
    /// # Errors
    /// [`Error::NotAttached`], or [`Error::Os`] when the process's page map cannot be read.
    pub fn touched(&self) -> Result<Touched, Error> {
        let session = self.shared.session_anyway();
        let attached = session.attached().ok_or(Error::NotAttached)?;
        let (address, bytes) = (attached.range.address(), attached.range.bytes());
        let written = self.pagemap.private_pages(address, bytes)?;
        let mut present = session.faults().present();
        if !attached.registered {
            // What the kernel brought in by itself.
            present.extend(self.pagemap.present_pages(address, bytes)?);
            present = ranges::normalize(&present);
        }
        let read = ranges::subtract(&present, &written);
        Ok(Touched {
            order: session.faults().order().to_vec(),
            read,
            written,
        })
    }

    /// Makes the attached snapshot pristine in place: all that was written since the attach is as in
    /// the snapshot again, whoever wrote it. The guest must not run meanwhile.
    ///
    /// It is not done where a watched page differs, where it would cost more than the caller allows,
    /// and where the source is not local.
    ///
    /// # Errors
    /// [`Error::NotAttached`], or [`Error::Os`]; the snapshot must be attached anew then.
    pub fn roll_back(&mut self, rollback: &Rollback<'_>) -> Result<Rolled, Error> {
        let mut session = self.shared.session()?;
        let attached = session.attached().ok_or(Error::NotAttached)?;
        let (address, bytes) = (attached.range.address(), attached.range.bytes());
        // Under the lock, so that these are still the private pages when they are written to: a
        // fault now would wait for the handler, and the handler for the lock.
        let written = self.pagemap.private_pages(address, bytes)?;
        session.roll_back(self.shared.tools(), &written, rollback)
    }

    /// Brings in all pages that are missing and stops handling faults: the range needs neither
    /// userfaultfd nor the handler from then on, until the next attach.
    ///
    /// Works after the handler died, too, where the source is shared.
    ///
    /// # Errors
    /// [`Error::NotAttached`], [`Error::ReadPages`], [`Error::Os`]; [`Error::HandlerDead`] when
    /// the handler died on a source that is not local, since zeros may have been read from it.
    pub fn populate(&mut self) -> Result<(), Error> {
        self.shared.session_anyway().populate(self.shared.tools())
    }

    /// Takes the snapshot away; the region is blank then. Returns what happened since the attach.
    ///
    /// Should blanking fail, the error is kept for [`Pager::take_error`].
    pub fn detach(&mut self) -> Stats {
        let detached = self.shared.session_anyway().detach(self.shared.tools());
        if let Err(error) = detached {
            self.shared.report(error);
        }
        self.stats()
    }

    /// What happened since the attach, up to the last fault whose guest runs again. Waits for a
    /// fault that is being served.
    #[must_use]
    pub fn stats(&self) -> Stats {
        // The handler counts under this lock, partly after its guest was woken.
        let _counted = self.shared.session_anyway();
        self.shared.counters.snapshot()
    }

    /// The first error since the attach. While there is one, the guest may have seen zeros instead
    /// of its memory: discard the invocation.
    #[must_use]
    pub fn take_error(&self) -> Option<Error> {
        self.shared.take_error()
    }

    /// Whether the handler lives; if not, this pager cannot attach any more.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.shared.is_dead()
    }
}

impl fmt::Debug for Pager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pager")
            .field("alive", &self.is_alive())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.detach();
        self.handler.stop(&self.shared);
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "tables of one range are meant"
    )]

    use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};

    use super::*;
    use crate::mapping::MemoryFile;
    use crate::{PAGE_BYTES, Stage, WorkingSetPlan};

    const PAGES: u64 = 2048;
    const DATA: Range<u64> = 10..1400;

    fn guest_and_source() -> (GuestRegionMmap, Source) {
        let file = MemoryFile::for_tests(PAGES, &[DATA]).into_file();
        let source = Source::shared(file, PAGES, Arc::new([DATA])).unwrap();
        let bytes = source.length_bytes() as usize;
        let guest = GuestRegionMmap::from_range(GuestAddress(0), bytes, None).unwrap();
        (guest, source)
    }

    fn read(guest: &GuestRegionMmap, page: u64) -> u64 {
        let at = MemoryRegionAddress(page * PAGE_BYTES);
        guest.read_obj(at).unwrap()
    }

    fn is_pristine(guest: &GuestRegionMmap) -> bool {
        let expected = |page| if DATA.contains(&page) { page + 1 } else { 0 };
        (0..PAGES).all(|page| read(guest, page) == expected(page))
    }

    /// However the handler of a shared source dies, its guest goes on with the right memory.
    #[test]
    fn a_shared_source_survives_its_handler() {
        let (guest, source) = guest_and_source();
        let stage = Arc::new(Stage::new(&source, &[600..700], &[20..30], 1).unwrap());
        let plan = WorkingSetPlan::new(&source, &[600..700], &[20..30]).unwrap();
        let eager = WorkingSetPlan::eager(&source, &[20..30]).unwrap();
        let policies = [
            Policy::Lazy,
            Policy::Record,
            Policy::WorkingSet(Arc::new(plan)),
            Policy::Staged(Arc::clone(&stage)),
            Policy::Eager(Arc::new(eager)),
            Policy::Map,
        ];
        for policy in &policies {
            for populate in [false, true] {
                stage.refill().unwrap();
                let mut pager = Pager::new(PagerConfig::default()).unwrap();
                let attach = pager.attach(&guest, &source, policy).unwrap();
                let staged = matches!(policy, Policy::Staged(_));
                assert_eq!(attach.moved_pages, if staged { 512 } else { 0 });
                assert_eq!(read(&guest, 20), 21);
                pager.shared.give_up(Error::HandlerDead);
                assert_eq!(read(&guest, 40), 41);
                if populate {
                    pager.populate().unwrap();
                    let touched = pager.touched().unwrap();
                    let all = [touched.read, touched.written].concat();
                    assert_eq!(ranges::normalize(&all), [0..PAGES]);
                }
                assert!(is_pristine(&guest), "{}", policy.name());
                let refused = pager.attach(&guest, &source, policy);
                assert!(matches!(refused, Err(Error::HandlerDead)), "{refused:?}");
                assert!(pager.take_error().is_some());
            }
        }
    }

    /// Staging is only the faster way: where it fails midway, the whole set is replayed.
    #[test]
    fn a_set_that_cannot_be_moved_is_replayed() {
        let (guest, source) = guest_and_source();
        let stage = Arc::new(Stage::new(&source, &[100..200, 1024..1100], &[20..30], 1).unwrap());
        let policy = Policy::Staged(Arc::clone(&stage));
        let whole = WorkingSetPlan::new(&source, &[100..200, 1024..1100], &[20..30]).unwrap();
        let mut pager = Pager::new(PagerConfig::default()).unwrap();
        // The set's second half belongs to the third chunk of the guest.
        for page in [0, 300, 512, 1023] {
            stage.refill().unwrap();
            stage.spoil_for_tests(page);
            let attach = pager.attach(&guest, &source, &policy).unwrap();
            assert_eq!(
                (attach.moved_pages, attach.replayed_pages),
                (0, whole.pages()),
                "page {page}"
            );
            assert_eq!(pager.stats().pages_moved, 0);
            for page in (20..30).chain(100..200).chain(1024..1100) {
                assert_eq!(read(&guest, page), page + 1);
            }
            assert_eq!(pager.stats().faults_minor, 0);
            assert!(is_pristine(&guest));
            assert!(pager.take_error().is_none());
        }
        stage.refill().unwrap();
        let attach = pager.attach(&guest, &source, &policy).unwrap();
        assert_eq!(attach.moved_pages, 1024);
        assert!(is_pristine(&guest));
    }
}
