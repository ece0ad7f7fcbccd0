//! A guest that keeps something in every register, MSR and page that a snapshot must carry, and
//! folds all of it into one number: the checksum that its exchange hands over in RDI.

use std::sync::Arc;

use dormouse_abi::EXCHANGE_PORT;
use dormouse_vmm::{GuestImage, HostProfile};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::elf::{Elf, assemble};

const CR4_OSFXSR: i32 = 1 << 9;
const CR4_OSXMMEXCPT: i32 = 1 << 10;
/// MXCSR with all exceptions masked, rounding towards zero and flush-to-zero.
const MXCSR: i32 = 0xFF80;
/// MSRs that hold any canonical address or number: STAR, LSTAR, CSTAR, FMASK, FS base, GS base,
/// KERNEL_GS_BASE, SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP.
const MSRS: [u32; 10] = [
    0xC000_0081,
    0xC000_0082,
    0xC000_0083,
    0xC000_0084,
    0xC000_0100,
    0xC000_0101,
    0xC000_0102,
    0x174,
    0x175,
    0x176,
];
/// The memory that it works on, from the image's end: 1 MiB.
const WORK_BYTES: u64 = 1 << 20;
const XMM: [AsmRegisterXmm; 16] = [
    xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14,
    xmm15,
];
/// All but RSP, which points to the boot stack, RBX (the working memory), RCX and RSI (the loop).
const MIXED: [AsmRegister64; 12] = [rax, rdx, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15];
const DEBUG: [AsmRegisterDr; 4] = [dr0, dr1, dr2, dr3];

/// The worker, with as many rounds as take a good part of a second on this kind of host.
pub(crate) fn image(profile: &HostProfile) -> Arc<GuestImage> {
    let rounds = if profile.emulated_ring0 {
        5_000
    } else {
        5_000_000
    };
    let mut elf = Elf::v1(assemble(|a| write(a, rounds)));
    elf.zero_bytes = WORK_BYTES + 0x4000;
    elf.image()
}

fn write(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    let mut memory = a.create_label();
    let mut again = a.create_label();
    a.lea(rbx, ptr(memory))?;
    a.add(rbx, 0x1000)?;
    a.and(rbx, -0x1000)?;
    fill(a)?;

    a.mov(esi, rounds)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut again)?;
    // Every register takes from its neighbour, one of them from memory, and memory from it.
    for pair in MIXED.windows(2) {
        a.add(pair[0], pair[1])?;
        a.rol(pair[0], 7)?;
    }
    a.xor(r15, qword_ptr(rbx + rcx))?;
    a.mov(qword_ptr(rbx + rcx), r14)?;
    // The vector registers pass values along: in at one end, out at the other.
    a.movups(xmm15, xmmword_ptr(rbx + rcx))?;
    for pair in XMM.windows(2) {
        a.movaps(pair[0], pair[1])?;
    }
    a.movups(xmmword_ptr(rbx + rcx + 16), xmm0)?;
    a.push(r13)?;
    a.pop(rax)?;
    a.add(ecx, 4096 + 48)?;
    a.and(ecx, WORK_BYTES as i32 - 16)?;
    // Now and then an exit.
    let mut quiet = a.create_label();
    a.test(esi, 0x3F)?;
    a.jnz(quiet)?;
    a.mov(rdi, rdx)?;
    a.mov(dx, 0xABC)?;
    a.out(dx, eax)?;
    a.mov(rdx, rdi)?;
    a.set_label(&mut quiet)?;
    a.dec(esi)?;
    a.jnz(again)?;

    fold(a)?;
    a.mov(rdi, r8)?;
    a.mov(dx, u32::from(EXCHANGE_PORT))?;
    a.mov(eax, 1)?;
    a.out(dx, eax)?;
    a.set_label(&mut memory)?;
    a.nop()
}

/// Puts something different everywhere.
fn fill(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, cr4)?;
    a.or(eax, CR4_OSFXSR | CR4_OSXMMEXCPT)?;
    a.mov(cr4, rax)?;
    a.fxsave(ptr(rbx))?;
    a.mov(dword_ptr(rbx + 24), MXCSR)?;
    a.fxrstor(ptr(rbx))?;
    for (number, register) in (1..).zip(XMM) {
        a.mov(eax, number * 0x0101_0101)?;
        a.mov(qword_ptr(rbx + 512), rax)?;
        a.mov(qword_ptr(rbx + 520), rax)?;
        a.movups(register, xmmword_ptr(rbx + 512))?;
    }
    for (number, index) in (1..).zip(MSRS) {
        a.mov(ecx, index)?;
        a.mov(eax, number * 0x0011_2233)?;
        a.mov(edx, number)?;
        // SYSENTER_CS has 32 bits, FMASK too.
        if index == 0x174 || index == 0xC000_0084 {
            a.xor(edx, edx)?;
        }
        a.wrmsr()?;
    }
    for (number, register) in (1..).zip(DEBUG) {
        a.mov(eax, number * 0x0100_3001)?;
        a.mov(register, rax)?;
    }
    a.mov(eax, 0x1234_5000)?;
    a.mov(cr2, rax)?;
    for (number, register) in (1u64..).zip(MIXED) {
        a.mov(register, 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(number))?;
    }
    Ok(())
}

/// Folds registers, MSRs, FPU image and memory into R8.
fn fold(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for register in MIXED {
        if register != r8 {
            mix(a, register)?;
        }
    }
    for register in DEBUG {
        a.mov(rax, register)?;
        mix(a, rax)?;
    }
    a.mov(rax, cr2)?;
    mix(a, rax)?;
    a.mov(rax, cr4)?;
    mix(a, rax)?;
    for index in MSRS {
        a.mov(ecx, index)?;
        a.rdmsr()?;
        mix(a, rax)?;
        mix(a, rdx)?;
    }
    for (slot, register) in (0..).zip(XMM) {
        a.movups(xmmword_ptr(rbx + 16 * slot), register)?;
    }
    // Control words and MXCSR.
    a.fxsave(ptr(rbx + 1024))?;
    a.mov(eax, dword_ptr(rbx + 1024))?;
    mix(a, rax)?;
    a.mov(eax, dword_ptr(rbx + 1024 + 24))?;
    mix(a, rax)?;
    let mut next = a.create_label();
    a.mov(ecx, 0)?;
    a.set_label(&mut next)?;
    a.mov(rax, qword_ptr(rbx + rcx))?;
    mix(a, rax)?;
    a.add(ecx, 512 + 16)?;
    a.cmp(ecx, WORK_BYTES as i32)?;
    a.jb(next)
}

fn mix(a: &mut CodeAssembler, register: AsmRegister64) -> Result<(), IcedError> {
    a.xor(r8, register)?;
    a.rol(r8, 13)?;
    a.lea(r8, qword_ptr(r8 + r8 * 4 + 0x1234))
}
