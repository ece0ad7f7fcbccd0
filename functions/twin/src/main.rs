//! Does before its snapshot what makes clones alike: draws random bytes and hash keys, and leaves one
//! thread asleep (of several, Hermit 0.10 wakes none before the last). Tells as JSON which of it its
//! clones share:
//!
//! | Member | What it is | In every clone |
//! |---|---|---|
//! | `kept_hash` | a hash by keys from before the snapshot | the same |
//! | `thread_hash` | one by `RandomState::new()` in the handler, on the thread that drew before | the same |
//! | `hook_hash` | one by `dormouse_guest::HashKeys`, drawn in a hook after the restore | its own |
//! | `kept_random` | random bytes from before the snapshot | the same |
//! | `hook_random` | random bytes that the hook drew | its own |
//! | `asleep_from_ms` | how long a thread had slept when the handler began, at least | |
//! | `asleep_to_ms` | how long when it looked whether that thread woke up, at most | |
//! | `woke` | whether it woke up: it sleeps for `SLEEP_MS` | |
//!
//! `?nap_ms=N` sleeps for so long first, which lets other threads run.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use dormouse_guest::{HashKeys, Request, Response};

const SLEEP_MS: u64 = 4000;

/// When the thread was about to go to sleep.
static SLEEPY: OnceLock<Instant> = OnceLock::new();
static WOKE: AtomicBool = AtomicBool::new(false);
/// What the hook drew.
static DRAWN: Mutex<Option<(HashKeys, u64)>> = Mutex::new(None);

fn main() {
    let kept = RandomState::new();
    let kept_random = random();
    thread::spawn(|| {
        let _ = SLEEPY.set(Instant::now());
        thread::sleep(Duration::from_millis(SLEEP_MS));
        WOKE.store(true, Ordering::Relaxed);
    });
    // A thread runs until it sleeps, so it is asleep before the snapshot.
    let sleepy = loop {
        thread::yield_now();
        if let Some(sleepy) = SLEEPY.get() {
            break *sleepy;
        }
    };
    let asleep = Instant::now();
    dormouse_guest::after_restore(|| {
        if let Ok(mut drawn) = DRAWN.lock() {
            *drawn = Some((HashKeys::draw(), random()));
        }
    });
    dormouse_guest::serve(move |request| tell(request, &kept, kept_random, sleepy, asleep));
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    dormouse_guest::random(&mut bytes);
    u64::from_be_bytes(bytes)
}

fn tell(
    request: Request<'_>,
    kept: &RandomState,
    kept_random: u64,
    sleepy: Instant,
    asleep: Instant,
) -> Result<Response, String> {
    let asleep_from_ms = asleep.elapsed().as_millis();
    if let Some(nap_ms) = request.query_value("nap_ms") {
        let nap_ms = nap_ms.parse().map_err(|_| "nap_ms must be a number")?;
        thread::sleep(Duration::from_millis(nap_ms));
    }
    let woke = WOKE.load(Ordering::Relaxed);
    let asleep_to_ms = sleepy.elapsed().as_millis();
    let drawn = DRAWN.lock().map_err(|error| error.to_string())?.take();
    let (hook_keys, hook_random) = drawn.ok_or("the hook did not run")?;
    let kept_hash = kept.hash_one(0);
    let thread_hash = RandomState::new().hash_one(0);
    let hook_hash = hook_keys.hash_one(0);
    let generation = request.generation();
    Ok(Response::json(format!(
        "{{\"kept_hash\":\"{kept_hash:016x}\",\"thread_hash\":\"{thread_hash:016x}\",\
         \"hook_hash\":\"{hook_hash:016x}\",\"kept_random\":\"{kept_random:016x}\",\
         \"hook_random\":\"{hook_random:016x}\",\"asleep_from_ms\":{asleep_from_ms},\"asleep_to_ms\":{asleep_to_ms},\"woke\":{woke},\
         \"sleep_ms\":{SLEEP_MS},\"generation\":{generation}}}\n"
    )))
}
