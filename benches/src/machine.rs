//! The facts of a machine that numbers depend on.

use std::fmt;
use std::fs;

use dormouse_vmm::Host;
use serde::Serialize;

use crate::Error;

/// Where and when measurements were taken.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// The CPU's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The KVM module, as Dormouse names it: `intel`, `amd`, `pvm` or `unknown`.
    pub kvm: String,
    /// Whether KVM emulates guest kernel code instruction by instruction.
    pub emulates_ring0: bool,
    /// Frequency of the time-stamp counter, kHz.
    pub tsc_khz: u32,
    /// Runnable threads over the last minute before the run, on average: what else was going on.
    pub load: f64,
    /// Dormouse's version.
    pub version: String,
    /// Whether the compiler optimised it.
    pub optimised: bool,
    /// When the run began, milliseconds since the Unix epoch.
    pub began_unix_ms: u64,
}

impl Machine {
    /// This machine, now.
    ///
    /// # Errors
    /// [`Error::Vmm`] where there is no KVM.
    pub fn now() -> Result<Self, Error> {
        let host = Host::open()?;
        let profile = host.profile();
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (cpuinfo, meminfo) = (file("/proc/cpuinfo"), file("/proc/meminfo"));
        let load = file("/proc/loadavg");
        let load = load.split(' ').next().and_then(|load| load.parse().ok());
        Ok(Self {
            cpu: field(&cpuinfo, "model name")
                .unwrap_or("unknown")
                .to_owned(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: kib(&meminfo, "MemTotal").unwrap_or(0) * 1024,
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            kvm: profile.kvm_flavour.clone(),
            emulates_ring0: profile.emulated_ring0,
            tsc_khz: profile.tsc_khz,
            load: load.unwrap_or(0.0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            optimised: !cfg!(debug_assertions),
            began_unix_ms: dormouse_vmm::real_time_unix_ns() / 1_000_000,
        })
    }

    /// What makes the numbers worth less, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.optimised {
            warnings.push("this is a debug build: measure with --release".to_owned());
        }
        if self.load > 0.5 {
            warnings.push(format!(
                "other work ran on this machine just before (load {:.2}): ratios hold, times do not",
                self.load
            ));
        }
        warnings
    }
}

/// In one line.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = (self.memory_bytes + (1 << 29)) >> 30;
        let Self {
            cpu,
            cores,
            kernel,
            kvm,
            ..
        } = self;
        write!(f, "{cpu}, {cores} cores, {gib} GiB, Linux {kernel}, ")?;
        // As `cargo xtask` writes it: the two lines are compared.
        match kvm.as_str() {
            "unknown" => f.write_str("KVM of an unknown kind")?,
            flavour => write!(f, "kvm_{flavour}")?,
        }
        if self.emulates_ring0 {
            f.write_str(": nested, without hardware help, guest kernel code emulated")?;
        }
        Ok(())
    }
}

/// The value behind `label:` in a file of such lines.
pub(crate) fn field<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == label).then(|| value.trim())
    })
}

/// The value behind `label:` that is so many kB.
pub(crate) fn kib(text: &str, label: &str) -> Option<u64> {
    field(text, label)?.strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Machine {
        pub(crate) fn for_tests() -> Self {
            Self {
                cpu: "A CPU".to_owned(),
                cores: 2,
                memory_bytes: 23 << 30,
                kernel: "6.18".to_owned(),
                kvm: "pvm".to_owned(),
                emulates_ring0: true,
                tsc_khz: 2_000_000,
                load: 0.1,
                version: "0.1.0".to_owned(),
                optimised: true,
                began_unix_ms: 1,
            }
        }
    }

    #[test]
    fn fields_of_proc_files() {
        let text = "MemTotal:       24117248 kB\nMemFree: 1 kB\nmodel name\t: A CPU: fast\n";
        assert_eq!(kib(text, "MemTotal"), Some(24_117_248));
        assert_eq!(kib(text, "Mem"), None);
        assert_eq!(field(text, "model name"), Some("A CPU: fast"));
    }

    #[test]
    fn one_line_says_it_all() {
        assert_eq!(
            Machine::for_tests().to_string(),
            "A CPU, 2 cores, 23 GiB, Linux 6.18, kvm_pvm: nested, without hardware help, guest \
             kernel code emulated"
        );
        let elsewhere = Machine {
            kvm: "unknown".to_owned(),
            emulates_ring0: false,
            ..Machine::for_tests()
        };
        assert_eq!(
            elsewhere.to_string(),
            "A CPU, 2 cores, 23 GiB, Linux 6.18, KVM of an unknown kind"
        );
    }

    #[test]
    fn a_busy_machine_is_warned_of() {
        let quiet = Machine::for_tests();
        assert!(quiet.warnings().is_empty());
        let busy = Machine {
            load: 3.0,
            optimised: false,
            ..quiet
        };
        assert_eq!(busy.warnings().len(), 2);
    }
}
