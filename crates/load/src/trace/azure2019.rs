//! The form of 2019: counts per minute, with percentiles of durations and memory beside them.

use std::collections::HashMap;
use std::path::Path;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::error::{Error, Result};
use super::sample::{Draft, SampleConfig, Window};
use super::shape::Candidate;
use super::table::{Column, Table};
use super::{MAX_FUNCTIONS, ReadStats, Source, Trace, TracedFunction, name};

const MINUTE_US: u64 = 60_000_000;
const MINUTES: u64 = 24 * 60;

/// What the columns of the percentiles are named after, and the shares that they stand for.
const PERCENTILES: [(&str, f64); 7] = [
    ("percentile_Average_0", 0.0),
    ("percentile_Average_1", 0.01),
    ("percentile_Average_25", 0.25),
    ("percentile_Average_50", 0.5),
    ("percentile_Average_75", 0.75),
    ("percentile_Average_99", 0.99),
    ("percentile_Average_100", 1.0),
];

/// Durations of a function, in milliseconds, at each of the [`PERCENTILES`].
#[derive(Debug, Clone, Copy, PartialEq)]
struct Durations([f32; 7]);

impl Durations {
    /// For functions of which nothing is known where nothing is known of any: the median of the
    /// log-normal distribution that fits the durations of Azure's functions, exp(-0.38) s.
    const PUBLISHED_MEDIAN: Self = Self([684.0; 7]);

    /// The duration that a share of all is shorter than.
    fn at_us(self, share: f64) -> u64 {
        let points = PERCENTILES.iter().zip(self.0);
        let mut below = (0.0, f64::from(self.0[0]));
        for ((_, upper), ms) in points {
            let ms = f64::from(ms);
            if share <= *upper {
                let (lower, from_ms) = below;
                let way = if *upper > lower {
                    (share - lower) / (upper - lower)
                } else {
                    1.0
                };
                return ((from_ms + (ms - from_ms) * way) * 1000.0).round() as u64;
            }
            below = (*upper, ms);
        }
        (below.1 * 1000.0).round() as u64
    }
}

struct App {
    memory_mib: f64,
    /// How many samples the memory was computed of; none if it is not known.
    samples: Option<f64>,
}

struct Function {
    name: TracedFunction,
    app: u32,
    durations: Option<Durations>,
    /// How many executions the durations were computed of.
    executions: f64,
}

/// What is known of a day before its invocations are drawn.
#[derive(Default)]
struct Day {
    apps: Vec<App>,
    /// By owner and app, as published.
    app_places: HashMap<String, u32>,
    functions: Vec<Function>,
    /// By owner, app and function, as published.
    places: HashMap<String, u32>,
    candidates: Vec<Candidate>,
    outside: u64,
    stats: ReadStats,
}

/// The minutes that are wanted, and their columns.
struct Minutes {
    inside: Vec<Column>,
    outside: Vec<Column>,
}

/// Reads a day, and samples it on the way.
pub(super) fn read(
    invocations: &Path,
    durations: Option<&Path>,
    memory: Option<&Path>,
    config: &SampleConfig,
) -> Result<(Trace, ReadStats)> {
    let window = whole_minutes(Window::new(config, MINUTES * MINUTE_US));
    let mut day = Day::default();
    day.read_counts(invocations, window)?;
    if let Some(durations) = durations {
        day.read_durations(durations)?;
    }
    if let Some(memory) = memory {
        day.read_memory(memory)?;
    }
    let durations = day.complete(config.seed);
    let mut draft = Draft::new(&day.candidates, window, day.outside, config)?;
    day.draw(invocations, window, &durations, &mut draft)?;
    let trace = draft.finish(Source::Azure2019, |index| {
        let function = day.functions.get(index)?;
        let app = day.apps.get(function.app as usize)?;
        Some(TracedFunction {
            memory_mib: app.memory_mib,
            ..function.name.clone()
        })
    });
    Ok((trace, day.stats))
}

/// The minutes that a window touches.
fn whole_minutes(window: Window) -> Window {
    let start_us = window.start_us / MINUTE_US * MINUTE_US;
    let end_us = window.start_us.saturating_add(window.length_us);
    Window {
        start_us,
        length_us: end_us.next_multiple_of(MINUTE_US) - start_us,
    }
}

impl Minutes {
    fn find(table: &Table, window: Window) -> Result<Self> {
        let mut minutes = Self {
            inside: Vec::new(),
            outside: Vec::new(),
        };
        for minute in 0..MINUTES {
            let column = table.column(&(minute + 1).to_string())?;
            match window.offset_us(minute * MINUTE_US) {
                Some(_) => minutes.inside.push(column),
                None => minutes.outside.push(column),
            }
        }
        Ok(minutes)
    }
}

/// The columns that say what a line is about.
struct Keys<const N: usize>([Column; N]);

impl<const N: usize> Keys<N> {
    fn find(table: &Table) -> Result<Self> {
        let names = ["HashOwner", "HashApp", "HashFunction"];
        let mut columns = [table.column(names[0])?; N];
        for (column, name) in columns.iter_mut().zip(names) {
            *column = table.column(name)?;
        }
        Ok(Self(columns))
    }

    fn join(&self, table: &Table, key: &mut String) {
        key.clear();
        for column in self.0 {
            key.push_str(table.text(column));
            key.push(',');
        }
    }
}

impl Day {
    /// The first time through the counts: which functions there are, and how they lie in time.
    fn read_counts(&mut self, path: &Path, window: Window) -> Result<()> {
        let mut table = Table::open(path)?;
        let keys = Keys::<3>::find(&table)?;
        let trigger = table.column("Trigger")?;
        let minutes = Minutes::find(&table, window)?;
        let length = minutes.inside.len().max(1) as f64;
        let mut key = String::new();
        while table.advance()? {
            self.stats.rows += 1;
            keys.join(&table, &mut key);
            let place = self.place(&table, &keys, &key, trigger)?;
            let Some(candidate) = self.candidates.get_mut(place) else {
                continue;
            };
            for (minute, column) in minutes.inside.iter().enumerate() {
                let count = table.count(*column, &mut self.stats)?;
                if count > 0 {
                    candidate.count = candidate.count.saturating_add(count);
                    let share = minute as f64 / length;
                    candidate.shape.add_at(share, count as f32);
                }
            }
            for column in &minutes.outside {
                let count = table.count(*column, &mut self.stats)?;
                self.outside = self.outside.saturating_add(count);
            }
        }
        if self.stats.rows == 0 {
            let path = path.to_owned();
            let what = "invocations";
            return Err(Error::Empty { path, what });
        }
        self.stats.outside_window = self.outside;
        let idle = self.candidates.iter().filter(|c| c.count == 0).count();
        self.stats.idle_functions = idle as u64;
        self.stats.functions = (self.candidates.len() - idle) as u64;
        Ok(())
    }

    fn place(
        &mut self,
        table: &Table,
        keys: &Keys<3>,
        key: &str,
        trigger: Column,
    ) -> Result<usize> {
        if let Some(place) = self.places.get(key) {
            self.stats.duplicate_rows += 1;
            return Ok(*place as usize);
        }
        if self.functions.len() >= MAX_FUNCTIONS {
            let path = table.path().to_owned();
            return Err(Error::TooManyFunctions { path });
        }
        let place = self.functions.len();
        self.places.insert(key.to_owned(), place as u32);
        let [owner, app, function] = keys.0.map(|column| table.text(column));
        let app_key = format!("{owner},{app},");
        let trigger = table.text(trigger);
        let name = TracedFunction {
            app: name::short(app, &app_key),
            name: name::short(function, key),
            trigger: (!trigger.is_empty()).then(|| trigger.to_owned()),
            memory_mib: 0.0,
        };
        let apps = &mut self.apps;
        let app = *self.app_places.entry(app_key).or_insert_with(|| {
            apps.push(App {
                memory_mib: 0.0,
                samples: None,
            });
            apps.len() as u32 - 1
        });
        self.functions.push(Function {
            name,
            app,
            durations: None,
            executions: 0.0,
        });
        self.candidates.push(Candidate::default());
        Ok(place)
    }

    fn read_durations(&mut self, path: &Path) -> Result<()> {
        let mut table = Table::open(path)?;
        let keys = Keys::<3>::find(&table)?;
        let count = table.column("Count")?;
        let mut columns = [count; PERCENTILES.len()];
        for (column, (name, _)) in columns.iter_mut().zip(PERCENTILES) {
            *column = table.column(name)?;
        }
        let mut key = String::new();
        while table.advance()? {
            keys.join(&table, &mut key);
            let executions = table.non_negative(count, "a number", &mut self.stats)?;
            let mut ms = [0.0; PERCENTILES.len()];
            let mut level = 0.0_f32;
            let mut ordered = true;
            for (ms, column) in ms.iter_mut().zip(columns) {
                let what = "a number of milliseconds";
                let found = table.non_negative(column, what, &mut self.stats)? as f32;
                ordered &= found >= level;
                level = level.max(found);
                *ms = level;
            }
            self.stats.unordered_rows += u64::from(!ordered);
            let place = self.places.get(&key).copied();
            let Some(function) = place.and_then(|p| self.functions.get_mut(p as usize)) else {
                self.stats.unmatched_rows += 1;
                continue;
            };
            self.stats.duplicate_rows += u64::from(function.durations.is_some());
            if function.durations.is_none() || executions > function.executions {
                function.durations = Some(Durations(ms));
                function.executions = executions;
            }
        }
        Ok(())
    }

    fn read_memory(&mut self, path: &Path) -> Result<()> {
        let mut table = Table::open(path)?;
        let keys = Keys::<2>::find(&table)?;
        let count = table.column("SampleCount")?;
        let median = table.column("AverageAllocatedMb_pct50")?;
        let mut key = String::new();
        while table.advance()? {
            keys.join(&table, &mut key);
            let samples = table.non_negative(count, "a number", &mut self.stats)?;
            let what = "a number of megabytes";
            let memory_mib = table.non_negative(median, what, &mut self.stats)?;
            let place = self.app_places.get(&key).copied();
            let Some(app) = place.and_then(|place| self.apps.get_mut(place as usize)) else {
                self.stats.unmatched_rows += 1;
                continue;
            };
            self.stats.duplicate_rows += u64::from(app.samples.is_some());
            if app.samples.is_none_or(|known| samples > known) {
                app.memory_mib = memory_mib;
                app.samples = Some(samples);
            }
        }
        Ok(())
    }

    /// Gives every function durations, and tells the candidates of them.
    fn complete(&mut self, seed: u64) -> Vec<Durations> {
        // Not the sequence that the sample is drawn with.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1);
        let known: Vec<Durations> = self.functions.iter().filter_map(|f| f.durations).collect();
        let mut complete = Vec::with_capacity(self.functions.len());
        for (function, candidate) in self.functions.iter().zip(&mut self.candidates) {
            let durations = function.durations.unwrap_or_else(|| {
                if known.is_empty() {
                    Durations::PUBLISHED_MEDIAN
                } else {
                    let place = rng.random_range(0..known.len());
                    known
                        .get(place)
                        .copied()
                        .unwrap_or(Durations::PUBLISHED_MEDIAN)
                }
            });
            const STEPS: u32 = 16;
            for step in 0..STEPS {
                let share = (f64::from(step) + 0.5) / f64::from(STEPS);
                let count = candidate.count as f32 / STEPS as f32;
                candidate.shape.add_duration(durations.at_us(share), count);
            }
            complete.push(durations);
            if candidate.count > 0 {
                let app = self.apps.get(function.app as usize);
                let memory_known = app.is_some_and(|app| app.samples.is_some());
                self.stats.without_durations += u64::from(function.durations.is_none());
                self.stats.without_memory += u64::from(!memory_known);
            }
        }
        complete
    }

    /// The second time through the counts: thins them, and makes invocations of what stays.
    fn draw(
        &self,
        path: &Path,
        window: Window,
        durations: &[Durations],
        draft: &mut Draft,
    ) -> Result<()> {
        let mut table = Table::open(path)?;
        let keys = Keys::<3>::find(&table)?;
        let minutes = Minutes::find(&table, window)?;
        let mut key = String::new();
        let mut again = ReadStats::default();
        while table.advance()? {
            keys.join(&table, &mut key);
            let Some(candidate) = self.places.get(&key).map(|place| *place as usize) else {
                continue;
            };
            let (Some(place), Some(durations)) = (draft.place(candidate), durations.get(candidate))
            else {
                continue;
            };
            for (minute, column) in (0..).zip(&minutes.inside) {
                let count = table.count(*column, &mut again)?;
                for _ in 0..draft.thin(candidate, count) {
                    let offset = minute * MINUTE_US + draft.rng.random_range(0..MINUTE_US);
                    let duration_us = durations.at_us(draft.rng.random());
                    draft.push(place, offset, duration_us)?;
                }
            }
        }
        Ok(())
    }
}
