//! Does its worst to its host, for tests. It speaks the ABI without the SDK, which would keep it from
//! most of this.
//!
//! A request's body is two little-endian words: a seed and how many actions follow from it. The answer
//! comes from the same seed and is right in one of four cases only. The first argument is a seed as
//! well: unless it is 0, even the mailbox and the buffer that are registered stand in memory that is
//! mapped twice, over page tables, or not at all.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr;

use dormouse_abi::{
    ABI_VERSION, EXCHANGE_PORT, HEADER_BYTES, Header, Kind, MAGIC, MAILBOX_BYTES,
    REQUEST_BUFFER_BYTES,
};

const PAGE_BYTES: u64 = 4096;
/// Entry of the top table that leads to the window: nothing else uses it.
const WINDOW_INDEX: u64 = 300;
const WINDOW: u64 = 0xFFFF_0000_0000_0000 | WINDOW_INDEX << 39;
const PRESENT_WRITABLE: u64 = 0b11;
/// Ports of both hypercall interfaces and of hardware.
const PORTS: [u16; 24] = [
    0x400, 0x440, 0x480, 0x500, 0x580, 0x740, 0x780, 0x800, 0x840, 0x880, 0x1020, 0x1030, 0x1040,
    0x1100, 0x1110, 0x1120, 0x1130, 0x1140, 0x1150, 0x1160, 0x1170, 0x1180, 0x20, 0xCF8,
];

/// Memory that the host, the CPU and this program all change.
#[repr(C, align(4096))]
struct Shared<const N: usize>(UnsafeCell<[u8; N]>);

// SAFETY: there is one thread, and every access goes through raw pointers.
unsafe impl<const N: usize> Sync for Shared<N> {}

impl<const N: usize> Shared<N> {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; N]))
    }

    fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

static MAILBOX: Shared<MAILBOX_BYTES> = Shared::new();
static BUFFER: Shared<REQUEST_BUFFER_BYTES> = Shared::new();
static SCRATCH: Shared<{ 4 * 4096 }> = Shared::new();
/// Three tables, one below the other, that map the window.
static TABLES: Shared<{ 3 * 4096 }> = Shared::new();

fn main() {
    let told = std::env::args().nth(1).and_then(|seed| seed.parse().ok());
    let mut random = Random(told.unwrap_or(0));
    open_window();
    let is_tame = random.0 == 0;
    let mailbox = if is_tame {
        MAILBOX.address()
    } else {
        scatter(&mut random, 1..512, true);
        WINDOW
    };
    let mut header = Header {
        magic: MAGIC,
        abi_version: ABI_VERSION,
        request_buffer_address: if is_tame {
            BUFFER.address()
        } else {
            WINDOW + random.below(16 * PAGE_BYTES)
        },
        request_buffer_bytes: REQUEST_BUFFER_BYTES as u64,
        kind: Kind::Ready as u32,
        ..Header::new()
    };
    loop {
        machine::write(MAILBOX.address(), &header.encode());
        machine::out32(EXCHANGE_PORT, ABI_VERSION, mailbox);
        let mut page = [0; MAILBOX_BYTES];
        machine::read(MAILBOX.address(), &mut page);
        let mut asked = page.first_chunk().map(Header::decode).unwrap_or_default();
        // It confirms: the host would look at nothing else that it does with its answers.
        asked.confirmed = asked.confirmation();
        header.confirmed = asked.confirmed;
        let head_bytes = asked.opened().map_or(0, |sizes| sizes.head_bytes);
        let at = HEADER_BYTES + head_bytes as usize;
        let word = |at: usize| page.get(at..).and_then(|bytes| bytes.first_chunk());
        let [seed, actions] =
            [at, at + 8].map(|at| word(at).map_or(1, |bytes| u64::from_le_bytes(*bytes)));
        let mut random = Random(seed);
        for _ in 0..actions.min(10_000) {
            act(&mut random);
        }
        header = answer(&mut random, &header);
        if random.below(4) == 0 {
            // With the mailbox anywhere, or as the page tables say by then.
            machine::write(MAILBOX.address(), &header.encode());
            let address = random.address() & !(PAGE_BYTES - 1);
            machine::out32(EXCHANGE_PORT, random.next() as u32 % 3, address);
        }
    }
}

/// The header of an answer that follows from the request's seed.
fn answer(random: &mut Random, registered: &Header) -> Header {
    let right = Header {
        kind: Kind::Answer as u32,
        status: 200,
        answer_head_address: 0,
        answer_head_bytes: 0,
        answer_body_address: MAILBOX.address() + HEADER_BYTES as u64,
        answer_body_bytes: 5,
        ..*registered
    };
    match random.below(4) {
        0 => right,
        1 => Header {
            answer_head_address: random.address(),
            answer_head_bytes: random.below(70_000),
            answer_body_address: random.address(),
            answer_body_bytes: random.below(7 << 20),
            ..right
        },
        2 => Header {
            answer_body_address: random.address(),
            answer_body_bytes: random.length(),
            kind: random.below(6) as u32,
            status: random.below(700) as u32,
            ..right
        },
        _ => {
            let mut bytes = right.encode();
            for _ in 0..4 {
                let at = 8 * random.below(HEADER_BYTES as u64 / 8) as usize;
                bytes[at..at + 8].copy_from_slice(&random.length().to_le_bytes());
            }
            Header::decode(&bytes)
        }
    }
}

/// One thing that a host must survive.
fn act(random: &mut Random) {
    let port = match random.below(8) {
        0 => random.next() as u16,
        _ => PORTS[random.below(PORTS.len() as u64) as usize],
    };
    // This one ends the run, which is for the answer to do.
    let port = if port == EXCHANGE_PORT { 0x80 } else { port };
    match random.below(16) {
        0 => machine::out8(port, random.next() as u8),
        1 => machine::out16(port, random.next() as u16),
        2 => {
            machine::in8(port);
        }
        3 => {
            machine::in16(port);
        }
        4 => {
            machine::in32(port);
        }
        5 => {
            let first = 1 + random.below(480);
            scatter(random, first..first + 32, false);
        }
        6 => {
            let at = MAILBOX.address() + 8 * random.below(PAGE_BYTES / 8);
            machine::write(at, &random.length().to_le_bytes());
        }
        _ => {
            let at = SCRATCH.address() + 4 * random.below(3000);
            for word in 0..6 {
                let value = match random.below(3) {
                    0 => random.address(),
                    1 => random.length(),
                    _ => random.below(5),
                };
                machine::write(at + 8 * word, &value.to_le_bytes());
            }
            let block = physical(at).unwrap_or(at);
            machine::out32(port, block as u32, block);
        }
    }
}

/// Maps the window by tables of its own, to nothing yet.
fn open_window() {
    let tables = TABLES.address();
    for level in 0..2 {
        if let Some(next) = physical(tables + (level + 1) * PAGE_BYTES) {
            let entry = next | PRESENT_WRITABLE;
            // The whole window repeats itself every 2 MiB.
            for index in 0..512 {
                let at = tables + level * PAGE_BYTES + 8 * index;
                machine::write(at, &entry.to_le_bytes());
            }
        }
    }
    // The window's first page is the mailbox until it is scattered.
    let leaf = tables + 2 * PAGE_BYTES;
    let mailbox = physical(MAILBOX.address()).unwrap_or(0) | PRESENT_WRITABLE;
    machine::write(leaf, &mailbox.to_le_bytes());
    if let Some(first) = physical(tables) {
        let top = table_entry(WINDOW, 4);
        machine::write(top, &(first | PRESENT_WRITABLE).to_le_bytes());
    }
}

/// Maps some of the window's pages anew: to the mailbox, to their own table, to plain memory; and
/// unless they must all be memory, to devices, beyond memory, to nothing.
fn scatter(random: &mut Random, pages: Range<u64>, is_memory: bool) {
    let leaf = TABLES.address() + 2 * PAGE_BYTES;
    let frames = [
        MAILBOX.address(),
        leaf,
        SCRATCH.address(),
        SCRATCH.address(),
    ];
    let frames = frames.map(|address| physical(address).unwrap_or(0));
    for index in pages {
        let kind = random.below(if is_memory { 4 } else { 8 });
        let entry = match kind {
            0..4 => frames[kind as usize] | PRESENT_WRITABLE,
            4 => 0xFEE0_0000 | PRESENT_WRITABLE,
            5 => frames[0],
            _ => random.next() & 0x000F_FFFF_FFFF_FFFF | 1,
        };
        machine::write(leaf + 8 * index, &entry.to_le_bytes());
    }
}

/// Where the entry of `address` in its table of this level is, through the recursive entry.
fn table_entry(address: u64, level: u32) -> u64 {
    let mut entry = address;
    for _ in 0..level {
        entry = 0xFFFF_FF80_0000_0000 | entry >> 9 & 0x7F_FFFF_FFF8;
    }
    entry
}

/// The guest-physical address of one of this program's own.
fn physical(address: u64) -> Option<u64> {
    const HUGE: u64 = 1 << 7;
    for level in (1..=4).rev() {
        let mut bytes = [0; 8];
        machine::read(table_entry(address, level), &mut bytes);
        let entry = u64::from_le_bytes(bytes);
        if entry & 1 == 0 {
            return None;
        }
        if level == 1 || level < 4 && entry & HUGE != 0 {
            let page_bytes = 1u64 << (12 + 9 * (level - 1));
            let frame = entry & 0x000F_FFFF_FFFF_F000 & !(page_bytes - 1);
            return Some(frame | address & (page_bytes - 1));
        }
    }
    None
}

/// SplitMix64 (Steele, Lea and Flood: "Fast Splittable Pseudorandom Number Generators").
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ word >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn address(&mut self) -> u64 {
        let near = self.below(5000);
        match self.below(8) {
            0 => MAILBOX.address() + near,
            1 => physical(SCRATCH.address()).unwrap_or(0) + near,
            2..=4 => WINDOW + self.below(512 * PAGE_BYTES),
            5 => u64::MAX - near,
            6 => [0, 0xFEE0_0000, 1 << 47, 1 << 63][self.below(4) as usize] + near,
            _ => self.next(),
        }
    }

    fn length(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(300),
            1 => self.below(7 << 20),
            2 => [0, 1 << 32, u64::MAX, 1 << 63][self.below(4) as usize],
            _ => self.next(),
        }
    }
}

/// Instructions and memory that no safe code reaches.
mod machine {
    use super::{asm, ptr};

    macro_rules! port_access {
        ($out:ident, $in:ident, $number:ty, $register:tt, $written:literal, $read:literal) => {
            pub(super) fn $out(port: u16, value: $number) {
                // SAFETY: whatever the host does is what this program is there to find out.
                unsafe { asm!($written, in("dx") port, in($register) value, in("rdi") 0x10_0000u64) }
            }

            pub(super) fn $in(port: u16) -> $number {
                let value;
                // SAFETY: as above.
                unsafe { asm!($read, in("dx") port, out($register) value) }
                value
            }
        };
    }
    port_access!(out8, in8, u8, "al", "out dx, al", "in al, dx");
    port_access!(out16, in16, u16, "ax", "out dx, ax", "in ax, dx");

    pub(super) fn out32(port: u16, value: u32, in_rdi: u64) {
        // SAFETY: as above.
        unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, in("rdi") in_rdi) }
    }

    pub(super) fn in32(port: u16) -> u32 {
        let value;
        // SAFETY: as above.
        unsafe { asm!("in eax, dx", in("dx") port, out("eax") value) }
        value
    }

    pub(super) fn write(address: u64, bytes: &[u8]) {
        for (at, byte) in (address..).zip(bytes) {
            // SAFETY: the addresses are this program's shared memory and its page tables, which
            // no reference covers.
            unsafe { ptr::with_exposed_provenance_mut::<u8>(at as usize).write_volatile(*byte) }
        }
    }

    pub(super) fn read(address: u64, bytes: &mut [u8]) {
        for (at, byte) in (address..).zip(bytes) {
            // SAFETY: as in `write`.
            *byte = unsafe { ptr::with_exposed_provenance::<u8>(at as usize).read_volatile() };
        }
    }
}
