//! The face of the crate.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestRegionMmap;

use crate::fd::pagemap::Pagemap;
use crate::handler::{Handler, Shared};
use crate::mapping::HostRange;
use crate::{AttachStats, Error, Policy, Source, Stats, ranges};

/// Called on the handler's thread when a guest cannot get its right memory any more, before the
/// guest is let go: kick the vCPU here. Must not block and must not call the pager.
pub type OnError = Arc<dyn Fn() + Send + Sync>;

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
}

impl Default for PagerConfig {
    fn default() -> Self {
        let name = "dormouse-pager".to_owned();
        Self {
            name,
            fault_around_pages: 16,
            pin_to: None,
            on_error: None,
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
        let shared = Arc::new(Shared::new(config.on_error)?);
        let pagemap = Pagemap::of_this_process()?;
        let handler = Handler::spawn(&config.name, Arc::clone(&shared))?;
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

    /// Replaces the notifier of [`PagerConfig::on_error`].
    pub fn set_on_error(&self, on_error: Option<OnError>) {
        self.shared.set_on_error(on_error);
    }

    /// Puts a pristine snapshot over the region and replays its working set.
    ///
    /// All that was in the region before is gone; what was attached before is detached. The guest
    /// must not run meanwhile. A former error that nobody took is forgotten.
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
        let attach = || {
            session.map(tools, range, source, around_pages)?;
            let mapped = start.elapsed();
            if !matches!(policy, Policy::Map) {
                session.register(tools, record)?;
            }
            let registered = start.elapsed();
            let replayed_pages = session.replay(tools, policy.steps())?;
            Ok((mapped, registered, replayed_pages))
        };
        let (mapped, registered, replayed_pages) = match attach() {
            Ok(done) => done,
            Err(error) => {
                // The first error says more.
                let _ = session.detach(tools);
                return Err(error);
            }
        };
        let all = start.elapsed();
        let replay = all - registered;
        self.shared.counters.attached(all, replay);
        let us = |time: Duration| time.as_micros() as u64;
        Ok(AttachStats {
            map_us: us(mapped),
            register_us: us(registered - mapped),
            replay_us: us(replay),
            attach_us: us(all),
            replayed_pages,
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
    use crate::PAGE_BYTES;
    use crate::mapping::MemoryFile;

    /// However the handler of a shared source dies, its guest goes on with the right memory.
    #[test]
    fn a_shared_source_survives_its_handler() {
        const PAGES: u64 = 128;
        let file = MemoryFile::for_tests(PAGES, &[10..90]).into_file();
        let source = Source::shared(file, PAGES, Arc::new([10..90])).unwrap();
        let bytes = source.length_bytes() as usize;
        let guest = GuestRegionMmap::from_range(GuestAddress(0), bytes, None).unwrap();
        let read = |page| {
            guest
                .read_obj::<u64>(MemoryRegionAddress(page * PAGE_BYTES))
                .unwrap()
        };
        let expected = |page| {
            if (10..90).contains(&page) {
                page + 1
            } else {
                0
            }
        };
        for populate in [false, true] {
            let mut pager = Pager::new(PagerConfig::default()).unwrap();
            pager.attach(&guest, &source, &Policy::Lazy).unwrap();
            assert_eq!(read(20), 21);
            pager.shared.give_up(Error::HandlerDead);
            assert_eq!(read(40), 41);
            if populate {
                pager.populate().unwrap();
            }
            assert!((0..PAGES).all(|page| read(page) == expected(page)));
            let refused = pager.attach(&guest, &source, &Policy::Lazy);
            assert!(matches!(refused, Err(Error::HandlerDead)), "{refused:?}");
            assert!(pager.take_error().is_some());
        }
    }
}
