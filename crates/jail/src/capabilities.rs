//! No capability, and no way to one.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

use crate::layers::Standing;

/// Capability sets are 64 bits wide in every kernel (`_LINUX_CAPABILITY_VERSION_3`, `capget(2)`).
const CAPABILITIES_MOST: u32 = 64;

/// Empties the bounding and the ambient set, locks the securebits, and empties the permitted, the
/// effective and the inheritable set, in that order: the first two need `CAP_SETPCAP`.
pub(crate) fn drop_all() -> Standing {
    let mut kept = Vec::new();
    if let Err(errno) = empty_bounding_set() {
        kept.push(format!("the bounding set is as it was: {errno}"));
    }
    if let Err(errno) = set_capabilities_secure_bits(locked()) {
        kept.push(format!("the securebits are not locked: {errno}"));
    }
    if let Err(errno) = clear_ambient_capability_set() {
        kept.push(format!("the ambient set is as it was: {errno}"));
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    match set_capabilities(None, none) {
        Err(errno) => Standing::Missing(format!("capset: {errno}")),
        Ok(()) if kept.is_empty() => Standing::InPlace,
        // It has none, and `no_new_privs` keeps it from programs that would give it some.
        Ok(()) => Standing::Weaker(kept.join(", ")),
    }
}

fn empty_bounding_set() -> Result<(), Errno> {
    for number in 0..CAPABILITIES_MOST {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // Above the last that this kernel knows (`PR_CAPBSET_DROP(2const)`).
            Err(Errno::INVAL) if number > 0 => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// User id 0 is as any other, no change of ids gives or keeps capabilities, none becomes ambient,
/// and all that for good (`capabilities(7)`, "The securebits flags").
fn locked() -> CapabilitiesSecureBits {
    CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED
}
