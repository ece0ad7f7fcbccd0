//! What an idle clone costs in memory.

use std::fs;
use std::time::Duration;

use dormouse_pool::{FunctionConfig, Lease, Pool, PoolConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Group;
use super::bare::Bare;
use super::lab::{Lab, good, request};
use crate::{Error, Row, Samples};
use dormouse_load::kib;

pub(super) const GROUP: Group = Group {
    title: "memory of idle clones",
    names: &[
        "memory/available/10",
        "memory/pss/10",
        "memory/available/100",
        "memory/pss/100",
        "memory/available/500",
        "memory/pss/500",
        "memory/bare",
    ],
    measure,
};

/// MiB for each clone.
const LIMIT: f64 = 0.4;
/// How many clones are counted, one count after the other.
const COUNTS: [usize; 3] = [10, 100, 500];
/// Shells that stand before the count begins and are never used. They fill up what the kernel's own
/// structures of VMs that have ended left half empty.
const BALLAST: usize = 100;
/// Clones of the floor.
const BARE_CLONES: usize = 100;
/// A clone's VM, vCPU, userfaultfd and event descriptors, and some to spare.
const DESCRIPTORS_PER_CLONE: u64 = 16;
/// How often the pool grows. Each growth begins with a machine at rest.
const GROWTHS: usize = 3;
const SETTLING: Duration = Duration::from_millis(500);

fn measure(lab: &Lab) -> Result<Vec<Row>, Error> {
    let most = COUNTS[COUNTS.len() - 1] + BALLAST;
    raise_descriptor_limit(most as u64 * DESCRIPTORS_PER_CLONE)?;
    let config = FunctionConfig {
        concurrency: 1024,
        ..FunctionConfig::default()
    };
    let mut engine = lab.engine("idle", "hello", config, &request("/"))?;
    let bare = Bare::new(&mut engine, &request("/"))?;
    let mut found = Found::default();
    for _ in 0..GROWTHS {
        grow(lab, &bare, &mut found)?;
    }
    let [_, _, (largest, _)] = &found.counts;
    let beside = Samples::new(largest.clone()).zip(Samples::new(found.bare));
    let beside = beside.map(|(ours, floor)| Row::beside("memory/bare", "MiB", &ours, &floor));
    let mut rows = Vec::new();
    for (clones, (available, pss)) in COUNTS.into_iter().zip(found.counts) {
        for (name, values) in [("available", available), ("pss", pss)] {
            let name = format!("memory/{name}/{clones}");
            let values = Samples::new(values);
            rows.extend(values.map(|values| Row::alone(name, "MiB", &values).with_limit(LIMIT)));
        }
    }
    rows.extend(beside);
    rows.retain(|row| lab.wants(&row.name));
    Ok(rows)
}

/// What a clone costs in MiB, one number for each growth.
#[derive(Default)]
struct Found {
    /// For each of [`COUNTS`]: what the machine has less available, and what this process has more.
    counts: [(Vec<f64>, Vec<f64>); COUNTS.len()],
    /// What the machine has less available for a clone of the floor.
    bare: Vec<f64>,
}

/// Lets a pool grow to each count of clones that have served a request and are idle.
fn grow(lab: &Lab, bare: &Bare, found: &mut Found) -> Result<(), Error> {
    let pool = lab.pool(PoolConfig {
        max_concurrency: 1024,
        shells_ahead: 0,
        ..PoolConfig::default()
    });
    // All that clones share is there before the count begins.
    invoke(lab, &pool, 1)?;
    let ballast = take(lab, &pool, BALLAST)?;
    let before = Usage::at_rest()?;
    for (clones, (available, pss)) in COUNTS.into_iter().zip(&mut found.counts) {
        invoke(lab, &pool, clones)?;
        // What follows an answer is done by then, and no idle clone gives its memory back yet.
        std::thread::sleep(SETTLING);
        let now = Usage::now()?;
        available.push(mib(before.available_kib, now.available_kib) / clones as f64);
        pss.push(mib(now.pss_kib, before.pss_kib) / clones as f64);
    }
    let before = Usage::now()?;
    let clones = (0..BARE_CLONES)
        .map(|_| bare.another())
        .collect::<Result<Vec<_>, _>>()?;
    let now = Usage::now()?;
    found
        .bare
        .push(mib(before.available_kib, now.available_kib) / clones.len() as f64);
    drop((clones, ballast));
    lab.wait(pool.drain(Duration::from_secs(10)));
    Ok(())
}

fn mib(kib: u64, less_kib: u64) -> f64 {
    (kib as f64 - less_kib as f64) / 1024.0
}

/// So many instances, each another one.
fn take(lab: &Lab, pool: &Pool, instances: usize) -> Result<Vec<Lease>, Error> {
    lab.wait(async {
        let mut leases = Vec::with_capacity(instances);
        for _ in 0..instances {
            leases.push(pool.checkout("idle").await?);
        }
        Ok(leases)
    })
}

/// One request for each of so many instances.
fn invoke(lab: &Lab, pool: &Pool, instances: usize) -> Result<(), Error> {
    for lease in take(lab, pool, instances)? {
        good("hello", lab.wait(lease.invoke(request("/")))?)?;
    }
    Ok(())
}

struct Usage {
    available_kib: u64,
    pss_kib: u64,
}

impl Usage {
    /// Once the kernel has given back what it frees late: what ended programs, VMs and threads had.
    fn at_rest() -> Result<Self, Error> {
        const STEP: Duration = Duration::from_secs(1);
        const MOST_STEPS: usize = 30;
        const STILL_KIB: u64 = 256;
        let mut before = Self::now()?;
        let mut still = 0;
        for _ in 0..MOST_STEPS {
            std::thread::sleep(STEP);
            let now = Self::now()?;
            let is_still = now.available_kib.abs_diff(before.available_kib) <= STILL_KIB;
            still = if is_still { still + 1 } else { 0 };
            before = now;
            if still == 3 {
                break;
            }
        }
        Ok(before)
    }

    fn now() -> Result<Self, Error> {
        let read = |file: &'static str| fs::read_to_string(file).map_err(Error::system(file));
        let named = |file: &'static str, name| {
            let missing = || std::io::Error::other(format!("it has no {name}"));
            kib(&read(file)?, name).ok_or_else(|| Error::system(file)(missing()))
        };
        let available_kib = named("/proc/meminfo", "MemAvailable")?;
        Ok(Self {
            available_kib: available_kib + 4 * pages_at_cores(&read("/proc/zoneinfo")?),
            pss_kib: named("/proc/self/smaps_rollup", "Pss")?,
        })
    }
}

/// Free pages that the kernel keeps on lists of single cores, from the text of `/proc/zoneinfo`
/// (`pagesets`, `count`). They can be hundreds of MiB after much was freed, and `MemAvailable` leaves
/// them out.
fn pages_at_cores(zoneinfo: &str) -> u64 {
    let counts = zoneinfo.lines().filter_map(|line| {
        let count = line.trim().strip_prefix("count:")?;
        count.trim().parse::<u64>().ok()
    });
    counts.sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_all_cores_and_zones_count() {
        let zoneinfo = [
            "Node 0, zone   Normal",
            "  pages free     5436",
            "  pagesets",
            "    cpu: 0",
            "              count:    402",
            "              high:     1700",
            "    cpu: 1",
            "              count:    8",
        ];
        let zoneinfo = zoneinfo.join("\n");
        assert_eq!(pages_at_cores(&zoneinfo), 410);
        assert!(Usage::now().unwrap().available_kib > 0);
    }
}
