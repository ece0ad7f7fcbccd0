//! Numbers of ioctls, and the call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Error;

// Linux `include/uapi/asm-generic/ioctl.h`: direction, size, type and number, from the top bits.
const WRITE: u64 = 1;
const READ: u64 = 2;

const fn request(direction: u64, kind: u64, number: u64, bytes: usize) -> libc::c_ulong {
    direction << 30 | (bytes as u64) << 16 | kind << 8 | number
}

/// `_IO(kind, number)`
pub(super) const fn io(kind: u64, number: u64) -> libc::c_ulong {
    request(0, kind, number, 0)
}

/// `_IOR(kind, number, T)`
pub(super) const fn ior<T>(kind: u64, number: u64) -> libc::c_ulong {
    request(READ, kind, number, size_of::<T>())
}

/// `_IOW(kind, number, T)`
pub(super) const fn iow<T>(kind: u64, number: u64) -> libc::c_ulong {
    request(WRITE, kind, number, size_of::<T>())
}

/// `_IOWR(kind, number, T)`
pub(super) const fn iowr<T>(kind: u64, number: u64) -> libc::c_ulong {
    request(READ | WRITE, kind, number, size_of::<T>())
}

/// Issues an ioctl with a pointer as its argument and returns the call's result.
///
/// # Errors
/// [`Error::System`] with `operation`.
///
/// # Safety
/// `argument` must point to what the request reads and writes, and that must live until the call
/// returns.
pub(super) unsafe fn call<T>(
    fd: BorrowedFd<'_>,
    operation: &'static str,
    request: libc::c_ulong,
    argument: *mut T,
) -> Result<libc::c_int, Error> {
    // SAFETY: the caller keeps the promise about the argument.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if result < 0 {
        return Err(Error::system(operation)(io::Error::last_os_error()));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel_headers() {
        const KVMIO: u64 = 0xAE;
        assert_eq!(io(KVMIO, 0x80), 0xae80, "KVM_RUN");
        assert_eq!(
            ior::<kvm_bindings::kvm_regs>(KVMIO, 0x81),
            0x8090_ae81,
            "KVM_GET_REGS"
        );
        assert_eq!(
            iow::<kvm_bindings::kvm_regs>(KVMIO, 0x82),
            0x4090_ae82,
            "KVM_SET_REGS"
        );
        assert_eq!(iowr::<[u64; 5]>(0xAA, 3), 0xc028_aa03, "UFFDIO_COPY");
    }
}
