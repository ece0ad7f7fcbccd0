//! What a user may set about one machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::image::{GuestImage, Interface};
use crate::layout::{
    DEVICES, HUGE_PAGE_BYTES, MAX_MEMORY_BYTES, MIN_MEMORY_BYTES, RANDOM_BASE_END, V1_END, V2_END,
};
use crate::paging::Mapping;

/// How a machine is made and what its program is told.
#[derive(Debug, Clone, Default)]
pub struct MachineConfig {
    /// Guest memory in bytes: at least 16 MiB, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// Guest-physical base, a multiple of 2 MiB; random where it is not set.
    pub base: Option<u64>,
    /// How much is identity-mapped at the start.
    pub mapping: Mapping,
    /// The program's arguments, without its name.
    pub args: Vec<String>,
    /// The program's environment.
    pub env: Vec<(String, String)>,
    /// A folder whose files the guest may read (under `/root` in Hermit).
    pub files: Option<PathBuf>,
    /// Whether the guest may read this process' standard input (hypercall interface v2).
    pub stdin: bool,
}

/// Where a guest stands in guest-physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Placement {
    /// The lowest guest-physical address, a multiple of 2 MiB.
    pub base: u64,
    /// Memory size in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
}

a_change_here_is_a_new_format_version! {
    Placement { base: u64, memory_bytes: u64 }
}

impl Placement {
    /// Checks the memory size and picks the base, at random where the user set none.
    ///
    /// # Errors
    /// A size or base that cannot work, with what can.
    pub fn choose(config: &MachineConfig, image: &GuestImage) -> Result<Self, Error> {
        let end = match image.interface() {
            Interface::V1 => V1_END,
            Interface::V2 => V2_END,
        };
        let fixed = config.base.or(image.fixed_base());
        let base = match fixed {
            Some(base) => base,
            None => random_base(config.memory_bytes, image.interface())?,
        };
        let placement = Self {
            base,
            memory_bytes: config.memory_bytes,
        };
        placement.check_size()?;
        placement.check_end(end)?;
        placement.check()?;
        Ok(placement)
    }

    fn check_end(&self, end: u64) -> Result<(), Error> {
        let Self { base, memory_bytes } = *self;
        match base.checked_add(memory_bytes) {
            Some(guest_end) if guest_end <= end => Ok(()),
            _ => Err(Error::BaseTooHigh {
                base,
                memory_bytes,
                end,
            }),
        }
    }

    /// Checks what must hold for every guest, also for one that a snapshot file describes.
    ///
    /// # Errors
    /// An unaligned base, a size that is out of range or more than the host has, or a range that no
    /// CPU addresses or that covers the interrupt controllers.
    pub fn check(&self) -> Result<(), Error> {
        self.check_size()?;
        self.check_end(V2_END)?;
        let Self { base, memory_bytes } = *self;
        if base < DEVICES.end && base + memory_bytes > DEVICES.start {
            return Err(Error::OverDevices { base, memory_bytes });
        }
        Ok(())
    }

    fn check_size(&self) -> Result<(), Error> {
        let Self { base, memory_bytes } = *self;
        if !base.is_multiple_of(HUGE_PAGE_BYTES) {
            return Err(Error::BaseUnaligned { base });
        }
        let host_bytes = host_memory_bytes();
        let problem = if memory_bytes < MIN_MEMORY_BYTES {
            Some(format!(
                "a Hermit guest needs at least {} MiB",
                MIN_MEMORY_BYTES >> 20
            ))
        } else if memory_bytes > MAX_MEMORY_BYTES {
            Some(format!(
                "at most {} GiB are supported",
                MAX_MEMORY_BYTES >> 30
            ))
        } else if memory_bytes > host_bytes {
            Some(format!("this host has {} MiB", host_bytes >> 20))
        } else if !memory_bytes.is_multiple_of(HUGE_PAGE_BYTES) {
            Some("it must be a multiple of 2 MiB".to_owned())
        } else {
            None
        };
        problem.map_or(Ok(()), |reason| {
            Err(Error::MemorySize {
                memory_bytes,
                reason,
            })
        })
    }
}

const GIB_BYTES: u64 = 1 << 30;

/// How far from a border of a GiB guests of 1 GiB or more may begin, before it and behind it. Hermit
/// 0.10 starts at all of these; it does not at 128 MiB behind or 4 MiB before one.
const BEFORE_BORDER_BYTES: u64 = 2 << 20;
const BEHIND_BORDER_BYTES: u64 = 8 << 20;

/// A random base below 3 GiB for a guest of this size, or 4 GiB where it does not fit there. Never 0,
/// which is for those who ask for it.
///
/// A guest of less than 1 GiB gets a place inside one GiB, the page at its end included: Hermit 0.10
/// takes over the start mapping of the GiB that holds its kernel and stops with
/// `ParentEntryHugePage` when it maps a stack into what is left of it in the next. A larger one crosses
/// a border wherever it is, and gets a place where there is next to nothing left of it.
fn random_base(memory_bytes: u64, interface: Interface) -> Result<u64, Error> {
    let fits_in_one = |base: u64| base % GIB_BYTES + memory_bytes < GIB_BYTES;
    let is_at_border = |base: u64| {
        (base + BEFORE_BORDER_BYTES) % GIB_BYTES <= BEFORE_BORDER_BYTES + BEHIND_BORDER_BYTES
    };
    let last = RANDOM_BASE_END.saturating_sub(memory_bytes);
    let places = (HUGE_PAGE_BYTES..=last).step_by(HUGE_PAGE_BYTES as usize);
    let places: Vec<u64> = if memory_bytes < GIB_BYTES {
        places.filter(|base| fits_in_one(*base)).collect()
    } else {
        places.filter(|base| is_at_border(*base)).collect()
    };
    let random = getrandom::u64().map_err(|e| Error::System {
        operation: "drawing a random base",
        source: e.into(),
    })?;
    let chosen = random.checked_rem(places.len() as u64);
    Ok(match chosen.and_then(|place| places.get(place as usize)) {
        Some(base) => *base,
        // With v1 only base 0 is left, or nothing; the checks that follow say which.
        None => match interface {
            Interface::V1 => 0,
            Interface::V2 => DEVICES.end,
        },
    })
}

fn host_memory_bytes() -> u64 {
    // SAFETY: sysconf has no preconditions; -1 (unknown) becomes "no limit".
    let (pages, page_bytes) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    match (u64::try_from(pages), u64::try_from(page_bytes)) {
        (Ok(pages), Ok(page_bytes)) => pages.saturating_mul(page_bytes),
        _ => u64::MAX,
    }
}
