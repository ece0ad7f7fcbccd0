//! Which way of paging is the fastest for a function: measured on the function itself.

use std::time::{Duration, Instant};

use dormouse_snapshot::{
    Draft, FunctionName, MemoryDraft, PAGE_BYTES, Snapshot, SnapshotId, Store,
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::config::FunctionConfig;
use crate::deploy::{SavedFunction, whole_us};
use crate::engine::Engine;
use crate::error::Error;
use crate::layouts;
use crate::message::Request;
use crate::paging::Paging;

/// Medians within this much of each other are equal: what takes less memory wins.
const EQUAL_SHARE: f64 = 1.03;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct TuneConfig {
    /// Invocations by each way of paging, with everything in memory; at least 1.
    pub warm_runs: usize,
    /// Invocations by each way from a cold page cache: the snapshot is opened anew for each.
    pub cold_runs: usize,
}

/// The middle of some measurements, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Spread {
    /// The median.
    pub median_us: u64,
    /// A quarter of them took no longer.
    pub lower_us: u64,
    /// Three quarters of them took no longer.
    pub upper_us: u64,
}

/// One way of paging, measured.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct TuneRow {
    /// The way.
    pub paging: Paging,
    /// Restoring a fresh clone and running it, with everything in memory.
    pub warm: Spread,
    /// What the next request waits for then: the run of the clone that was rolled back after that, or
    /// once more the same where this way of paging does not let it be rolled back.
    pub next: Spread,
    /// Opening the snapshot from its files, with none of them in the page cache, building a VM for
    /// it, restoring a clone and running it. Nothing where none was measured.
    pub cold: Option<Spread>,
    /// Median number of faults that the pager served in a warm run.
    pub faults: u64,
    /// Median memory that a clone holds alone after a warm run.
    pub private_bytes: u64,
}

/// What the measurement came to.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Tuned {
    /// Each way of paging.
    pub rows: Vec<TuneRow>,
    /// The fastest with everything in memory, the first request and the next one taken together; of
    /// those that are equally fast, the one that takes the least memory.
    pub winner: Paging,
    /// Pages that the request's runs touch.
    pub working_set_pages: u64,
}

/// Measures all ways of paging on the newest snapshot of `name`, interleaved, with `request`.
/// `progress` is told how many of how many invocations are done.
///
/// # Errors
/// As [`Engine::open`] and [`Engine::run`]; [`Error::Unanswered`] where the function fails on the
/// request.
pub fn tune(
    store: &Store,
    name: &str,
    request: &Request,
    config: &TuneConfig,
    mut progress: impl FnMut(usize, usize),
) -> Result<Tuned, Error> {
    let warm_runs = config.warm_runs.max(1);
    let all = (warm_runs + config.cold_runs) * Paging::ALL.len();
    let mut done = 0;
    let mut tell = || {
        done += 1;
        progress(done, all);
    };

    let mut engine = Engine::open(store, name)?;
    engine.learn(request)?;
    let mut warm = Paging::ALL.map(|_| Samples::default());
    for _ in 0..warm_runs {
        for (paging, samples) in Paging::ALL.into_iter().zip(&mut warm) {
            engine.set_paging(paging)?;
            engine.stage();
            samples.add(&mut engine, request, None)?;
            samples.add_next(&mut engine, request)?;
            tell();
        }
    }
    let working_set_pages = engine.working_set().map_or(0, |set| set.pages());
    drop(engine);

    let function = FunctionName::new(name)?;
    let mut cold = Paging::ALL.map(|_| Samples::default());
    for _ in 0..config.cold_runs {
        for (paging, samples) in Paging::ALL.into_iter().zip(&mut cold) {
            store.evict(&function)?;
            let begun = Instant::now();
            let mut engine = Engine::open(store, name)?;
            engine.set_paging(paging)?;
            samples.add(&mut engine, request, Some(begun))?;
            tell();
        }
    }

    let rows: Vec<TuneRow> = Paging::ALL
        .into_iter()
        .zip(warm.iter().zip(&cold))
        .map(|(paging, (warm, cold))| TuneRow {
            paging,
            warm: spread(&warm.total),
            next: spread(&warm.next),
            cold: (config.cold_runs > 0).then(|| spread(&cold.total)),
            faults: median(&warm.faults),
            private_bytes: median(&warm.private_pages) * PAGE_BYTES as u64,
        })
        .collect();
    Ok(Tuned {
        winner: winner(&rows),
        rows,
        working_set_pages,
    })
}

/// Writes a way of paging into the manifest of the newest snapshot of `name`: publishes the same
/// snapshot again, with that in its configuration, since nothing is ever changed in place.
///
/// A layer stays one on the same parent, unless that is gone.
///
/// # Errors
/// [`Error::BadOption`] where the snapshot is one of several layouts, all of which page alike;
/// [`Error::UnknownFunction`], [`Error::Store`].
pub fn set_paging(store: &Store, name: &str, paging: Paging) -> Result<SnapshotId, Error> {
    let name = FunctionName::new(name)?;
    let snapshot: Snapshot<SavedFunction> = store.open_newest(&name)?;
    let mut config = FunctionConfig::stored(&snapshot.manifest)?;
    if config.paging == Some(paging) {
        return Ok(snapshot.id);
    }
    layouts::refuse(&snapshot.manifest, "set its paging")?;
    config.paging = Some(paging);
    let memory = &snapshot.memory;
    let mut read = |first_page: u64, buffer: &mut [u8]| {
        let read = memory.read_verified(first_page, buffer);
        read.map_err(std::io::Error::other)
    };
    let image = snapshot.image()?;
    let stored = store.snapshots()?;
    let parent = snapshot.manifest.layer.as_ref().map(|layer| &layer.parent);
    let parent = parent.filter(|parent| stored.contains(parent)).cloned();
    let draft = Draft {
        created_unix_ms: snapshot.manifest.created_unix_ms,
        host: snapshot.manifest.host.clone(),
        config: config.to_stored(None)?,
        state: &snapshot.state,
        memory: MemoryDraft {
            pages: memory.pages(),
            resident: memory.data().to_vec(),
            read: &mut read,
        },
        image: &image,
        parent,
        compression: config.compression,
    };
    let id = store.publish(&name, draft)?;
    if let Some(set) = &snapshot.working_set {
        store.save_working_set(&name, &id, set)?;
    }
    Ok(id)
}

/// What was measured of one way.
#[derive(Default)]
struct Samples {
    total: Vec<u64>,
    next: Vec<u64>,
    faults: Vec<u64>,
    private_pages: Vec<u64>,
}

impl Samples {
    /// Measures one fresh clone, from its restore on or from `begun`.
    fn add(
        &mut self,
        engine: &mut Engine,
        request: &Request,
        begun: Option<Instant>,
    ) -> Result<(), Error> {
        let begun = begun.unwrap_or_else(Instant::now);
        engine.restore()?;
        let outcome = engine.run(request)?;
        let took: Duration = begun.elapsed();
        outcome
            .result
            .map_err(|failure| Error::Unanswered { failure })?;
        self.total.push(whole_us(took));
        self.faults.push(outcome.timings.faults);
        self.private_pages.push(engine.private_pages()?);
        Ok(())
    }
}

impl Samples {
    /// Measures the next request after the one before, if its clone can be rolled back; else it takes
    /// as long as that one.
    fn add_next(&mut self, engine: &mut Engine, request: &Request) -> Result<(), Error> {
        if engine.roll_back()? {
            let begun = Instant::now();
            engine.run(request)?;
            self.next.push(whole_us(begun.elapsed()));
        } else {
            self.next.extend(self.total.last());
        }
        Ok(())
    }
}

fn sorted(values: &[u64]) -> Vec<u64> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values
}

fn median(values: &[u64]) -> u64 {
    sorted(values).get(values.len() / 2).copied().unwrap_or(0)
}

fn spread(values: &[u64]) -> Spread {
    let values = sorted(values);
    let at = |share: usize| {
        let index = (values.len() * share / 4).min(values.len().saturating_sub(1));
        values.get(index).copied().unwrap_or(0)
    };
    Spread {
        median_us: at(2),
        lower_us: at(1),
        upper_us: at(3),
    }
}

fn winner(rows: &[TuneRow]) -> Paging {
    let cost_us = |row: &TuneRow| row.warm.median_us + row.next.median_us;
    let fastest_us = rows.iter().map(cost_us).min().unwrap_or(0);
    let is_as_fast = |row: &&TuneRow| cost_us(row) as f64 <= fastest_us as f64 * EQUAL_SHARE;
    rows.iter()
        .filter(is_as_fast)
        // What is staged ahead takes memory that is not the clone's.
        .min_by_key(|row| {
            (
                row.private_bytes,
                row.paging == Paging::Staged,
                cost_us(row),
            )
        })
        .map_or_else(Paging::default, |row| row.paging)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(paging: Paging, warm_us: u64, next_us: u64, private_bytes: u64) -> TuneRow {
        TuneRow {
            paging,
            warm: spread(&[warm_us]),
            next: spread(&[next_us]),
            cold: None,
            faults: 0,
            private_bytes,
        }
    }

    #[test]
    fn the_fastest_wins_and_among_equals_the_smallest() {
        let rows = [
            row(Paging::Lazy, 200, 80, 1),
            row(Paging::WorkingSet, 102, 80, 8),
            row(Paging::Staged, 90, 90, 4096),
        ];
        assert_eq!(winner(&rows), Paging::WorkingSet);
        assert_eq!(winner(&rows[2..]), Paging::Staged);
        assert_eq!(winner(&[]), Paging::WorkingSet);
        // Where nothing was dense enough to be staged, both are the same.
        let same = [
            row(Paging::Staged, 100, 100, 8),
            row(Paging::WorkingSet, 101, 100, 8),
        ];
        assert_eq!(winner(&same), Paging::WorkingSet);
    }

    #[test]
    fn spreads_are_quartiles() {
        let spread_of = |values: &[u64]| {
            let Spread {
                median_us,
                lower_us,
                upper_us,
            } = spread(values);
            (lower_us, median_us, upper_us)
        };
        assert_eq!(spread_of(&[5, 1, 4, 2, 3]), (2, 3, 4));
        assert_eq!(spread_of(&[7]), (7, 7, 7));
        assert_eq!(spread_of(&[]), (0, 0, 0));
    }
}
