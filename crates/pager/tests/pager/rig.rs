//! What the tests share: snapshots with known content, guest regions, accesses.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dormouse_pager::{PAGE_BYTES, Pager, PagerConfig, Source};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

/// A small generator, so that each case can be repeated from its seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// The word at the start of each quarter of a data page.
pub(crate) fn word(page: u64, quarter: u64) -> u64 {
    (page + 1) << 8 | quarter
}

/// Content of a page.
pub(crate) fn page_bytes(page: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES as usize];
    for quarter in 0..4 {
        let at = quarter as usize * 1024;
        bytes[at..at + 8].copy_from_slice(&word(page, quarter).to_le_bytes());
    }
    bytes
}

pub(crate) struct Snapshot {
    pub(crate) pages: u64,
    pub(crate) data: Arc<[Range<u64>]>,
    pub(crate) file: Arc<File>,
}

impl Snapshot {
    pub(crate) fn new(pages: u64, data: &[Range<u64>]) -> Self {
        let file = unsealed(pages, data);
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        Self {
            pages,
            data: data.into(),
            file: Arc::new(file),
        }
    }

    /// Data in random places.
    pub(crate) fn random(pages: u64, random: &mut Random) -> Self {
        let mut data = Vec::new();
        let mut at = random.below(8);
        while at < pages {
            let end = (at + 1 + random.below(40)).min(pages);
            data.push(at..end);
            at = end + 1 + random.below(40);
        }
        Self::new(pages, &data)
    }

    pub(crate) fn is_data(&self, page: u64) -> bool {
        self.data.iter().any(|range| range.contains(&page))
    }

    pub(crate) fn expected(&self, page: u64) -> Vec<u8> {
        if self.is_data(page) {
            page_bytes(page)
        } else {
            vec![0; PAGE_BYTES as usize]
        }
    }

    pub(crate) fn shared(&self) -> Source {
        Source::shared(Arc::clone(&self.file), self.pages, Arc::clone(&self.data)).unwrap()
    }

    pub(crate) fn not_local(&self) -> Source {
        self.counted(&Arc::new(AtomicU64::new(0)))
    }

    /// Not local; counts the pages that are read.
    pub(crate) fn counted(&self, count: &Arc<AtomicU64>) -> Source {
        let (file, count) = (Arc::clone(&self.file), Arc::clone(count));
        self.reading(move |first, buffer| {
            count.fetch_add(buffer.len() as u64 / PAGE_BYTES, Ordering::Relaxed);
            file.read_exact_at(buffer, first * PAGE_BYTES)
        })
    }

    pub(crate) fn reading(
        &self,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Source {
        Source::not_local(self.pages, Arc::clone(&self.data), Arc::new(read)).unwrap()
    }

    pub(crate) fn sources(&self) -> [(&'static str, Source); 2] {
        [("shared", self.shared()), ("not local", self.not_local())]
    }

    /// A guest so many bytes behind a multiple of 2 MiB in the host's address space.
    pub(crate) fn guest_at(&self, offset_bytes: u64) -> Guest {
        const HUGE_BYTES: usize = 2 << 20;
        let bytes = (self.pages * PAGE_BYTES) as usize;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice. It is never unmapped.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes + 2 * HUGE_BYTES, prot, flags)
        }
        .unwrap();
        let skipped = mapped.cast::<u8>().align_offset(HUGE_BYTES) + offset_bytes as usize;
        let start = mapped.cast::<u8>().wrapping_add(skipped);
        // SAFETY: within the mapping above, which is two huge pages longer.
        let region =
            unsafe { MmapRegion::build_raw(start, bytes, prot.bits() as i32, flags.bits() as i32) };
        let region = GuestRegionMmap::new(region.unwrap(), GuestAddress(0x1120_0000));
        Guest(Arc::new(region.unwrap()))
    }

    pub(crate) fn guest(&self) -> Guest {
        let bytes = (self.pages * PAGE_BYTES) as usize;
        // A base that is not 0: pages must count from the region, not from guest-physical 0.
        let base = GuestAddress(0x1120_0000);
        Guest(Arc::new(
            GuestRegionMmap::from_range(base, bytes, None).unwrap(),
        ))
    }
}

pub(crate) fn unsealed(pages: u64, data: &[Range<u64>]) -> File {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("pager-test", flags).unwrap());
    file.set_len(pages * PAGE_BYTES).unwrap();
    for page in data.iter().cloned().flatten() {
        file.write_all_at(&page_bytes(page), page * PAGE_BYTES)
            .unwrap();
    }
    file
}

#[derive(Clone)]
pub(crate) struct Guest(pub(crate) Arc<GuestRegionMmap>);

impl Guest {
    pub(crate) fn read(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES as usize];
        self.0
            .read_slice(&mut bytes, MemoryRegionAddress(page * PAGE_BYTES))
            .unwrap();
        bytes
    }

    /// Host address of its first page.
    pub(crate) fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Takes pages away, as somebody may who has the same mapping.
    pub(crate) fn drop_pages(&self, pages: &Range<u64>) {
        let at = MemoryRegionAddress(pages.start * PAGE_BYTES);
        let bytes = ((pages.end - pages.start) * PAGE_BYTES) as usize;
        let slice = self.0.get_slice(at, bytes).unwrap();
        let address = slice.ptr_guard_mut().as_ptr().cast();
        // SAFETY: within the region, whose content may change at any time.
        unsafe { rustix::mm::madvise(address, bytes, Advice::LinuxDontNeed) }.unwrap();
    }

    /// Maps the whole region anew, as nobody should.
    pub(crate) fn map_over(&self) {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let start = self.0.as_ptr().cast();
        // SAFETY: the whole of the region, whose content may change at any time.
        unsafe { rustix::mm::mmap_anonymous(start, self.0.size(), prot, flags) }.unwrap();
    }

    /// One word of a page.
    pub(crate) fn peek(&self, page: u64) -> u64 {
        self.0
            .read_obj(MemoryRegionAddress(page * PAGE_BYTES))
            .unwrap()
    }

    /// Changes one word of a page.
    pub(crate) fn poke(&self, page: u64, value: u64) {
        self.0
            .write_obj(value, MemoryRegionAddress(page * PAGE_BYTES + 512))
            .unwrap();
    }

    pub(crate) fn assert_pristine(
        &self,
        snapshot: &Snapshot,
        pages: impl IntoIterator<Item = u64>,
    ) {
        for page in pages {
            assert!(
                self.read(page) == snapshot.expected(page),
                "page {page} differs"
            );
        }
    }
}

/// A pager, or a failure that says what is wrong with this host.
pub(crate) fn pager() -> Pager {
    with(PagerConfig::default())
}

pub(crate) fn with(config: PagerConfig) -> Pager {
    Pager::new(config).unwrap_or_else(|error| panic!("these tests need userfaultfd: {error}"))
}

pub(crate) fn flat(ranges: &[Range<u64>]) -> Vec<u64> {
    ranges.iter().cloned().flatten().collect()
}

/// Ends the readers also when an assertion fails.
pub(crate) struct StopReaders<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopReaders<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const ALONE: &str = "DORMOUSE_PAGER_TEST_ALONE";

/// Whether this test is alone in its process. If not, runs it again in one of its own, and fails if
/// it fails there.
pub(crate) fn alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{errors}"
    );
    false
}

/// A mapping of this process.
#[derive(Debug, Default)]
pub(crate) struct Map {
    pub(crate) start: u64,
    pub(crate) huge_kib: u64,
}

/// All mappings of this process.
pub(crate) fn maps() -> Vec<Map> {
    let mut maps = Vec::new();
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let (word, rest) = line.split_once([' ', '-']).unwrap();
        if let Ok(start) = u64::from_str_radix(word, 16) {
            maps.push(Map { start, huge_kib: 0 });
        } else if word == "AnonHugePages:" {
            let map = maps.last_mut().unwrap();
            map.huge_kib = rest.trim().trim_end_matches(" kB").parse().unwrap();
        }
    }
    maps
}
