//! One VM shell with its pager on a thread of its own, and what it does for one request.
//!
//! ```text
//!            build shell and pager (ahead)
//!                     │
//!                     ▼            job
//!   idle list ◄──── parked ─────────────────► attach memory, set state, write the request
//!       ▲             ▲                                     │
//!       │             │ healthy                             ▼
//!       │        drop the memory ◄──── answer sent ◄──── KVM_RUN
//!       │                                  │ crashed, timed out
//!       └── a new one is built ◄───────────┴──► retired: thread, VM and pager end
//! ```
//! A job carries the only handle of its instance, and the permits that it runs under. So an instance
//! is in one place at a time, and a caller that goes away takes nothing with it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use dormouse_pager::{Pager, PagerConfig, Policy};
use dormouse_snapshot::WorkingSet;
use dormouse_vmm::{Shell, Stop, Vm};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::console::Tail;
use crate::deploy::elapsed_us;
use crate::error::{Error, Failure};
use crate::function::Function;
use crate::interrupters::Registered;
use crate::mailbox::{self, Encoded, Envelope, Message};
use crate::message::{Answer, Outcome, StartType, Timings};

/// The handle of an idle instance.
#[derive(Debug)]
pub(crate) struct Instance {
    jobs: mpsc::Sender<Job>,
}

/// The right to run one invocation: counted by the function, and by the whole pool.
pub(crate) struct Permits {
    _function: OwnedSemaphorePermit,
    _pool: OwnedSemaphorePermit,
    running: Arc<AtomicUsize>,
}

impl Permits {
    pub(crate) fn new(
        function: &Function,
        own: OwnedSemaphorePermit,
        all: OwnedSemaphorePermit,
    ) -> Self {
        let running = Arc::clone(&function.running);
        running.fetch_add(1, Ordering::Relaxed);
        Self {
            _function: own,
            _pool: all,
            running,
        }
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request for one instance.
pub(crate) struct Job {
    pub(crate) request: Encoded,
    pub(crate) start: StartType,
    pub(crate) arrival: Instant,
    pub(crate) reply: oneshot::Sender<Result<Outcome, Error>>,
    pub(crate) permits: Permits,
    /// The instance's own handle, to park itself with.
    instance: Instance,
}

impl Instance {
    /// Starts an instance's thread, which builds its shell at once.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub(crate) fn spawn(function: &Arc<Function>) -> Result<Self, Error> {
        let (jobs, inbox) = mpsc::channel();
        let function_handle = Arc::downgrade(function);
        std::thread::Builder::new()
            .name(format!("vcpu {}", function.name()))
            .spawn(move || serve(&function_handle, &inbox))
            .map_err(|e| Error::internal("starting a vCPU thread")(e.into()))?;
        Ok(Self { jobs })
    }

    /// Hands a request to the instance. The reply comes through `reply`; it is dropped where the
    /// instance's thread has died.
    pub(crate) fn send(
        self,
        request: Encoded,
        start: StartType,
        arrival: Instant,
        permits: Permits,
    ) -> oneshot::Receiver<Result<Outcome, Error>> {
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs.clone();
        // Should the thread be gone, the job is dropped here and with it the reply's sender.
        let _ = jobs.send(Job {
            request,
            start,
            arrival,
            reply,
            permits,
            instance: self,
        });
        answer
    }
}

/// What lives as long as the thread.
struct Machine {
    /// Taken by a running guest, which gives it back.
    shell: Option<Shell>,
    pager: Pager,
    /// Whether the last run is one for the working set to learn from.
    is_recording: bool,
    _registered: Registered,
}

/// The thread: build, then serve until the last handle is gone or an instance is retired.
fn serve(function: &Weak<Function>, inbox: &mpsc::Receiver<Job>) {
    let Some(built) = function.upgrade().map(|function| Machine::build(&function)) else {
        return;
    };
    // What kept it from being built may be gone when it is needed.
    let mut built = built.ok();
    while let Ok(job) = inbox.recv() {
        let Some(function) = function.upgrade() else {
            return;
        };
        let mut machine = match built.take().map_or_else(|| Machine::build(&function), Ok) {
            Ok(machine) => machine,
            Err(error) => {
                let outcome = Err(error);
                function.record(&outcome);
                let _ = job.reply.send(outcome);
                return;
            }
        };
        let outcome = machine.invoke(&function, &job);
        let is_healthy = outcome
            .as_ref()
            .is_ok_and(|outcome| matches!(outcome.result, Ok(_) | Err(Failure::Reported { .. })));
        function.record(&outcome);
        let Job {
            reply,
            permits,
            instance,
            ..
        } = job;
        if !(is_healthy && machine.pager.is_alive()) {
            drop(permits);
            let _ = reply.send(outcome);
            function.refill();
            return;
        }
        if machine.is_recording {
            // Learning takes longer than an answer should have to wait.
            let _ = reply.send(outcome);
            let complete = machine.learn(&function);
            function.park(instance);
            drop(permits);
            if let Some(set) = complete {
                function.store_working_set(&set);
            }
        } else {
            // Parked before the permits are back: who gets one finds an instance.
            function.park(instance);
            drop(permits);
            let _ = reply.send(outcome);
        }
        machine.pager.detach();
        built = Some(machine);
    }
}

impl Machine {
    fn build(function: &Function) -> Result<Self, Error> {
        let shell = Shell::new(function.state().vm.placement())?;
        let interrupter = shell.interrupter();
        let registered = function.guests.register(interrupter.clone());
        let pager = Pager::new(PagerConfig {
            name: function.name().to_string(),
            // A guest that cannot have its memory is stopped; its result is discarded.
            on_error: Some(Arc::new(move || interrupter.interrupt())),
            ..PagerConfig::default()
        })?;
        Ok(Self {
            shell: Some(shell),
            pager,
            is_recording: false,
            _registered: registered,
        })
    }

    /// Restores the snapshot, runs the guest on the request, and says what came of it.
    fn invoke(&mut self, function: &Function, job: &Job) -> Result<Outcome, Error> {
        let queue_us = elapsed_us(job.arrival);
        let shell = self.shell.take().ok_or_else(|| Error::Internal {
            operation: "restoring",
            reason: "the instance lost its shell in the invocation before".to_owned(),
        })?;
        let console = Tail::default();
        let begun = Instant::now();
        function.wait_until_unique();
        let policy = function.policy();
        let attached = self
            .pager
            .attach(shell.ram().region(), function.source(), &policy)?;
        let state = function.state();
        let mut vm = Vm::restore(
            shell,
            &state.vm,
            Box::new(console.clone()),
            function.namer(),
        )?;
        let limit = function.timeout();
        let envelope = envelope(limit)?;
        state.mailbox.put(&vm, &job.request, &envelope)?;
        let restore_us = elapsed_us(begun);

        let begun = Instant::now();
        let stop = vm.run(begun + limit)?;
        let run_us = elapsed_us(begun);
        let result = answer(&vm, stop, limit);
        if let Some(error) = self.pager.take_error() {
            return Err(error.into());
        }
        let stats = self.pager.stats();
        // What a failing run touches is not what later requests need.
        self.is_recording = matches!(policy, Policy::Record) && matches!(result, Ok(Ok(_)));
        self.shell = Some(vm.into_shell());
        Ok(Outcome {
            start: job.start,
            timings: Timings {
                queue_us,
                restore_us,
                run_us,
                fault_us: stats.fault_service_us,
                faults: stats.faults_minor + stats.faults_missing,
                replayed_pages: attached.replayed_pages,
            },
            result: result?,
            console: console.text(),
        })
    }

    /// Adds what the last run touched to the function's working set; returns it once it is known.
    fn learn(&self, function: &Function) -> Option<WorkingSet> {
        match self.pager.touched() {
            Ok(touched) => function.learn(touched),
            Err(error) => {
                tracing::warn!(function = %function.name(), %error, "a run was not recorded");
                None
            }
        }
    }
}

/// What the end of a run means.
fn answer(vm: &Vm, stop: Stop, limit: Duration) -> Result<Result<Answer, Failure>, Error> {
    Ok(Err(match stop {
        Stop::Exchange { mailbox, .. } => match mailbox::take(vm, mailbox) {
            Ok(Message::Answer(answer)) => return Ok(Ok(answer)),
            Ok(Message::Error(message)) => Failure::Reported { message },
            Ok(Message::Ready(_) | Message::InitError(_)) => Failure::BadAnswer {
                reason: "it said that it is ready instead of answering".to_owned(),
            },
            Err(failure) => failure,
        },
        Stop::Exit(code) => Failure::Exited { code },
        Stop::Crashed(crash) => Failure::Crashed {
            reason: crash.reason,
        },
        Stop::TimedOut => Failure::TimedOut { limit },
        // Kicked by the pager, whose error comes before this one, or by a pool that ends.
        Stop::Interrupted => return Err(Error::Draining),
    }))
}

/// What makes this clone differ from all others.
fn envelope(limit: Duration) -> Result<Envelope, Error> {
    static REQUEST_ID: AtomicU64 = AtomicU64::new(1);
    static GENERATION: AtomicU64 = AtomicU64::new(0);

    let real_time_unix_ns = dormouse_vmm::real_time_unix_ns();
    // From the time of the first restore on, so that processes do not repeat each other's numbers.
    let _ = GENERATION.compare_exchange(0, real_time_unix_ns, Ordering::Relaxed, Ordering::Relaxed);
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy).map_err(|e| Error::Internal {
        operation: "drawing entropy for a clone",
        reason: e.to_string(),
    })?;
    let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    Ok(Envelope {
        request_id: REQUEST_ID.fetch_add(1, Ordering::Relaxed),
        generation: GENERATION.fetch_add(1, Ordering::Relaxed),
        real_time_unix_ns,
        deadline_unix_ns: real_time_unix_ns.saturating_add(limit_ns),
        entropy,
    })
}
