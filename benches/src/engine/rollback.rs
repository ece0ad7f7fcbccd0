//! Rolling a clone back and running it again.

use dormouse_pool::FunctionConfig;

use super::Group;
use super::bare::Bare;
use super::lab::{Lab, good, request};
use crate::{Error, Pair, Row, Side, in_turn, timed_us};

pub(super) const GROUP: Group = Group {
    title: "rollbacks",
    names: &[
        "rollback/10",
        "rollback/100",
        "rollback/1000",
        "rollback/5000",
        "rollback-alone/10",
        "rollback-alone/100",
        "rollback-alone/1000",
        "rollback-alone/5000",
    ],
    measure,
};

/// Pages, rounds, and what may be demanded of rollback and run together.
const SIZES: [(u64, usize, Option<f64>); 4] = [
    (10, 500, None),
    (100, 500, Some(1.3)),
    (1000, 100, None),
    (5000, 40, None),
];

fn measure(lab: &Lab) -> Result<Vec<Row>, Error> {
    let (mut rows, mut alone) = (Vec::new(), Vec::new());
    for (pages, rounds, limit) in SIZES {
        let names = ["rollback", "rollback-alone"].map(|of| format!("{of}/{pages}"));
        if !names.iter().any(|name| lab.wants(name)) {
            continue;
        }
        let pairs = roll_back(lab, pages, lab.rounds(rounds))?;
        let [both, only] = names;
        if lab.wants(&both) {
            let row = Row::of_pair(both, "µs", pairs.with_run);
            rows.extend(row.map(|row| Row { limit, ..row }));
        }
        if lab.wants(&only) {
            alone.extend(Row::of_pair(only, "µs", pairs.alone));
        }
    }
    rows.append(&mut alone);
    Ok(rows)
}

/// Both of a clone that wrote so many pages.
#[derive(Default)]
struct Pairs {
    /// The rollback and the run after it.
    with_run: Pair,
    /// The rollback.
    alone: Pair,
}

/// A rollback of so many pages and the run after it, which writes them again.
fn roll_back(lab: &Lab, pages: u64, rounds: usize) -> Result<Pairs, Error> {
    let burn = |pages: u64| {
        let get = request(&format!("/?write={pages}"));
        let name = format!("burn-{pages}");
        let mut engine = lab.engine(&name, "burn", FunctionConfig::default(), &get)?;
        let bare = Bare::new(&mut engine, &get)?;
        Ok::<_, Error>((engine, bare, get))
    };
    // What an invocation writes that is asked to write nothing.
    let (_, idle, _) = burn(0)?;
    let (mut engine, bare, get) = burn(pages.saturating_sub(idle.written_pages()))?;
    good("burn", engine.run(&get)?)?;
    let mut pairs = Pairs::default();
    in_turn(rounds, |side| {
        let (alone, run) = match side {
            Side::Ours => {
                let (_, alone) = timed_us(|| engine.roll_back())?;
                let (outcome, run) = timed_us(|| engine.run(&get))?;
                good("burn", outcome)?;
                (alone, run)
            }
            Side::Floor => {
                let ((), alone) = timed_us(|| {
                    bare.roll_back();
                    bare.set_state()
                })?;
                let ((), run) = timed_us(|| {
                    bare.put_request();
                    bare.run()
                })?;
                bare.answer()?;
                (alone, run)
            }
        };
        pairs.alone.side(side).push(alone);
        pairs.with_run.side(side).push(alone + run);
        Ok::<_, Error>(())
    })?;
    Ok(pairs)
}
