//! Landlock: access that the kernel refuses this process and its descendants.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};

use crate::layers::Standing;

/// The newest that the crate knows. Of a kernel with less it takes what there is.
const ABI_NEWEST: ABI = ABI::V10;

/// What versions brought that matters here, each left to the other layers before (`landlock(7)` and
/// the kernel's `userspace-api/landlock.rst`, "Previous limitations").
const ADDED: &[(ABI, &str)] = &[
    (ABI::V2, "moving files"),
    (ABI::V3, "truncating files"),
    (ABI::V4, "TCP ports"),
    (ABI::V5, "ioctls of devices"),
    (ABI::V6, "abstract sockets and signals"),
    (ABI::V9, "sockets by path"),
    (ABI::V10, "UDP ports"),
];

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
            let lacks: Vec<_> = ADDED
                .iter()
                .filter(|(since, _)| since > effective_abi)
                .map(|(_, what)| *what)
                .collect();
            Standing::Weaker(format!(
                "the kernel has version {} of {}, which does not cover {}",
                *effective_abi as i32,
                ABI_NEWEST as i32,
                lacks.join(", ")
            ))
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
