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
use std::time::{Duration, Instant};

use dormouse_pager::{Pager, PagerConfig, Policy, Rolled};
use dormouse_snapshot::WorkingSet;
use dormouse_vmm::{Shell, Stop, Vm};

use crate::allowance::Allowance;
use crate::budget::INSTANCE_BYTES;
use crate::console::Tail;
use crate::deploy::{elapsed_us, whole_us};
use crate::error::{Error, Failure};
use crate::ids::Ids;
use crate::interrupters::Registered;
use crate::mailbox::{self, Encoded, Envelope, Message};
use crate::message::{Answer, Outcome, StartType, Timings};
use crate::moment::Moment;
use crate::template::Template;
use crate::worker::confine_pager;

const PAGE_BYTES: u64 = dormouse_pager::PAGE_BYTES;

/// A VM with its pager. Its runs must all be on one thread.
pub(crate) struct Machine {
    guest: Guest,
    pager: Pager,
    memory: Memory,
    console: Tail,
    /// What it holds between requests.
    held_bytes: u64,
    /// What the last run wrote, once that is known.
    wrote_bytes: Option<u64>,
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
    pub(crate) fn build(template: &Template, allowance: &Arc<Allowance>) -> Result<Self, Error> {
        let shell = Shell::new(template.state().vm.placement())?;
        let interrupter = shell.interrupter();
        let stop = interrupter.clone();
        let registered = template.guests.register(move || stop.interrupt());
        let allowance = Arc::clone(allowance);
        #[cfg(test)]
        let name = template.name().clone();
        let pager = Pager::new(PagerConfig {
            name: template.name().to_string(),
            // A guest that cannot have its memory is stopped; its result is discarded.
            on_error: Some(Arc::new(move || interrupter.interrupt())),
            on_growth: Some(Arc::new(move |pages| {
                #[cfg(test)]
                crate::instance::tests::pass(&name, crate::instance::tests::Step::Page);
                allowance.covers(INSTANCE_BYTES + pages * PAGE_BYTES)
            })),
            on_start: Some(Arc::new(confine_pager)),
            ..PagerConfig::default()
        })?;
        let mut machine = Self {
            guest: Guest::Unset(shell),
            pager,
            memory: Memory::Blank,
            console: Tail::default(),
            held_bytes: INSTANCE_BYTES,
            wrote_bytes: None,
            is_recording: false,
            learned: None,
            expects_faults: false,
            _registered: registered,
        };
        machine.set_state(template)?;
        machine.map_ahead(template)?;
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
        template: &Template,
        policy: &Policy,
        timings: &mut Timings,
    ) -> Result<(), Error> {
        self.memory = Memory::Used;
        self.is_recording = template.wants_runs();
        self.expects_faults = !matches!(policy, Policy::Map);
        template.wait_until_unique();
        let begun = Instant::now();
        let region = Arc::clone(self.shell().ok_or_else(lost)?.ram().region());
        let attached = self.pager.attach(&region, template.source(), policy)?;
        timings.memory_us = elapsed_us(begun);
        timings.replayed_pages = attached.replayed_pages + attached.moved_pages;
        if !matches!(self.guest, Guest::Set(_)) {
            let begun = Instant::now();
            self.set_state(template)?;
            timings.state_us = elapsed_us(begun);
        }
        self.memory = Memory::Restored;
        Ok(())
    }

    /// Answers a request from a clone that nobody used: the one at hand if it is pristine, else one
    /// that is restored now.
    pub(crate) fn invoke(
        &mut self,
        template: &Template,
        request: &Encoded,
        ids: Ids,
        arrival: Moment,
    ) -> Result<Outcome, Error> {
        let in_hand = Instant::now();
        let mut timings = Timings {
            queue_us: whole_us(arrival.elapsed()),
            ..Timings::default()
        };
        if !matches!(self.memory, Memory::Restored | Memory::RolledBack) {
            self.restore(template, &template.policy(), &mut timings)?;
        }
        let start = match self.memory {
            Memory::RolledBack => StartType::RolledBack,
            _ => StartType::Restored,
        };
        self.memory = Memory::Used;
        let Guest::Set(mut vm) = std::mem::replace(&mut self.guest, Guest::Lost) else {
            return Err(lost());
        };
        let limit = template.timeout();
        let mailbox = &template.state().mailbox;
        let asked = ids.envelope(limit)?;
        let put = mailbox.put(&vm, request, &asked);
        timings.restore_us = elapsed_us(in_hand);
        let result = match put {
            Ok(()) => self.run(template, &mut vm, limit, &asked, &mut timings)?,
            Err(failure) => {
                // Where memory could not be had, that is why.
                self.check_pager(template)?;
                self.is_recording = false;
                Err(failure)
            }
        };
        self.guest = Guest::Unset(vm.into_shell());
        // Before the answer is out: the next request is to profit from it.
        self.learned = self.learn(template);
        if start == StartType::Restored {
            template.crossover.restored(&timings);
        } else {
            template.crossover.ran_rolled_back(timings.run_us);
        }
        template.note_faults(&timings);
        Ok(Outcome {
            start,
            timings,
            result,
            console: self.console.text(),
        })
    }

    fn run(
        &mut self,
        template: &Template,
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
        self.check_pager(template)?;
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
    fn check_pager(&mut self, template: &Template) -> Result<(), Error> {
        match self.pager.take_error() {
            None => Ok(()),
            Some(dormouse_pager::Error::OverLimit { pages }) => {
                let needed_bytes = pages * PAGE_BYTES;
                let budget_bytes = template.budget_bytes();
                let name = template.name();
                Err(Error::over_budget(name, needed_bytes, budget_bytes))
            }
            Some(error) => Err(error.into()),
        }
    }

    /// Makes the machine ready for the next request: rolls the clone back in place, or drops it.
    /// Returns a working set that became known, to be stored.
    ///
    /// An error leaves the machine blank, which is good for the next restore, or dead.
    pub(crate) fn recycle(&mut self, template: &Template) -> Result<Option<WorkingSet>, Error> {
        let learned = self.learned.take();
        let recycled = match &learned {
            Some(_) => self.set_state(template).map(|()| false),
            None => self.reset(template),
        };
        match recycled {
            Ok(true) => {}
            Ok(false) | Err(_) => self.make_blank(template),
        }
        recycled?;
        template.stage_ahead();
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

    /// What it holds between requests, its clone included.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// What the last run wrote, as far as that is known: told once.
    pub(crate) fn take_wrote_bytes(&mut self) -> Option<u64> {
        self.wrote_bytes.take()
    }

    /// Pages whose content is not the snapshot's; `read_page` fills one with that.
    pub(crate) fn changed_pages(
        &self,
        mut read_page: impl FnMut(u64, &mut [u8]) -> Result<(), Error>,
    ) -> Result<Vec<u64>, Error> {
        const PAGE: usize = dormouse_snapshot::PAGE_BYTES;
        let ram = self.shell().ok_or_else(lost)?.ram();
        let (mut now, mut then) = ([0; PAGE], [0; PAGE]);
        let mut changed = Vec::new();
        for page in 0..ram.len() / PAGE as u64 {
            ram.read(ram.base() + page * PAGE as u64, &mut now)?;
            read_page(page, &mut then)?;
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
    pub(crate) fn changed_state(&self, template: &Template) -> Result<Vec<&'static str>, Error> {
        let vm = self.clone_at_hand().ok_or_else(lost)?;
        Ok(vm.differences(&template.state().vm)?)
    }

    /// Sets the vCPU's state and gives all memory back.
    pub(crate) fn make_ready(&mut self, template: &Template) -> Result<(), Error> {
        self.set_state(template)?;
        self.make_blank(template);
        Ok(())
    }

    /// Gives back all memory that the clone holds, and maps the snapshot for the next one: nothing
    /// of it is in, so that costs no memory, and only what it touches is left to be brought in.
    pub(crate) fn make_blank(&mut self, template: &Template) {
        if self.is_blank() {
            return;
        }
        self.pager.detach();
        self.memory = Memory::Blank;
        self.held_bytes = INSTANCE_BYTES;
        if let Err(error) = self.map_ahead(template) {
            // The next restore tries again, and has somebody to tell.
            tracing::debug!(function = %template.name(), %error, "nothing was mapped ahead");
        }
    }

    fn map_ahead(&mut self, template: &Template) -> Result<(), Error> {
        let region = Arc::clone(self.shell().ok_or_else(lost)?.ram().region());
        let source = template.source();
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
    pub(crate) fn reset(&mut self, template: &Template) -> Result<bool, Error> {
        // KVM may write into guest memory while its state is set; so memory comes after that.
        self.set_state(template)?;
        self.roll_back(template)
    }

    /// Rolls the clone's memory back in place, if that can be done and is worth it.
    fn roll_back(&mut self, template: &Template) -> Result<bool, Error> {
        let Some(rollback) = template.rollback() else {
            return Ok(false);
        };
        let begun = Instant::now();
        match self.pager.roll_back(&rollback.plan())? {
            Rolled::Back(stats) => {
                template
                    .crossover
                    .rolled_back(stats.copied_pages, begun.elapsed());
                self.memory = Memory::RolledBack;
                self.expects_faults = false;
                self.wrote_bytes = Some((stats.copied_pages + stats.dropped_pages) * PAGE_BYTES);
                self.held_bytes = INSTANCE_BYTES + stats.copied_pages * PAGE_BYTES;
                Ok(true)
            }
            Rolled::Not { written_pages } => {
                self.wrote_bytes = Some(written_pages * PAGE_BYTES);
                Ok(false)
            }
        }
    }

    /// Adds what a recorded run touched to the function's working set. `Some` where the run was
    /// recorded: its clone was paged in page by page and is not worth keeping.
    fn learn(&mut self, template: &Template) -> Option<Option<WorkingSet>> {
        if !std::mem::take(&mut self.is_recording) {
            return None;
        }
        match self.pager.touched() {
            Ok(touched) => {
                let written = touched.written.iter().map(|run| run.end - run.start);
                self.wrote_bytes = Some(written.sum::<u64>() * PAGE_BYTES);
                Some(template.learn(touched))
            }
            Err(error) => {
                tracing::warn!(function = %template.name(), %error, "a run was not recorded");
                Some(None)
            }
        }
    }

    /// Sets the vCPU's state to the snapshot's, with a console of its own.
    fn set_state(&mut self, template: &Template) -> Result<(), Error> {
        let shell = match std::mem::replace(&mut self.guest, Guest::Lost) {
            Guest::Set(vm) => vm.into_shell(),
            Guest::Unset(shell) => shell,
            Guest::Lost => return Err(lost()),
        };
        self.console = Tail::default();
        let output = Box::new(self.console.clone());
        let vm = Vm::restore(shell, &template.state().vm, output, template.namer())?;
        self.guest = Guest::Set(Box::new(vm));
        Ok(())
    }
}

fn lost() -> Error {
    Error::Internal {
        operation: "restoring".into(),
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
