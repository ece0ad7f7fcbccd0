//! From a shell and a snapshot to the guest's answer.

use std::sync::Arc;

use dormouse_pager::{Pager, PagerConfig, Policy, Source, WorkingSetPlan};
use dormouse_pool::{Engine, FunctionConfig};

use super::Group;
use super::bare::Bare;
use super::lab::{Lab, good, request};
use crate::{Error, Pair, Row, Side, interleaved, timed_us};

pub(super) const GROUP: Group = Group {
    title: "restores",
    names: &[
        "first-exit/hello",
        "replay/1000",
        "restore/64MiB",
        "restore/256MiB",
        "restore/1GiB",
        "guest-size/256MiB",
        "guest-size/1GiB",
    ],
    measure,
};

fn measure(lab: &Lab) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    if lab.wants("first-exit/hello") {
        let row = Row::of_pair("first-exit/hello", "µs", first_exit(lab)?);
        rows.extend(row.map(|row| row.with_limit(1.25)));
    }
    if lab.wants("replay/1000") {
        let row = Row::of_pair("replay/1000", "µs", replay(lab)?);
        rows.extend(row.map(|row| row.with_limit(1.15)));
    }
    for (name, mib) in [
        ("restore/64MiB", 64),
        ("restore/256MiB", 256),
        ("restore/1GiB", 1024),
    ] {
        if lab.wants(name) {
            rows.extend(Row::of_pair(name, "µs", restore(lab, mib)?));
        }
    }
    for (name, mib, limit) in [
        ("guest-size/256MiB", 256, None),
        ("guest-size/1GiB", 1024, Some(1.15)),
    ] {
        if lab.wants(name) {
            let row = Row::of_pair(name, "µs", guest_size(lab, mib)?);
            rows.extend(row.map(|row| Row { limit, ..row }));
        }
    }
    Ok(rows)
}

/// A pooled shell to the first guest exit, which is hello's answer.
fn first_exit(lab: &Lab) -> Result<Pair, Error> {
    let get = request("/");
    let mut engine = lab.engine("hello", "hello", FunctionConfig::default(), &get)?;
    let bare = Bare::new(&mut engine, &get)?;
    interleaved(lab.rounds(1000), |side| match side {
        Side::Ours => {
            let (outcome, time) = timed_us(|| {
                engine.restore()?;
                engine.run(&get)
            })?;
            good("hello", outcome)?;
            Ok(time)
        }
        Side::Floor => {
            let ((), time) = timed_us(|| {
                bare.attach()?;
                bare.put_request();
                bare.set_state()?;
                bare.run()
            })?;
            bare.answer()?;
            Ok(time)
        }
    })
}

/// Bringing in a working set of 1000 pages, a third of them written.
fn replay(lab: &Lab) -> Result<Pair, Error> {
    let get = request("/?read=640&write=330");
    let mut engine = lab.engine("burn-replay", "burn", FunctionConfig::default(), &get)?;
    let bare = Bare::new(&mut engine, &get)?;
    let missing = || Error::Answer {
        what: "burn".to_owned(),
        answer: "its snapshot is in no memory file, or has no working set".to_owned(),
    };
    engine.restore()?;
    let parts = engine.parts()?.ok_or_else(missing)?;
    let set = engine.working_set().ok_or_else(missing)?;
    let file = parts.file.clone().ok_or_else(missing)?;
    let pages = parts.ram.len() / dormouse_pager::PAGE_BYTES;
    let source = Source::shared(file, pages, parts.data.clone().into())?;
    let plan = WorkingSetPlan::new(&source, &set.read, &set.written)?;
    let policy = Policy::WorkingSet(Arc::new(plan));
    let mut pager = Pager::new(PagerConfig::default())?;
    interleaved(lab.rounds(1000), |side| match side {
        Side::Ours => {
            let stats = pager.attach(parts.ram.region(), &source, &policy)?;
            pager.detach();
            Ok(stats.replay_us as f64)
        }
        Side::Floor => {
            bare.machine().map()?;
            let ((), time) = timed_us(|| bare.machine().replay(bare.steps()))?;
            Ok(time)
        }
    })
}

/// Hello in a guest of so many MiB.
fn sized(lab: &Lab, mib: u64) -> Result<Engine, Error> {
    let config = FunctionConfig {
        memory_bytes: mib << 20,
        // Where a guest of 1 GiB does not cross a border that its kernel cannot.
        base: Some(1 << 30),
        ..FunctionConfig::default()
    };
    lab.engine(&format!("hello-{mib}-mib"), "hello", config, &request("/"))
}

/// The time of one restore; the clone runs as well, so that the next one has pages to give back.
fn restored(engine: &mut Engine) -> Result<f64, Error> {
    let (_, time) = timed_us(|| engine.restore())?;
    good("hello", engine.run(&request("/"))?)?;
    Ok(time)
}

/// Restoring hello in a guest of so many MiB.
fn restore(lab: &Lab, mib: u64) -> Result<Pair, Error> {
    let mut engine = sized(lab, mib)?;
    let bare = Bare::new(&mut engine, &request("/"))?;
    interleaved(lab.rounds(500), |side| match side {
        Side::Ours => restored(&mut engine),
        Side::Floor => {
            let ((), time) = timed_us(|| {
                bare.attach()?;
                bare.set_state()
            })?;
            bare.put_request();
            bare.run()?;
            bare.answer()?;
            Ok(time)
        }
    })
}

/// What a request for hello waits for in a shell that a pool has made ready, in a guest of so many MiB
/// beside one of 64 MiB.
fn guest_size(lab: &Lab, mib: u64) -> Result<Pair, Error> {
    let (mut large, mut small) = (sized(lab, mib)?, sized(lab, 64)?);
    interleaved(lab.rounds(500), |side| {
        let engine = match side {
            Side::Ours => &mut large,
            Side::Floor => &mut small,
        };
        engine.make_ready()?;
        let (_, time) = timed_us(|| engine.wake())?;
        good("hello", engine.run(&request("/"))?)?;
        Ok(time)
    })
}
