//! Time across a snapshot.
//!
//! A guest reads time from its TSC: monotonic time is TSC / MHz, real time is its boot time plus
//! that. Two things are put right at every restore:
//!
//! - **TSC**: saved value plus the time that passed, so that monotonic time goes on and timers that
//!   are due fire at once. Where the host ignores TSC writes, the guest's TSC is the host's, which
//!   has advanced by just that within one host boot; where the boot is another one,
//!   time would jump and the restore is refused.
//! - **Boot time**: Hermit divides the TSC by whole MHz, so its clock drifts by up to 385 ppm.
//!   Writing `now − TSC / MHz` into the kernel's `BOOT_TIME` at each restore is exact. The place was
//!   found by the symbol and confirmed by the value when the snapshot was made; without it the
//!   drift stays.

use std::arch::x86_64::_rdtsc;
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvm_bindings::kvm_msr_entry;
use serde::{Deserialize, Serialize};

use crate::describe::ClockDescription;
use crate::error::Error;
use crate::host::{Host, HostProfile};
use crate::image::Symbols;
use crate::ram::GuestRam;
use crate::shell::Shell;
use crate::vcpu::{MSR_IA32_TSC, get_msrs, set_msrs, set_tsc_offset};

/// The clocks of a saved guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// The guest's TSC when it was saved.
    tsc: u64,
    /// Real time then, nanoseconds since the Unix epoch.
    unix_ns: u64,
    /// TSC frequency that the guest was told, kHz.
    tsc_khz: u32,
    places: KernelPlaces,
    /// Whether a clone that draws random bytes reseeds its pool first.
    reseeds: bool,
    /// The host's boot, as the kernel names it; its TSC is counted from there.
    boot_id: String,
}

/// Where the kernel keeps what clones need changed, as guest-physical addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct KernelPlaces {
    /// The boot time, microseconds since the Unix epoch.
    boot_time: Option<u64>,
    /// When the pool of randomness was seeded last, microseconds of guest time.
    last_reseed: Option<u64>,
}

a_change_here_is_a_new_format_version! {
    ClockState {
        tsc: u64,
        unix_ns: u64,
        tsc_khz: u32,
        places: KernelPlaces,
        reseeds: bool,
        boot_id: String,
    }
}
a_change_here_is_a_new_format_version! {
    KernelPlaces { boot_time: Option<u64>, last_reseed: Option<u64> }
}

/// What is known of a running guest's clocks.
#[derive(Debug, Clone)]
pub(crate) struct ClockOrigin {
    /// The guest's TSC when it began to run, here or before the snapshot that it came from.
    tsc: u64,
    /// The boot time that it was told.
    boot_time_us: u64,
    places: KernelPlaces,
}

impl ClockOrigin {
    /// A guest that is about to boot.
    pub(crate) fn boot(shell: &Shell, tsc_khz: u32) -> Result<Self, Error> {
        let tsc = get_msrs(&shell.vcpu, &[MSR_IA32_TSC])?[0].data;
        let boot_time_us = boot_time_us(tsc, tsc_khz);
        Ok(Self {
            tsc,
            boot_time_us,
            places: KernelPlaces::default(),
        })
    }

    /// The boot time to tell the guest, microseconds since the Unix epoch.
    pub(crate) fn boot_time_us(&self) -> u64 {
        self.boot_time_us
    }
}

/// The kernel reseeds its pool at the first draw more than 1 s after the last; a little is added.
/// "Never" is 0 on the same clock, so a guest reseeds only once it is that old itself.
const RESEED_INTERVAL_NS: u64 = 1_100_000_000;

/// Real time in nanoseconds since the Unix epoch.
pub(crate) fn unix_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What the kernel calls this boot of the host; nothing where it does not say. Read once: a process
/// does not outlive its boot, and restores open no files.
pub(crate) fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.map(|id| id.trim().to_owned()).unwrap_or_default()
    })
}

/// The boot time that makes a guest's clock show the real time, microseconds since the epoch.
fn boot_time_us(tsc: u64, tsc_khz: u32) -> u64 {
    (unix_ns() / 1000).saturating_sub(ticks_us(tsc, tsc_khz))
}

/// Guest time as Hermit computes it.
fn ticks_us(tsc: u64, tsc_khz: u32) -> u64 {
    tsc / u64::from(tsc_khz / 1000).max(1)
}

impl ClockState {
    /// Reads the clocks and finds the two places in the kernel that clones need changed.
    ///
    /// The pool of randomness (`hermit::entropy::POOL`) holds the time of its last reseed; it is set
    /// to 0 here, so that every clone reseeds before it draws. Where the field cannot be found,
    /// clones may run only when the kernel's own interval has passed.
    pub(crate) fn save(
        shell: &Shell,
        profile: &HostProfile,
        symbols: &Symbols,
        origin: &ClockOrigin,
    ) -> Result<Self, Error> {
        let ram = &shell.ram;
        let tsc = get_msrs(&shell.vcpu, &[MSR_IA32_TSC])?[0].data;
        let tsc_khz = profile.tsc_khz;
        let mut places = origin.places.clone();
        places.boot_time = places.boot_time.or_else(|| {
            // A restored guest was told none, so there is nothing to find it by.
            if origin.boot_time_us == 0 {
                return None;
            }
            let (address, size) =
                symbols.find("hermit::arch::x86_64::kernel::systemtime::BOOT_TIME")?;
            words(ram, address, size)
                .find(|&(_, value)| value == origin.boot_time_us)
                .map(|(address, _)| address)
        });
        let mut reseeds = false;
        if places.last_reseed.is_none()
            && let Some((address, size)) = symbols.find("hermit::entropy::POOL")
        {
            let pool: Vec<_> = words(ram, address, size).collect();
            let in_life = ticks_us(origin.tsc, tsc_khz)..=ticks_us(tsc, tsc_khz);
            places.last_reseed = find_last_reseed(&pool, &in_life);
            // A pool that was never drawn from is seeded by the first draw.
            reseeds = pool.iter().all(|&(_, value)| value <= 1);
        }
        if let Some(address) = places.last_reseed {
            ram.write(address, &0u64.to_le_bytes())?;
            reseeds = true;
        }
        Ok(Self {
            tsc,
            unix_ns: unix_ns(),
            tsc_khz,
            places,
            reseeds,
            boot_id: boot_id().to_owned(),
        })
    }

    /// What is known of a guest that is restored from this.
    pub(crate) fn origin(&self) -> ClockOrigin {
        ClockOrigin {
            tsc: self.tsc,
            boot_time_us: 0,
            places: self.places.clone(),
        }
    }

    /// The clocks in words, but for what only the vCPU's state tells.
    pub(crate) fn describe(&self) -> ClockDescription {
        let place = |address: Option<u64>| address.map(|address| format!("{address:#x}"));
        ClockDescription {
            tsc: self.tsc,
            tsc_khz: self.tsc_khz,
            uptime_us: ticks_us(self.tsc, self.tsc_khz),
            saved_unix_ns: self.unix_ns,
            tsc_deadline: 0,
            kvm_clock: false,
            boot_time_at: place(self.places.boot_time),
            last_reseed_at: place(self.places.last_reseed),
            reseeds: self.reseeds,
            host_boot_id: self.boot_id.clone(),
        }
    }

    /// How long clones must still wait until they no longer share random bytes, nanoseconds.
    #[must_use]
    pub fn unique_in_ns(&self) -> u64 {
        // One from the future (a clock that was put back) waits for the whole interval.
        self.unique_in_ns_at(unix_ns().saturating_sub(self.unix_ns))
    }

    /// The same, `age_ns` nanoseconds after the snapshot.
    fn unique_in_ns_at(&self, age_ns: u64) -> u64 {
        let since_reseed_ns = match self.places.last_reseed {
            // It reads 0, so what counts is the guest's own time, which goes on with ours.
            Some(_) => age_ns.saturating_add(ticks_us(self.tsc, self.tsc_khz).saturating_mul(1000)),
            None if self.reseeds => return 0,
            None => age_ns,
        };
        RESEED_INTERVAL_NS.saturating_sub(since_reseed_ns)
    }

    /// Whether this host can restore these clocks now.
    ///
    /// # Errors
    /// [`Error::NotRestorable`] where the guest's time would jump.
    pub fn check(&self, profile: &HostProfile) -> Result<(), Error> {
        let is_other_boot = host_tsc() < self.tsc || self.boot_id != boot_id();
        if !profile.tsc_settable && is_other_boot {
            return Err(Error::NotRestorable {
                reason: "the host was restarted since it was made and does not let guests have a \
                         TSC of their own, so time would jump; deploy the function again"
                    .to_owned(),
            });
        }
        Ok(())
    }

    /// Sets the guest's TSC. Its boot time is written when it first runs ([`GuestClock::wake`]), so
    /// that a clone that waited for its request shows the right time as well.
    pub(crate) fn set_tsc(&self, host: &Host, shell: &Shell) -> Result<GuestClock, Error> {
        self.check(host.profile())?;
        let offset = if host.profile().tsc_settable {
            let elapsed_ns = unix_ns().saturating_sub(self.unix_ns);
            let elapsed = u128::from(elapsed_ns) * u128::from(self.tsc_khz) / 1_000_000;
            let wanted = self
                .tsc
                .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX));
            set_tsc(shell, wanted)?
        } else {
            Some(0)
        };
        Ok(GuestClock {
            offset,
            tsc_khz: self.tsc_khz,
            boot_time: self.places.boot_time,
        })
    }
}

#[cfg(test)]
impl ClockState {
    /// One in which every field has a value of its own.
    pub(crate) fn example() -> Self {
        Self {
            tsc: 4_200_000_017,
            unix_ns: 1_700_000_000_123_456_789,
            tsc_khz: 2_100_000,
            places: KernelPlaces {
                boot_time: Some(0x20_5a80),
                last_reseed: None,
            },
            reseeds: true,
            boot_id: "d1e6e0a5-0d0e-4b3a-8b0f-2f1f5f1f0a11".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A guest that was saved so long after its boot.
    fn saved_after(ms: u64, last_reseed: Option<u64>, reseeds: bool) -> ClockState {
        let example = ClockState::example();
        ClockState {
            tsc: u64::from(example.tsc_khz) * ms,
            places: KernelPlaces {
                last_reseed,
                ..example.places.clone()
            },
            reseeds,
            ..example
        }
    }

    /// The kernel asks whether its time is more than a second past the last reseed, which is 0 in a
    /// snapshot: a guest that was saved in its first second would draw from the shared pool.
    #[test]
    fn clones_of_a_very_young_guest_wait_until_it_reseeds() {
        let young = saved_after(300, Some(0x1000), true);
        assert_eq!(young.unique_in_ns_at(0), 800 * MS);
        assert_eq!(young.unique_in_ns_at(500 * MS), 300 * MS);
        assert_eq!(young.unique_in_ns_at(800 * MS), 0);
        let older = saved_after(1200, Some(0x1000), true);
        assert_eq!(older.unique_in_ns_at(0), 0);
    }

    #[test]
    fn a_pool_that_nobody_drew_from_needs_no_wait_and_an_unknown_one_needs_all_of_it() {
        assert_eq!(saved_after(5, None, true).unique_in_ns_at(0), 0);
        let unknown = saved_after(60_000, None, false);
        assert_eq!(unknown.unique_in_ns_at(0), RESEED_INTERVAL_NS);
        assert_eq!(unknown.unique_in_ns_at(100 * MS), 1000 * MS);
        assert_eq!(unknown.unique_in_ns_at(u64::MAX), 0);
    }

    /// Whatever a state file says: nobody waits longer than that, and nothing overflows.
    #[test]
    fn impossible_clocks_wait_no_longer_than_the_interval() {
        for (tsc, tsc_khz) in [(0, 0), (u64::MAX, 1), (u64::MAX, 0)] {
            for age_ns in [0, 1, u64::MAX] {
                let state = ClockState {
                    tsc,
                    tsc_khz,
                    ..saved_after(1, Some(0), true)
                };
                assert!(state.unique_in_ns_at(age_ns) <= RESEED_INTERVAL_NS);
            }
        }
    }
}

/// The clock of a guest that was restored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestClock {
    /// Guest TSC minus host TSC, where it is known.
    offset: Option<u64>,
    tsc_khz: u32,
    /// Where the kernel keeps its boot time.
    boot_time: Option<u64>,
}

impl GuestClock {
    /// The guest's TSC now.
    fn tsc(&self, shell: &Shell) -> Result<u64, Error> {
        match self.offset {
            Some(offset) => Ok(host_tsc().wrapping_add(offset)),
            None => Ok(get_msrs(&shell.vcpu, &[MSR_IA32_TSC])?[0].data),
        }
    }

    /// Writes the kernel's boot time, so that its clock shows real time from now on.
    pub(crate) fn wake(&self, shell: &Shell) -> Result<(), Error> {
        let Some(address) = self.boot_time else {
            return Ok(());
        };
        let boot_time_us = boot_time_us(self.tsc(shell)?, self.tsc_khz);
        shell.ram.write(address, &boot_time_us.to_le_bytes())
    }

    /// How long after the host's TSC stood at `since` the guest's stood at `guest_tsc`, which is the
    /// guest's word: nothing where that is not known, or not between `since` and now.
    pub(crate) fn elapsed(&self, since: u64, guest_tsc: u64) -> Option<Duration> {
        let at = guest_tsc.wrapping_sub(self.offset?);
        if !(since..=host_tsc()).contains(&at) {
            return None;
        }
        let ns = u128::from(at - since) * 1_000_000 / u128::from(self.tsc_khz.max(1));
        Some(Duration::from_nanos(u64::try_from(ns).ok()?))
    }
}

/// The host's TSC now.
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: RDTSC is available in ring 3 on Linux unless a process forbids it to itself.
    unsafe { _rdtsc() }
}

/// A symbol that claims to be larger is not the one that is sought: an image may say anything.
const MAX_SYMBOL_BYTES: u64 = 4096;

/// The aligned words of a symbol with their addresses.
fn words(ram: &GuestRam, address: u64, size: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let start = address.checked_next_multiple_of(8).unwrap_or(u64::MAX);
    let end = address.saturating_add(size.min(MAX_SYMBOL_BYTES));
    (start..end.saturating_sub(7))
        .step_by(8)
        .filter_map(|address| Some((address, ram.read_u64(address).ok()?)))
}

/// The one word of the pool that is a time in the guest's life. Its neighbours are the words of a
/// cipher, which are random, and counters: small, or equal in pairs (the tickets of the lock).
fn find_last_reseed(pool: &[(u64, u64)], in_life: &RangeInclusive<u64>) -> Option<u64> {
    const SMALL: u64 = 64;
    let differs = |other: Option<&(u64, u64)>, value| other.is_none_or(|other| other.1 != value);
    let mut found = pool.iter().enumerate().filter(|&(at, &(_, value))| {
        in_life.contains(&value)
            && value > SMALL
            && differs(pool.get(at + 1), value)
            && differs(at.checked_sub(1).and_then(|at| pool.get(at)), value)
    });
    match (found.next(), found.next()) {
        (Some((_, &(address, _))), None) => Some(address),
        _ => None,
    }
}

/// Sets the guest's TSC by its offset to the host's (Linux KVM API, vcpu device attribute
/// `KVM_VCPU_TSC_OFFSET`), which is exact. A write to the MSR is a fall-back: KVM takes values that
/// are within a second of what it expects for an attempt to synchronise, and changes them.
///
/// Returns the offset where it is known.
fn set_tsc(shell: &Shell, wanted: u64) -> Result<Option<u64>, Error> {
    let offset = wanted.wrapping_sub(host_tsc());
    if set_tsc_offset(&shell.vcpu, offset) {
        return Ok(Some(offset));
    }
    let entry = kvm_msr_entry {
        index: MSR_IA32_TSC,
        data: wanted,
        ..Default::default()
    };
    set_msrs(&shell.vcpu, &[entry])?;
    Ok(None)
}
