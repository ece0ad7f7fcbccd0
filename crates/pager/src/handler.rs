//! The thread that serves faults, and what it shares with the pager.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::thread::{CpuSet, Pid};

use crate::fd::{self, Uffd};
use crate::pager::{OnError, OnGrowth, OnStart};
use crate::session::{Session, Tools};
use crate::stats::Counters;
use crate::{Error, support};

/// What the pager and its handler thread share.
pub(crate) struct Shared {
    fd: Uffd,
    session: Mutex<Session>,
    pub(crate) counters: Counters,
    error: Mutex<Option<Error>>,
    on_error: Mutex<Option<OnError>>,
    on_growth: Option<OnGrowth>,
    dead: AtomicBool,
    stop: OwnedFd,
}

impl Shared {
    pub(crate) fn new(
        on_error: Option<OnError>,
        on_growth: Option<OnGrowth>,
    ) -> Result<Self, Error> {
        Ok(Self {
            fd: Uffd::new().map_err(support::unavailable)?,
            session: Mutex::default(),
            counters: Counters::default(),
            error: Mutex::new(None),
            on_error: Mutex::new(on_error),
            on_growth,
            dead: AtomicBool::new(false),
            stop: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|errno| Error::io("eventfd", 0, 0, errno))?,
        })
    }

    pub(crate) fn tools(&self) -> Tools<'_> {
        Tools {
            fd: &self.fd,
            counters: &self.counters,
        }
    }

    /// The session, while the handler lives.
    pub(crate) fn session(&self) -> Result<MutexGuard<'_, Session>, Error> {
        // Poisoned: the handler panicked under the lock and is about to give up.
        let session = self.session.lock().map_err(|_| Error::HandlerDead)?;
        if self.is_dead() {
            Err(Error::HandlerDead)
        } else {
            Ok(session)
        }
    }

    /// The session, whatever became of the handler. A panic leaves it usable: its state is changed
    /// only after the kernel did its part, and at worst knows too few pages to be present.
    pub(crate) fn session_anyway(&self) -> MutexGuard<'_, Session> {
        lock(&self.session)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    pub(crate) fn set_on_error(&self, on_error: Option<OnError>) {
        *lock(&self.on_error) = on_error;
    }

    pub(crate) fn take_error(&self) -> Option<Error> {
        lock(&self.error).take()
    }

    /// Keeps an error, the first one only, and calls the notifier.
    pub(crate) fn report(&self, error: Error) {
        lock(&self.error).get_or_insert(error);
        let on_error = lock(&self.on_error).clone();
        if let Some(on_error) = on_error {
            // A notifier that panics must not keep the guest from being released.
            let _ = catch_unwind(AssertUnwindSafe(|| on_error()));
        }
    }

    /// Serves faults until told to stop.
    fn run(&self) -> Result<(), Error> {
        let mut buffer = fd::event_buffer();
        loop {
            let mut fds = [
                PollFd::new(&self.fd, PollFlags::IN),
                PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Error::io("poll(userfaultfd)", 0, 0, errno)),
            }
            if !fds[1].revents().is_empty() {
                return Ok(());
            }
            // Events are read under the lock only: see the invariant in the crate's head.
            let mut session = lock(&self.session);
            let start = Instant::now();
            self.fd.read_events(&mut buffer, |event| {
                session.serve(self.tools(), event, |error| self.report(error));
                if let Some(may_hold) = &self.on_growth
                    && !may_hold(session.held_pages())
                {
                    let pages = session.held_pages();
                    self.report(Error::OverLimit { pages });
                }
            })?;
            self.counters.fault_service(start);
        }
    }

    /// The last act of a handler that fails: nobody may wait for it.
    pub(crate) fn give_up(&self, error: Error) {
        self.dead.store(true, Ordering::Release);
        self.report(error);
        let _ = lock(&self.session).release(self.tools());
    }
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Handler {
    thread: Option<JoinHandle<()>>,
    tid: Pid,
    /// Where the thread may run when it is not pinned.
    anywhere: CpuSet,
    /// The core that it is pinned to.
    core: Mutex<Option<usize>>,
}

impl Handler {
    pub(crate) fn spawn(
        name: &str,
        on_start: Option<OnStart>,
        shared: Arc<Shared>,
    ) -> Result<Self, Error> {
        let (send, receive) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // The receiver waits for this.
                let affinity = rustix::thread::sched_getaffinity(None);
                let started = on_start.map_or(Ok(()), |on_start| on_start());
                let failed = started.is_err();
                let _ = send.send(started.map(|()| (rustix::thread::gettid(), affinity)));
                if failed {
                    return;
                }
                match catch_unwind(AssertUnwindSafe(|| shared.run())) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => shared.give_up(error),
                    Err(panic) => {
                        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                        let message = text.unwrap_or_else(|| "no message".to_owned());
                        shared.give_up(Error::HandlerPanicked { message });
                    }
                }
            })
            .map_err(|error| Error::io("spawn(handler)", 0, 0, error))?;
        let started = receive.recv().map_err(|_| Error::HandlerDead)?;
        let (tid, anywhere) =
            started.map_err(|error| Error::io("starting the handler", 0, 0, error))?;
        let anywhere =
            anywhere.map_err(|errno| Error::io("sched_getaffinity(handler)", 0, 0, errno))?;
        Ok(Self {
            thread: Some(thread),
            tid,
            anywhere,
            core: Mutex::new(None),
        })
    }

    /// Binds the thread to a core, or frees it.
    pub(crate) fn pin_to(&self, core: Option<usize>) -> Result<(), Error> {
        self.pin(&mut lock(&self.core), core)
    }

    /// Binds the thread to the core that the caller runs on.
    pub(crate) fn follow(&self) -> Result<(), Error> {
        let core = Some(rustix::thread::sched_getcpu());
        let mut pinned = lock(&self.core);
        if *pinned == core {
            return Ok(());
        }
        self.pin(&mut pinned, core)
    }

    fn pin(&self, pinned: &mut Option<usize>, core: Option<usize>) -> Result<(), Error> {
        let set = match core {
            Some(core) if core < CpuSet::MAX_CPU => {
                let mut set = CpuSet::new();
                set.set(core);
                set
            }
            Some(_) => {
                let errno = rustix::io::Errno::INVAL;
                return Err(Error::io("sched_setaffinity(handler)", 0, 0, errno));
            }
            None => self.anywhere,
        };
        rustix::thread::sched_setaffinity(Some(self.tid), &set)
            .map_err(|errno| Error::io("sched_setaffinity(handler)", 0, 0, errno))?;
        *pinned = core;
        Ok(())
    }

    /// Ends the thread and waits for it.
    pub(crate) fn stop(&mut self, shared: &Shared) {
        // Cannot fail: the counter is far from its limit.
        let _ = rustix::io::write(&shared.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // Its panics were caught and reported inside.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
