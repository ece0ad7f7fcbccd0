//! What one residual fault costs: a page that nobody brought in ahead.
//!
//! This thread stands in for the vCPU: it touches pages far apart, one after the other, and waits
//! for each. KVM's own way into the fault is the same for both sides and left out.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use dormouse_pager::{PAGE_BYTES, Pager, PagerConfig, Policy, Source};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::thread::CpuSet;
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::Group;
use super::lab::Lab;
use crate::floor::{Handler, Memory};
use crate::{Error, Row, Side, interleaved, us};

pub(super) const GROUP: Group = Group {
    title: "lazy faults",
    names: &["fault/same-core", "fault/other-core"],
    measure,
};

/// 16 MiB of data, all of the guest's memory.
const PAGES: u64 = 16 << 8;
/// Pages that come in with a faulting one: an aligned block, the pager's default.
const BLOCK_PAGES: u64 = 16;
/// Faults of one measurement.
const FAULTS: u64 = 60;

fn measure(lab: &Lab) -> Result<Vec<Row>, Error> {
    let before = affinity()?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|&core| before.is_set(core))
        .collect();
    let [own, others @ ..] = &cores[..] else {
        return Ok(Vec::new());
    };
    let other = others.first();
    let mut rows = Vec::new();
    for (name, handler) in [("fault/same-core", Some(own)), ("fault/other-core", other)] {
        // A host of one core has no other.
        if let (true, Some(&handler)) = (lab.wants(name), handler) {
            pin(*own)?;
            let pair = on_cores(lab, handler);
            set_affinity(&before)?;
            rows.extend(Row::of_pair(name, "µs", pair?));
        }
    }
    Ok(rows)
}

fn on_cores(lab: &Lab, handler: usize) -> Result<crate::Pair, Error> {
    let file = snapshot()?;
    #[expect(
        clippy::single_range_in_vec_init,
        reason = "a table of one range is meant"
    )]
    let data = Arc::new([0..PAGES]);
    let region = GuestRegionMmap::from_range(GuestAddress(0), (PAGES * PAGE_BYTES) as usize, None)
        .map_err(|error| Error::system("mapping guest memory")(std::io::Error::other(error)))?;
    let source = Source::shared(Arc::clone(&file), PAGES, data.clone())?;
    let memory = Memory::new(&region, file, &*data)?;
    let mut pager = Pager::new(PagerConfig {
        name: "bench".to_owned(),
        fault_around_pages: BLOCK_PAGES,
        pin_to: Some(handler),
        ..PagerConfig::default()
    })?;
    interleaved(lab.rounds(300), |side| match side {
        Side::Ours => {
            pager.attach(&region, &source, &Policy::Lazy)?;
            let time = touch(&memory);
            if let Some(error) = pager.take_error() {
                return Err(error.into());
            }
            pager.detach();
            Ok(time)
        }
        Side::Floor => {
            memory.map()?;
            let floor = Handler::spawn(&memory, BLOCK_PAGES, move || {
                // Where it cannot be pinned the other side could not either.
                let _ = pin(handler);
            })?;
            let time = touch(&memory);
            floor.stop()?;
            Ok(time)
        }
    })
}

/// The time of one fault, in microseconds.
fn touch(memory: &Memory) -> f64 {
    let stride = PAGES / (FAULTS + 1);
    // The first one meets a handler that may not be there yet.
    black_box(memory.touch(0));
    let begun = Instant::now();
    for fault in 1..=FAULTS {
        black_box(memory.touch(fault * stride));
    }
    us(begun.elapsed()) / FAULTS as f64
}

/// A sealed memory file full of data.
fn snapshot() -> Result<Arc<File>, Error> {
    let failed = |errno: rustix::io::Errno| Error::system("making a memory file")(errno.into());
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("bench", flags).map_err(failed)?);
    let bytes = vec![1; (PAGES * PAGE_BYTES) as usize];
    file.write_all_at(&bytes, 0)
        .map_err(Error::system("filling a memory file"))?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(failed)?;
    Ok(Arc::new(file))
}

/// Where this thread may run.
fn affinity() -> Result<CpuSet, Error> {
    rustix::thread::sched_getaffinity(None)
        .map_err(|errno| Error::system("sched_getaffinity")(errno.into()))
}

fn set_affinity(cores: &CpuSet) -> Result<(), Error> {
    rustix::thread::sched_setaffinity(None, cores)
        .map_err(|errno| Error::system("sched_setaffinity")(errno.into()))
}

/// Binds this thread to a core.
fn pin(core: usize) -> Result<(), Error> {
    let mut cores = CpuSet::new();
    cores.set(core);
    set_affinity(&cores)
}
