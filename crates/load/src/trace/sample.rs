//! A smaller trace of the same shape.

use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rand_distr::Binomial;

use super::error::{Error, Result};
use super::shape::{Candidate, Chosen, choose};
use super::{Invocation, MAX_INVOCATIONS, Source, Trace, TracedFunction, name};

/// Which part of a trace is wanted, and at what scale. The default is all of it.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleConfig {
    /// Where the part begins, from the beginning of the trace. Whole minutes are taken of traces
    /// that count by the minute.
    pub start: Duration,
    /// How long the part is, before compression; to the end of the trace if nothing is said.
    pub length: Option<Duration>,
    /// How many functions at most.
    pub functions: Option<usize>,
    /// Invocations per second in the sample, on average, after compression; as many as there are
    /// if nothing is said.
    pub rate_per_s: Option<f64>,
    /// How many times as fast as recorded. Arrivals move together, durations stay, so that more
    /// run at once.
    pub compression: f64,
    /// Longer durations are cut to this.
    pub max_duration: Option<Duration>,
    /// Decides everything that is left to chance: the same seed gives the same sample. Which
    /// functions are chosen is not left to chance.
    pub seed: u64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            start: Duration::ZERO,
            length: None,
            functions: None,
            rate_per_s: None,
            compression: 1.0,
            max_duration: None,
            seed: 1,
        }
    }
}

impl SampleConfig {
    pub(super) fn check(&self) -> Result<()> {
        let invalid = |setting, value: String, expected| {
            Err(Error::InvalidConfig {
                setting,
                value,
                expected,
            })
        };
        if self.length.is_some_and(|length| length.is_zero()) {
            return invalid("length", "0 s".to_owned(), "longer than nothing");
        }
        if self.functions == Some(0) {
            return invalid("functions", "0".to_owned(), "at least 1");
        }
        if let Some(rate) = self.rate_per_s.filter(|rate| !positive(*rate)) {
            return invalid("rate_per_s", rate.to_string(), "more than 0");
        }
        if !(1.0..=1e6).contains(&self.compression) {
            let value = self.compression.to_string();
            return invalid("compression", value, "from 1 to 1000000");
        }
        Ok(())
    }
}

pub(super) fn positive(number: f64) -> bool {
    number.is_finite() && number > 0.0
}

/// A time as the traces count it.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The part of a trace that is wanted, in microseconds of the trace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) start_us: u64,
    pub(super) length_us: u64,
}

impl Window {
    /// What of a trace that ends at `end_us` the settings want.
    pub(super) fn new(config: &SampleConfig, end_us: u64) -> Self {
        let start_us = micros(config.start).min(end_us);
        let rest_us = end_us - start_us;
        Self {
            start_us,
            length_us: config.length.map_or(rest_us, |l| micros(l).min(rest_us)),
        }
    }

    /// How far into the window a time is, if it is inside.
    pub(super) fn offset_us(&self, at_us: u64) -> Option<u64> {
        let offset = at_us.checked_sub(self.start_us)?;
        (offset < self.length_us).then_some(offset)
    }
}

/// A sample that is being made.
pub(super) struct Draft {
    /// For each candidate its place among the chosen and the share of its invocations that stay.
    places: Vec<Option<(u32, f64)>>,
    /// The chosen candidates, the most popular first.
    chosen: Vec<usize>,
    pub(super) rng: ChaCha8Rng,
    span_us: u64,
    compression: f64,
    max_duration_us: u64,
    invocations: Vec<Invocation>,
    capped: u64,
}

impl Draft {
    /// Chooses the functions and how much of each stays. `outside` is for the error only.
    pub(super) fn new(
        candidates: &[Candidate],
        window: Window,
        outside: u64,
        config: &SampleConfig,
    ) -> Result<Self> {
        let chosen = choose(candidates, config.functions);
        let kept = |chosen: &Chosen| {
            let candidate = candidates.get(chosen.index);
            candidate.map_or(0.0, |c| c.count as f64 * chosen.keep)
        };
        let available: f64 = chosen.iter().map(kept).sum();
        if available <= 0.0 {
            return Err(Error::NoInvocations {
                start_s: window.start_us as f64 / 1e6,
                length_s: window.length_us as f64 / 1e6,
                outside,
            });
        }
        let span_us = (window.length_us as f64 / config.compression)
            .ceil()
            .max(1.0);
        let most_per_s = available / (span_us / 1e6);
        let thin = match config.rate_per_s {
            // What a caller computed as the whole rate is not to fail by a rounding.
            Some(asked) if asked > most_per_s * 1.000_001 => {
                return Err(Error::RateTooHigh {
                    asked,
                    most: most_per_s,
                });
            }
            Some(asked) => (asked / most_per_s).min(1.0),
            None => 1.0,
        };
        let mut places = vec![None; candidates.len()];
        for (place, chosen) in (0..).zip(&chosen) {
            if let Some(entry) = places.get_mut(chosen.index) {
                *entry = Some((place, chosen.keep * thin));
            }
        }
        let draft = Self {
            places,
            chosen: chosen.iter().map(|chosen| chosen.index).collect(),
            rng: ChaCha8Rng::seed_from_u64(config.seed),
            span_us: span_us as u64,
            compression: config.compression,
            max_duration_us: config.max_duration.map_or(u64::MAX, micros),
            invocations: Vec::new(),
            capped: 0,
        };
        draft.check_size((available * thin) as u64)?;
        Ok(draft)
    }

    /// The place of a candidate in the sample, if it was chosen.
    pub(super) fn place(&self, candidate: usize) -> Option<u32> {
        let place = self.places.get(candidate).copied().flatten();
        place.map(|(place, _)| place)
    }

    /// How many of `count` invocations of a candidate stay: each does or not, by chance.
    pub(super) fn thin(&mut self, candidate: usize, count: u64) -> u64 {
        match self.places.get(candidate).copied().flatten() {
            None => 0,
            Some((_, keep)) if keep >= 1.0 => count,
            Some((_, keep)) if count == 1 => u64::from(self.rng.random_bool(keep)),
            Some((_, keep)) => Binomial::new(count, keep).map_or(0, |kept| self.rng.sample(kept)),
        }
    }

    /// Adds one invocation that stays, `offset_us` into the window.
    pub(super) fn push(&mut self, place: u32, offset_us: u64, duration_us: u64) -> Result<()> {
        // Chance may keep some more than were expected.
        let slack = MAX_INVOCATIONS / 64;
        self.check_size((self.invocations.len() as u64).saturating_sub(slack))?;
        if duration_us > self.max_duration_us {
            self.capped += 1;
        }
        self.invocations.push(Invocation {
            at_us: ((offset_us as f64 / self.compression) as u64).min(self.span_us - 1),
            function: place,
            duration_us: duration_us.min(self.max_duration_us),
        });
        Ok(())
    }

    /// The sample. `function` tells about a candidate.
    pub(super) fn finish(
        mut self,
        source: Source,
        function: impl Fn(usize) -> Option<TracedFunction>,
    ) -> Trace {
        self.invocations.sort_unstable();
        let mut functions: Vec<_> = self.chosen.iter().filter_map(|i| function(*i)).collect();
        name::make_unique(&mut functions);
        Trace {
            source,
            span: Duration::from_micros(self.span_us),
            functions,
            invocations: self.invocations,
            capped: self.capped,
        }
    }

    fn check_size(&self, expected: u64) -> Result<()> {
        if expected <= MAX_INVOCATIONS {
            return Ok(());
        }
        Err(too_many(expected, self.span_us))
    }
}

pub(super) fn too_many(expected: u64, span_us: u64) -> Error {
    Error::TooManyInvocations {
        expected,
        rate_per_s: MAX_INVOCATIONS as f64 / (span_us as f64 / 1e6),
    }
}

/// Single invocations that can be gone through as often as it takes.
pub(super) trait Events {
    /// Calls `each` with every invocation, in any order.
    fn visit(&mut self, each: &mut dyn FnMut(&Invocation) -> Result<()>) -> Result<()>;
}

/// What [`sample_events`] learned on the way.
pub(super) struct Sampled {
    pub(super) draft: Draft,
    pub(super) functions: u64,
    pub(super) outside: u64,
}

/// Samples single invocations, without having all of them in memory.
pub(super) fn sample_events(
    events: &mut impl Events,
    end_us: Option<u64>,
    config: &SampleConfig,
) -> Result<Sampled> {
    let end_us = match end_us {
        Some(end_us) => end_us,
        None => last_minute(events)?,
    };
    let window = Window::new(config, end_us);
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut outside = 0;
    events.visit(&mut |event| {
        let place = event.function as usize;
        if place >= candidates.len() {
            candidates.resize_with(place + 1, Candidate::default);
        }
        match (window.offset_us(event.at_us), candidates.get_mut(place)) {
            (Some(offset), Some(candidate)) => {
                candidate.count += 1;
                let share = offset as f64 / window.length_us as f64;
                candidate.shape.add_at(share, 1.0);
                candidate.shape.add_duration(event.duration_us, 1.0);
            }
            _ => outside += 1,
        }
        Ok(())
    })?;
    let mut draft = Draft::new(&candidates, window, outside, config)?;
    events.visit(&mut |event| {
        let candidate = event.function as usize;
        let place = draft.place(candidate);
        if let (Some(offset), Some(place)) = (window.offset_us(event.at_us), place)
            && draft.thin(candidate, 1) > 0
        {
            draft.push(place, offset, event.duration_us)?;
        }
        Ok(())
    })?;
    let invoked = candidates.iter().filter(|c| c.count > 0).count();
    Ok(Sampled {
        draft,
        functions: invoked as u64,
        outside,
    })
}

/// The end of the minute in which the last invocation comes.
fn last_minute(events: &mut impl Events) -> Result<u64> {
    let mut last = None;
    events.visit(&mut |event| {
        last = last.max(Some(event.at_us));
        Ok(())
    })?;
    const MINUTE_US: u64 = 60_000_000;
    Ok(last.map_or(0, |last: u64| (last / MINUTE_US + 1) * MINUTE_US))
}

impl Events for &Trace {
    fn visit(&mut self, each: &mut dyn FnMut(&Invocation) -> Result<()>) -> Result<()> {
        // Whoever made the trace may have left functions out.
        let known = |event: &&Invocation| (event.function as usize) < self.functions.len();
        self.invocations.iter().filter(known).try_for_each(each)
    }
}

impl Trace {
    /// A part of the trace, with fewer functions, fewer invocations or in less time, of the same
    /// shape:
    ///
    /// - the share of the invocations that the most popular functions have stays, whatever the
    ///   number of functions. To this end a function may be thinned;
    /// - among functions of like popularity those are chosen that together have the rate curve and
    ///   the durations of all;
    /// - for a lower rate invocations are left out by chance, each with the same probability;
    /// - nothing is ever added: no function is busier in any moment than it was.
    ///
    /// A sample of few functions cannot have the rate curve of all when one of them has most of the
    /// invocations.
    ///
    /// # Errors
    ///
    /// A setting is out of its range, nothing happens in the window, the rate is higher than there
    /// are invocations, or the sample does not fit into memory.
    pub fn sample(&self, config: &SampleConfig) -> Result<Self> {
        config.check()?;
        let sampled = sample_events(&mut &*self, Some(micros(self.span)), config)?;
        Ok(sampled
            .draft
            .finish(self.source, |index| self.functions.get(index).cloned()))
    }
}
