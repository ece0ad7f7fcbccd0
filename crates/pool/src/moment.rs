//! Points in time that another process of this host understands.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A point on `CLOCK_MONOTONIC`, nanoseconds: the same in all processes of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
        Self(seconds * 1_000_000_000 + nanoseconds)
    }

    /// The same point in time.
    pub(crate) fn of(instant: Instant) -> Self {
        let passed = u64::try_from(instant.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Self(Self::now().0.saturating_sub(passed))
    }

    /// How long ago it was.
    pub(crate) fn elapsed(self) -> Duration {
        Duration::from_nanos(Self::now().0.saturating_sub(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_and_its_moment_are_the_same() {
        let instant = Instant::now();
        let moment = Moment::of(instant);
        std::thread::sleep(Duration::from_millis(2));
        let least = moment.elapsed();
        let most = instant.elapsed() + Duration::from_millis(2);
        assert!(
            least >= Duration::from_millis(2) && least <= most,
            "{least:?}"
        );
    }
}
