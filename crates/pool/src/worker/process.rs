//! One worker process, seen from the front.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

use dormouse_jail::{GroupLimits, Jailed, Program, ProgramStderr};
use dormouse_snapshot::PAGE_BYTES;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::accounts::Accounts;
use super::{Ask, Order, Reply, Report, WorkerProgram, file_of, log, wire};
use crate::error::Error;
use crate::loading::Pages;

/// How long a worker may take until it is ready, and again until it can make clones.
pub(super) const READY: Duration = Duration::from_secs(60);
/// How long a worker may take to read what it is told, and to finish what it has begun to say.
const STALLED: Duration = Duration::from_secs(5);
/// How often it is asked whether anybody still waits for what a worker does.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// The most pages that a worker can ask for at once.
const MAX_PAGES: u64 = 4096;

/// What a worker takes beside its guests' memory, at most: images, tables, answers on their way.
const BESIDE_GUESTS_BYTES: u64 = 512 << 20;
/// The most threads of a worker: for each instance of a function with the highest concurrency two, and
/// the one that KVM puts beside a VM.
pub(super) const MAX_THREADS: u64 = 16_384;

/// A worker process. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process {
    jailed: Jailed,
    reading: UnixStream,
    writing: Mutex<UnixStream>,
    was_stopped: AtomicBool,
    was_of_use: AtomicBool,
}

/// Workers that are ready and have nothing to do yet.
#[derive(Debug)]
pub(crate) struct Spares {
    program: Program,
    limits: GroupLimits,
    ahead: bool,
    /// One that was started ahead.
    next: Mutex<Option<Arc<Process>>>,
}

/// What a worker can be helped with.
#[derive(Default)]
pub(super) struct Help {
    pub(super) pages: Option<Pages>,
    /// The image, once it is needed.
    pub(super) image: Option<Box<dyn Fn() -> Option<Vec<u8>> + Send + Sync>>,
    pub(super) accounts: Option<Arc<Accounts>>,
    /// Whether the image was asked for: a copy of it is the front's memory, and one is enough.
    pub(super) gave_image: AtomicBool,
}

impl Help {
    /// For a worker that asked for nothing yet.
    pub(super) fn forget(&self) {
        self.gave_image.store(false, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes guard is consistent between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("starting a worker process")(error.into())
}

impl Spares {
    /// Starts one `ahead` of each use, or does not. `budget_bytes` is what all instances may hold
    /// together, and so what one worker may.
    pub(super) fn new(program: &WorkerProgram, ahead: bool, budget_bytes: u64) -> Arc<Self> {
        let environment = program.environment.iter();
        let spares = Arc::new(Self {
            program: Program {
                path: program.path.clone(),
                name: program.name.clone().into(),
                stderr: ProgramStderr::Piped,
                args: program.args.iter().map(Into::into).collect(),
                environment: environment
                    .map(|(name, value)| (name.into(), value.into()))
                    .collect(),
            },
            limits: GroupLimits {
                memory_bytes: Some(budget_bytes.saturating_add(BESIDE_GUESTS_BYTES)),
                threads: Some(MAX_THREADS),
            },
            ahead,
            next: Mutex::new(None),
        });
        spares.start_ahead();
        spares
    }

    /// A worker that is ready. Blocks until it is, where none was started ahead.
    ///
    /// # Errors
    /// [`Error::Internal`] where it cannot be started, [`Error::Host`] where it cannot have KVM or
    /// userfaultfd.
    pub(super) fn take(self: &Arc<Self>) -> Result<Arc<Process>, Error> {
        let spare = lock(&self.next).take();
        self.start_ahead();
        // One that has ended while it waited is no reason to fail.
        if let Some(process) = spare
            && process.wait_until_ready().is_ok()
            && matches!(process.jailed.try_wait(), Ok(None))
        {
            return Ok(process);
        }
        let process = Process::start(self)?;
        process.wait_until_ready()?;
        Ok(process)
    }

    /// Starts one more, if none is there, without waiting for it.
    fn start_ahead(self: &Arc<Self>) {
        if !self.ahead {
            return;
        }
        let spares = Arc::downgrade(self);
        let starting = std::thread::Builder::new()
            .name("worker start".to_owned())
            .spawn(move || {
                let Some(spares) = spares.upgrade() else {
                    return;
                };
                // Held all along, so that not two are started.
                let mut next = lock(&spares.next);
                if next.is_none() {
                    match Process::start(&spares) {
                        Ok(process) => *next = Some(process),
                        Err(error) => tracing::warn!(%error, "no worker was started ahead"),
                    }
                }
            });
        if let Err(error) = starting {
            tracing::warn!(%error, "no worker is started ahead");
        }
    }
}

impl Process {
    fn start(spares: &Spares) -> Result<Arc<Self>, Error> {
        let mut jailed = dormouse_jail::spawn(&spares.program).map_err(failed)?;
        if let Err(error) = jailed.limit(&spares.limits) {
            static SAID: Once = Once::new();
            SAID.call_once(
                || tracing::info!(%error, "workers have no control groups of their own"),
            );
        }
        let reading = jailed.take_socket().ok_or_else(|| Error::Internal {
            operation: "starting a worker process".into(),
            reason: "it has no socket".to_owned(),
        })?;
        if let Some(stderr) = jailed.take_stderr() {
            log::relay(jailed.pid(), stderr).map_err(failed)?;
        }
        // One that neither reads nor finishes what it begins to say is ended.
        reading.set_read_timeout(Some(STALLED)).map_err(failed)?;
        reading.set_write_timeout(Some(STALLED)).map_err(failed)?;
        let writing = Mutex::new(reading.try_clone().map_err(failed)?);
        Ok(Arc::new(Self {
            jailed,
            reading,
            writing,
            was_stopped: AtomicBool::new(false),
            was_of_use: AtomicBool::new(false),
        }))
    }

    fn wait_until_ready(&self) -> Result<(), Error> {
        match self.converse(&Help::default(), READY, &|| true)? {
            Report::Ready(layers) => {
                static SAID: Once = Once::new();
                let layers = layers?;
                SAID.call_once(|| tracing::info!(layers, "workers are confined"));
                Ok(())
            }
            other => Err(self.nonsense(&other)),
        }
    }

    /// Tells the worker something.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] where it is gone.
    pub(super) fn send(&self, order: &Order, files: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let sent = wire::send(&lock(&self.writing), order, files);
        sent.map_err(|error| {
            self.end();
            self.lost(&error)
        })
    }

    /// Answers what the worker asks until it says something else. Nobody else may listen to it. Where it
    /// takes longer than `limit`, or nobody wants it any more, the worker is ended.
    ///
    /// # Errors
    /// [`Error::Draining`] where it was stopped, [`Error::WorkerLost`] where it ended otherwise.
    pub(super) fn converse(
        &self,
        help: &Help,
        limit: Duration,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Report, Error> {
        let begun = Instant::now();
        loop {
            if begun.elapsed() > limit || !is_wanted() {
                self.end();
                return Err(self.lost(&"it took too long"));
            }
            if let Some(report) = self.hear(help, Some(ASK_EVERY))? {
                return Ok(report);
            }
        }
    }

    /// Answers what the worker asks for as long as it lives: whoever ends it closes the socket, so there is
    /// nothing to look at in between.
    ///
    /// # Errors
    /// How it ended, as of [`Process::converse`].
    pub(super) fn attend(&self, help: &Help) -> Result<Infallible, Error> {
        loop {
            if let Some(report) = self.hear(help, None)? {
                return Err(self.nonsense(&report));
            }
        }
    }

    /// Waits for one message, and answers it where it is a question. Nothing where it was, or none came.
    fn hear(&self, help: &Help, patience: Option<Duration>) -> Result<Option<Report>, Error> {
        let mut watched = [PollFd::new(&self.reading, PollFlags::IN)];
        let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
        if matches!(poll(&mut watched, timeout.as_ref()), Ok(0)) {
            return Ok(None);
        }
        match wire::receive(&self.reading) {
            Ok(Some((Report::Ask(ask), _))) => self.help(help, &ask).map(|()| None),
            Ok(Some((report, _))) => Ok(Some(report)),
            Ok(None) => Err(self.ended()),
            Err(error) => {
                self.end();
                Err(self.lost(&error))
            }
        }
    }

    fn help(&self, help: &Help, ask: &Ask) -> Result<(), Error> {
        let mut file = None;
        let reply = match *ask {
            Ask::Cover { instance, bytes } => {
                let accounts = help.accounts.as_ref();
                Reply::Covered(accounts.map_or(0, |accounts| accounts.cover(instance, bytes)))
            }
            Ask::Image => {
                if help.gave_image.swap(true, Ordering::Relaxed) {
                    return Err(self.nonsense(&Report::Ask(Ask::Image)));
                }
                let image = help.image.as_ref().and_then(|image| image());
                file = image.and_then(|image| file_of(&image).ok());
                Reply::Image
            }
            Ask::Pages { first, count } => {
                let mut bytes = vec![0; count.min(MAX_PAGES) as usize * PAGE_BYTES];
                Reply::Pages(match &help.pages {
                    Some(pages) => match pages.reader()(first, &mut bytes) {
                        Ok(()) => Ok(bytes),
                        Err(error) => Err(error.to_string()),
                    },
                    None => Err("there are none".to_owned()),
                })
            }
        };
        let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        self.send(&Order::Reply(reply), &files)
    }

    /// Stops what the worker does, from any thread, whenever that is.
    pub(super) fn stopper(self: &Arc<Self>) -> impl Fn() + Send + 'static {
        let process: Weak<Self> = Arc::downgrade(self);
        move || {
            if let Some(process) = process.upgrade() {
                process.was_stopped.store(true, Ordering::Relaxed);
                process.end();
            }
        }
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.jailed.pid()
    }

    pub(super) fn note_use(&self) {
        self.was_of_use.store(true, Ordering::Relaxed);
    }

    /// Whether it ever answered a request.
    pub(super) fn was_of_use(&self) -> bool {
        self.was_of_use.load(Ordering::Relaxed)
    }

    /// Whether it was stopped by its own pool.
    pub(super) fn was_stopped(&self) -> bool {
        self.was_stopped.load(Ordering::Relaxed)
    }

    /// Ends the worker.
    pub(super) fn end(&self) {
        // Whoever listens to it learns of it at once.
        let _ = self.reading.shutdown(std::net::Shutdown::Both);
        if let Err(error) = self.jailed.kill() {
            tracing::warn!(%error, "a worker process cannot be ended");
        }
    }

    /// What to say of a worker that ended by itself.
    fn ended(&self) -> Error {
        const SOON: Duration = Duration::from_secs(1);
        let ended = self.jailed.wait_timeout(SOON);
        self.end();
        match ended {
            Ok(Some(ending)) => self.lost(&ending),
            Ok(None) => self.lost(&"it closed its socket"),
            Err(error) => self.lost(&error),
        }
    }

    fn lost(&self, how: &dyn std::fmt::Display) -> Error {
        if self.was_stopped() {
            return Error::Draining;
        }
        Error::WorkerLost {
            how: how.to_string(),
        }
    }

    /// What to say of a worker that says what it should not.
    pub(super) fn nonsense(&self, report: &Report) -> Error {
        self.end();
        let what = match report {
            Report::Ready(_) => "ready",
            Report::Ask(_) => "a question",
            Report::Template(_) => "template",
            Report::Booted(_) => "booted",
            Report::Warmed(_) => "warmed",
            Report::ColdBooted => "booted cold",
            Report::Cold(_) => "cold",
        };
        self.lost(&format!("it said {what:?} where that makes no sense"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that is this shell script; its socket is its standard input.
    fn script(text: &str) -> Arc<Spares> {
        let program = WorkerProgram {
            path: "/bin/sh".into(),
            name: "worker".to_owned(),
            args: vec!["-c".to_owned(), text.to_owned()],
            environment: Vec::new(),
        };
        Spares::new(&program, false, 1 << 30)
    }

    #[test]
    fn a_worker_that_makes_no_sense_is_ended() {
        for (text, how) in [
            ("exit 3", "code 3"),
            ("kill -9 $$", "SIGKILL"),
            // A message of four gigabytes, and one that is none.
            (r"printf '\377\377\377\377' >&0; sleep 600", "too long"),
            (r"printf '\1\0\0\0\143' >&0; sleep 600", ""),
            // Half a message, and then nothing more.
            (r"printf '\5\0' >&0; sleep 600", ""),
        ] {
            let error = script(text).take().unwrap_err();
            assert!(matches!(error, Error::WorkerLost { .. }), "{text}: {error}");
            assert!(error.to_string().contains(how), "{text}: {error}");
        }
    }

    #[test]
    fn a_worker_that_asks_without_end_or_says_what_it_should_not_is_ended() {
        let said = |report: &Report| {
            let bytes = wire::encode(report).unwrap();
            bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
        };
        let image: String = said(&Report::Ask(Ask::Image));
        let booted: String = said(&Report::ColdBooted);
        for text in [
            // The second copy of the image is one too many.
            format!("printf '{image}{image}' >&0; sleep 600"),
            format!("printf '{booted}' >&0; sleep 600"),
        ] {
            let error = script(&text).take().unwrap_err();
            assert!(
                error.to_string().contains("makes no sense"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_worker_has_no_more_than_its_guest_can_hold() {
        let budget = crate::budget::Budget::new(1 << 30, Arc::default());
        let accounts = Arc::new(Accounts::new(budget.empty(), 64 << 20));
        assert_eq!(
            accounts.cover(Some(1), 1 << 20),
            0,
            "there is no such instance"
        );
        let held = accounts.cover(None, 32 << 20);
        assert!(held >= 32 << 20);
        assert_eq!(accounts.cover(None, u64::MAX), held);
        assert_eq!(budget.held_bytes(), held);
        accounts.forget_staged();
        assert_eq!(budget.held_bytes(), 0);
    }
}
