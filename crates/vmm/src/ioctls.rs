//! The requests that this crate makes of KVM, for those who allow no others.

use kvm_bindings::{
    KVMIO, kvm_cpuid2, kvm_debugregs, kvm_device_attr, kvm_enable_cap, kvm_lapic_state,
    kvm_mp_state, kvm_msr_list, kvm_msrs, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

/// `KVM_SET_SIGNAL_MASK`, whose struct the kernel declares without the set behind it.
pub(crate) const SET_SIGNAL_MASK: u32 = write::<u32>(0x8b);
/// `KVM_X86_SETUP_MCE`.
pub(crate) const SETUP_MCE: u32 = write::<u64>(0x9c);
/// `KVM_SET_DEVICE_ATTR`, which kvm-ioctls has for Arm only.
pub(crate) const SET_DEVICE_ATTR: u32 = write::<kvm_device_attr>(0xe1);

/// All requests to KVM's device, its VMs and vCPUs that this crate makes, itself or through kvm-ioctls, on
/// any host (Linux `include/uapi/linux/kvm.h`). The one that is made most comes first. A request that is not
/// here ends the worker process that makes it.
pub const IOCTLS: [u32; 32] = [
    // KVM_RUN
    plain(0x80),
    // KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_CHECK_EXTENSION, KVM_GET_VCPU_MMAP_SIZE
    plain(0x00),
    plain(0x01),
    plain(0x03),
    plain(0x04),
    // KVM_GET_MSR_INDEX_LIST, KVM_GET_SUPPORTED_CPUID
    both::<kvm_msr_list>(0x02),
    both::<kvm_cpuid2>(0x05),
    // KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION, KVM_ENABLE_CAP
    plain(0x41),
    write::<kvm_userspace_memory_region>(0x46),
    write::<kvm_enable_cap>(0xa3),
    // KVM_GET_REGS and KVM_SET_REGS, then of the other registers
    read::<kvm_regs>(0x81),
    write::<kvm_regs>(0x82),
    read::<kvm_sregs>(0x83),
    write::<kvm_sregs>(0x84),
    both::<kvm_msrs>(0x88),
    write::<kvm_msrs>(0x89),
    read::<kvm_lapic_state>(0x8e),
    write::<kvm_lapic_state>(0x8f),
    read::<kvm_mp_state>(0x98),
    write::<kvm_mp_state>(0x99),
    read::<kvm_vcpu_events>(0x9f),
    read::<kvm_debugregs>(0xa1),
    write::<kvm_debugregs>(0xa2),
    read::<kvm_xsave>(0xa4),
    write::<kvm_xsave>(0xa5),
    read::<kvm_xcrs>(0xa6),
    write::<kvm_xcrs>(0xa7),
    // KVM_SET_CPUID2, KVM_GET_TSC_KHZ
    write::<kvm_cpuid2>(0x90),
    plain(0xa3),
    SET_SIGNAL_MASK,
    SETUP_MCE,
    SET_DEVICE_ATTR,
];

// How a request is put together (Linux `include/uapi/asm-generic/ioctl.h`): two bits of direction, as
// seen from here, 14 of the argument's size, eight of a type, eight of a number.

const fn plain(number: u32) -> u32 {
    KVMIO << 8 | number
}

const fn write<T>(number: u32) -> u32 {
    1 << 30 | size::<T>() << 16 | plain(number)
}

const fn read<T>(number: u32) -> u32 {
    2 << 30 | size::<T>() << 16 | plain(number)
}

const fn both<T>(number: u32) -> u32 {
    read::<T>(number) | write::<T>(number)
}

const fn size<T>() -> u32 {
    let bytes = size_of::<T>();
    assert!(bytes < 1 << 14);
    #[expect(clippy::cast_possible_truncation, reason = "of 14 bits")]
    let bytes = bytes as u32;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_the_kernel() {
        // As the kernel's documentation and tools have them.
        assert_eq!(plain(0x80), 0xae80);
        assert_eq!(SET_SIGNAL_MASK, 0x4004_ae8b);
        assert_eq!(SETUP_MCE, 0x4008_ae9c);
        assert_eq!(SET_DEVICE_ATTR, 0x4018_aee1);
        assert_eq!(both::<kvm_cpuid2>(0x05), 0xc008_ae05);
        assert_eq!(read::<kvm_regs>(0x81), 0x8090_ae81);
        assert_eq!(write::<kvm_sregs>(0x84), 0x4138_ae84);
        assert_eq!(read::<kvm_xsave>(0xa4), 0x9000_aea4);
    }

    #[test]
    fn none_is_there_twice() {
        let mut sorted = IOCTLS.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), IOCTLS.len());
    }
}
