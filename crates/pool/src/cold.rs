//! A request that is answered without the snapshot: the stored image is booted for it, answers in that
//! very guest, and is gone.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::deploy::{Booted, elapsed_us, whole_us};
use crate::error::Error;
use crate::function::Function;
use crate::instance::Order;
use crate::machine::{answer, envelope};
use crate::message::{Outcome, Preparation, StartType, Timings};

/// The right to boot, for one request.
pub(crate) struct ColdStart {
    pub(crate) turn: OwnedSemaphorePermit,
}

impl ColdStart {
    /// Boots the function's image for the request. The receiver fails where that panicked.
    pub(crate) fn send(
        self,
        function: Arc<Function>,
        mut order: Order,
    ) -> oneshot::Receiver<Result<Outcome, Error>> {
        let (reply, received) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let mut guest = None;
            let outcome = self.serve(&function, &order, &mut guest);
            function.traffic.record(&outcome);
            order.leave.settle(&outcome);
            // Nobody waits until the guest is gone, but what the order reserved is held that long.
            let _ = reply.send(outcome);
            drop(guest);
            drop(order);
        });
        received
    }

    /// Boots and answers, and leaves the guest in `guest`.
    fn serve(
        self,
        function: &Function,
        order: &Order,
        guest: &mut Option<Booted>,
    ) -> Result<Outcome, Error> {
        let begun = Instant::now();
        let image = function.image()?;
        let booted = Booted::new(&image, function.config(), &function.guests)?;
        let Booted {
            vm,
            mailbox,
            console,
            ..
        } = guest.insert(booted);
        let boot_us = elapsed_us(begun);
        drop(self.turn);

        let in_hand = Instant::now();
        let limit = function.timeout();
        let asked = envelope(limit)?;
        let put = mailbox.put(vm, &order.request, &asked);
        let restore_us = elapsed_us(in_hand);
        let begun = Instant::now();
        let (result, handler_tsc) = match put {
            Ok(()) => {
                let stop = vm.run(begun + limit)?;
                answer(vm, stop, limit, &asked, console)
            }
            Err(failure) => (Ok(Err(failure)), 0),
        };
        let outcome = Outcome {
            start: StartType::Cold,
            timings: Timings {
                queue_us: whole_us(in_hand - order.arrival),
                restore_us,
                run_us: elapsed_us(begun),
                handler_us: vm.into_run(handler_tsc).map(whole_us),
                ..Timings::default()
            },
            result: result?,
            console: console.text(),
        };
        let before = order.preparation;
        Ok(outcome.prepared(Preparation {
            // It may have been booted before, to have a snapshot that fits this host.
            boot_us: Some(boot_us + before.boot_us.unwrap_or(0)),
            ..before
        }))
    }
}
