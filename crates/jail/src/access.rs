//! Landlock: access that the kernel refuses this process and its descendants.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};

use crate::layers::Standing;

/// The newest that the crate knows. Of a kernel with less it takes what there is.
const ABI_NEWEST: ABI = ABI::V10;

/// No rule follows, so each kind of access that is named is refused altogether: files, TCP and UDP
/// ports, abstract sockets and processes outside. What is open already stays usable
/// (`landlock(7)`).
pub(crate) fn refuse_all() -> Standing {
    match restrict() {
        Ok(status) => standing(&status),
        Err(error) => Standing::Missing(error.to_string()),
    }
}

fn restrict() -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_NEWEST))?
        .handle_access(AccessNet::from_all(ABI_NEWEST))?
        .scope(Scope::from_all(ABI_NEWEST))?
        .create()?
        .restrict_self()
}

fn standing(status: &RestrictionStatus) -> Standing {
    match (&status.ruleset, &status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Standing::InPlace,
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
            let (has, newest) = (*effective_abi as i32, ABI_NEWEST as i32);
            Standing::Weaker(format!("the kernel has its version {has} of {newest}"))
        }
        (_, LandlockStatus::NotEnabled) => {
            Standing::Missing("it is not among the kernel's `lsm=` at boot".into())
        }
        (_, LandlockStatus::NotImplemented) => {
            Standing::Missing("the kernel is built without it".into())
        }
        (_, LandlockStatus::Available { .. }) => {
            Standing::Missing("the kernel enforces none of it".into())
        }
    }
}
