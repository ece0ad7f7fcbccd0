//! Makes a run: threads that send, and what they took note of.
//!
//! Each thread has a runtime and connections of its own and shares nothing with the others but the
//! beginning. A request is sent by a timer of the kernel's that knows microseconds.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};

mod connections;
mod exchange;
mod lane;
mod loops;
mod stop;
mod timer;

pub use stop::Stop;

use connections::Connections;
use lane::{Lane, lock};
use loops::Clients;

use crate::findings::{self, Judged};
use crate::plan::{Pattern, Plan};
use crate::record::{ClientStats, Run};
use crate::recorder::Recorder;
use crate::{Error, Histogram, Target};

/// How often whoever watches a run is told.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// From the start of the threads to the first request.
const GET_READY: Duration = Duration::from_millis(5);

/// How a run is getting on.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Since its beginning.
    pub elapsed: Duration,
    /// All of it.
    pub length: Duration,
    /// Requests offered so far, after the warm-up.
    pub offered: u64,
    /// Good answers so far.
    pub answered: u64,
    /// Failures so far.
    pub failed: u64,
    /// Good answers per second since the last time.
    pub answered_per_s: f64,
    /// Latency of these.
    pub recent: Histogram,
}

/// What a thread did besides sending.
#[derive(Debug)]
struct Worked {
    opened: u64,
    cpu: Duration,
    wall: Duration,
}

/// Makes a run and tells `watch` how it is getting on.
///
/// # Errors
/// [`Error::Setting`], [`Error::Unreachable`] where nobody is there at the beginning, and
/// [`Error::Client`]. Failing requests are counted, not errors.
pub fn run(
    plan: Plan,
    target: &Target,
    stop: &Stop,
    mut watch: impl FnMut(&Progress),
) -> Result<Run, Error> {
    plan.check()?;
    let address = runtime()?.block_on(target.find())?;
    let plan = Arc::new(plan);
    let threads = plan.threads as usize;
    let new = || Recorder::new(plan.warmup, plan.length(), plan.requests.len());
    let recorders: Vec<_> = (0..threads).map(|_| Arc::new(Mutex::new(new()))).collect();
    let sent = Arc::new(AtomicU64::new(0));
    let cpu_before = cpu_of_process();
    let begin = Instant::now() + GET_READY;

    let (running, ended) = mpsc::channel::<()>();
    let mut handles = Vec::new();
    for (number, recorder) in recorders.iter().enumerate() {
        let (plan, sent, recorder) = (Arc::clone(&plan), Arc::clone(&sent), Arc::clone(recorder));
        let (stop, running) = (stop.clone(), running.clone());
        let handle = thread::Builder::new()
            .name(format!("load-{number}"))
            .spawn(move || {
                let _running = running;
                drive(number, address, begin, &stop, plan, recorder, sent)
            })
            .map_err(Error::client("starting a thread"))?;
        handles.push(handle);
    }

    drop(running);

    let mut told = begin;
    // Nobody sends: what ends the waiting is that all have ended.
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(TOLD_EVERY) {
        watch(&progress(&plan, &recorders, begin, told.elapsed()));
        told = Instant::now();
    }
    let mut worked = Vec::new();
    for handle in handles {
        worked.push(handle.join().map_err(|panic| panicked(&*panic))??);
    }
    let mut recorder = new();
    for one in recorders {
        let one = std::mem::replace(&mut *lock(&one), new());
        recorder.add(one);
    }
    let took = begin.elapsed();
    if stop.is_asked() || took < plan.length() {
        recorder.cut(took);
    }
    let cpu = cpu_of_process().saturating_sub(cpu_before);
    Ok(summarise(&plan, recorder, &worked, cpu, stop.is_asked()))
}

fn runtime() -> Result<Runtime, Error> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::client("starting an async runtime"))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    Error::Panicked(text.unwrap_or_default())
}

/// One thread's part of a run.
fn drive(
    number: usize,
    address: SocketAddr,
    begin: Instant,
    stop: &Stop,
    plan: Arc<Plan>,
    recorder: Arc<Mutex<Recorder>>,
    sent: Arc<AtomicU64>,
) -> Result<Worked, Error> {
    let threads = plan.threads as usize;
    let share = move |all: u32| share_of(all, number, threads);
    let most = share(plan.connections);
    let connections = Connections::new(address, u32::try_from(most.end - most.start).unwrap_or(1));
    let lane = Lane::new(
        Arc::clone(&plan),
        Arc::clone(&connections),
        begin,
        stop.clone(),
        recorder,
    );
    // A task wakes without a system call, what `block_on` itself waits for does not.
    let sending = async move {
        tokio::spawn(tick());
        tokio::time::sleep_until(begin.into()).await;
        match &plan.pattern {
            Pattern::Open(arrivals) => loops::open(&lane, arrivals, number, threads).await?,
            Pattern::Closed {
                concurrency,
                think,
                requests,
            } => {
                let clients = Clients {
                    numbers: share(*concurrency),
                    think: *think,
                    requests: *requests,
                };
                loops::closed(&lane, clients, &sent).await?;
            }
        }
        lane.drained().await;
        Ok::<(), Error>(())
    };
    let done = runtime()?.block_on(async { tokio::spawn(sending).await });
    done.map_err(|error| match error.try_into_panic() {
        Ok(panic) => panicked(&*panic),
        Err(error) => Error::Panicked(error.to_string()),
    })??;
    Ok(Worked {
        opened: connections.opened(),
        cpu: cpu_time(ClockId::ThreadCPUTime),
        wall: begin.elapsed(),
    })
}

/// A timer that comes before those of requests: the runtime makes a system call for each timer that is
/// the next one, which without this is that of nearly every request.
async fn tick() {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
    }
}

/// Which of `all` things are a thread's.
fn share_of(all: u32, thread: usize, threads: usize) -> std::ops::Range<u64> {
    let (all, thread, threads) = (u64::from(all), thread as u64, threads.max(1) as u64);
    all * thread / threads..all * (thread + 1) / threads
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

fn cpu_of_process() -> Duration {
    cpu_time(ClockId::ProcessCPUTime)
}

fn progress(
    plan: &Plan,
    recorders: &[Arc<Mutex<Recorder>>],
    begin: Instant,
    since: Duration,
) -> Progress {
    let mut progress = Progress {
        elapsed: begin.elapsed(),
        length: plan.length(),
        offered: 0,
        answered: 0,
        failed: 0,
        answered_per_s: 0.0,
        recent: Histogram::default(),
    };
    for recorder in recorders {
        let mut recorder = lock(recorder);
        progress.offered += recorder.offered;
        progress.answered += recorder.answered;
        progress.failed += recorder.failed;
        progress.recent.add(&recorder.take_recent());
    }
    progress.answered_per_s = progress.recent.count() as f64 / since.as_secs_f64();
    progress
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The record of a run.
fn summarise(
    plan: &Plan,
    recorder: Recorder,
    worked: &[Worked],
    cpu: Duration,
    interrupted: bool,
) -> Run {
    let is_open = matches!(plan.pattern, Pattern::Open(_));
    let all: u64 = recorder.slices.iter().map(|slice| slice.offered).sum();
    let cpu_us = micros(cpu);
    let busy = worked
        .iter()
        .map(|thread| thread.cpu.as_secs_f64() / thread.wall.as_secs_f64().max(1e-3));
    let measured = recorder.measured();
    let slice = recorder.slice_length();
    let mut client = ClientStats {
        threads: plan.threads,
        connections: plan.connections,
        opened: worked.iter().map(|thread| thread.opened).sum(),
        lag: recorder.lag,
        waited: recorder.waited,
        cpu_us,
        busiest_thread: rounded(busy.fold(0.0, f64::max)),
        // 1000 requests of so many microseconds each, of a second's million.
        cpu_percent_per_1000_per_s: rounded(cpu_us as f64 / all.max(1) as f64 / 10.0),
        limits: Vec::new(),
    };
    client.limits = findings::limits(&Judged {
        is_open,
        offered: recorder.offered,
        latency: &recorder.latency,
        client: &client,
    });
    let breakdown = recorder.breakdown.bands();
    let findings = findings::findings(
        &breakdown,
        recorder.failed,
        recorder.answered + recorder.failed,
        &recorder.errors,
        &recorder.slices,
        slice.as_secs_f64(),
    );
    let mut requests = std::collections::BTreeMap::new();
    for (request, share) in plan.requests.iter().zip(recorder.requests) {
        let named: &mut crate::record::Share = requests.entry(request.name.clone()).or_default();
        named.failed += share.failed;
        named.latency.add(&share.latency);
    }
    Run {
        name: plan.name.clone(),
        pattern: plan.describe(),
        is_open,
        warmup_us: micros(plan.warmup),
        measured_us: micros(measured),
        interrupted,
        capacity_per_s: None,
        offered: recorder.offered,
        answered: recorder.answered,
        answered_in_time: recorder.answered_in_time,
        failed: recorder.failed,
        body_bytes: recorder.body_bytes,
        latency: recorder.latency,
        service: recorder.service,
        failures: recorder.failures,
        errors: recorder.errors,
        statuses: recorder.statuses,
        starts: recorder.starts.into_map(),
        requests,
        stages: recorder.stages.into_map(),
        breakdown,
        findings,
        slices: recorder.slices,
        slice_us: micros(slice),
        client,
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
