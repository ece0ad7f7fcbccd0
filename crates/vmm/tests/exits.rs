//! Exits of KVM that no guest can bring about by itself here.

mod support;

use std::os::fd::AsRawFd;

use dormouse_vmm::{CrashKind, Vm};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use support::elf::{Elf, assemble};
use support::{boot, crash, kvm_or_skip, machine, run};

/// Has KVM leave the guest after each instruction (Linux KVM API, 4.87).
fn step(vm: &Vm) {
    /// `_IOW(KVMIO, 0x9b, struct kvm_guest_debug)`, whose size is 72.
    const KVM_SET_GUEST_DEBUG: libc::c_ulong = 0x4048_ae9b;
    let debug = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
        ..Default::default()
    };
    let vcpu = vm.shell().vcpu_descriptor().unwrap();
    // SAFETY: the kernel reads the struct, which outlives the call.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_GUEST_DEBUG, &raw const debug) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Nothing that a guest does leads to an exit that is not dealt with: KVM leaves a guest for hypercalls
/// of its own, MSRs, the bus or the debugger only where it was asked to. So it is asked to here.
#[test]
fn an_exit_that_means_nothing_is_a_crash_with_registers() {
    kvm_or_skip!();
    let mut elf = Elf::v1(assemble(|a| {
        let mut here = a.create_label();
        a.mov(iced_x86::code_asm::rbx, 0x1234_5678_9abcu64)?;
        a.set_label(&mut here)?;
        a.jmp(here)
    }));
    elf.symbols.push(("steps".to_owned(), 0, 0x100));
    let (mut vm, _) = boot(&elf.image(), &machine());
    step(&vm);
    let crash = crash(run(&mut vm));
    assert_eq!(crash.kind, CrashKind::UnknownExit);
    assert!(
        crash.reason.contains("means nothing here: Debug"),
        "{crash:?}"
    );
    assert!(crash.symbol.unwrap().starts_with("steps+0x"));
    let rbx = crash.registers.iter().find(|(name, _)| *name == "rbx");
    assert_eq!(rbx.unwrap().1, 0x1234_5678_9abc);
}
