//! Control groups: what the host lets a process have, counted by the host.
//!
//! # The rule of no internal processes
//!
//! A group that hands controllers on to its children cannot hold processes itself
//! (`cgroups(7)`, "Cgroups v2 no internal processes rule"), except the root. The front is a process,
//! so workers cannot be below its own group: they stand beside it, in the group above, which has to
//! be the front's to divide. With systemd that is `Delegate=memory pids` and
//! `DelegateSubgroup=front` (`systemd.resource-control(5)`). In a container whose root group is its
//! own, workers are below that.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::getxattr;
use rustix::process::geteuid;

/// How much of the host a process may have, with all that the kernel holds for it (`cgroups(7)`,
/// version 2). Nothing leaves it unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// Memory that is charged to it (`memory.max`). Pages of a file in memory are charged to who
    /// touches them first.
    pub memory_bytes: Option<u64>,
    /// Processes and threads (`pids.max`).
    pub threads: Option<u64>,
}

/// A control group that was made here. It is removed when this is dropped, which needs to be after
/// its processes have ended.
#[derive(Debug)]
pub(crate) struct Group {
    folder: PathBuf,
}

impl Group {
    /// Makes a group with these limits and moves the process into it. Otherwise says why not, and
    /// leaves nothing behind.
    pub(crate) fn around(pid: u32, limits: &GroupLimits) -> Result<Self, String> {
        let mut reasons = Vec::new();
        for above in places()? {
            match Self::below(&above, pid, limits) {
                Ok(group) => return Ok(group),
                Err(reason) => reasons.push(format!("{}: {reason}", above.display())),
            }
        }
        if reasons.is_empty() {
            return Err(
                "neither this process's control group nor the one above is delegated".into(),
            );
        }
        Err(reasons.join("; "))
    }

    fn below(above: &Path, pid: u32, limits: &GroupLimits) -> Result<Self, String> {
        let memory = limits
            .memory_bytes
            .map(|most| ("memory", "memory.max", most));
        let threads = limits.threads.map(|most| ("pids", "pids.max", most));
        let limits: Vec<_> = memory.into_iter().chain(threads).collect();
        for (controller, _, _) in &limits {
            hand_on(above, controller)?;
        }
        let folder = above.join(format!("dormouse-{pid}"));
        // One of a process that had this number before, and whose front did not live to remove it.
        let _ = fs::remove_dir(&folder);
        fs::create_dir(&folder).map_err(|error| format!("mkdir: {error}"))?;
        // From here on it is removed where something fails.
        let group = Self { folder };
        for (_, file, most) in &limits {
            group.write(file, &most.to_string())?;
        }
        group.write("cgroup.procs", &pid.to_string())?;
        Ok(group)
    }

    fn write(&self, file: &str, text: &str) -> Result<(), String> {
        fs::write(self.folder.join(file), text).map_err(|error| format!("{file}: {error}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Where it is not empty after all, it is its process's still.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Has a group hand a controller on to its children.
fn hand_on(group: &Path, controller: &str) -> Result<(), String> {
    let has = |file: &str| {
        let text = fs::read_to_string(group.join(file)).unwrap_or_default();
        text.split_whitespace().any(|word| word == controller)
    };
    if has("cgroup.subtree_control") {
        return Ok(());
    }
    if !has("cgroup.controllers") {
        return Err(format!("it does not have the {controller} controller"));
    }
    let file = group.join("cgroup.subtree_control");
    fs::write(file, format!("+{controller}")).map_err(|error| {
        // EBUSY (`cgroups(7)`): see the module's page.
        let busy = error.kind() == io::ErrorKind::ResourceBusy;
        let remedy = if busy {
            ", since processes are in it"
        } else {
            ""
        };
        format!("the {controller} controller cannot be handed on{remedy}: {error}")
    })
}

/// The groups below which this process may make others: the one above its own, and its own.
fn places() -> Result<Vec<PathBuf>, String> {
    let groups = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let root = mount_point(&mounts).ok_or("cgroup v2 is not mounted")?;
    // The hierarchy of version 2 has number 0 and no names (`cgroups(7)`, /proc/PID/cgroup).
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or("this process is in no group of cgroup v2")?;
    if own.split('/').any(|part| part == "..") {
        return Err("this process's control group is outside of what is mounted".into());
    }
    if own.is_empty() {
        return Ok(vec![root]);
    }
    let own = root.join(own);
    let above = own.parent().map(Path::to_owned);
    let places = above.into_iter().chain([own]);
    Ok(places.filter(|place| is_delegated(place)).collect())
}

/// The fifth field is where, the first after the dash is what (`proc_pid_mountinfo(5)`).
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next()? != "cgroup2" {
            return None;
        }
        Some(PathBuf::from(before.split(' ').nth(4)?))
    })
}

/// Root may write to all groups, those of systemd too, which does not want that: only what it has
/// marked is given away (`user.delegate`, systemd's "Control Group APIs and Delegation"). To others
/// a group is given by making them its owner (`cgroups(7)`, "Cgroup delegation").
fn is_delegated(group: &Path) -> bool {
    let mut value = [0; 1];
    if getxattr(group, "user.delegate", &mut value) == Ok(1) {
        return value == *b"1";
    }
    let user = geteuid();
    !user.is_root() && fs::metadata(group).is_ok_and(|found| found.uid() == user.as_raw())
}
