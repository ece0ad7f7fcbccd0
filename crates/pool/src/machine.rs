//! One VM shell with its pager, and the clone in it: what happens for one request, step by step.
//!
//! ```text
//!   build ──► blank ── restore ──► pristine ── run ──► used ── recycle ──► pristine, rolled back
//!               ▲                                       │
//!               └─────────────── recycle ───────────────┘  not worth it, or not possible
//! ```
//!
//! The vCPU's state is set when the shell is built and after every run, never between a request and
//! its run. A blank shell has the snapshot mapped, and nothing of it in: that costs no memory, and
//! when a request comes the working set is brought in. Or all of it is still there, made pristine in
//! place after the run before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse_pager::{Pager, PagerConfig, Policy, Rolled};
use dormouse_snapshot::WorkingSet;
use dormouse_vmm::{Shell, Stop, Vm};

use crate::budget::{INSTANCE_BYTES, SharedCharge};
use crate::console::Tail;
use crate::deploy::{elapsed_us, whole_us};
use crate::error::{Error, Failure};
use crate::function::Function;
use crate::interrupters::Registered;
use crate::mailbox::{self, Encoded, Envelope, Message};
use crate::message::{Answer, Outcome, StartType, Timings};

const PAGE_BYTES: u64 = dormouse_pager::PAGE_BYTES;

/// A VM with its pager. Its runs must all be on one thread.
pub(crate) struct Machine {
    guest: Guest,
    pager: Pager,
    memory: Memory,
    console: Tail,
    /// The memory that it may hold.
    pub(crate) charge: SharedCharge,
    /// Whether the run at hand is one for the working set to learn from.
    is_recording: bool,
    /// What was learned from the last run, if it was such a one: a working set that became known.
    learned: Option<Option<WorkingSet>>,
    /// Whether the pager will have more to do than to wait.
    expects_faults: bool,
    _registered: Registered,
}

/// What is in the shell.
enum Guest {
    /// A vCPU whose state is the snapshot's.
    Set(Box<Vm>),
    /// A vCPU that ran, or is as it was made.
    Unset(Shell),
    /// Lost by a step that failed.
    Lost,
}

/// What is under the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Nothing: the snapshot is mapped at most.
    Blank,
    /// The snapshot, as it was attached.
    Restored,
    /// The snapshot, as it was after a rollback in place.
    RolledBack,
    /// What a run, or an attempt at one, has left.
    Used,
}

impl Machine {
    /// Builds a shell and its pager and sets the vCPU's state: all that is slow and needs no request.
    pub(crate) fn build(function: &Function) -> Result<Self, Error> {
        let shell = Shell::new(function.state().vm.placement())?;
        let interrupter = shell.interrupter();
        let registered = function.guests.register(interrupter.clone());
        // Built ahead where there is room; for a request where it was reserved with that.
        let charge = SharedCharge::new(function.budget.empty());
        charge.lock().cover(INSTANCE_BYTES);
        let held = charge.clone();
        #[cfg(test)]
        let name = function.name().clone();
        let pager = Pager::new(PagerConfig {
            name: function.name().to_string(),
            // A guest that cannot have its memory is stopped; its result is discarded.
            on_error: Some(Arc::new(move || interrupter.interrupt())),
            on_growth: Some(Arc::new(move |pages| {
                #[cfg(test)]
                crate::instance::tests::pass(&name, crate::instance::tests::Step::Page);
                held.lock().cover(INSTANCE_BYTES + pages * PAGE_BYTES)
            })),
            ..PagerConfig::default()
        })?;
        let mut machine = Self {
            guest: Guest::Unset(shell),
            pager,
            memory: Memory::Blank,
            console: Tail::default(),
            charge,
            is_recording: false,
            learned: None,
            expects_faults: false,
            _registered: registered,
        };
        machine.set_state(function)?;
        machine.map_ahead(function)?;
        Ok(machine)
    }

    /// Whether it can serve another request.
    pub(crate) fn is_alive(&self) -> bool {
        self.pager.is_alive() && !matches!(self.guest, Guest::Lost)
    }

    /// Whether it has no clone, neither a fresh nor a used one.
    pub(crate) fn is_blank(&self) -> bool {
        self.memory == Memory::Blank
    }

    /// The shell, unless it was lost.
    pub(crate) fn shell(&self) -> Option<&Shell> {
        match &self.guest {
            Guest::Set(vm) => Some(vm.shell()),
            Guest::Unset(shell) => Some(shell),
            Guest::Lost => None,
        }
    }

    /// Makes a fresh clone of the snapshot, by `policy`, whatever was there before.
    pub(crate) fn restore(
        &mut self,
        function: &Function,
        policy: &Policy,
        timings: &mut Timings,
    ) -> Result<(), Error> {
        self.memory = Memory::Used;
        self.is_recording = function.wants_runs();
        self.expects_faults = !matches!(policy, Policy::Map);
        function.wait_until_unique();
        let begun = Instant::now();
        let region = Arc::clone(self.shell().ok_or_else(lost)?.ram().region());
        let attached = self.pager.attach(&region, function.source(), policy)?;
        timings.memory_us = elapsed_us(begun);
        timings.replayed_pages = attached.replayed_pages + attached.moved_pages;
        if !matches!(self.guest, Guest::Set(_)) {
            let begun = Instant::now();
            self.set_state(function)?;
            timings.state_us = elapsed_us(begun);
        }
        self.memory = Memory::Restored;
        Ok(())
    }

    /// Answers a request from a clone that nobody used: the one at hand if it is pristine, else one
    /// that is restored now.
    pub(crate) fn invoke(
        &mut self,
        function: &Function,
        request: &Encoded,
        arrival: Instant,
    ) -> Result<Outcome, Error> {
        let in_hand = Instant::now();
        let mut timings = Timings {
            queue_us: whole_us(in_hand - arrival),
            ..Timings::default()
        };
        if !matches!(self.memory, Memory::Restored | Memory::RolledBack) {
            self.restore(function, &function.policy(), &mut timings)?;
        }
        let start = match self.memory {
            Memory::RolledBack => StartType::RolledBack,
            _ => StartType::Restored,
        };
        self.memory = Memory::Used;
        let Guest::Set(mut vm) = std::mem::replace(&mut self.guest, Guest::Lost) else {
            return Err(lost());
        };
        let limit = function.timeout();
        let mailbox = &function.state().mailbox;
        let asked = envelope(limit)?;
        let put = mailbox.put(&vm, request, &asked);
        timings.restore_us = elapsed_us(in_hand);
        let result = match put {
            Ok(()) => self.run(function, &mut vm, limit, &asked, &mut timings)?,
            Err(failure) => {
                // Where memory could not be had, that is why.
                self.check_pager(function)?;
                self.is_recording = false;
                Err(failure)
            }
        };
        self.guest = Guest::Unset(vm.into_shell());
        // Before the answer is out: the next request is to profit from it.
        self.learned = self.learn(function);
        if start == StartType::Restored {
            function.crossover.restored(&timings);
        } else {
            function.crossover.ran_rolled_back(timings.run_us);
        }
        function.note_faults(&timings);
        Ok(Outcome {
            start,
            timings,
            result,
            console: self.console.text(),
        })
    }

    fn run(
        &mut self,
        function: &Function,
        vm: &mut Vm,
        limit: Duration,
        asked: &Envelope,
        timings: &mut Timings,
    ) -> Result<Result<Answer, Failure>, Error> {
        if self.expects_faults {
            // A fault then wakes a thread on this core. It is only a faster way.
            let _ = self.pager.follow();
        }
        let begun = Instant::now();
        let stop = vm.run(begun + limit)?;
        let (result, handler_tsc) = answer(vm, stop, limit, asked, &self.console);
        timings.run_us = elapsed_us(begun);
        timings.handler_us = vm.into_run(handler_tsc).map(whole_us);
        self.check_pager(function)?;
        let stats = self.pager.stats();
        timings.fault_us = stats.fault_service_us;
        timings.faults = stats.faults_minor + stats.faults_missing;
        timings.first_fault_us = stats
            .first_fault
            .map(|at| whole_us(at.saturating_duration_since(begun)));
        let result = result?;
        // What a failing run touches is not what later requests need.
        self.is_recording &= result.is_ok();
        Ok(result)
    }

    /// Whether the clone had all memory that it asked for.
    fn check_pager(&mut self, function: &Function) -> Result<(), Error> {
        match self.pager.take_error() {
            None => Ok(()),
            Some(dormouse_pager::Error::OverLimit { pages }) => {
                let needed_bytes = pages * PAGE_BYTES;
                let budget_bytes = function.budget.limit_bytes();
                let name = function.name();
                Err(Error::over_budget(name, needed_bytes, budget_bytes))
            }
            Some(error) => Err(error.into()),
        }
    }

    /// Makes the machine ready for the next request: rolls the clone back in place, or drops it.
    /// Returns a working set that became known, to be stored.
    ///
    /// An error leaves the machine blank, which is good for the next restore, or dead.
    pub(crate) fn recycle(&mut self, function: &Function) -> Result<Option<WorkingSet>, Error> {
        let learned = self.learned.take();
        let recycled = match &learned {
            Some(_) => self.set_state(function).map(|()| false),
            None => self.reset(function),
        };
        match recycled {
            Ok(true) => {}
            Ok(false) | Err(_) => self.make_blank(function),
        }
        recycled?;
        function.stage_ahead();
        Ok(learned.flatten())
    }

    /// Forgets that the vCPU's state is set: the next restore does it again.
    pub(crate) fn unset(&mut self) -> Result<(), Error> {
        self.guest = match std::mem::replace(&mut self.guest, Guest::Lost) {
            Guest::Set(vm) => Guest::Unset(vm.into_shell()),
            Guest::Unset(shell) => Guest::Unset(shell),
            Guest::Lost => return Err(lost()),
        };
        Ok(())
    }

    /// Pages whose content is not the snapshot's.
    pub(crate) fn changed_pages(&self, function: &Function) -> Result<Vec<u64>, Error> {
        const PAGE: usize = dormouse_snapshot::PAGE_BYTES;
        let ram = self.shell().ok_or_else(lost)?.ram();
        let (mut now, mut then) = ([0; PAGE], [0; PAGE]);
        let mut changed = Vec::new();
        for page in 0..ram.len() / PAGE as u64 {
            ram.read(ram.base() + page * PAGE as u64, &mut now)?;
            function.read_page(page, &mut then)?;
            if now != then {
                changed.push(page);
            }
        }
        Ok(changed)
    }

    /// Pages that the clone holds alone.
    pub(crate) fn private_pages(&self) -> Result<u64, Error> {
        let touched = self.pager.touched()?;
        Ok(touched.written.iter().map(|run| run.end - run.start).sum())
    }

    /// Parts of the vCPU's state that are not the snapshot's.
    pub(crate) fn changed_state(&self, function: &Function) -> Result<Vec<&'static str>, Error> {
        let vm = self.clone_at_hand().ok_or_else(lost)?;
        Ok(vm.differences(&function.state().vm)?)
    }

    /// Sets the vCPU's state and gives all memory back.
    pub(crate) fn make_ready(&mut self, function: &Function) -> Result<(), Error> {
        self.set_state(function)?;
        self.make_blank(function);
        Ok(())
    }

    /// Gives back all memory that the clone holds, and maps the snapshot for the next one: nothing
    /// of it is in, so that costs no memory, and only what it touches is left to be brought in.
    pub(crate) fn make_blank(&mut self, function: &Function) {
        if self.is_blank() {
            return;
        }
        self.pager.detach();
        self.memory = Memory::Blank;
        self.charge.lock().keep(INSTANCE_BYTES);
        if let Err(error) = self.map_ahead(function) {
            // The next restore tries again, and has somebody to tell.
            tracing::debug!(function = %function.name(), %error, "nothing was mapped ahead");
        }
    }

    fn map_ahead(&mut self, function: &Function) -> Result<(), Error> {
        let region = Arc::clone(self.shell().ok_or_else(lost)?.ram().region());
        let source = function.source();
        self.pager.attach(&region, source, &Policy::Lazy)?;
        Ok(())
    }

    /// The clone, while its vCPU's state is the snapshot's.
    pub(crate) fn clone_at_hand(&self) -> Option<&Vm> {
        match &self.guest {
            Guest::Set(vm) => Some(vm),
            Guest::Unset(_) | Guest::Lost => None,
        }
    }

    /// Makes the vCPU's state the snapshot's again and rolls the memory back in place, if that can
    /// be done and is worth it. False where the clone must be restored afresh.
    pub(crate) fn reset(&mut self, function: &Function) -> Result<bool, Error> {
        // KVM may write into guest memory while its state is set; so memory comes after that.
        self.set_state(function)?;
        self.roll_back(function)
    }

    /// Rolls the clone's memory back in place, if that can be done and is worth it.
    fn roll_back(&mut self, function: &Function) -> Result<bool, Error> {
        let Some(rollback) = function.rollback() else {
            return Ok(false);
        };
        let begun = Instant::now();
        match self.pager.roll_back(&rollback.plan())? {
            Rolled::Back(stats) => {
                function
                    .crossover
                    .rolled_back(stats.copied_pages, begun.elapsed());
                self.memory = Memory::RolledBack;
                self.expects_faults = false;
                function.expect_bytes((stats.copied_pages + stats.dropped_pages) * PAGE_BYTES);
                let held_bytes = INSTANCE_BYTES + stats.copied_pages * PAGE_BYTES;
                self.charge.lock().keep(held_bytes);
                Ok(true)
            }
            Rolled::Not { written_pages } => {
                function.expect_bytes(written_pages * PAGE_BYTES);
                Ok(false)
            }
        }
    }

    /// Adds what a recorded run touched to the function's working set. `Some` where the run was
    /// recorded: its clone was paged in page by page and is not worth keeping.
    fn learn(&mut self, function: &Function) -> Option<Option<WorkingSet>> {
        if !std::mem::take(&mut self.is_recording) {
            return None;
        }
        match self.pager.touched() {
            Ok(touched) => {
                let written = touched.written.iter().map(|run| run.end - run.start);
                function.expect_bytes(written.sum::<u64>() * PAGE_BYTES);
                Some(function.learn(touched))
            }
            Err(error) => {
                tracing::warn!(function = %function.name(), %error, "a run was not recorded");
                Some(None)
            }
        }
    }

    /// Sets the vCPU's state to the snapshot's, with a console of its own.
    fn set_state(&mut self, function: &Function) -> Result<(), Error> {
        let shell = match std::mem::replace(&mut self.guest, Guest::Lost) {
            Guest::Set(vm) => vm.into_shell(),
            Guest::Unset(shell) => shell,
            Guest::Lost => return Err(lost()),
        };
        self.console = Tail::default();
        let output = Box::new(self.console.clone());
        let vm = Vm::restore(shell, &function.state().vm, output, function.namer())?;
        self.guest = Guest::Set(Box::new(vm));
        Ok(())
    }
}

fn lost() -> Error {
    Error::Internal {
        operation: "restoring",
        reason: "the instance lost its shell in the invocation before".to_owned(),
    }
}

/// What the end of a run means, and when the guest's handler was entered by its own word.
pub(crate) fn answer(
    vm: &Vm,
    stop: Stop,
    limit: Duration,
    asked: &Envelope,
    console: &Tail,
) -> (Result<Result<Answer, Failure>, Error>, u64) {
    let failure = match stop {
        Stop::Exchange { mailbox, .. } => match mailbox::take(vm, mailbox, Some(asked)) {
            Ok(Message::Answer {
                answer,
                handler_tsc,
            }) => return (Ok(Ok(answer)), handler_tsc),
            Ok(Message::Error(message)) => Failure::Reported { message },
            Ok(Message::Ready(_) | Message::InitError(_)) => Failure::BadAnswer {
                reason: "it said that it is ready instead of answering".to_owned(),
            },
            Err(failure) => failure,
        },
        Stop::Exit(code) => Failure::exited(code, console, vm.shell().placement().memory_bytes),
        Stop::Crashed(crash) => Failure::Crashed {
            crash: Box::new(crash),
        },
        Stop::TimedOut => Failure::TimedOut { limit },
        // Kicked by the pager, whose error comes before this one, or by a pool that ends.
        Stop::Interrupted => return (Err(Error::Draining), 0),
    };
    (Ok(Err(failure)), 0)
}

/// What makes this instance differ from all others.
pub(crate) fn envelope(limit: Duration) -> Result<Envelope, Error> {
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
