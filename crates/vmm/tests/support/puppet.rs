//! A guest that does what the test says, one instruction at a time.
//!
//! The guest is a few lines of assembly: it makes the exchange hypercall with RDI pointing to a
//! command block, does the one thing that the block asks for, and starts over. So a test reads as a
//! list of what the guest does and what comes of it, and everything goes through the real vCPU.

use std::sync::Arc;
use std::time::Instant;

use dormouse_abi::EXCHANGE_PORT;
use dormouse_vmm::{GuestImage, Interface, MachineConfig, Stop, Vm};
use iced_x86::code_asm::{
    al, ax, cr3, dword_ptr, dx, eax, ecx, edx, ptr, qword_ptr, r12, rax, rbx, rcx, rdi, rdx, rsi,
};

use super::elf::{Elf, assemble};
use super::{Captured, boot, far, machine};

/// What a puppet can do; the number is the command block's first word.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    /// `out port, eax` with this value and RDI.
    Out = 0,
    In8 = 1,
    In16 = 2,
    In32 = 3,
    Load32 = 4,
    Load64 = 5,
    Store32 = 6,
    ReadMsr = 7,
    WriteMsr = 8,
    LoadCr3 = 9,
    Out8 = 10,
    Out16 = 11,
    /// `rep outsd` of as many words as the value says, from RDI.
    OutString = 12,
    /// `rep insd` of as many words as the value says, to RDI.
    InString = 13,
}

const WORDS: u64 = 5;

fn code() -> Vec<u8> {
    assemble(|a| {
        let mut block = a.create_label();
        let mut next = a.create_label();
        let mut actions: [_; 13] = std::array::from_fn(|_| a.create_label());

        a.set_label(&mut next)?;
        a.lea(rbx, ptr(block))?;
        a.mov(rdi, rbx)?;
        a.mov(dx, u32::from(EXCHANGE_PORT))?;
        a.mov(eax, 1)?;
        a.out(dx, eax)?;

        // Command block: action, port or address, value, RDI, result.
        a.mov(r12, qword_ptr(rbx))?;
        a.mov(rcx, qword_ptr(rbx + 8))?;
        a.mov(rax, qword_ptr(rbx + 16))?;
        a.mov(rdi, qword_ptr(rbx + 24))?;
        for (number, label) in (1..).zip(actions) {
            a.cmp(r12, number)?;
            a.je(label)?;
        }
        a.mov(edx, ecx)?;
        a.out(dx, eax)?;
        a.jmp(next)?;

        let [
            in8,
            in16,
            in32,
            load32,
            load64,
            store32,
            read_msr,
            write_msr,
            load_cr3,
            out8,
            out16,
            out_string,
            in_string,
        ] = &mut actions;
        let mut keep = a.create_label();
        a.set_label(in8)?;
        a.mov(edx, ecx)?;
        a.in_(al, dx)?;
        a.jmp(keep)?;
        a.set_label(in16)?;
        a.mov(edx, ecx)?;
        a.in_(ax, dx)?;
        a.jmp(keep)?;
        a.set_label(in32)?;
        a.mov(edx, ecx)?;
        a.in_(eax, dx)?;
        a.jmp(keep)?;
        a.set_label(load32)?;
        a.mov(eax, dword_ptr(rcx))?;
        a.jmp(keep)?;
        a.set_label(load64)?;
        a.mov(rax, qword_ptr(rcx))?;
        a.jmp(keep)?;
        a.set_label(store32)?;
        a.mov(dword_ptr(rcx), eax)?;
        a.jmp(next)?;
        a.set_label(read_msr)?;
        a.rdmsr()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.jmp(keep)?;
        a.set_label(write_msr)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.wrmsr()?;
        a.jmp(next)?;
        a.set_label(load_cr3)?;
        a.mov(cr3, rax)?;
        a.jmp(next)?;
        a.set_label(out8)?;
        a.mov(edx, ecx)?;
        a.out(dx, al)?;
        a.jmp(next)?;
        a.set_label(out16)?;
        a.mov(edx, ecx)?;
        a.out(dx, ax)?;
        a.jmp(next)?;
        a.set_label(out_string)?;
        a.mov(edx, ecx)?;
        a.mov(rcx, rax)?;
        a.mov(rsi, rdi)?;
        a.rep().outsd()?;
        a.jmp(next)?;
        a.set_label(in_string)?;
        a.mov(edx, ecx)?;
        a.mov(rcx, rax)?;
        a.rep().insd()?;
        a.jmp(next)?;

        a.set_label(&mut keep)?;
        a.mov(qword_ptr(rbx + 32), rax)?;
        a.jmp(next)?;

        a.set_label(&mut block)?;
        a.dq(&[0; WORDS as usize])
    })
}

/// A puppet in its machine.
pub(crate) struct Puppet {
    pub(crate) vm: Vm,
    pub(crate) output: Captured,
    block: u64,
    next_free: u64,
}

impl Puppet {
    pub(crate) fn image(interface: Interface) -> Arc<GuestImage> {
        match interface {
            Interface::V1 => Elf::v1(code()).image(),
            Interface::V2 => Elf::v2(code()).image(),
        }
    }

    pub(crate) fn v1() -> Self {
        Self::boot(Interface::V1, &machine())
    }

    pub(crate) fn v2() -> Self {
        Self::boot(Interface::V2, &machine())
    }

    /// Boots a puppet and runs it to its first exchange.
    pub(crate) fn boot(interface: Interface, config: &MachineConfig) -> Self {
        let (vm, output) = boot(&Self::image(interface), config);
        Self::in_vm(vm, output)
    }

    pub(crate) fn in_vm(vm: Vm, output: Captured) -> Self {
        let next_free = vm.shell().ram().base() + (8 << 20);
        let mut puppet = Self {
            vm,
            output,
            block: 0,
            next_free,
        };
        puppet.wait();
        puppet
    }

    /// A puppet that was restored while it waited for its next command.
    pub(crate) fn waiting(vm: Vm, output: Captured, block: u64) -> Self {
        Self {
            next_free: vm.shell().ram().base() + (16 << 20),
            vm,
            output,
            block,
        }
    }

    fn wait(&mut self) {
        match self.vm.run(far()).unwrap() {
            Stop::Exchange { mailbox, .. } => self.block = mailbox,
            other => panic!("the puppet stopped with {other:?}"),
        }
    }

    /// Where the command block stands.
    pub(crate) fn block(&self) -> u64 {
        self.block
    }

    fn act(&mut self, action: Action, target: u64, value: u64, in_rdi: u64) -> Stop {
        self.act_until(action, target, value, in_rdi, far())
    }

    fn act_until(
        &mut self,
        action: Action,
        target: u64,
        value: u64,
        in_rdi: u64,
        deadline: Instant,
    ) -> Stop {
        let words = [action as u64, target, value, in_rdi, 0];
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        self.vm.write_virtual(self.block, &bytes).unwrap();
        self.vm.run(deadline).unwrap()
    }

    /// As [`Puppet::out`], with a deadline of its own; where it stops.
    pub(crate) fn out_until(&mut self, port: u16, in_rdi: u64, deadline: Instant) -> Stop {
        self.act_until(Action::Out, port.into(), 0, in_rdi, deadline)
    }

    fn result(&mut self, action: Action, target: u64, value: u64) -> u64 {
        let stop = self.act(action, target, value, 0);
        assert!(matches!(stop, Stop::Exchange { .. }), "{stop:?}");
        let mut bytes = [0; 8];
        self.vm.read_virtual(self.block + 32, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// `out port, value`: where it stops, if not at the next exchange.
    pub(crate) fn out(&mut self, port: u16, value: u64, in_rdi: u64) -> Option<Stop> {
        match self.act(Action::Out, port.into(), value, in_rdi) {
            Stop::Exchange { .. } => None,
            other => Some(other),
        }
    }

    /// `in` of 1, 2 or 4 bytes.
    pub(crate) fn input(&mut self, bytes: usize, port: u16) -> u64 {
        let action = match bytes {
            1 => Action::In8,
            2 => Action::In16,
            _ => Action::In32,
        };
        self.result(action, port.into(), 0)
    }

    pub(crate) fn load32(&mut self, address: u64) -> u64 {
        self.result(Action::Load32, address, 0)
    }

    pub(crate) fn load64(&mut self, address: u64) -> u64 {
        self.result(Action::Load64, address, 0)
    }

    pub(crate) fn store32(&mut self, address: u64, value: u32) {
        self.result(Action::Store32, address, value.into());
    }

    pub(crate) fn read_msr(&mut self, index: u32) -> u64 {
        self.result(Action::ReadMsr, index.into(), 0)
    }

    pub(crate) fn write_msr(&mut self, index: u32, value: u64) {
        self.result(Action::WriteMsr, index.into(), value);
    }

    /// What the guest reads in an MSR, if it can.
    pub(crate) fn try_read_msr(&mut self, index: u32) -> Option<u64> {
        let stop = self.act(Action::ReadMsr, index.into(), 0, 0);
        let could = matches!(stop, Stop::Exchange { .. });
        could.then(|| u64::from_le_bytes(self.get(self.block + 32)))
    }

    /// Writes an MSR and says whether the guest could.
    pub(crate) fn could_write_msr(&mut self, index: u32, value: u64) -> bool {
        let stop = self.act(Action::WriteMsr, index.into(), value, 0);
        matches!(stop, Stop::Exchange { .. })
    }

    pub(crate) fn load_cr3(&mut self, value: u64) {
        self.result(Action::LoadCr3, 0, value);
    }

    /// Puts bytes into memory that nothing else uses, on a page boundary; returns their address.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> u64 {
        let address = self.next_free;
        self.next_free += (bytes.len() as u64).max(1).next_multiple_of(4096);
        self.vm.shell().ram().write(address, bytes).unwrap();
        address
    }

    pub(crate) fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.vm.shell().ram().read(address, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn get_i32(&self, address: u64) -> i32 {
        i32::from_le_bytes(self.get(address))
    }

    pub(crate) fn get_i64(&self, address: u64) -> i64 {
        i64::from_le_bytes(self.get(address))
    }

    /// Maps these frames, in this order, to one range of virtual addresses, far from the identity
    /// mapping; returns where it starts.
    pub(crate) fn map_pages(&mut self, pages: &[u64]) -> u64 {
        const PRESENT_WRITABLE: u64 = 0b11;
        const SLOT: u64 = 200;
        let base = self.vm.shell().ram().base();
        let table: Vec<u8> = pages
            .iter()
            .flat_map(|frame| (frame | PRESENT_WRITABLE).to_le_bytes())
            .collect();
        let mut below = self.put(&table);
        for _ in 0..2 {
            below = self.put(&(below | PRESENT_WRITABLE).to_le_bytes());
        }
        let entry = base + dormouse_vmm::layout::PML4_OFFSET + 8 * SLOT;
        let ram = self.vm.shell().ram();
        ram.write(entry, &(below | PRESENT_WRITABLE).to_le_bytes())
            .unwrap();
        SLOT << 39
    }
}
