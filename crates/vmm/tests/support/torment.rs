//! What tests need that let a guest do its worst: a second thread that changes guest memory, somebody
//! who notices a hang, and a count of what came of it all.

#![allow(dead_code, reason = "shared by tests of which most do without it")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dormouse_vmm::GuestRam;

/// No action takes this long unless something hangs.
const HANG: Duration = Duration::from_secs(90);

/// What came of all the actions.
#[derive(Default)]
pub(crate) struct Tally(BTreeMap<String, u64>);

impl Tally {
    pub(crate) fn count(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    pub(crate) fn error(&mut self, operation: &str, error: &impl fmt::Display) {
        let text = error.to_string();
        // Without the numbers, which differ each time.
        let kind = text.split(char::is_numeric).next().unwrap_or_default();
        self.count(format!("{operation}: {}", kind.trim()));
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(what, count)| writeln!(f, "{count:>10}  {what}"))
    }
}

/// Names the seed of the guest at hand when the test panics, and ends the process when it hangs.
pub(crate) struct Watch {
    seed: u64,
    beat: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn new(seed: u64) -> Self {
        let (beat, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (beats, ended) = (Arc::clone(&beat), Arc::clone(&over));
        thread::spawn(move || {
            let (mut last, mut since) = (0, Instant::now());
            while !ended.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(200));
                let now = beats.load(Ordering::Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() > HANG {
                    eprintln!("hang: nothing came of action {now} with the seed {seed}");
                    std::process::abort();
                }
            }
        });
        Self { seed, beat, over }
    }

    pub(crate) fn beat(&self) {
        self.beat.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if thread::panicking() {
            let beat = self.beat.load(Ordering::Relaxed);
            eprintln!("failed at action {beat} with the seed {}", self.seed);
        }
    }
}

/// A second vCPU, as far as the host can tell: changes words of guest memory back and forth as fast as
/// it can.
pub(crate) struct Rival {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    target: Mutex<Option<Target>>,
    /// Twice the number of targets there were; odd while another is put there.
    aimed: AtomicU64,
    /// What `aimed` was when the rival began with its target.
    begun: AtomicU64,
    over: AtomicBool,
    /// How often it changed all words.
    flips: AtomicU64,
}

pub(crate) struct Target {
    pub(crate) ram: GuestRam,
    /// Where, what, and what else.
    pub(crate) words: Vec<(u64, u64, u64)>,
}

impl Rival {
    pub(crate) fn new() -> Self {
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        let flip = move || {
            while !theirs.over.load(Ordering::SeqCst) {
                let begun = theirs.aimed.load(Ordering::SeqCst);
                if !begun.is_multiple_of(2) {
                    thread::yield_now();
                    continue;
                }
                let target = theirs.target.lock().unwrap_or_else(PoisonError::into_inner);
                let target = target.as_ref().map(|target| (&target.ram, &target.words));
                theirs.begun.store(begun, Ordering::SeqCst);
                while theirs.aimed.load(Ordering::SeqCst) == begun
                    && !theirs.over.load(Ordering::SeqCst)
                {
                    let Some((ram, words)) = target else {
                        thread::sleep(Duration::from_micros(20));
                        continue;
                    };
                    theirs.flips.fetch_add(1, Ordering::Relaxed);
                    for (address, one, other) in words {
                        ram.write(*address, &other.to_le_bytes()).unwrap();
                        ram.write(*address, &one.to_le_bytes()).unwrap();
                    }
                }
            }
        };
        Self {
            shared,
            thread: Some(thread::spawn(flip)),
        }
    }

    /// Changes these words from now on, and no others: it has begun when this returns.
    pub(crate) fn aim(&self, target: Option<Target>) {
        let shared = &self.shared;
        // Makes the rival let go of the one before.
        shared.aimed.fetch_add(1, Ordering::SeqCst);
        *shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
        let aimed = shared.aimed.fetch_add(1, Ordering::SeqCst) + 1;
        while shared.begun.load(Ordering::SeqCst) != aimed {
            assert!(!self.has_ended(), "the rival has ended");
            thread::yield_now();
        }
    }

    /// Waits until it runs beside this thread, on a processor of its own: on a busy machine the two
    /// would take turns and never meet. Gives up after `patience`.
    pub(crate) fn meet(&self, patience: Duration) {
        let flips = || self.shared.flips.load(Ordering::Relaxed);
        let (begun, mut last) = (Instant::now(), flips());
        while begun.elapsed() < patience {
            let glance = Instant::now();
            while glance.elapsed() < Duration::from_micros(3) {
                std::hint::spin_loop();
            }
            let now = flips();
            // Longer than a glance means that this thread was set aside meanwhile.
            if now != last && glance.elapsed() < Duration::from_micros(20) {
                return;
            }
            last = now;
        }
    }

    fn has_ended(&self) -> bool {
        self.thread
            .as_ref()
            .is_none_or(|thread| thread.is_finished())
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the rival panicked");
        }
    }
}

/// Open descriptors, and memory in use, bytes.
pub(crate) fn resources() -> (usize, u64) {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    (open, resident * 4096)
}

/// The seed, and for how long: as `cargo xtask torture guest` says.
pub(crate) fn told() -> (u64, Duration) {
    let told = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds = told("DORMOUSE_TORTURE_SECONDS").unwrap_or(60);
    let seed = told("DORMOUSE_TORTURE_SEED").unwrap_or(1);
    (seed, Duration::from_secs(seconds))
}
