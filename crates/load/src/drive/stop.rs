//! Ends runs before their time.

use tokio::sync::watch;

/// What a run is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Go on.
    Run,
    /// Send no more, and wait a little for what is under way.
    Finish,
    /// Wait for nothing.
    Abort,
}

/// Ends runs before their time, from any thread: at first gently, then at once.
#[derive(Debug, Clone)]
pub struct Stop {
    phase: watch::Sender<Phase>,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Run),
        }
    }
}

impl Stop {
    /// Asks for the end: the first time, what is under way is waited for, a few seconds at most;
    /// the second time, nothing is.
    pub fn ask(&self) {
        self.phase.send_modify(|phase| {
            *phase = match *phase {
                Phase::Run => Phase::Finish,
                _ => Phase::Abort,
            };
        });
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        *self.phase.borrow() != Phase::Run
    }

    /// Comes back when a run is told at least that.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut told = self.phase.subscribe();
        // The sender lives as long as this.
        let _ = told.wait_for(|now| *now >= phase).await;
    }
}
