//! Instructions that KVM could not run.
//!
//! Hosts without hardware virtualization of ring 0 emulate it instruction by instruction, and the
//! kernel's emulator knows no SSE arithmetic, x87 or XGETBV/XSETBV. The last two, which Hermit runs
//! once at boot, are done here in its place; anything else is reported by name.

use iced_x86::{Code, Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter};
use kvm_ioctls::SyncReg;

use crate::error::Error;
use crate::paging;
use crate::shell::Shell;

/// What became of an instruction that KVM could not run.
pub(crate) enum Assist {
    /// It was done here; the guest can go on.
    Done,
    /// It cannot be done: its text, and whether it is floating-point or vector code.
    Unsupported {
        /// The instruction as text.
        instruction: String,
        /// Its address.
        address: u64,
        /// Whether a soft-float build would avoid it.
        is_float: bool,
    },
}

/// XCR0 (Intel SDM vol. 1, 13.3), the only extended control register.
const XCR0: u32 = 0;
const LOW_HALF: u64 = 0xFFFF_FFFF;

/// Looks at the instruction at RIP and does it where that is possible.
pub(crate) fn assist(shell: &mut Shell) -> Result<Assist, Error> {
    let mut regs = shell.vcpu.sync_regs().regs;
    let cr3 = shell.vcpu.sync_regs().sregs.cr3;
    let instruction = decode(shell, cr3, regs.rip);
    match instruction.code() {
        Code::Xgetbv if regs.rcx as u32 == XCR0 => {
            let xcrs = shell.vcpu.get_xcrs().map_err(Error::kvm("KVM_GET_XCRS"))?;
            let value = xcrs.xcrs[..xcrs.nr_xcrs.min(16) as usize]
                .iter()
                .find(|register| register.xcr == XCR0)
                .map_or(1, |register| register.value);
            (regs.rax, regs.rdx) = (value & LOW_HALF, value >> 32);
        }
        Code::Xsetbv if regs.rcx as u32 == XCR0 => {
            let mut xcrs = shell.vcpu.get_xcrs().map_err(Error::kvm("KVM_GET_XCRS"))?;
            xcrs.nr_xcrs = 1;
            xcrs.xcrs[0].xcr = XCR0;
            xcrs.xcrs[0].value = regs.rdx << 32 | regs.rax & LOW_HALF;
            // A value that the CPU refuses is the guest's fault: say what it ran.
            if shell.vcpu.set_xcrs(&xcrs).is_err() {
                return Ok(unsupported(&instruction));
            }
        }
        _ => return Ok(unsupported(&instruction)),
    }
    regs.rip = instruction.next_ip();
    shell.vcpu.sync_regs_mut().regs = regs;
    shell.vcpu.set_sync_dirty_reg(SyncReg::Register);
    Ok(Assist::Done)
}

/// Decodes the instruction at guest-virtual `address`; an invalid one if it cannot be read.
fn decode(shell: &Shell, cr3: u64, address: u64) -> Instruction {
    // Intel SDM vol. 2A, 2.3.11: no instruction is longer than 15 bytes.
    let mut bytes = [0u8; 15];
    let mut len = 0;
    for byte in &mut bytes {
        let at = address.wrapping_add(len as u64);
        let physical = paging::translate(&shell.ram, cr3, at);
        match physical.map(|physical| shell.ram.read(physical, std::slice::from_mut(byte))) {
            Some(Ok(())) => len += 1,
            _ => break,
        }
    }
    Decoder::with_ip(64, &bytes[..len], address, DecoderOptions::NONE).decode()
}

fn unsupported(instruction: &Instruction) -> Assist {
    let mut text = String::new();
    NasmFormatter::new().format(instruction, &mut text);
    let in_float_registers = (0..instruction.op_count()).any(|operand| {
        let register = instruction.op_register(operand);
        register.is_vector_register() || register.is_st() || register.is_mm()
    });
    // x87 instructions, some of which name no register, are those that begin with an F.
    let is_float = in_float_registers || text.starts_with('f');
    Assist::Unsupported {
        instruction: text,
        address: instruction.ip(),
        is_float,
    }
}
