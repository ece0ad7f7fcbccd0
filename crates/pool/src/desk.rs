//! The other side of an instance: the thread that its VM lives on.
//!
//! Should Dormouse itself panic on it, that is the end of this instance alone: what it had unwinds with
//! it, its caller learns that its answer will never come, and a new one is built.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::allowance::Allowance;
use crate::deploy::elapsed_us;
use crate::error::Failure;
use crate::instance::{Job, Parked, Said, Told};
use crate::machine::Machine;
use crate::template::Template;

/// How an instance's thread hears and speaks.
pub(crate) trait Desk {
    /// What it is told next; nothing once nobody will tell it anything any more.
    fn next(&mut self) -> Option<Told>;

    /// Says something, to whoever still listens.
    fn say(&mut self, said: Said);
}

/// Builds, then serves until nobody is there any more or the instance is retired.
pub(crate) fn serve(template: &Template, allowance: Allowance, desk: &mut impl Desk) {
    // What is shared with other threads is consistent between any two statements.
    let serving = AssertUnwindSafe(|| {
        let allowance = Arc::new(allowance);
        #[cfg(test)]
        crate::instance::tests::pass(template.name(), crate::instance::tests::Step::Build);
        // What kept it from being built may be gone when it is needed.
        let mut built = Machine::build(template, &allowance).ok();
        while let Some(told) = desk.next() {
            match told {
                Told::GiveBack => {
                    if let Some(machine) = &mut built {
                        machine.make_blank(template);
                    }
                }
                Told::Serve(job) => {
                    let end = serve_one(template, &allowance, &mut built, *job, desk);
                    let is_over = matches!(end, Said::Retired);
                    if is_over {
                        // Gone before anybody is told.
                        built = None;
                    }
                    desk.say(end);
                    if is_over {
                        return;
                    }
                }
            }
        }
    });
    if catch_unwind(serving).is_err() {
        tracing::error!(function = %template.name(), "an instance's thread panicked and is replaced");
        desk.say(Said::Retired);
    }
}

/// Answers one request, and gets ready for the next. Tells how that came out.
fn serve_one(
    template: &Template,
    allowance: &Arc<Allowance>,
    built: &mut Option<Machine>,
    job: Job,
    desk: &mut impl Desk,
) -> Said {
    allowance.set(job.granted_bytes);
    let mut clear_us = None;
    let outcome = built
        .take()
        .map_or_else(|| Machine::build(template, allowance), Ok)
        .and_then(|mut machine| {
            if job.wants_fresh && !machine.is_blank() {
                let begun = Instant::now();
                machine.make_blank(template);
                clear_us = Some(elapsed_us(begun));
            }
            #[cfg(test)]
            crate::instance::tests::pass(template.name(), crate::instance::tests::Step::Run);
            let outcome = machine.invoke(template, &job.request, job.ids, job.arrival);
            *built = Some(machine);
            outcome
        });
    let is_healthy = outcome
        .as_ref()
        .is_ok_and(|outcome| matches!(outcome.result, Ok(_) | Err(Failure::Reported { .. })));
    desk.say(Said::Done {
        outcome: Box::new(outcome.map_err(Into::into)),
        clear_us,
    });
    let machine = built
        .as_mut()
        .filter(|machine| is_healthy && machine.is_alive());
    let Some(machine) = machine else {
        return Said::Retired;
    };
    #[cfg(test)]
    crate::instance::tests::pass(template.name(), crate::instance::tests::Step::Recycle);
    let learned = match machine.recycle(template) {
        Ok(learned) => learned,
        Err(error) => {
            tracing::warn!(function = %template.name(), %error, "an instance was not recycled");
            if !machine.is_alive() {
                return Said::Retired;
            }
            None
        }
    };
    Said::Parked(Parked {
        held_bytes: machine.held_bytes(),
        wrote_bytes: machine.take_wrote_bytes(),
        known: template.known(),
        learned,
        is_blank: machine.is_blank(),
    })
}
