//! Makes all runs of a scenario, one after the other.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::arrivals::{Arrivals, Rate};
use crate::drive::{self, Progress, Stop};
use crate::plan::{Pattern, Plan};
use crate::record::{FORMAT, Record, Run};
use crate::scenario::Prepared;
use crate::{Error, Machine, Target};

/// How long the capacity is measured at most, after a warm-up.
const CAPACITY: Duration = Duration::from_secs(10);
const CAPACITY_WARMUP: Duration = Duration::from_secs(2);
/// Clients per core that measure it: enough to keep every core of the target busy.
const CLIENTS_PER_CORE: u32 = 4;

/// What happens while a scenario is made.
#[derive(Debug)]
pub enum Event<'a> {
    /// A run begins: its name and pattern, which it is, and of how many.
    Begins(&'a str, &'a str, usize, usize),
    /// It is getting on.
    Progress(&'a Progress),
    /// It has ended.
    Ended(&'a Run),
}

/// Makes runs until they are done, somebody asks for the end, or one cannot be made. What was made
/// before an error is kept, and comes back with it.
pub fn session(
    title: &str,
    plans: Vec<Prepared>,
    target: &Target,
    stop: &Stop,
    mut watch: impl FnMut(Event<'_>),
) -> (Record, Option<Error>) {
    let began = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut record = Record {
        format: FORMAT.to_owned(),
        title: title.to_owned(),
        target: target.to_string(),
        machine: Machine::now(),
        began_unix_ms: began.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(0)),
        runs: Vec::new(),
    };
    let count = plans.len();
    let mut capacity = None;
    for (number, prepared) in (1..).zip(plans) {
        if stop.is_asked() {
            break;
        }
        let made = make(prepared, target, stop, &mut capacity, &mut |event| {
            watch(match event {
                Event::Begins(name, pattern, ..) => Event::Begins(name, pattern, number, count),
                other => other,
            });
        });
        match made {
            Ok(Some(run)) => {
                watch(Event::Ended(&run));
                record.runs.push(run);
            }
            Ok(None) => break,
            Err(error) => return (record, Some(error)),
        }
    }
    (record, None)
}

/// What a target can answer at most, when it is asked for certain requests.
struct Capacity {
    requests: Vec<String>,
    per_s: f64,
}

/// One run; nothing where somebody asked for the end before it began.
fn make(
    mut prepared: Prepared,
    target: &Target,
    stop: &Stop,
    known: &mut Option<Capacity>,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Run>, Error> {
    let mut capacity_per_s = None;
    if let Some(share) = prepared.of_capacity {
        let names: Vec<_> = prepared
            .plan
            .requests
            .iter()
            .map(|request| request.name.clone())
            .collect();
        // Runs at several shares of one capacity are held against the same.
        let same = known.as_ref().filter(|known| known.requests == names);
        let per_s = match same {
            Some(known) => known.per_s,
            None => capacity(&prepared.plan, target, stop, watch)?,
        };
        if stop.is_asked() {
            return Ok(None);
        }
        if per_s <= 0.0 {
            return Err(Error::setting(
                format!("run {:?}", prepared.plan.name),
                "the target answered nothing well while its capacity was measured; look at the \
                 errors of a run with a rate of its own",
            ));
        }
        *known = Some(Capacity {
            requests: names,
            per_s,
        });
        capacity_per_s = Some(per_s);
        if let Pattern::Open(Arrivals::Rated { rate, .. }) = &mut prepared.plan.pattern {
            *rate = Rate::Constant(share * per_s);
        }
    }
    watch(Event::Begins(
        &prepared.plan.name,
        &prepared.plan.describe(),
        0,
        0,
    ));
    let mut run = drive::run(prepared.plan, target, stop, |progress| {
        watch(Event::Progress(progress));
    })?;
    run.capacity_per_s = capacity_per_s;
    Ok(Some(run))
}

/// Measures by a closed loop how many answers per second the target gives at most.
fn capacity(
    plan: &Plan,
    target: &Target,
    stop: &Stop,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<f64, Error> {
    let cores = u32::try_from(Machine::now().cores).unwrap_or(1);
    let clients = (cores * CLIENTS_PER_CORE).clamp(plan.threads, plan.connections);
    let mut plan = Plan {
        name: format!("{}: capacity", plan.name),
        pattern: Pattern::Closed {
            concurrency: clients,
            think: Duration::ZERO,
            requests: None,
        },
        warmup: CAPACITY_WARMUP.min(plan.measured / 2),
        measured: CAPACITY.min(plan.measured),
        ..plan.clone()
    };
    plan.seed = plan.seed.wrapping_add(1);
    watch(Event::Begins(&plan.name, &plan.describe(), 0, 0));
    let run = drive::run(plan, target, stop, |progress| {
        watch(Event::Progress(progress))
    })?;
    Ok(run.achieved_per_s())
}
