//! A request that is answered without the snapshot: the stored image is booted for it, answers in that
//! very guest, and is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::config::FunctionConfig;
use crate::deploy::{Booted, elapsed_us, whole_us};
use crate::error::Error;
use crate::function::Function;
use crate::ids::Ids;
use crate::instance::Order;
use crate::interrupters::Interrupters;
use crate::machine::answer;
use crate::mailbox::Encoded;
use crate::message::{Outcome, Preparation, StartType, Timings};
use crate::moment::Moment;

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
            let outcome = self.serve(&function, &mut order);
            function.traffic.record(&outcome);
            order.leave.settle(&outcome);
            let _ = reply.send(outcome);
            drop(order);
        });
        received
    }

    /// Boots and answers.
    fn serve(self, function: &Function, order: &mut Order) -> Result<Outcome, Error> {
        let begun = Instant::now();
        let image = function.image()?;
        let read_us = elapsed_us(begun);
        let job = ColdJob {
            config: function.config().clone(),
            request: std::mem::take(&mut order.request),
            ids: Ids::next(),
            arrival: Moment::of(order.arrival),
            timeout_ms: function.config().timeout_ms,
        };
        let workers = &function.shared().workers;
        let booted = || drop(self.turn);
        let cold = workers.cold(&image, job, &function.shared().guests, booted)?;
        let before = order.preparation;
        Ok(cold.outcome.prepared(Preparation {
            // It may have been booted before, to have a snapshot that fits this host.
            boot_us: Some(read_us + cold.boot_us + before.boot_us.unwrap_or(0)),
            ..before
        }))
    }
}

/// A request for a guest that is booted for it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ColdJob {
    config: FunctionConfig,
    request: Encoded,
    ids: Ids,
    arrival: Moment,
    timeout_ms: u64,
}

impl ColdJob {
    /// How long the boot and the answer may take together.
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_millis(self.config.init_timeout_ms.saturating_add(self.timeout_ms))
    }
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cold {
    outcome: Outcome,
    boot_us: u64,
}

/// Boots and answers. `booted` is called in between.
///
/// # Errors
/// As [`Booted::new`], or what kept the guest from being run.
pub(crate) fn answer_cold(
    image: &[u8],
    job: &ColdJob,
    guests: &Interrupters,
    booted: impl FnOnce(),
) -> Result<Cold, Error> {
    let begun = Instant::now();
    let Booted {
        mut vm,
        mailbox,
        console,
        ..
    } = Booted::new(image, &job.config, guests)?;
    let boot_us = elapsed_us(begun);
    booted();

    let in_hand = Instant::now();
    let waited = job.arrival.elapsed();
    let limit = Duration::from_millis(job.timeout_ms);
    let asked = job.ids.envelope(limit)?;
    let put = mailbox.put(&vm, &job.request, &asked);
    let restore_us = elapsed_us(in_hand);
    let begun = Instant::now();
    let (result, handler_tsc) = match put {
        Ok(()) => {
            let stop = vm.run(begun + limit)?;
            answer(&vm, stop, limit, &asked, &console)
        }
        Err(failure) => (Ok(Err(failure)), 0),
    };
    let outcome = Outcome {
        start: StartType::Cold,
        timings: Timings {
            queue_us: whole_us(waited),
            restore_us,
            run_us: elapsed_us(begun),
            handler_us: vm.into_run(handler_tsc).map(whole_us),
            ..Timings::default()
        },
        result: result?,
        console: console.text(),
    };
    Ok(Cold { outcome, boot_us })
}
