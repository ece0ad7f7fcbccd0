//! The facts of a machine that numbers depend on.

use std::fmt;
use std::fs;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A machine, as it was when a measurement began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The CPU's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Runnable threads over the last minute, on average: what else was going on.
    pub load: f64,
    /// Dormouse's version.
    pub version: String,
    /// Whether the compiler optimised it.
    pub optimised: bool,
}

impl Machine {
    /// This machine, now. What cannot be read is `unknown`, or 0.
    #[must_use]
    pub fn now() -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let load = file("/proc/loadavg");
        let load = load.split(' ').next().and_then(|load| load.parse().ok());
        Self {
            cpu: field(&file("/proc/cpuinfo"), "model name")
                .unwrap_or("unknown")
                .to_owned(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: kib(&file("/proc/meminfo"), "MemTotal").unwrap_or(0) * 1024,
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load.unwrap_or(0.0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            optimised: !cfg!(debug_assertions),
        }
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
            cpu, cores, kernel, ..
        } = self;
        write!(f, "{cpu}, {cores} cores, {gib} GiB, Linux {kernel}")
    }
}

/// The value behind `label:` in a file of such lines.
fn field<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == label).then(|| value.trim())
    })
}

/// The value behind `label:`, in a file like `/proc/meminfo`, that is so many kB.
#[must_use]
pub fn kib(text: &str, label: &str) -> Option<u64> {
    field(text, label)?.strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_files() {
        let text = "MemTotal:       24117248 kB\nMemFree: 1 kB\nmodel name\t: A CPU: fast\n";
        assert_eq!(kib(text, "MemTotal"), Some(24_117_248));
        assert_eq!(kib(text, "Mem"), None);
        assert_eq!(field(text, "model name"), Some("A CPU: fast"));
    }

    #[test]
    fn a_busy_machine_is_warned_of() {
        let quiet = Machine {
            load: 0.1,
            optimised: true,
            ..Machine::now()
        };
        assert!(quiet.warnings().is_empty());
        let busy = Machine {
            load: 3.0,
            optimised: false,
            ..quiet
        };
        assert_eq!(busy.warnings().len(), 2);
        assert!(busy.to_string().contains(" GiB, Linux "));
    }
}
