//! Tells what a clone knows of itself, as JSON: real and monotonic time, randomness, generation,
//! and how many requests this clone has answered, which is always 1.
//!
//! The query asks for more: `?kernel=1` adds random bytes from Hermit's own pool, `?entropy=1` the same
//! by a system call instead of a new thread's hash keys, `?sleep_ms=N` sleeps before the times are taken, `?thread=1` runs a thread, `?print=1` prints a line.
//! `POST /secret` keeps the body in a static and in a leaked allocation and answers 204; no later
//! request may find it. `GET /secret` answers what the static holds, which is nothing.

use std::fmt::Write;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use dormouse_guest::{Request, Response};

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static SECRET: Mutex<Vec<u8>> = Mutex::new(Vec::new());

fn main() {
    let started = Instant::now();
    dormouse_guest::serve(move |request| {
        let requests = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        match (request.method(), request.path()) {
            ("POST", "/secret") => keep_secret(request.body()),
            ("GET", "/secret") => SECRET
                .lock()
                .map(|secret| Response::new(200).with_body(secret.clone()))
                .map_err(|error| error.to_string()),
            _ => introduce(request, started, requests),
        }
    });
}

fn keep_secret(body: &[u8]) -> Result<Response, String> {
    let mut secret = SECRET.lock().map_err(|error| error.to_string())?;
    secret.extend_from_slice(body);
    body.to_vec().leak();
    Ok(Response::new(204))
}

fn introduce(request: Request<'_>, started: Instant, requests: u64) -> Result<Response, String> {
    let mut more = String::new();
    if let Some(sleep_ms) = request.query_value("sleep_ms") {
        let sleep_ms = match sleep_ms.parse() {
            Ok(sleep_ms) => sleep_ms,
            Err(_) => {
                return Ok(Response::new(400).with_text("sleep_ms must be a number\n"));
            }
        };
        thread::sleep(Duration::from_millis(sleep_ms));
    }
    if request.query_value("thread") == Some("1") {
        let answer = thread::spawn(|| 6 * 7)
            .join()
            .map_err(|_| "the thread panicked")?;
        add(&mut more, "thread", answer)?;
    }
    if request.query_value("kernel") == Some("1") {
        // A new thread draws its hash keys from the kernel's pool; this one's may be as old as the
        // snapshot.
        let random = thread::spawn(|| RandomState::new().build_hasher().finish())
            .join()
            .map_err(|_| "the thread panicked")?;
        add(
            &mut more,
            "kernel_random",
            format_args!("\"{random:016x}\""),
        )?;
    }
    if request.query_value("entropy") == Some("1") {
        let entropy = kernel::entropy().ok_or("the kernel has no randomness")?;
        add(&mut more, "entropy", format_args!("\"{entropy:016x}\""))?;
    }
    if request.query_value("print") == Some("1") {
        println!("whoami: request {} prints", request.id());
        add(&mut more, "printed", true)?;
    }

    let mut random = [0; 16];
    dormouse_guest::random(&mut random);
    let random = u128::from_be_bytes(random);
    let real_time_unix_ms = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| "the clock stands before 1970")?
        .as_millis();
    let monotonic_ns = started.elapsed().as_nanos();
    let generation = request.generation();
    Ok(Response::json(format!(
        "{{\"real_time_unix_ms\":{real_time_unix_ms},\"monotonic_ns\":{monotonic_ns},\
         \"random\":\"{random:032x}\",\"generation\":{generation},\"requests\":{requests}{more}}}\n"
    )))
}

/// What std does not hand out.
mod kernel {
    unsafe extern "C" {
        /// Hermit's system call: the bytes that it wrote, or a negative error.
        fn sys_read_entropy(buffer: *mut u8, bytes: usize, flags: u32) -> isize;
    }

    /// Random bytes from the kernel's pool.
    pub(crate) fn entropy() -> Option<u64> {
        let mut bytes = [0; 8];
        // SAFETY: the kernel writes as many bytes as the buffer has, and no more.
        let written = unsafe { sys_read_entropy(bytes.as_mut_ptr(), bytes.len(), 0) };
        (written == 8).then(|| u64::from_le_bytes(bytes))
    }
}

fn add(json: &mut String, name: &str, value: impl std::fmt::Display) -> Result<(), String> {
    write!(json, ",\"{name}\":{value}").map_err(|error| error.to_string())
}
