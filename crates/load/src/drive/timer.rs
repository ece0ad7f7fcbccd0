//! Wakes at the microsecond. tokio's own timers know milliseconds only, which is longer than many
//! answers take.

use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Error;

/// A timer of the kernel's (timerfd_create(2)).
#[derive(Debug)]
pub(crate) struct Timer {
    fd: AsyncFd<OwnedFd>,
}

impl Timer {
    /// For use on the current runtime.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub(crate) fn new() -> Result<Self, Error> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|errno| Error::client("creating a timer")(errno.into()))?;
        // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, and the
        // `AsyncFd`, which nothing takes it out of, drops it after its registration.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(|error| Error::client("waiting for a timer")(error.into()))?;
        Ok(Self { fd })
    }

    /// Waits until a moment. It is waited for anew each time: a wait that was given up is forgotten.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub(crate) async fn until(&mut self, moment: Instant) -> Result<(), Error> {
        let wait = moment.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = Itimerspec {
            it_interval: zero,
            it_value: timespec(wait),
        };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once)
            .map_err(|errno| Error::client("setting a timer")(errno.into()))?;
        while Instant::now() < moment {
            let mut ready = self
                .fd
                .readable()
                .await
                .map_err(Error::client("waiting for a timer"))?;
            // What is not read counts on, and setting the timer again forgets it (timerfd_create(2)):
            // the next readiness is a new one, and each wait is one system call less.
            ready.clear_ready();
        }
        Ok(())
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_never_wakes_early_and_can_be_used_again() {
        let mut timer = Timer::new().unwrap();
        for wait_us in [0, 1, 50, 3000, 700] {
            let moment = Instant::now() + Duration::from_micros(wait_us);
            timer.until(moment).await.unwrap();
            assert!(Instant::now() >= moment);
        }
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_disturbs_no_other() {
        let mut timer = Timer::new().unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        let given_up = tokio::time::timeout(Duration::from_millis(1), timer.until(soon));
        assert!(given_up.await.is_err());
        tokio::time::sleep(Duration::from_millis(40)).await;
        let moment = Instant::now() + Duration::from_millis(30);
        timer.until(moment).await.unwrap();
        assert!(Instant::now() >= moment);
    }
}
