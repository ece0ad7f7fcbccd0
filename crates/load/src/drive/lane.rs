//! What the requests of one thread share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::connections::Connections;
use super::exchange::exchange;
use super::stop::{Phase, Stop};
use crate::Plan;
use crate::recorder::{Answer, Failure, Recorder, Sample};

/// Requests under way, or waiting to be, at most: what comes then is not sent.
const MAX_UNDER_WAY: u64 = 100_000;
/// Requests that are under way when somebody ends the run have so long.
const PATIENCE: Duration = Duration::from_secs(3);

/// One thread's part of a run. Nothing else touches it, so its counters need no order.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) plan: Arc<Plan>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) begin: Instant,
    pub(crate) stop: Stop,
    recorder: Arc<Mutex<Recorder>>,
    under_way: AtomicU64,
    one_less: Notify,
}

impl Lane {
    pub(crate) fn new(
        plan: Arc<Plan>,
        connections: Arc<Connections>,
        begin: Instant,
        stop: Stop,
        recorder: Arc<Mutex<Recorder>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            plan,
            connections,
            begin,
            stop,
            recorder,
            under_way: AtomicU64::new(0),
            one_less: Notify::new(),
        })
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        lock(&self.recorder)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Sends a request that is due at a time after the beginning, without waiting for the answer.
    pub(crate) fn send(self: &Arc<Self>, request: usize, due: Duration) {
        let turned = self.elapsed();
        let under_way = self.under_way.load(Ordering::Relaxed) + 1;
        self.recorder().began(due, under_way);
        if under_way > MAX_UNDER_WAY {
            let example = format!("{MAX_UNDER_WAY} requests were under way");
            self.recorder().ended(&Sample {
                request,
                due,
                turned,
                sent: turned,
                done: turned,
                waited: true,
                outcome: Err(&Failure::new("not-sent", example)),
            });
            return;
        }
        self.under_way.store(under_way, Ordering::Relaxed);
        let lane = Arc::clone(self);
        tokio::spawn(async move {
            lane.serve(request, due, turned).await;
            lane.under_way.fetch_sub(1, Ordering::Relaxed);
            lane.one_less.notify_one();
        });
    }

    /// Sends a request now and waits for the end of it.
    pub(crate) async fn send_and_wait(&self, request: usize) {
        let now = self.elapsed();
        let under_way = self.under_way.load(Ordering::Relaxed) + 1;
        self.under_way.store(under_way, Ordering::Relaxed);
        self.recorder().began(now, under_way);
        self.serve(request, now, now).await;
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    async fn serve(&self, request: usize, due: Duration, turned: Duration) {
        let mut sent = None;
        let mut waited = false;
        let deadline = tokio::time::Instant::from_std(self.begin + due + self.plan.timeout);
        let outcome = tokio::select! {
            // What is ready counts before what ends it.
            biased;
            outcome = timeout_at(deadline, self.converse(request, &mut sent, &mut waited)) => {
                outcome.unwrap_or_else(|_| {
                    let example = format!("no whole answer within {:?}", self.plan.timeout);
                    Err(Failure::new("timeout", example))
                })
            }
            () = self.given_up() => {
                Err(Failure::new("unfinished", "the run was ended before the answer came"))
            }
        };
        let done = self.elapsed();
        self.recorder().ended(&Sample {
            request,
            due,
            turned,
            sent: sent.unwrap_or(done),
            done,
            waited,
            outcome: outcome.as_ref(),
        });
    }

    /// Comes back when nothing is to be waited for any more.
    async fn given_up(&self) {
        let patience = async {
            self.stop.reached(Phase::Finish).await;
            tokio::time::sleep(PATIENCE).await;
        };
        tokio::select! {
            () = patience => {}
            () = self.stop.reached(Phase::Abort) => {}
        }
    }

    async fn converse(
        &self,
        request: usize,
        sent: &mut Option<Duration>,
        waited: &mut bool,
    ) -> Result<Answer, Failure> {
        let Some(request) = self.plan.requests.get(request) else {
            return Err(Failure::new("not-sent", "the plan has no such request"));
        };
        let turn = self.connections.turn().await;
        *waited = turn.waited;
        let (mut connection, is_new) = turn.connect().await?;
        *sent = Some(self.elapsed());
        let mut answer = exchange(&mut connection, request).await;
        if answer.is_none() && !is_new {
            // It was closed while it was idle: that is the connection's end, not the request's.
            connection = turn.open().await?;
            *sent = Some(self.elapsed());
            answer = exchange(&mut connection, request).await;
        }
        let closed = || Failure::new("closed", "the connection was closed at once");
        let answer = answer.unwrap_or_else(|| Err(closed()));
        let is_whole = match &answer {
            Ok(_) => true,
            // A bad answer that was read to its end.
            Err(failure) => failure.status.is_some(),
        };
        if is_whole {
            turn.keep(connection);
        }
        answer
    }

    /// Waits for all that is under way.
    pub(crate) async fn drained(&self) {
        while self.under_way.load(Ordering::Relaxed) > 0 {
            self.one_less.notified().await;
        }
    }
}

/// A recorder is whole at any time.
pub(crate) fn lock(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}
