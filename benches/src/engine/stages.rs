//! Where the time of one invocation goes: a restored hello, from the request to its answer.

use dormouse_pool::{Engine, FunctionConfig, PoolConfig, Request, Timings};
use dormouse_vmm::Host;

use super::Group;
use super::bare::Bare;
use super::lab::{Lab, good, request};
use crate::floor::host_tsc;
use crate::{Error, Pair, Row, Samples, Side, in_turn, timed_us};

pub(super) const GROUP: Group = Group {
    title: "stages of an invocation",
    names: &[
        "stage/T1-in-hand",
        "stage/T2-memory",
        "stage/T3-state",
        "stage/T4-first-run",
        "stage/T5-first-fault",
        "stage/T6-handler",
        "stage/T7-answer",
    ],
    measure,
};

/// The stages that a floor has as well, in order.
const BESIDE: [&str; 5] = [
    "stage/T2-memory",
    "stage/T3-state",
    "stage/T4-first-run",
    "stage/T6-handler",
    "stage/T7-answer",
];

fn measure(lab: &Lab) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    let wants_beside = BESIDE.iter().any(|name| lab.wants(name));
    let mut beside = if wants_beside {
        stages(lab)?
    } else {
        Vec::new()
    };
    for name in GROUP.names {
        if !lab.wants(name) {
            continue;
        }
        let row = match *name {
            "stage/T1-in-hand" => in_hand(lab)?.map(|times| Row::alone(*name, "µs", &times)),
            "stage/T5-first-fault" => {
                first_fault(lab)?.map(|times| Row::alone(*name, "µs", &times))
            }
            _ => beside
                .iter()
                .position(|row| row.name == *name)
                .map(|at| beside.swap_remove(at)),
        };
        rows.extend(row);
    }
    Ok(rows)
}

/// T0 to T1: from the request in the pool to an instance's thread that has it.
fn in_hand(lab: &Lab) -> Result<Option<Samples>, Error> {
    lab.deploy("hello", "hello", FunctionConfig::default())?;
    let pool = lab.pool(PoolConfig::default());
    let times = (0..lab.rounds(1000))
        .map(|_| {
            let outcome = lab.wait(async {
                let lease = pool.checkout("hello").await?;
                lease.invoke(request("/")).await
            })?;
            let queue_us = outcome.timings.queue_us;
            good("hello", outcome)?;
            Ok(queue_us as f64)
        })
        .collect::<Result<Vec<_>, Error>>()?;
    Ok(Samples::new(times))
}

/// T4 to T5: until the first fault of a run that touches more than was learned.
fn first_fault(lab: &Lab) -> Result<Option<Samples>, Error> {
    let mut engine = lab.engine("burn-0", "burn", FunctionConfig::default(), &request("/"))?;
    let more = request("/?read=1");
    let mut times = Vec::new();
    // Few enough for the engine not to learn it as well.
    for _ in 0..lab.rounds(20) {
        engine.restore()?;
        let outcome = engine.run(&more)?;
        times.extend(outcome.timings.first_fault_us.map(|us| us as f64));
        good("burn", outcome)?;
    }
    Ok(Samples::new(times))
}

/// All stages of one invocation, in microseconds, in the order of [`BESIDE`]. T6 and T7 are counted
/// from the run's start.
type Stages = [Option<f64>; BESIDE.len()];

fn stages(lab: &Lab) -> Result<Vec<Row>, Error> {
    let get = request("/");
    let mut engine = lab.engine("hello", "hello", FunctionConfig::default(), &get)?;
    let bare = Bare::new(&mut engine, &get)?;
    let host = Host::open()?;
    // Where guests have a TSC of their own, a floor cannot tell when the handler was entered.
    let tsc_khz = (!host.profile().tsc_settable).then(|| host.profile().tsc_khz);
    let mut pairs: [Pair; BESIDE.len()] = Default::default();
    in_turn(lab.rounds(1000), |side| {
        let stages = match side {
            Side::Ours => ours(&mut engine, &get)?,
            Side::Floor => floor(&bare, tsc_khz)?,
        };
        for (pair, stage) in pairs.iter_mut().zip(stages) {
            pair.side(side).extend(stage);
        }
        Ok::<_, Error>(())
    })?;
    let rows = BESIDE.into_iter().zip(pairs).filter_map(|(name, pair)| {
        match (Samples::new(pair.ours)?, Samples::new(pair.floor)) {
            (ours, Some(floor)) => Some(Row::beside(name, "µs", &ours, &floor)),
            (ours, None) => Some(Row::alone(name, "µs", &ours)),
        }
    });
    Ok(rows.collect())
}

fn ours(engine: &mut Engine, get: &Request) -> Result<Stages, Error> {
    let restored = engine.restore()?;
    let outcome = engine.run(get)?;
    let Timings {
        restore_us,
        handler_us,
        run_us,
        ..
    } = outcome.timings;
    good("hello", outcome)?;
    Ok([
        Some(restored.memory_us as f64),
        Some(restored.state_us as f64),
        Some(restore_us as f64),
        handler_us.map(|us| us as f64),
        Some(run_us as f64),
    ])
}

fn floor(bare: &Bare, tsc_khz: Option<u32>) -> Result<Stages, Error> {
    let ((), memory) = timed_us(|| bare.attach())?;
    let ((), state) = timed_us(|| bare.set_state())?;
    let ((), mailbox) = timed_us(|| {
        bare.put_request();
        Ok::<_, Error>(())
    })?;
    let entered_tsc = host_tsc();
    let ((), run) = timed_us(|| bare.run())?;
    let handler_tsc = bare.answer()?.handler_tsc;
    let handler = tsc_khz
        .filter(|_| handler_tsc > entered_tsc)
        .map(|khz| (handler_tsc - entered_tsc) as f64 * 1e3 / f64::from(khz));
    Ok([Some(memory), Some(state), Some(mailbox), handler, Some(run)])
}
