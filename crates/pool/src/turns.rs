//! The places to run in that a pool has, given out fairly.
//!
//! Of the functions that wait, the one that runs the fewest invocations gets the next place; among
//! equals, the one whose last place was given the longest ago. Within a function, who came first is
//! served first. So a function that is alone gets all places, and one that floods the pool keeps
//! another waiting for no longer than it takes until the next place is free.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_snapshot::FunctionName;
use tokio::sync::{Notify, oneshot};

/// All places of a pool.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Mutex<State>,
    /// Told whenever no place is taken.
    idle: Notify,
}

#[derive(Debug)]
struct State {
    /// Nobody waits while this is not 0.
    free: usize,
    places: usize,
    /// How many places were given out so far.
    given: u64,
    lanes: HashMap<FunctionName, Lane>,
}

/// One function that runs or waits.
#[derive(Debug, Default)]
struct Lane {
    running: usize,
    /// When it last got a place, as a number of [`State::given`].
    last_given: u64,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    function: FunctionName,
}

impl Turns {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                free: places,
                places,
                given: 0,
                lanes: HashMap::new(),
            }),
            idle: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each method leaves it consistent, and none can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if one is free.
    pub(crate) fn try_take(self: &Arc<Self>, function: &FunctionName) -> Option<Turn> {
        let mut state = self.lock();
        if state.free == 0 {
            return None;
        }
        state.free -= 1;
        state.give_to(function);
        Some(self.turn(function))
    }

    /// Waits for a place. Who stops waiting leaves the queue.
    pub(crate) async fn take(self: &Arc<Self>, function: &FunctionName) -> Turn {
        loop {
            let given = {
                let mut state = self.lock();
                if state.free > 0 {
                    state.free -= 1;
                    state.give_to(function);
                    return self.turn(function);
                }
                let lane = state.lanes.entry(function.clone()).or_default();
                // Those that left would pile up here for as long as no place becomes free.
                lane.waiting.retain(|waiting| !waiting.is_closed());
                let (give, given) = oneshot::channel();
                lane.waiting.push_back(give);
                given
            };
            // It fails where the queue is gone, which it is not as long as this is borrowed.
            if let Ok(turn) = given.await {
                return turn;
            }
        }
    }

    /// Waits until no place is taken.
    pub(crate) async fn idle(&self) {
        loop {
            let told = self.idle.notified();
            {
                let state = self.lock();
                if state.free == state.places {
                    return;
                }
            }
            told.await;
        }
    }

    fn turn(self: &Arc<Self>, function: &FunctionName) -> Turn {
        Turn {
            turns: Arc::clone(self),
            function: function.clone(),
        }
    }

    /// Takes a place back and hands it to who is next.
    fn give_back(self: &Arc<Self>, function: &FunctionName) {
        let next = {
            let mut state = self.lock();
            state.leave(function);
            let next = state.next();
            if next.is_none() {
                state.free += 1;
                if state.free == state.places {
                    self.idle.notify_waiters();
                }
            }
            next
        };
        if let Some((function, give)) = next {
            // Who has left meanwhile gives it back here, by dropping it.
            let _ = give.send(self.turn(&function));
        }
    }
}

impl State {
    fn give_to(&mut self, function: &FunctionName) {
        self.given += 1;
        let lane = self.lanes.entry(function.clone()).or_default();
        lane.running += 1;
        lane.last_given = self.given;
    }

    fn leave(&mut self, function: &FunctionName) {
        if let Some(lane) = self.lanes.get_mut(function) {
            lane.running -= 1;
        }
    }

    /// Picks who gets a place that is free, and counts it as running.
    fn next(&mut self) -> Option<(FunctionName, oneshot::Sender<Turn>)> {
        self.lanes.retain(|_, lane| {
            while lane.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                lane.waiting.pop_front();
            }
            lane.running > 0 || !lane.waiting.is_empty()
        });
        let waiting = self.lanes.iter_mut();
        let (function, lane) = waiting
            .filter(|(_, lane)| !lane.waiting.is_empty())
            .min_by_key(|(_, lane)| (lane.running, lane.last_given))?;
        let give = lane.waiting.pop_front()?;
        let function = function.clone();
        self.give_to(&function);
        Some((function, give))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.give_back(&self.function);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(text: &str) -> FunctionName {
        FunctionName::new(text).unwrap()
    }

    /// Puts `count` requests of a function into the queue; each says its name once it has its turn.
    fn queue(
        turns: &Arc<Turns>,
        function: &str,
        count: usize,
        served: &tokio::sync::mpsc::UnboundedSender<(String, Turn)>,
    ) {
        for _ in 0..count {
            let (turns, function, served) = (Arc::clone(turns), name(function), served.clone());
            tokio::spawn(async move {
                let turn = turns.take(&function).await;
                served.send((function.to_string(), turn)).unwrap();
            });
        }
    }

    async fn settle() {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_function_that_is_alone_gets_all_places() {
        let turns = Turns::new(3);
        let all: Vec<_> = (0..3)
            .map(|_| turns.try_take(&name("a")).unwrap())
            .collect();
        assert!(turns.try_take(&name("a")).is_none());
        assert!(turns.try_take(&name("b")).is_none());
        drop(all);
        turns.idle().await;
        assert!(turns.lock().lanes.values().all(|lane| lane.running == 0));
    }

    #[tokio::test]
    async fn the_next_place_goes_to_who_runs_the_fewest() {
        let turns = Turns::new(4);
        let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
        let mut running: Vec<_> = (0..4)
            .map(|_| turns.try_take(&name("flood")).unwrap())
            .collect();
        queue(&turns, "flood", 200, &served);
        settle().await;
        queue(&turns, "other", 3, &served);
        settle().await;
        // The last to come, and the first to be served until both run two.
        for expected in ["other", "other", "flood", "flood", "other"] {
            running.pop();
            let (function, turn) = order.recv().await.unwrap();
            assert_eq!(function, expected);
            running.insert(0, turn);
        }
    }

    #[tokio::test]
    async fn equals_take_turns() {
        let turns = Turns::new(1);
        let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
        let first = turns.try_take(&name("a")).unwrap();
        for function in ["a", "b", "c"] {
            queue(&turns, function, 4, &served);
            settle().await;
        }
        drop(first);
        let mut seen = String::new();
        for _ in 0..12 {
            let (function, turn) = order.recv().await.unwrap();
            seen.push_str(&function);
            drop(turn);
        }
        let mut rounds: Vec<_> = seen.as_bytes().chunks(3).map(<[u8]>::to_vec).collect();
        for round in &mut rounds {
            round.sort_unstable();
            assert_eq!(round, b"abc", "{seen}");
        }
    }

    #[tokio::test]
    async fn who_stops_waiting_takes_no_place_along() {
        let turns = Turns::new(1);
        let held = turns.try_take(&name("a")).unwrap();
        for _ in 0..50 {
            let (turns, a) = (Arc::clone(&turns), name("a"));
            let gone = tokio::time::timeout(Duration::from_millis(1), turns.take(&a)).await;
            assert!(gone.is_err());
        }
        assert!(turns.lock().lanes[&name("a")].waiting.len() <= 1);
        let waiting = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.take(&name("b")).await }
        });
        settle().await;
        drop(held);
        drop(waiting.await.unwrap());
        turns.idle().await;
        assert!(turns.try_take(&name("a")).is_some());
    }
}
