//! What an idle clone costs in memory.

use std::fs;
use std::time::Duration;

use dormouse_pool::{FunctionConfig, Pool, PoolConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Group;
use super::lab::{Lab, good, request};
use crate::machine::kib;
use crate::{Error, Row, Samples};

pub(super) const GROUP: Group = Group {
    title: "memory of idle clones",
    names: &[
        "memory/available/10",
        "memory/pss/10",
        "memory/available/100",
        "memory/pss/100",
        "memory/available/500",
        "memory/pss/500",
    ],
    measure,
};

/// MiB for each clone.
const LIMIT: f64 = 0.4;
/// A clone's VM, vCPU, userfaultfd and event descriptors, and some to spare.
const DESCRIPTORS_PER_CLONE: u64 = 16;

fn measure(lab: &Lab) -> Result<Vec<Row>, Error> {
    lab.deploy(
        "idle",
        "hello",
        FunctionConfig {
            concurrency: 1024,
            ..FunctionConfig::default()
        },
    )?;
    let mut rows = Vec::new();
    for clones in [10, 100, 500] {
        let names = ["available", "pss"].map(|of| format!("memory/{of}/{clones}"));
        if !names.iter().any(|name| lab.wants(name)) {
            continue;
        }
        raise_descriptor_limit(clones as u64 * DESCRIPTORS_PER_CLONE)?;
        // The fewer there are, the more does chance weigh.
        let measurements = (0..lab.rounds(5000 / clones).min(15))
            .map(|_| per_clone(lab, clones))
            .collect::<Result<Vec<_>, _>>()?;
        let (available, pss): (Vec<_>, Vec<_>) = measurements.into_iter().unzip();
        for (name, values) in names.into_iter().zip([available, pss]) {
            if let (true, Some(values)) = (lab.wants(&name), Samples::new(values)) {
                rows.push(Row::alone(name, "MiB", &values).with_limit(LIMIT));
            }
        }
    }
    Ok(rows)
}

/// What the machine has less available, and this process has more, for each of so many clones that
/// served one request and are idle, in MiB.
fn per_clone(lab: &Lab, clones: usize) -> Result<(f64, f64), Error> {
    let pool = lab.pool(PoolConfig {
        max_concurrency: 2 * clones,
        shells_ahead: 0,
        ..PoolConfig::default()
    });
    // One clone stands before the count begins, and with it all that clones share.
    for _ in 0..10 {
        invoke(lab, &pool, 1)?;
    }
    let before = Usage::settled()?;
    invoke(lab, &pool, 1 + clones)?;
    let after = Usage::settled()?;
    lab.wait(pool.drain(Duration::from_secs(10)));
    let mib = |before: u64, after: u64| (after as f64 - before as f64) / 1024.0 / clones as f64;
    Ok((
        mib(after.available_kib, before.available_kib),
        mib(before.pss_kib, after.pss_kib),
    ))
}

/// One request for each of so many instances, which are all taken before the first is used.
fn invoke(lab: &Lab, pool: &Pool, instances: usize) -> Result<(), Error> {
    lab.wait(async {
        let mut leases = Vec::with_capacity(instances);
        for _ in 0..instances {
            leases.push(pool.checkout("idle").await?);
        }
        for lease in leases {
            good("hello", lease.invoke(request("/")).await?)?;
        }
        Ok(())
    })
}

struct Usage {
    available_kib: u64,
    pss_kib: u64,
}

impl Usage {
    /// Once the kernel has given back what it frees later: what ended VMs and threads had.
    fn settled() -> Result<Self, Error> {
        const STEP: Duration = Duration::from_millis(100);
        const MOST_STEPS: usize = 20;
        const STILL_KIB: u64 = 512;
        let mut before = Self::now()?;
        for _ in 0..MOST_STEPS {
            std::thread::sleep(STEP);
            let now = Self::now()?;
            if now.available_kib.abs_diff(before.available_kib) <= STILL_KIB {
                return Ok(now);
            }
            before = now;
        }
        Ok(before)
    }

    fn now() -> Result<Self, Error> {
        let read = |file: &'static str, name| {
            let text = fs::read_to_string(file).map_err(Error::system(file))?;
            let missing = || std::io::Error::other(format!("it has no {name}"));
            kib(&text, name).ok_or_else(|| Error::system(file)(missing()))
        };
        Ok(Self {
            available_kib: read("/proc/meminfo", "MemAvailable")?,
            pss_kib: read("/proc/self/smaps_rollup", "Pss")?,
        })
    }
}

fn raise_descriptor_limit(at_least: u64) -> Result<(), Error> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= at_least) {
        return Ok(());
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised)
        .map_err(|errno| Error::system("raising the limit of open files")(errno.into()))
}
