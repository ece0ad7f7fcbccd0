//! What the pager costs on this host: attach, replay and residual faults, as medians.
//!
//! `cargo run --release -p dormouse-pager --example cost`

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_pager::{Error, PAGE_BYTES, Pager, PagerConfig, Policy, Source, WorkingSetPlan};
use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MemoryRegionAddress};

const ROUNDS: usize = 301;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for guest_mib in [32, 64, 512, 1024] {
        let (guest, source) = guest_and_source(guest_mib)?;
        let mut pager = Pager::new(PagerConfig::default())?;
        let attach = median(|| timed(|| pager.attach(&guest, &source, &Policy::Lazy)))?;
        let detach = median(|| {
            pager.attach(&guest, &source, &Policy::Lazy)?;
            timed(|| Ok::<_, Error>(pager.detach()))
        })?;
        println!("{guest_mib:>5} MiB guest: attach {attach:>8.1?}  detach {detach:>8.1?}");
    }

    let (guest, source) = guest_and_source(64)?;
    let mut pager = Pager::new(PagerConfig::default())?;
    for pages in [16, 100, 1000] {
        // Every second page is read, a tenth is written, all in data.
        let read: Vec<_> = (0..pages).map(|page| page * 2..page * 2 + 1).collect();
        let written: Vec<_> = (0..pages / 10)
            .map(|page| page * 20 + 1..page * 20 + 2)
            .collect();
        let plan = Arc::new(WorkingSetPlan::new(&source, &read, &written)?);
        let policy = Policy::WorkingSet(Arc::clone(&plan));
        let attach = median(|| timed(|| pager.attach(&guest, &source, &policy)))?;
        println!(
            "{pages:>5} pages of working set ({} in): attach {attach:>8.1?}",
            plan.pages()
        );
    }

    for (name, core) in [
        ("anywhere", None),
        ("same core", Some(0)),
        ("other core", Some(1)),
    ] {
        if core.is_some() {
            let mut set = rustix::thread::CpuSet::new();
            set.set(0);
            rustix::thread::sched_setaffinity(None, &set)?;
        }
        if pager.pin_to(core).is_err() {
            continue;
        }
        for (kind, page) in [("page cache", 64_u64), ("zero", (64 << 8) - 64)] {
            let fault = median(|| {
                pager.attach(&guest, &source, &Policy::Lazy)?;
                timed(|| {
                    let at = MemoryRegionAddress(page * PAGE_BYTES);
                    black_box(guest.read_obj::<u64>(at))
                        .map(drop)
                        .map_err(|_| Error::NotAttached)
                })
            })?;
            println!("residual fault, {kind}, handler {name}: {fault:>8.1?}");
        }
    }
    Ok(())
}

/// A guest and a snapshot whose first 16 MiB are data.
fn guest_and_source(mib: u64) -> Result<(GuestRegionMmap, Source), Box<dyn std::error::Error>> {
    let pages = mib << 8;
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("pager-cost", flags)?);
    file.set_len(pages * PAGE_BYTES)?;
    file.write_all_at(&vec![1; 16 << 20], 0)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK)?;
    #[expect(
        clippy::single_range_in_vec_init,
        reason = "a table of one range is meant"
    )]
    let data = Arc::new([0..16 << 8]);
    let source = Source::shared(Arc::new(file), pages, data)?;
    let guest = GuestRegionMmap::from_range(GuestAddress(0), (mib << 20) as usize, None)?;
    Ok((guest, source))
}

fn timed<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<Duration, Error> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn median(mut work: impl FnMut() -> Result<Duration, Error>) -> Result<Duration, Error> {
    let mut times = (0..ROUNDS).map(|_| work()).collect::<Result<Vec<_>, _>>()?;
    times.sort_unstable();
    Ok(times[ROUNDS / 2])
}
