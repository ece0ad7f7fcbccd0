//! The two ways of sending: open and closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::lane::Lane;
use super::stop::Phase;
use super::timer::Timer;
use crate::Error;
use crate::arrivals::{Arrivals, Choice};

/// After so many requests that were overdue, answers are looked at.
const AT_ONCE: usize = 16;

/// Sends requests when they are due; of all, each `threads`-th from the `thread`-th on.
pub(crate) async fn open(
    lane: &Arc<Lane>,
    arrivals: &Arrivals,
    thread: usize,
    threads: usize,
) -> Result<(), Error> {
    let plan = &lane.plan;
    let schedule = arrivals.schedule(plan.length(), &plan.weights, plan.seed)?;
    let mut timer = Timer::new()?;
    let stopped = lane.stop.reached(Phase::Finish);
    tokio::pin!(stopped);
    let mut overdue = 0;
    for arrival in schedule.skip(thread).step_by(threads) {
        if arrival.at > lane.elapsed() {
            overdue = 0;
            tokio::select! {
                () = &mut stopped => return Ok(()),
                waited = timer.until(lane.begin + arrival.at) => waited?,
            }
        } else {
            overdue += 1;
            if overdue % AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
            if lane.stop.is_asked() {
                return Ok(());
            }
        }
        lane.send(arrival.request, arrival.at);
    }
    // The run lasts as long as it was meant to, also where its last request came early.
    tokio::select! {
        () = &mut stopped => {}
        waited = timer.until(lane.begin + plan.length()) => waited?,
    }
    Ok(())
}

/// Clients that each send one request after the other.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    /// Numbers of the clients: their random choices differ.
    pub(crate) numbers: std::ops::Range<u64>,
    pub(crate) think: Duration,
    pub(crate) requests: Option<u64>,
}

/// Lets clients send, and waits for them. `sent` counts what all threads have sent after the
/// warm-up.
pub(crate) async fn closed(
    lane: &Arc<Lane>,
    clients: Clients,
    sent: &AtomicU64,
) -> Result<(), Error> {
    let plan = &lane.plan;
    let (think, most) = (clients.think, clients.requests.unwrap_or(u64::MAX));
    let mut tasks = Vec::new();
    for number in clients.numbers {
        let mut choice = Choice::new(&plan.weights, plan.seed.wrapping_add(number))?;
        let mut timer = Timer::new()?;
        tasks.push(async move {
            while lane.elapsed() < plan.length() && !lane.stop.is_asked() {
                if lane.elapsed() >= plan.warmup && sent.fetch_add(1, Ordering::Relaxed) >= most {
                    break;
                }
                lane.send_and_wait(choice.next()).await;
                if !think.is_zero() {
                    let next = lane.begin + (lane.elapsed() + think).min(plan.length());
                    tokio::select! {
                        () = lane.stop.reached(Phase::Finish) => {}
                        waited = timer.until(next) => waited?,
                    }
                }
            }
            Ok(())
        });
    }
    futures_util::future::try_join_all(tasks).await.map(|_| ())
}
