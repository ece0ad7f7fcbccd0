//! Takes note of every request of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::HeaderName;

use crate::breakdown::Breakdown;
use crate::record::{ErrorStats, Share, Slice};
use crate::{Histogram, server_timing};

const START_TYPE: HeaderName = HeaderName::from_static("x-start-type");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Different names that a target may give to stages, starts and errors: what comes after is counted
/// as `other`.
const MAX_NAMES: usize = 32;
/// Slices of a run, at most. None is shorter than a tenth of a second.
const SLICES: u32 = 300;

/// A request that has ended. Times are from the run's beginning.
#[derive(Debug)]
pub(crate) struct Sample<'a> {
    /// Which of the plan's requests.
    pub(crate) request: usize,
    /// When it was meant to be sent.
    pub(crate) due: Duration,
    /// When the client turned to it.
    pub(crate) turned: Duration,
    /// When it had a connection and was sent.
    pub(crate) sent: Duration,
    /// When it ended.
    pub(crate) done: Duration,
    /// Whether it waited for a connection to become free.
    pub(crate) waited: bool,
    /// How it ended.
    pub(crate) outcome: Result<&'a Answer, &'a Failure>,
}

/// A good answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body_bytes: u64,
}

/// Why a request has no good answer.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The kind, for counting.
    pub(crate) kind: String,
    /// What happened, in one line.
    pub(crate) example: String,
    /// The status, where there was one.
    pub(crate) status: Option<u16>,
}

/// What a run's requests add up to.
#[derive(Debug)]
pub(crate) struct Recorder {
    warmup: Duration,
    end: Duration,
    slice: Duration,
    pub(crate) offered: u64,
    pub(crate) answered: u64,
    pub(crate) answered_in_time: u64,
    pub(crate) failed: u64,
    pub(crate) body_bytes: u64,
    pub(crate) waited: u64,
    pub(crate) latency: Histogram,
    pub(crate) service: Histogram,
    pub(crate) failures: Histogram,
    pub(crate) lag: Histogram,
    pub(crate) errors: BTreeMap<String, ErrorStats>,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) starts: Named<Share>,
    pub(crate) requests: Vec<Share>,
    pub(crate) stages: Named<Histogram>,
    pub(crate) breakdown: Breakdown,
    pub(crate) slices: Vec<Slice>,
    /// Latency of what ended since somebody last looked.
    recent: Histogram,
}

/// Values by names that come from the target.
#[derive(Debug, Clone, Default)]
pub(crate) struct Named<T> {
    entries: Vec<(String, T)>,
}

impl<T: Default> Named<T> {
    /// The value of a name: where there are too many names, that of all others.
    pub(crate) fn of(&mut self, name: &str) -> &mut T {
        let place = match self.entries.iter().position(|(known, _)| known == name) {
            Some(place) => place,
            None if self.entries.len() < MAX_NAMES => {
                self.entries.push((name.to_owned(), T::default()));
                self.entries.len() - 1
            }
            None => self.others(),
        };
        &mut self.entries[place].1
    }

    fn others(&mut self) -> usize {
        const OTHERS: &str = "other";
        let known = self.entries.iter().position(|(name, _)| name == OTHERS);
        known.unwrap_or_else(|| {
            self.entries.push((OTHERS.to_owned(), T::default()));
            self.entries.len() - 1
        })
    }

    pub(crate) fn into_map(self) -> BTreeMap<String, T> {
        self.entries.into_iter().collect()
    }
}

impl Recorder {
    /// Nothing yet, of a run that is measured from `warmup` to `end`.
    pub(crate) fn new(warmup: Duration, end: Duration, requests: usize) -> Self {
        let tenths = (end / SLICES).as_millis().div_ceil(100).max(1);
        let slice = Duration::from_millis(100) * u32::try_from(tenths).unwrap_or(u32::MAX);
        Self {
            warmup,
            end,
            slice,
            offered: 0,
            answered: 0,
            answered_in_time: 0,
            failed: 0,
            body_bytes: 0,
            waited: 0,
            latency: Histogram::default(),
            service: Histogram::default(),
            failures: Histogram::default(),
            lag: Histogram::default(),
            errors: BTreeMap::new(),
            statuses: BTreeMap::new(),
            starts: Named::default(),
            requests: vec![Share::default(); requests],
            stages: Named::default(),
            breakdown: Breakdown::default(),
            slices: Vec::new(),
            recent: Histogram::default(),
        }
    }

    pub(crate) fn slice_length(&self) -> Duration {
        self.slice
    }

    /// The slice of a time; the last one where it is after the run's end.
    fn slice_at(&mut self, time: Duration) -> &mut Slice {
        let last = (self.end.as_nanos().saturating_sub(1)) / self.slice.as_nanos();
        let place = (time.as_nanos() / self.slice.as_nanos()).min(last);
        let place = usize::try_from(place).unwrap_or(0);
        while self.slices.len() <= place {
            let begin = self.slice * u32::try_from(self.slices.len()).unwrap_or(u32::MAX);
            self.slices.push(Slice {
                is_warmup: begin < self.warmup,
                ..Slice::default()
            });
        }
        &mut self.slices[place]
    }

    /// A request is about to be sent, as one of so many under way.
    pub(crate) fn began(&mut self, due: Duration, in_flight: u64) {
        if due >= self.warmup {
            self.offered += 1;
        }
        let slice = self.slice_at(due);
        slice.offered += 1;
        slice.in_flight_max = slice.in_flight_max.max(in_flight);
    }

    /// A request has ended.
    pub(crate) fn ended(&mut self, sample: &Sample<'_>) {
        let latency = sample.done.saturating_sub(sample.due);
        let is_good = sample.outcome.is_ok();
        let slice = self.slice_at(sample.due);
        if is_good {
            slice.latency.record(latency);
        } else {
            slice.failed += 1;
        }
        if is_good && sample.done < self.end {
            self.slice_at(sample.done).arrived += 1;
        }
        if sample.due < self.warmup {
            return;
        }
        let lag = sample.turned.saturating_sub(sample.due);
        self.lag.record(lag);
        self.waited += u64::from(sample.waited);
        match sample.outcome {
            Ok(answer) => self.answered(sample, latency, lag, answer),
            Err(failure) => self.failed(sample, latency, failure),
        }
    }

    fn answered(&mut self, sample: &Sample<'_>, latency: Duration, lag: Duration, answer: &Answer) {
        let service = sample.done.saturating_sub(sample.sent);
        self.answered += 1;
        self.answered_in_time += u64::from(sample.done < self.end);
        self.body_bytes += answer.body_bytes;
        self.latency.record(latency);
        self.recent.record(latency);
        self.service.record(service);
        *self.statuses.entry(answer.status).or_default() += 1;
        let start = answer.headers.get(START_TYPE);
        let start = start.and_then(|value| value.to_str().ok());
        let start = start.filter(|start| start.len() <= 40).unwrap_or("none");
        self.starts.of(start).latency.record(latency);
        if let Some(share) = self.requests.get_mut(sample.request) {
            share.latency.record(latency);
        }

        let connection = sample.sent.saturating_sub(sample.turned);
        self.breakdown.begin(latency);
        self.breakdown.part("lag", lag);
        self.breakdown.part("connection", connection);
        for value in answer.headers.get_all(SERVER_TIMING) {
            for (name, time_us) in server_timing::stages(value.to_str().unwrap_or_default()) {
                self.stages.of(name).record_us(time_us);
                self.breakdown.stage(name, Duration::from_micros(time_us));
            }
        }
        self.breakdown.end(service);
    }

    fn failed(&mut self, sample: &Sample<'_>, latency: Duration, failure: &Failure) {
        self.failed += 1;
        self.failures.record(latency);
        if let Some(status) = failure.status {
            *self.statuses.entry(status).or_default() += 1;
        }
        if let Some(share) = self.requests.get_mut(sample.request) {
            share.failed += 1;
        }
        let is_new = !self.errors.contains_key(&failure.kind);
        let kind = if is_new && self.errors.len() >= MAX_NAMES {
            "other"
        } else {
            &failure.kind
        };
        let stats = self
            .errors
            .entry(kind.to_owned())
            .or_insert_with(|| ErrorStats {
                count: 0,
                first_at_us: u64::try_from(sample.due.as_micros()).unwrap_or(u64::MAX),
                example: failure.example.clone(),
            });
        stats.count += 1;
    }

    /// Latency of what was answered since this was last asked.
    pub(crate) fn take_recent(&mut self) -> Histogram {
        std::mem::take(&mut self.recent)
    }

    /// Adds what another thread took note of in the same run.
    pub(crate) fn add(&mut self, other: Self) {
        self.offered += other.offered;
        self.answered += other.answered;
        self.answered_in_time += other.answered_in_time;
        self.failed += other.failed;
        self.body_bytes += other.body_bytes;
        self.waited += other.waited;
        self.latency.add(&other.latency);
        self.service.add(&other.service);
        self.failures.add(&other.failures);
        self.lag.add(&other.lag);
        self.recent.add(&other.recent);
        for (kind, stats) in other.errors {
            let first_at_us = stats.first_at_us;
            let known = self.errors.entry(kind).or_insert_with(|| ErrorStats {
                count: 0,
                ..stats.clone()
            });
            known.count += stats.count;
            if first_at_us < known.first_at_us {
                known.first_at_us = first_at_us;
                known.example = stats.example;
            }
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (name, share) in other.starts.entries {
            self.starts.of(&name).add(&share);
        }
        for (share, theirs) in self.requests.iter_mut().zip(&other.requests) {
            share.add(theirs);
        }
        for (name, times) in other.stages.entries {
            self.stages.of(&name).add(&times);
        }
        self.breakdown.add(&other.breakdown);
        for (place, theirs) in (0..).zip(other.slices) {
            let slice = self.slice_at(self.slice * place);
            slice.offered += theirs.offered;
            slice.failed += theirs.failed;
            slice.arrived += theirs.arrived;
            // At different moments, perhaps: an upper bound.
            slice.in_flight_max += theirs.in_flight_max;
            slice.latency.add(&theirs.latency);
        }
    }

    /// Ends the run at a time before its planned end: rates are over what there was.
    pub(crate) fn cut(&mut self, now: Duration) {
        self.end = self.end.min(now);
    }

    pub(crate) fn measured(&self) -> Duration {
        self.end.saturating_sub(self.warmup)
    }
}

impl Share {
    fn add(&mut self, other: &Self) {
        self.failed += other.failed;
        self.latency.add(&other.latency);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn answer() -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(START_TYPE, "restored".parse().unwrap());
        headers.append(SERVER_TIMING, "queue;dur=1, run;dur=2".parse().unwrap());
        headers.append(SERVER_TIMING, "db;dur=0.5".parse().unwrap());
        Answer {
            status: 200,
            headers,
            body_bytes: 7,
        }
    }

    fn sample<'a>(
        due_ms: u32,
        took_ms: u32,
        outcome: Result<&'a Answer, &'a Failure>,
    ) -> Sample<'a> {
        Sample {
            request: 0,
            due: MS * due_ms,
            turned: MS * (due_ms + 1),
            sent: MS * (due_ms + 3),
            done: MS * (due_ms + took_ms),
            waited: false,
            outcome,
        }
    }

    fn failure(kind: &str) -> Failure {
        Failure {
            kind: kind.to_owned(),
            example: format!("{kind}!"),
            status: Some(503),
        }
    }

    #[test]
    fn the_warm_up_counts_in_its_slices_only() {
        let mut recorder = Recorder::new(MS * 1000, MS * 11_000, 1);
        let answer = answer();
        for due_ms in [0, 500, 1000, 10_999] {
            recorder.began(MS * due_ms, 1);
            recorder.ended(&sample(due_ms, 10, Ok(&answer)));
        }
        assert_eq!((recorder.offered, recorder.answered), (2, 2));
        // The last one's answer came after the end.
        assert_eq!(recorder.answered_in_time, 1);
        assert_eq!(recorder.latency.count(), 2);
        let warmup: Vec<_> = recorder
            .slices
            .iter()
            .map(|slice| slice.is_warmup)
            .collect();
        assert_eq!(recorder.slices.len(), 110);
        assert!(warmup[..10].iter().all(|is_warmup| *is_warmup));
        assert!(warmup[10..].iter().all(|is_warmup| !is_warmup));
        assert_eq!(recorder.slices[5].latency.count(), 1);
    }

    #[test]
    fn a_late_answer_counts_where_it_was_due_and_arrives_where_it_came() {
        let mut recorder = Recorder::new(Duration::ZERO, MS * 10_000, 1);
        recorder.began(MS * 2500, 4);
        recorder.ended(&sample(2500, 3000, Ok(&answer())));
        assert_eq!(recorder.slices[25].latency.count(), 1);
        assert_eq!(recorder.slices[25].in_flight_max, 4);
        assert_eq!(recorder.slices[55].arrived, 1);
        assert_eq!(recorder.latency.quantile_us(1.0) / 10_000, 300);
        assert_eq!(recorder.service.quantile_us(1.0) / 10_000, 299);
        assert_eq!(recorder.lag.max_us(), 1000);
    }

    #[test]
    fn failures_are_counted_by_kind_and_in_no_percentile() {
        let mut recorder = Recorder::new(Duration::ZERO, MS * 100, 1);
        recorder.ended(&sample(1, 10, Err(&failure("timeout"))));
        recorder.ended(&sample(2, 10, Err(&failure("timeout"))));
        for kind in 0..100 {
            recorder.ended(&sample(3, 10, Err(&failure(&format!("kind-{kind}")))));
        }
        assert_eq!(recorder.failed, 102);
        assert_eq!(recorder.requests[0].failed, 102);
        assert!(recorder.latency.is_empty());
        assert_eq!(recorder.failures.count(), 102);
        assert_eq!(recorder.errors["timeout"].count, 2);
        assert_eq!(recorder.errors["timeout"].first_at_us, 1000);
        assert_eq!(recorder.errors.len(), MAX_NAMES + 1);
        assert_eq!(recorder.errors["other"].count, 69);
        assert_eq!(recorder.statuses[&503], 102);
    }

    #[test]
    fn threads_add_up_to_one_run() {
        let new = || Recorder::new(Duration::ZERO, MS * 10_000, 2);
        let (mut one, mut other, mut both) = (new(), new(), new());
        let (answer, failure) = (answer(), failure("reset"));
        for place in 0..1000 {
            let outcome = if place % 10 == 0 {
                Err(&failure)
            } else {
                Ok(&answer)
            };
            let sample = sample(place * 10, 5 + place % 50, outcome);
            let half = if place % 3 == 0 { &mut one } else { &mut other };
            for recorder in [half, &mut both] {
                recorder.began(sample.due, 1);
                recorder.ended(&sample);
            }
        }
        one.add(other);
        assert_eq!(one.latency, both.latency);
        assert_eq!(one.errors, both.errors);
        assert_eq!(one.statuses, both.statuses);
        assert_eq!(one.starts.into_map(), both.starts.into_map());
        assert_eq!(one.stages.into_map(), both.stages.into_map());
        assert_eq!(one.requests, both.requests);
        assert_eq!(one.breakdown.bands(), both.breakdown.bands());
        let counts = |slices: Vec<Slice>| -> Vec<_> {
            let count = |slice: Slice| (slice.offered, slice.failed, slice.arrived, slice.latency);
            slices.into_iter().map(count).collect()
        };
        assert_eq!(counts(one.slices), counts(both.slices));
    }
}
