//! The global descriptor table that a guest starts with.
//!
//! Three segment descriptors (Intel SDM vol. 3A, 3.4.5 "Segment Descriptors"; AMD APM vol. 2,
//! 4.7–4.8): the null descriptor, 64-bit code and data, both ring 0 and flat.

use bitflags::bitflags;
use kvm_bindings::kvm_segment;

bitflags! {
    /// The access byte: bits 40–47 of a descriptor.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Access: u8 {
        /// Set by the CPU on first use; set ahead so that it never writes to the table.
        const ACCESSED = 1 << 0;
        /// Code: may be read. Data: may be written.
        const READ_WRITE = 1 << 1;
        /// Code, not data.
        const EXECUTABLE = 1 << 3;
        /// Code or data, not a system segment (S).
        const CODE_OR_DATA = 1 << 4;
        /// The segment is present (P). Its privilege level, bits 5–6, stays 0.
        const PRESENT = 1 << 7;
    }
}

bitflags! {
    /// The flags nibble: bits 52–55 of a descriptor.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Flags: u8 {
        /// 64-bit code (L).
        const LONG = 1 << 1;
        /// 32-bit operands (D/B); must be clear in 64-bit code.
        const DEFAULT_32 = 1 << 2;
        /// The limit counts 4 KiB units (G).
        const PAGES = 1 << 3;
    }
}

/// One descriptor, before it is encoded.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    base: u32,
    limit: u32,
    access: Access,
    flags: Flags,
}

const FLAT_LIMIT: u32 = 0xF_FFFF;

const CODE: Descriptor = Descriptor {
    base: 0,
    limit: FLAT_LIMIT,
    access: Access::PRESENT
        .union(Access::CODE_OR_DATA)
        .union(Access::EXECUTABLE)
        .union(Access::READ_WRITE)
        .union(Access::ACCESSED),
    flags: Flags::PAGES.union(Flags::LONG),
};

const DATA: Descriptor = Descriptor {
    base: 0,
    limit: FLAT_LIMIT,
    access: Access::PRESENT
        .union(Access::CODE_OR_DATA)
        .union(Access::READ_WRITE)
        .union(Access::ACCESSED),
    flags: Flags::PAGES.union(Flags::DEFAULT_32),
};

/// Selector of the code descriptor: index 1, GDT, requested privilege level 0.
pub(crate) const CODE_SELECTOR: u16 = 1 << 3;
/// Selector of the data descriptor: index 2, GDT, requested privilege level 0.
pub(crate) const DATA_SELECTOR: u16 = 2 << 3;

impl Descriptor {
    /// The descriptor's eight bytes as a little-endian word.
    const fn encode(self) -> u64 {
        let (base, limit) = (self.base as u64, self.limit as u64);
        (limit & 0xFFFF)
            | (base & 0xFF_FFFF) << 16
            | (self.access.bits() as u64) << 40
            | (limit >> 16 & 0xF) << 48
            | (self.flags.bits() as u64) << 52
            | (base >> 24) << 56
    }

    /// What the CPU holds after loading the descriptor through `selector`.
    fn loaded(self, selector: u16) -> kvm_segment {
        let access = self.access.bits();
        kvm_segment {
            base: u64::from(self.base),
            // With G set the limit counts pages and its low 12 bits are ones.
            limit: self.limit << 12 | 0xFFF,
            selector,
            type_: access & 0xF,
            present: access >> 7,
            dpl: access >> 5 & 3,
            s: access >> 4 & 1,
            db: u8::from(self.flags.contains(Flags::DEFAULT_32)),
            l: u8::from(self.flags.contains(Flags::LONG)),
            g: u8::from(self.flags.contains(Flags::PAGES)),
            avl: 0,
            unusable: 0,
            padding: 0,
        }
    }
}

/// The table's three descriptors: null, code, data.
pub const TABLE: [u64; 3] = [0, CODE.encode(), DATA.encode()];

/// CS as the guest starts with it.
pub(crate) fn code_segment() -> kvm_segment {
    CODE.loaded(CODE_SELECTOR)
}

/// DS, ES and SS as the guest starts with them.
pub(crate) fn data_segment() -> kvm_segment {
    DATA.loaded(DATA_SELECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_are_the_words_that_hermit_expects() {
        assert_eq!(TABLE, [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF]);
    }

    #[test]
    fn base_and_limit_are_split_over_their_fields() {
        let descriptor = Descriptor {
            base: 0x1234_5678,
            limit: 0xA_BCDE,
            access: Access::empty(),
            flags: Flags::empty(),
        };
        assert_eq!(descriptor.encode(), 0x120A_0034_5678_BCDE);
    }

    #[test]
    fn the_loaded_code_segment_is_64_bit_ring_0() {
        let code = code_segment();
        assert_eq!(
            (code.l, code.db, code.dpl, code.type_, code.limit),
            (1, 0, 0, 0xB, u32::MAX)
        );
        assert_eq!(
            (data_segment().l, data_segment().db, data_segment().type_),
            (0, 1, 3)
        );
    }
}
