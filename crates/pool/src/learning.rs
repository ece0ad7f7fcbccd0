//! What a function's invocations touch: recorded, united, made use of, and recorded again once it has
//! changed.
//!
//! ```text
//!   recording ── 1 exact run ──► refining ── 2 runs ──► known
//!                                   ▲                     │
//!                                   └── too many faults were not predicted
//! ```
//!
//! Only the first run is recorded fault by fault. The next ones get all of it mapped and nothing
//! copied ahead: so their faults are pages that it lacks, and what they have of their own is what
//! they wrote.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use dormouse_pager::{Policy, Source, Touched, WorkingSetPlan};
use dormouse_snapshot::WorkingSet;

use crate::error::Error;
use crate::message::Timings;
use crate::paging::Paging;

/// How many invocations the working set is made from.
const RECORDED_RUNS: usize = 3;

/// In how many of them a page must have been written to be copied ahead: a copy costs memory in
/// every clone. Touched in one run is enough to be mapped ahead, which costs next to nothing.
const AGREEING_RUNS: usize = 2;

/// The share of faults, of the pages that were predicted, from which the set has drifted.
const DRIFTED: f64 = 0.05;
/// Over how many invocations the share is taken, at first; twice as many after each time that the
/// set was recorded again, since some functions touch something else at each request.
const DRIFT_WINDOW: u64 = 32;

/// How far the working set is known.
pub(crate) struct Learning {
    paging: Paging,
    state: State,
    window: u64,
    drift: Drift,
    /// The share of the window before.
    last_share: f64,
}

enum State {
    /// Some runs are still to be learned from.
    Recording {
        /// What the runs before touched: all of it for the first, for the others what they wrote and
        /// what was not mapped.
        runs: Vec<WorkingSet>,
        policy: Policy,
    },
    /// Known, and made use of.
    Known {
        set: Arc<WorkingSet>,
        policy: Policy,
    },
    /// Not to be had; pages come in when they are touched.
    Unknown,
}

/// Faults that were not predicted, against pages that were.
#[derive(Debug, Clone, Copy, Default)]
struct Drift {
    invocations: u64,
    faults: u64,
    predicted_pages: u64,
}

impl Drift {
    fn share(&self) -> f64 {
        self.faults as f64 / self.predicted_pages.max(1) as f64
    }
}

impl Learning {
    /// Begins with the set that is stored with the snapshot, if there is one.
    pub(crate) fn new(
        source: &Source,
        paging: Paging,
        known: Option<WorkingSet>,
    ) -> Result<Self, Error> {
        let state = match known {
            Some(set) => State::known(source, paging, Arc::new(set))?,
            None => State::Recording {
                runs: Vec::new(),
                policy: Policy::Record,
            },
        };
        Ok(Self {
            paging,
            state,
            window: DRIFT_WINDOW,
            drift: Drift::default(),
            last_share: 0.0,
        })
    }

    /// How the next clone gets its memory.
    pub(crate) fn policy(&self) -> Policy {
        match &self.state {
            State::Recording { policy, .. } | State::Known { policy, .. } => policy.clone(),
            State::Unknown => Policy::Lazy,
        }
    }

    /// Pages another way from now on.
    ///
    /// # Errors
    /// Where that cannot be prepared; all stays as it is.
    pub(crate) fn set_paging(&mut self, source: &Source, paging: Paging) -> Result<(), Error> {
        if let State::Known { set, .. } = &self.state {
            self.state = State::known(source, paging, Arc::clone(set))?;
        }
        self.paging = paging;
        Ok(())
    }

    /// The set, once it is known.
    pub(crate) fn known(&self) -> Option<&Arc<WorkingSet>> {
        match &self.state {
            State::Known { set, .. } => Some(set),
            State::Recording { .. } | State::Unknown => None,
        }
    }

    /// Whether there is something to learn from the next run.
    pub(crate) fn wants_runs(&self) -> bool {
        matches!(self.state, State::Recording { .. })
    }

    /// The share of faults that were not predicted, of the pages that were: of late.
    pub(crate) fn drift(&self) -> f64 {
        if self.drift.invocations > 0 {
            self.drift.share()
        } else {
            self.last_share
        }
    }

    /// Adds a recorded run. With the last one the set is known: returned to be stored.
    ///
    /// # Errors
    /// Where the set cannot be made use of; pages come in lazily from then on.
    pub(crate) fn learn(
        &mut self,
        source: &Source,
        run: Touched,
    ) -> Result<Option<WorkingSet>, Error> {
        let State::Recording { runs, policy } = &mut self.state else {
            return Ok(None);
        };
        // Only of an exact run is all that is there known to have been touched.
        let read = match policy {
            Policy::Record => run.read,
            _ => Vec::new(),
        };
        runs.push(WorkingSet::from_touched(
            run.order.into_iter().chain(read.into_iter().flatten()),
            run.written.into_iter().flatten(),
        ));
        let state = if runs.len() < RECORDED_RUNS {
            State::refining(source, std::mem::take(runs))
        } else {
            State::known(source, self.paging, Arc::new(united(runs)))
        };
        self.drift = Drift::default();
        self.state = state.unwrap_or(State::Unknown);
        match &self.state {
            State::Known { set, .. } => Ok(Some(WorkingSet::clone(set))),
            State::Recording { .. } | State::Unknown => Ok(None),
        }
    }

    /// Counts an invocation against what was predicted. True where the set has drifted and is
    /// recorded again from now on.
    pub(crate) fn note(&mut self, source: &Source, timings: &Timings) -> bool {
        let State::Known { set, .. } = &self.state else {
            return false;
        };
        if !self.paging.predicts() {
            return false;
        }
        self.drift.invocations += 1;
        self.drift.faults += timings.faults;
        self.drift.predicted_pages += set.pages();
        if self.drift.invocations < self.window {
            return false;
        }
        // One fault in ten invocations is not worth three slow ones, however small the set.
        let is_noticed = self.drift.faults * 10 > self.drift.invocations;
        let has_drifted = is_noticed && self.drift.share() > DRIFTED;
        self.last_share = self.drift.share();
        self.drift = Drift::default();
        if has_drifted {
            self.window = self.window.saturating_mul(2);
            let before = vec![WorkingSet::clone(set)];
            if let Ok(refining) = State::refining(source, before) {
                self.state = refining;
            }
        }
        has_drifted
    }
}

impl State {
    /// Maps all that the runs touched and copies nothing, so that what the next run writes shows.
    fn refining(source: &Source, runs: Vec<WorkingSet>) -> Result<Self, Error> {
        let touched: Vec<_> = runs.iter().flat_map(|run| run.merged(0)).collect();
        let plan = WorkingSetPlan::new(source, &touched, &[])?;
        let policy = Policy::WorkingSet(Arc::new(plan));
        Ok(Self::Recording { runs, policy })
    }

    fn known(source: &Source, paging: Paging, set: Arc<WorkingSet>) -> Result<Self, Error> {
        let policy = paging.policy(source, &set)?;
        Ok(Self::Known { set, policy })
    }
}

/// What the runs touched, in the order in which the first of them did. Written is what enough of
/// them wrote. What one run alone touched is left out where it is more than all that they share: an
/// odd request, with a large body for example, says nothing of the others.
fn united(runs: &[WorkingSet]) -> WorkingSet {
    let mut touched: HashMap<u64, usize> = HashMap::new();
    let mut written: HashMap<u64, usize> = HashMap::new();
    for run in runs {
        for &page in &run.order {
            *touched.entry(page).or_default() += 1;
        }
        for page in run.written.iter().cloned().flatten() {
            *written.entry(page).or_default() += 1;
        }
    }
    // What the first run read was mapped for the others: nobody knows whether they touched it.
    for page in runs
        .iter()
        .take(1)
        .flat_map(|run| run.read.iter().cloned().flatten())
    {
        touched.insert(page, AGREEING_RUNS);
    }
    let agreed = touched
        .values()
        .filter(|&&count| count >= AGREEING_RUNS)
        .count();
    let is_odd = |run: &WorkingSet| {
        let alone = run.order.iter().filter(|&page| touched[page] == 1).count();
        alone > agreed
    };
    let order = runs.iter().flat_map(|run| {
        let is_odd = is_odd(run);
        let touched = &touched;
        run.order
            .iter()
            .copied()
            .filter(move |page| !is_odd || touched[page] >= AGREEING_RUNS)
    });
    let agreed = |(&page, &count): (&u64, &usize)| (count >= AGREEING_RUNS).then_some(page);
    WorkingSet::from_touched(order, written.iter().filter_map(agreed))
}

/// The pages of some sorted ranges, with gaps of one page closed as a plan closes them.
pub(crate) fn kept(written: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(written.len());
    for range in written {
        match joined.last_mut() {
            Some(last) if range.start <= last.end + 1 => last.end = range.end,
            _ => joined.push(range.clone()),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "tables of one range are meant"
    )]

    use super::*;

    fn run(read: &[u64], written: &[u64]) -> Touched {
        let ranges = |pages: &[u64]| pages.iter().map(|&page| page..page + 1).collect();
        Touched {
            order: read.iter().chain(written).copied().collect(),
            read: ranges(read),
            written: ranges(written),
        }
    }

    fn source() -> Source {
        Source::not_local(4096, Arc::new([0..4096]), Arc::new(|_, _| Ok(()))).unwrap()
    }

    fn learning() -> Learning {
        Learning::new(&source(), Paging::WorkingSet, None).unwrap()
    }

    fn learned(runs: [Touched; 3]) -> WorkingSet {
        let mut learning = learning();
        assert!(matches!(learning.policy(), Policy::Record));
        let learned = runs.map(|run| learning.learn(&source(), run).unwrap());
        let [None, None, Some(set)] = learned else {
            panic!("known too early or too late")
        };
        assert!(!learning.wants_runs());
        assert!(matches!(learning.policy(), Policy::WorkingSet(_)));
        set
    }

    fn faults(faults: u64) -> Timings {
        Timings {
            faults,
            ..Timings::default()
        }
    }

    #[test]
    fn only_the_first_run_is_recorded_fault_by_fault() {
        let mut learning = learning();
        learning.learn(&source(), run(&[1, 2], &[5])).unwrap();
        assert!(learning.wants_runs() && learning.known().is_none());
        let Policy::WorkingSet(plan) = learning.policy() else {
            panic!("the second run is recorded page by page, too")
        };
        assert_eq!(plan.pages(), 5, "of pages 1 to 5, gaps included");
    }

    #[test]
    fn sets_are_united_and_agreed_writes_are_copied_ahead() {
        // The later runs tell only what they wrote and what was not mapped for them.
        let set = learned([
            run(&[1, 2, 7], &[5, 8]),
            run(&[3], &[5, 6]),
            run(&[6], &[5]),
        ]);
        assert_eq!(set.order, [1, 2, 7, 5, 8, 3, 6]);
        assert_eq!(set.written, [5..6], "pages 6 and 8 were written once only");
        assert_eq!(set.read, [1..4, 6..9]);
    }

    #[test]
    fn an_odd_request_is_left_out() {
        let large: Vec<u64> = (100..2000).collect();
        let with_large = |read: &[u64]| run(read, &[&[5], &large[..]].concat());
        for (first, second) in [
            (run(&[1, 2], &[5]), with_large(&[3])),
            (with_large(&[1, 2, 3]), run(&[], &[5])),
        ] {
            let set = learned([first, second, run(&[9], &[5])]);
            assert_eq!(set.written, [5..6]);
            assert!(set.pages() < 10, "{set:?}");
            assert!(set.order.contains(&1) && set.order.contains(&9));
        }
    }

    #[test]
    fn a_set_that_has_drifted_is_recorded_again_on_top() {
        let mut learning = learning();
        for _ in 0..3 {
            learning.learn(&source(), run(&[1, 2], &[3])).unwrap();
        }
        for _ in 0..DRIFT_WINDOW {
            assert!(!learning.note(&source(), &faults(0)));
        }
        for _ in 1..DRIFT_WINDOW {
            assert!(!learning.note(&source(), &faults(1)));
        }
        assert!(learning.drift() > 0.3);
        assert!(
            learning.note(&source(), &faults(1)),
            "a third of the set was not predicted"
        );
        assert!(learning.wants_runs());
        assert!(
            matches!(learning.policy(), Policy::WorkingSet(_)),
            "what is known is mapped meanwhile"
        );
        assert_eq!(learning.learn(&source(), run(&[9], &[3])).unwrap(), None);
        let set = learning.learn(&source(), run(&[], &[3])).unwrap().unwrap();
        assert_eq!(set.order, [1, 2, 3, 9]);
        assert_eq!(set.written, [3..4]);
        // It takes longer to be convinced again.
        for _ in 0..DRIFT_WINDOW {
            assert!(!learning.note(&source(), &faults(1)));
        }
    }

    #[test]
    fn gaps_are_kept_as_a_plan_copies_them() {
        assert_eq!(kept(&[1..2, 3..4, 6..7]), [1..4, 6..7]);
    }
}
