//! What the pager costs on this host, as medians; what is compared is measured in turn.
//!
//! `cargo run --release -p dormouse-pager --example cost`

use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::slice::from_ref;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use dormouse_pager::{
    Error, PAGE_BYTES, Pager, PagerConfig, Policy, Source, Stage, WorkingSetPlan,
};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MemoryRegionAddress};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Data at the start of each snapshot.
const DATA_MIB: u64 = 48;
const CHUNK_PAGES: u64 = 512;

fn main() -> Result<()> {
    sizes()?;
    policies()?;
    density()?;
    residual_faults()
}

/// Attach and detach, by the guest's size.
fn sizes() -> Result<()> {
    for guest_mib in [64, 512, 1024] {
        let (guest, source) = guest_and_source(guest_mib)?;
        let mut pager = Pager::new(PagerConfig::default())?;
        let [lazy, map, detach] = medians(301, |what| match what {
            2 => {
                pager.attach(&guest, &source, &Policy::Lazy)?;
                timed(|| Ok(pager.detach()))
            }
            _ => {
                pager.detach();
                let policy = [Policy::Lazy, Policy::Map][what].clone();
                timed(|| pager.attach(&guest, &source, &policy))
            }
        })?;
        println!(
            "{guest_mib:>5} MiB guest: attach {lazy:>7.1?}, map only {map:>7.1?}, detach {detach:>7.1?}"
        );
    }
    Ok(())
}

/// A run over a working set, half of it written, under each policy.
fn policies() -> Result<()> {
    let (guest, source) = guest_and_source(64)?;
    let mut pager = Pager::new(PagerConfig::default())?;
    for pages in [100, 1000, 5000] {
        let set = WorkingSet::new(0, pages);
        let plan = Arc::new(WorkingSetPlan::new(&source, &set.read, &set.written)?);
        let eager = Arc::new(WorkingSetPlan::eager(&source, &set.written)?);
        let stage = Arc::new(Stage::new(&source, &set.read, &set.written, 1)?);
        let policies = [
            Policy::Lazy,
            Policy::Map,
            Policy::Eager(eager),
            Policy::WorkingSet(plan),
            Policy::Staged(Arc::clone(&stage)),
        ];
        let mut attaches = vec![Vec::new(); policies.len()];
        let mut private_kib = [0; 5];
        let whole: [_; 5] = medians(51, |what| {
            stage.refill()?;
            warm(&mut pager, &guest, &source)?;
            let start = Instant::now();
            pager.attach(&guest, &source, &policies[what])?;
            attaches[what].push(start.elapsed());
            set.touch(&guest)?;
            let whole = start.elapsed();
            let private = pager.touched()?.written;
            private_kib[what] = private.iter().map(|run| (run.end - run.start) * 4).sum();
            Ok(whole)
        })?;
        println!("working set of {pages} pages:      attach   and touch all   private KiB");
        for (what, policy) in policies.iter().enumerate() {
            let attach = median(&mut attaches[what]);
            let (name, whole, kib) = (policy.name(), whole[what], private_kib[what]);
            println!("  {name:<25} {attach:>10.1?} {whole:>15.1?} {kib:>13}");
        }
    }
    Ok(())
}

/// One chunk replayed and one moved in, by the pages of the working set in it.
fn density() -> Result<()> {
    let (guest, source) = guest_and_source(64)?;
    let mut pager = Pager::new(PagerConfig::default())?;
    for chunks in [1, 4] {
        // A chunk comes in whole, so how many of its pages are wanted makes no difference.
        let all = 0..chunks * CHUNK_PAGES;
        let stage = Arc::new(Stage::new(&source, from_ref(&all), &[], 1)?);
        let [refill] = medians(101, |_| {
            pager.attach(&guest, &source, &Policy::Staged(Arc::clone(&stage)))?;
            timed(|| stage.refill())
        })?;
        println!("{chunks} chunk(s): {refill:.1?} to stage");
        for pages in [6, 10, 20, 30, 50, 100, 200] {
            let sets = (0..chunks).map(|chunk| WorkingSet::new(chunk * CHUNK_PAGES, pages));
            let (read, written): (Vec<_>, Vec<_>) = sets.map(|set| (set.read, set.written)).unzip();
            let plan = WorkingSetPlan::new(&source, &read.concat(), &written.concat())?;
            let policies = [
                Policy::WorkingSet(Arc::new(plan)),
                Policy::Staged(Arc::clone(&stage)),
                Policy::Lazy,
            ];
            let [replayed, moved, lazy] = medians(101, |what| {
                stage.refill()?;
                warm(&mut pager, &guest, &source)?;
                timed(|| pager.attach(&guest, &source, &policies[what]))
            })?;
            println!(
                "{chunks} chunk(s) with {pages:>3} pages: attach {replayed:>7.1?} replayed, \
                 {moved:>7.1?} moved, {lazy:>7.1?} lazy"
            );
        }
    }
    Ok(())
}

/// A fault that the handler serves, by where it runs, and what following the guest costs.
fn residual_faults() -> Result<()> {
    let (guest, source) = guest_and_source(64)?;
    let mut pager = Pager::new(PagerConfig::default())?;
    let anywhere = sched_getaffinity(None)?;
    let cores: Vec<_> = (0..CpuSet::MAX_CPU)
        .filter(|&core| anywhere.is_set(core))
        .collect();
    let (first, last) = (cores[0], cores[cores.len() - 1]);
    let only = |core| {
        let mut set = CpuSet::new();
        set.set(core);
        set
    };
    for (kind, page) in [("page cache", 64), ("zero", (64 << 8) - 64)] {
        let [free, same, other, followed] = medians(301, |what| {
            pager.attach(&guest, &source, &Policy::Lazy)?;
            let (guest_on, handler_on) = [
                (anywhere, None),
                (only(first), Some(first)),
                (only(first), Some(last)),
                (anywhere, None),
            ][what];
            sched_setaffinity(None, &guest_on)?;
            pager.pin_to(handler_on)?;
            // Both threads are at rest where they belong, as before a run.
            sleep(Duration::from_micros(200));
            if what == 3 {
                pager.follow()?;
            }
            timed(|| Ok(guest.read_obj::<u64>(at(page))))
        })?;
        println!(
            "fault, {kind}: guest and handler anywhere {free:.1?}, on one core {same:.1?}, \
             on two {other:.1?}, handler follows {followed:.1?}"
        );
    }
    let [stay, change] = medians(301, |what| {
        sched_setaffinity(None, &only(if what == 0 { last } else { first }))?;
        if what == 0 {
            pager.follow()?;
        }
        timed(|| pager.follow())
    })?;
    println!("follow: on the same core {stay:.1?}, to another {change:.1?}");
    Ok(())
}

/// Pages of a run: every second one, in pairs of a read and a written one.
struct WorkingSet {
    read: Vec<Range<u64>>,
    written: Vec<Range<u64>>,
}

impl WorkingSet {
    fn new(first_page: u64, pages: u64) -> Self {
        let every_fourth = |from: u64| {
            (0..pages / 2)
                .map(move |page| page * 4 + from)
                .map(|page| page..page + 1)
                .collect()
        };
        Self {
            read: every_fourth(first_page),
            written: every_fourth(first_page + 2),
        }
    }

    /// Does what the run does.
    fn touch(&self, guest: &GuestRegionMmap) -> Result<()> {
        for (read, written) in self.read.iter().zip(&self.written) {
            black_box(guest.read_obj::<u64>(at(read.start))?);
            guest.write_obj(1_u64, at(written.start))?;
        }
        Ok(())
    }
}

/// Leaves the pager detached and the caches alike, whatever was measured before.
fn warm(pager: &mut Pager, guest: &GuestRegionMmap, source: &Source) -> Result<()> {
    for _ in 0..3 {
        pager.attach(guest, source, &Policy::Lazy)?;
        pager.detach();
    }
    Ok(())
}

fn at(page: u64) -> MemoryRegionAddress {
    MemoryRegionAddress(page * PAGE_BYTES)
}

/// A guest and a snapshot whose first part is data.
fn guest_and_source(mib: u64) -> Result<(GuestRegionMmap, Source)> {
    let pages = mib << 8;
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("pager-cost", flags)?);
    file.set_len(pages * PAGE_BYTES)?;
    file.write_all_at(&vec![1; (DATA_MIB << 20) as usize], 0)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK)?;
    #[expect(
        clippy::single_range_in_vec_init,
        reason = "a table of one range is meant"
    )]
    let data = Arc::new([0..DATA_MIB << 8]);
    let source = Source::shared(Arc::new(file), pages, data)?;
    let guest = GuestRegionMmap::from_range(GuestAddress(0), (mib << 20) as usize, None)?;
    Ok((guest, source))
}

fn timed<T>(work: impl FnOnce() -> std::result::Result<T, Error>) -> Result<Duration> {
    let start = Instant::now();
    black_box(work()?);
    Ok(start.elapsed())
}

/// The medians of several things, measured in turn so that a noisy moment hits all of them.
fn medians<const N: usize>(
    rounds: usize,
    mut measure: impl FnMut(usize) -> Result<Duration>,
) -> Result<[Duration; N]> {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (what, times) in times.iter_mut().enumerate() {
            times.push(measure(what)?);
        }
    }
    Ok(times.each_mut().map(|times| median(times)))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
