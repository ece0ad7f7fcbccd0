//! What is said of a guest that cannot go on.

use kvm_ioctls::VcpuExit;

use super::Vm;
use crate::emulation::{self, Assist};
use crate::error::Error;
use crate::stop::{Crash, CrashKind, Stop};
use crate::vcpu::general_registers;

impl Vm {
    /// A crash at the instruction where the vCPU stands.
    pub(super) fn crashed(&self, kind: CrashKind, reason: String) -> Stop {
        Stop::Crashed(Crash {
            kind,
            reason,
            registers: self.registers(),
            symbol: (self.namer)(self.shell.vcpu.sync_regs().regs.rip),
        })
    }

    pub(super) fn triple_fault(&self) -> Stop {
        let place = self.place(self.shell.vcpu.sync_regs().regs.rip);
        self.crashed(CrashKind::TripleFault, format!("triple fault at {place}"))
    }

    pub(super) fn without_memory(&self) -> Stop {
        let reason = "the host could not provide a page of guest memory".to_owned();
        self.crashed(CrashKind::Host, reason)
    }

    /// What the guest's kernel printed of an exception.
    pub(super) fn reported_crash(&self) -> Stop {
        let watch = &self.io.watch;
        Stop::Crashed(Crash {
            kind: CrashKind::Exception,
            reason: watch.summary(|address| (self.namer)(address)),
            registers: watch.registers(),
            symbol: watch
                .instruction()
                .and_then(|address| (self.namer)(address)),
        })
    }

    /// Does an instruction in KVM's place, or says why the guest cannot go on.
    pub(super) fn assist(&mut self) -> Result<Option<Stop>, Error> {
        match emulation::assist(&mut self.shell)? {
            Assist::Done => Ok(None),
            Assist::Unsupported {
                instruction,
                address,
                is_float,
            } => {
                let remedy = if is_float {
                    "build the function with soft floating point (`dormouse build --float soft`, \
                     the default), or run it on a host with hardware virtualization"
                } else {
                    "run it on a host with hardware virtualization"
                };
                let why = if self.host.profile().emulated_ring0 {
                    "this host emulates guest kernel code and cannot run"
                } else {
                    "KVM cannot run"
                };
                let place = self.place(address);
                let reason = format!("{why} `{instruction}` at {place}: {remedy}");
                Ok(Some(self.crashed(CrashKind::Instruction, reason)))
            }
        }
    }

    pub(super) fn place(&self, address: u64) -> String {
        match (self.namer)(address) {
            Some(name) => format!("{address:#x} ({name})"),
            None => format!("{address:#x}"),
        }
    }

    /// The registers as the last exit left them.
    fn registers(&self) -> Vec<(&'static str, u64)> {
        let shared = self.shell.vcpu.sync_regs();
        let (regs, system) = (&shared.regs, &shared.sregs);
        let mut registers = general_registers(regs).to_vec();
        registers.extend([
            ("rflags", regs.rflags),
            ("cr0", system.cr0),
            ("cr2", system.cr2),
            ("cr3", system.cr3),
            ("cr4", system.cr4),
        ]);
        registers
    }
}

/// Says which exit it was that means nothing here.
pub(super) fn unknown_exit(exit: &VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::FailEntry(reason, _) => format!(
            "KVM cannot enter the guest: the CPU refuses its state (hardware reason {reason:#x})"
        ),
        other => format!("KVM left the guest for a reason that means nothing here: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_that_means_nothing_here_is_named() {
        let refused = unknown_exit(&VcpuExit::FailEntry(0x8000_0021, 0));
        assert!(refused.contains("0x80000021"), "{refused}");
        assert!(unknown_exit(&VcpuExit::Hlt).contains("Hlt"));
    }
}
