//! How many faults are left when the working set is replayed.

use dormouse_pool::{FunctionConfig, PoolConfig};

use super::Group;
use super::lab::{Lab, good, request};
use crate::{Error, Row, Samples};

pub(super) const GROUP: Group = Group {
    title: "residual faults",
    names: &[
        "residual-faults/hello",
        "residual-faults/whoami",
        "residual-faults/wordfreq",
        "residual-faults/echo",
        "residual-faults/faulty",
        "residual-faults/burn",
    ],
    measure,
};

/// What each is asked for.
const TARGETS: [(&str, &str); 6] = [
    ("hello", "/"),
    ("whoami", "/"),
    ("wordfreq", "/?word=bade"),
    ("echo", "/a/path?and=query"),
    ("faulty", "/"),
    ("burn", "/?read=600&write=300"),
];
/// As many in a quick run: how much the first ones weigh must not depend on it.
const INVOCATIONS: usize = 21;
/// Percent of the working set's pages.
const LIMIT: f64 = 1.0;

fn measure(lab: &Lab) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for (function, target) in TARGETS {
        let name = format!("residual-faults/{function}");
        if lab.wants(&name) {
            let shares = shares(lab, function, target)?;
            // The mean: one invocation with many faults must not hide behind others.
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            let row = Samples::new(shares)
                .map(|shares| Row::of_value(name, "% of set", mean, &shares).with_limit(LIMIT));
            rows.extend(row);
        }
    }
    Ok(rows)
}

/// Of every invocation but the first: its faults in percent of the working set as it is known in the
/// end.
fn shares(lab: &Lab, function: &str, target: &str) -> Result<Vec<f64>, Error> {
    let name = format!("residual-{function}");
    lab.deploy(&name, function, FunctionConfig::default())?;
    let pool = lab.pool(PoolConfig::default());
    let mut faults = Vec::new();
    for _ in 0..INVOCATIONS {
        let outcome = lab.wait(async {
            let lease = pool.checkout(&name).await?;
            lease.invoke(request(target)).await
        })?;
        faults.push(outcome.timings.faults);
        good(function, outcome)?;
    }
    let set_pages = lab.wait(pool.function(&name))?.working_set_pages;
    if set_pages == 0 {
        return Err(Error::Answer {
            what: format!("the pool with {function}"),
            answer: "no working set became known".to_owned(),
        });
    }
    let percent = |&faults: &u64| 100.0 * faults as f64 / set_pages as f64;
    Ok(faults.iter().skip(1).map(percent).collect())
}
