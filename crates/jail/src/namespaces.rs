//! Nothing to see and nobody to talk to.

use std::fs;
use std::io;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::{chdir, getegid, geteuid, pivot_root};

use crate::kernel::{Namespace, unshare};
use crate::layers::{LayerName, Layers, Standing};

/// Moves into namespaces of its own, each that the host allows. The user namespace comes first: it
/// brings the capabilities that the others need where the process has none.
pub(crate) fn leave_the_hosts(layers: &mut Layers) {
    layers.note(LayerName::UserNamespace, user());
    for (name, namespace) in [
        (LayerName::NetworkNamespace, Namespace::Network),
        (LayerName::IpcNamespace, Namespace::Ipc),
        (LayerName::UtsNamespace, Namespace::Uts),
        (LayerName::CgroupNamespace, Namespace::Cgroup),
    ] {
        let standing = match unshare(namespace) {
            Ok(()) => Standing::InPlace,
            Err(error) => Standing::Missing(error.to_string()),
        };
        layers.note(name, standing);
    }
    let standing = match empty_root() {
        Ok(()) => Standing::InPlace,
        Err((operation, error)) => Standing::Missing(format!("{operation}: {error}")),
    };
    layers.note(LayerName::EmptyRoot, standing);
}

/// Its ids inside are as outside (`user_namespaces(7)`, "Defining user and group ID mappings"): a
/// process may map its own and no other, and the group only where it gives `setgroups(2)` up.
fn user() -> Standing {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    if let Err(error) = unshare(Namespace::User) {
        return Standing::Missing(error.to_string());
    }
    let mapped = fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/uid_map", format!("{user} {user} 1")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("{group} {group} 1")));
    match mapped {
        Ok(()) => Standing::InPlace,
        Err(error) => Standing::Weaker(format!("its ids are not mapped: {error}")),
    }
}

/// Makes an empty tmpfs the root, read-only, and lets everything else go.
fn empty_root() -> Result<(), (&'static str, io::Error)> {
    fn failed<E: Into<io::Error>>(
        operation: &'static str,
    ) -> impl FnOnce(E) -> (&'static str, io::Error) {
        move |error| (operation, error.into())
    }
    unshare(Namespace::Mount).map_err(failed("unshare(CLONE_NEWNS)"))?;
    // What is mounted here must not come up on the host (`mount_namespaces(7)`).
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(failed("mount(MS_PRIVATE)"))?;
    // Any folder does that is there; this one is what this process has read before.
    let place = "/proc";
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = c"size=4k,nr_inodes=1,mode=0555";
    mount("none", place, "tmpfs", flags, options).map_err(failed("mount(tmpfs)"))?;
    chdir(place).map_err(failed("chdir"))?;
    // The old root lands on top of the new one, and is taken off (`pivot_root(2)`, "pivot_root(".",
    // ".")").
    pivot_root(".", ".").map_err(failed("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("umount2(MNT_DETACH)"))?;
    chdir("/").map_err(failed("chdir(/)"))
}
