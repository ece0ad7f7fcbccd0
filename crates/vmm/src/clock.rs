//! Time across a snapshot.
//!
//! A guest reads time from its TSC: monotonic time is TSC / MHz, real time is its boot time plus
//! that. Two things are put right at every restore:
//!
//! - **TSC**: saved value plus the time that passed, so that monotonic time goes on and timers that
//!   are due fire at once. Where the host ignores TSC writes, the guest's TSC is the host's, which
//!   has advanced by just that within one host boot; where it has not (another boot, another host),
//!   time would run backwards and the restore is refused.
//! - **Boot time**: Hermit divides the TSC by whole MHz, so its clock drifts by up to 385 ppm.
//!   Writing `now − TSC / MHz` into the kernel's `BOOT_TIME` at each restore is exact. The place was
//!   found by the symbol and confirmed by the value when the snapshot was made; without it the
//!   drift stays.

use std::arch::x86_64::_rdtsc;
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::kvm_msr_entry;
use serde::{Deserialize, Serialize};

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
    /// Guest-physical address of the kernel's boot time (microseconds since the Unix epoch).
    boot_time_address: Option<u64>,
    /// Whether a clone that draws random bytes reseeds its pool first; see [`ClockState::save`].
    reseeds: bool,
}

/// How the kernel's pool of randomness treats a clone.
const RESEED_INTERVAL_NS: u64 = 1_100_000_000;

/// Real time in nanoseconds since the Unix epoch.
pub(crate) fn unix_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The boot time that makes a guest's clock show the real time, microseconds since the epoch.
pub(crate) fn boot_time_us(tsc: u64, tsc_khz: u32) -> u64 {
    (unix_ns() / 1000).saturating_sub(tsc / u64::from(tsc_khz / 1000).max(1))
}

impl ClockState {
    /// Reads the clocks and finds the two places in the kernel that clones need changed.
    ///
    /// `booted_us` is the boot time that the guest was started with. The pool of randomness
    /// (`hermit::entropy::POOL`) holds the time of its last reseed, in microseconds of guest time;
    /// it is set to 0 here, so that every clone reseeds before it draws. Where the field cannot be
    /// found, clones may run only when the kernel's own interval (1 s) has passed.
    pub(crate) fn save(
        shell: &Shell,
        profile: &HostProfile,
        symbols: &Symbols,
        booted_us: u64,
    ) -> Result<Self, Error> {
        let tsc = get_msrs(&shell.vcpu, &[MSR_IA32_TSC])?[0].data;
        let tsc_khz = profile.tsc_khz;
        let boot_time_address = symbols
            .find("hermit::arch::x86_64::kernel::systemtime::BOOT_TIME")
            .and_then(|(address, size)| {
                words(&shell.ram, address, size).find(|&(_, value)| value == booted_us)
            })
            .map(|(address, _)| address);

        let now_us = tsc / u64::from(tsc_khz / 1000).max(1);
        let reseeds = match symbols.find("hermit::entropy::POOL") {
            None => false,
            Some((address, size)) => {
                let uptime_us = (unix_ns() / 1000).saturating_sub(booted_us);
                let oldest_us = now_us.saturating_sub(uptime_us.min(now_us));
                let in_life = oldest_us.max(1)..=now_us;
                let found: Vec<_> = words(&shell.ram, address, size)
                    .filter(|(_, value)| in_life.contains(value))
                    .collect();
                match found.as_slice() {
                    // Never drawn from: the first draw seeds it.
                    [] => words(&shell.ram, address, size).all(|(_, value)| value <= 1),
                    [(address, _)] => shell.ram.write(*address, &0u64.to_le_bytes()).is_ok(),
                    _ => false,
                }
            }
        };
        Ok(Self {
            tsc,
            unix_ns: unix_ns(),
            tsc_khz,
            boot_time_address,
            reseeds,
        })
    }

    /// When clones may run at the earliest, nanoseconds since the Unix epoch; 0 for at once.
    #[must_use]
    pub fn not_before_unix_ns(&self) -> u64 {
        if self.reseeds {
            0
        } else {
            self.unix_ns.saturating_add(RESEED_INTERVAL_NS)
        }
    }

    /// Whether this host can restore these clocks now.
    ///
    /// # Errors
    /// [`Error::NotRestorable`] where the guest's time would run backwards.
    pub fn check(&self, profile: &HostProfile) -> Result<(), Error> {
        // SAFETY: RDTSC is available in ring 3 on Linux unless a process forbids it to itself.
        let host_tsc = unsafe { _rdtsc() };
        if !profile.tsc_settable && host_tsc < self.tsc {
            return Err(Error::NotRestorable {
                reason: "the host was restarted since it was made and does not let guests have a \
                         TSC of their own, so time would run backwards; deploy the function again"
                    .to_owned(),
            });
        }
        Ok(())
    }

    /// Sets the guest's TSC; its boot time follows with [`ClockState::set_boot_time`].
    pub(crate) fn set_tsc(&self, host: &Host, shell: &Shell) -> Result<(), Error> {
        self.check(host.profile())?;
        if !host.profile().tsc_settable {
            return Ok(());
        }
        let elapsed_ns = unix_ns().saturating_sub(self.unix_ns);
        let elapsed = u128::from(elapsed_ns) * u128::from(self.tsc_khz) / 1_000_000;
        let wanted = self
            .tsc
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX));
        set_tsc(shell, wanted)
    }

    /// Writes the kernel's boot time, so that its clock shows real time.
    pub(crate) fn set_boot_time(&self, host: &Host, shell: &Shell) -> Result<(), Error> {
        let Some(address) = self.boot_time_address else {
            return Ok(());
        };
        let tsc = if host.profile().tsc_settable {
            get_msrs(&shell.vcpu, &[MSR_IA32_TSC])?[0].data
        } else {
            // SAFETY: as in `check`; here the guest's TSC is the host's.
            unsafe { _rdtsc() }
        };
        shell
            .ram
            .write(address, &boot_time_us(tsc, self.tsc_khz).to_le_bytes())
    }

    /// The guest-physical address that every restore writes to, if any: part of the write set.
    #[must_use]
    pub fn written_address(&self) -> Option<u64> {
        self.boot_time_address
    }
}

/// The aligned words of a symbol with their addresses.
fn words(ram: &GuestRam, address: u64, size: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let start = address.next_multiple_of(8);
    let end = address.saturating_add(size);
    (start..end.saturating_sub(7))
        .step_by(8)
        .filter_map(|address| Some((address, ram.read_u64(address).ok()?)))
}

/// Sets the guest's TSC by its offset to the host's (Linux KVM API, vcpu device attribute
/// `KVM_VCPU_TSC_OFFSET`), which is exact. A write to the MSR is a fall-back: KVM takes values that
/// are within a second of what it expects for an attempt to synchronise, and changes them.
fn set_tsc(shell: &Shell, wanted: u64) -> Result<(), Error> {
    // SAFETY: as in `check`.
    let offset = wanted.wrapping_sub(unsafe { _rdtsc() });
    if set_tsc_offset(&shell.vcpu, offset) {
        return Ok(());
    }
    let entry = kvm_msr_entry {
        index: MSR_IA32_TSC,
        data: wanted,
        ..Default::default()
    };
    set_msrs(&shell.vcpu, &[entry])
}
