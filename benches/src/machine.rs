//! The facts of a machine that numbers depend on.

use std::fmt;

use dormouse_vmm::Host;
use schemars::JsonSchema;
use serde::Serialize;

use crate::Error;

/// Where and when measurements were taken.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Machine {
    /// What any measurement depends on.
    #[serde(flatten)]
    pub here: dormouse_load::Machine,
    /// The KVM module, as Dormouse names it.
    pub kvm: String,
    /// Whether KVM emulates guest kernel code instruction by instruction.
    pub emulates_ring0: bool,
    /// Frequency of the time-stamp counter, kHz.
    pub tsc_khz: u32,
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
        Ok(Self {
            here: dormouse_load::Machine::now(),
            kvm: profile.kvm_flavour.clone(),
            emulates_ring0: profile.emulated_ring0,
            tsc_khz: profile.tsc_khz,
            began_unix_ms: dormouse_vmm::real_time_unix_ns() / 1_000_000,
        })
    }

    /// What makes the numbers worth less, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.here.warnings()
    }
}

/// In one line.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", self.here)?;
        // As `cargo xtask` writes it: the two lines are compared.
        match self.kvm.as_str() {
            "unknown" => f.write_str("KVM of an unknown kind")?,
            flavour => write!(f, "kvm_{flavour}")?,
        }
        if self.emulates_ring0 {
            f.write_str(": nested, without hardware help, guest kernel code emulated")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Machine {
        pub(crate) fn for_tests() -> Self {
            Self {
                here: dormouse_load::Machine {
                    cpu: "A CPU".to_owned(),
                    cores: 2,
                    memory_bytes: 23 << 30,
                    kernel: "6.18".to_owned(),
                    load: 0.1,
                    version: "0.1.0".to_owned(),
                    optimised: true,
                },
                kvm: "pvm".to_owned(),
                emulates_ring0: true,
                tsc_khz: 2_000_000,
                began_unix_ms: 1,
            }
        }
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
}
