//! A user id that no other process of the host has.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid, geteuid, getpid, set_dumpable_behavior};
use rustix::thread::{
    capabilities, set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::layers::Standing;

/// The first id of a range that nobody gives out: systemd's list of ranges (`UIDS-GIDS.md`) has
/// 1879048192 to 2147352575 as unused. Process ids are below 2^22 (`proc_sys_kernel(5)`, pid_max),
/// so the sum stays inside.
const FIRST_ID: u32 = 0x7000_0000;

/// Gives root's ids up for the ones that belong to this process id. Capabilities stay, for the
/// layers that need them still.
///
/// Processes may signal, trace and limit others of the same user, whatever namespaces they are in
/// (`kill(2)`); root's workers are each somebody else therefore.
pub(crate) fn become_nobody_else() -> Standing {
    let user = geteuid();
    if !user.is_root() {
        return Standing::Weaker(format!("it is user {}, as its starter", user.as_raw()));
    }
    match change() {
        Ok(()) => Standing::InPlace,
        Err(errno) => Standing::Missing(format!("it is root still: {errno}")),
    }
}

fn change() -> Result<(), Errno> {
    let id = FIRST_ID + getpid().as_raw_nonzero().get().unsigned_abs();
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    // Leaving user id 0 empties the effective set, and without this the permitted one as well
    // (`capabilities(7)`, "Effect of user ID changes on capabilities").
    set_keep_capabilities(true)?;
    set_thread_res_uid(user, user, user)?;
    let mut sets = capabilities(None)?;
    sets.effective = sets.permitted;
    set_capabilities(None, sets)?;
    // A process that changes its ids is not dumpable any more, and its own `/proc/self` is root's:
    // the maps of a user namespace could not be written. It ends with the layers.
    set_dumpable_behavior(DumpableBehavior::Dumpable)
}
