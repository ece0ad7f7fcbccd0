//! Room for connections. Where all of it is taken, whoever has been silent for the longest makes room
//! for the next: connections that send nothing cannot keep out those that do.
//!
//! Silent is a connection whose next bytes its client owes us, of a head or of a body. One whose
//! request runs here, or whose answer is on its way, is never closed for another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How long one that was asked to leave may take before another is asked.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// All there is.
#[derive(Debug)]
pub(crate) struct Seats {
    room: Arc<Semaphore>,
    silent: Arc<Mutex<Silent>>,
}

/// Those that can be asked to leave, the longest silent first.
#[derive(Debug, Default)]
struct Silent {
    next: u64,
    seats: BTreeMap<u64, Arc<Notify>>,
}

/// One connection's.
#[derive(Debug)]
pub(crate) struct Seat {
    silent: Arc<Mutex<Silent>>,
    /// Its key in there, since it became silent.
    key: Mutex<Option<u64>>,
    leave: Arc<Notify>,
    is_writing: AtomicBool,
    _room: OwnedSemaphorePermit,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes guard is consistent between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seats {
    pub(crate) fn new(connections: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(connections)),
            silent: Arc::default(),
        }
    }

    /// A seat for a connection that has come. Waits where none is free and nobody is silent.
    pub(crate) async fn take(&self) -> Arc<Seat> {
        loop {
            if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
                return self.seat(room);
            }
            let longest = lock(&self.silent).seats.pop_first();
            if let Some((_, leave)) = longest {
                leave.notify_one();
            }
            let left = Arc::clone(&self.room).acquire_owned();
            // Who was asked may have spoken at that moment, and another may have become silent.
            if let Ok(Ok(room)) = tokio::time::timeout(ASK_EVERY, left).await {
                return self.seat(room);
            }
        }
    }

    fn seat(&self, room: OwnedSemaphorePermit) -> Arc<Seat> {
        let seat = Seat {
            silent: Arc::clone(&self.silent),
            key: Mutex::default(),
            leave: Arc::default(),
            is_writing: AtomicBool::new(false),
            _room: room,
        };
        seat.is_silent();
        Arc::new(seat)
    }
}

impl Seat {
    /// The client has something to send.
    pub(crate) fn is_silent(&self) {
        let mut key = lock(&self.key);
        if key.is_none() {
            let mut silent = lock(&self.silent);
            let next = silent.next;
            silent.next += 1;
            silent.seats.insert(next, Arc::clone(&self.leave));
            *key = Some(next);
        }
    }

    /// The client has sent it.
    pub(crate) fn has_spoken(&self) {
        if let Some(key) = lock(&self.key).take() {
            lock(&self.silent).seats.remove(&key);
        }
    }

    /// Resolves when it is to make room. Spurious where the client has spoken since.
    pub(crate) async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }

    /// Whether nothing would be lost. Whoever stays for its answer alone can be asked again.
    pub(crate) fn may_leave(&self) -> bool {
        let is_silent = lock(&self.key).is_some();
        if is_silent && self.is_writing.load(Ordering::Acquire) {
            self.has_spoken();
            self.is_silent();
            return false;
        }
        is_silent
    }

    /// Whether bytes of an answer wait for the client to take them.
    pub(crate) fn set_writing(&self, is_writing: bool) {
        self.is_writing.store(is_writing, Ordering::Release);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.has_spoken();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets the seat go once it may, as its connection does.
    async fn leave(seat: Arc<Seat>) {
        loop {
            seat.asked_to_leave().await;
            if seat.may_leave() {
                return;
            }
        }
    }

    #[tokio::test]
    async fn who_was_asked_while_it_took_its_answer_is_asked_again() {
        let seats = Seats::new(1);
        let first = seats.take().await;
        first.set_writing(true);
        let leaving = tokio::spawn(leave(Arc::clone(&first)));
        let next = seats.take();
        tokio::pin!(next);
        let early = tokio::time::timeout(5 * ASK_EVERY, &mut next).await;
        assert!(early.is_err(), "it left without its answer");
        first.set_writing(false);
        drop(first);
        let second = tokio::time::timeout(Duration::from_secs(10), next).await;
        second.expect("it is asked again");
        leaving.await.unwrap();
    }
}
