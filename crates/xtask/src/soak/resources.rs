//! What the server and its workers hold, and whether it came back to what it was.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What some processes hold together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) processes: u64,
    pub(super) threads: u64,
    /// Open file descriptors.
    pub(super) descriptors: u64,
    /// Proportional set size: pages that several processes map count for each in part.
    pub(super) pss_kib: u64,
}

/// The server, and what it has started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Resources {
    /// The process that speaks HTTP.
    pub(super) front: Usage,
    /// All processes below it.
    pub(super) workers: Usage,
    /// Processes below it that ended and were not waited for.
    pub(super) zombies: u64,
}

/// A process, as `/proc/PID/stat` has it.
#[derive(Debug, Clone, Copy)]
struct Process {
    pid: u32,
    parent: u32,
    is_zombie: bool,
}

/// How long everything must have been idle before it is looked at: an idle instance gives its clone's
/// memory back after 10 s, and ends after 60 s more where there are more of it than are kept ready.
const IDLE: Duration = Duration::from_secs(75);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(5);
/// Threads that there may be more of: an async runtime ends idle threads of its own when it likes.
const MORE_THREADS: u64 = 4;
/// Descriptors that there may be more of: eight for connections that take a moment to close, and one for
/// the pack of each layer that a warming has added (at most eight, for each of the three functions that
/// are warmed).
const MORE_DESCRIPTORS: u64 = 8 + 3 * 8;
/// Memory that there may be more of, above a tenth: what an allocator keeps.
const MORE_KIB: u64 = 16 << 10;

impl Usage {
    fn add(&mut self, pid: u32) -> Result<()> {
        let path = |file: &str| format!("/proc/{pid}/{file}");
        let entries = |file| -> Result<u64> {
            let entries = fs::read_dir(path(file));
            let entries = entries.with_context(|| format!("cannot read {}", path(file)))?;
            Ok(entries.count() as u64)
        };
        let text = fs::read_to_string(path("smaps_rollup"));
        let text = text.with_context(|| format!("cannot read {}", path("smaps_rollup")))?;
        let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let pss = pss.and_then(|value| value.trim().strip_suffix("kB"));
        let pss = pss.and_then(|value| value.trim().parse::<u64>().ok());
        self.threads += entries("task")?;
        self.descriptors += entries("fd")?;
        self.pss_kib += pss.with_context(|| format!("process {pid} has no Pss"))?;
        self.processes += 1;
        Ok(())
    }

    /// What there is more of than there may be, in words.
    fn excess(&self, before: &Self, who: &str) -> Vec<String> {
        let allowed_kib = before.allowed_kib();
        let rows = [
            (
                "processes",
                before.processes,
                before.processes,
                self.processes,
            ),
            (
                "threads",
                before.threads,
                before.threads + MORE_THREADS,
                self.threads,
            ),
            (
                "descriptors",
                before.descriptors,
                before.descriptors + MORE_DESCRIPTORS,
                self.descriptors,
            ),
            ("KiB", before.pss_kib, allowed_kib, self.pss_kib),
        ];
        let over = rows.into_iter().filter(|(_, _, most, now)| now > most);
        over.map(|(what, before, most, now)| {
            format!("the {who} began with {before} {what} and ended with {now}, over {most}")
        })
        .collect()
    }

    /// How much memory there may be afterwards.
    fn allowed_kib(&self) -> u64 {
        self.pss_kib + self.pss_kib / 10 + MORE_KIB
    }
}

impl Resources {
    /// As they are now.
    pub(super) fn now(pid: u32) -> Result<Self> {
        let mut resources = Self::default();
        resources.front.add(pid)?;
        for process in below(pid)? {
            if process.is_zombie {
                resources.zombies += 1;
            } else if let Err(error) = resources.workers.add(process.pid) {
                // It may have ended since the list was made; what is there cannot be unreadable.
                if fs::exists(format!("/proc/{}", process.pid))? {
                    return Err(error);
                }
            }
        }
        Ok(resources)
    }

    /// After everything has been idle for a while: as soon as two looks agree, or `until` says that
    /// it is enough, and at `patience` in any case.
    pub(super) fn settled(
        pid: u32,
        patience: Duration,
        until: impl Fn(&Self) -> bool,
    ) -> Result<Self> {
        let begun = Instant::now();
        thread::sleep(IDLE);
        let mut last = Self::now(pid)?;
        loop {
            thread::sleep(PAUSE);
            let now = Self::now(pid)?;
            let is_steady = now.is_like(&last) && until(&now);
            if is_steady || begun.elapsed() >= patience {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Whether nothing happens any more.
    fn is_like(&self, other: &Self) -> bool {
        const MORE_OR_LESS_KIB: u64 = 1 << 10;
        let alike = |a: &Usage, b: &Usage| {
            a.processes == b.processes
                && a.threads == b.threads
                && a.descriptors == b.descriptors
                && a.pss_kib.abs_diff(b.pss_kib) <= MORE_OR_LESS_KIB
        };
        alike(&self.front, &other.front) && alike(&self.workers, &other.workers)
    }

    /// What there is more of than before, beyond what may be; one sentence each.
    pub(super) fn excess(&self, before: &Self) -> Vec<String> {
        let mut excess = self.front.excess(&before.front, "server");
        excess.extend(self.workers.excess(&before.workers, "workers"));
        if self.zombies > 0 {
            let zombies = self.zombies;
            excess.push(format!("{zombies} processes ended and were not waited for"));
        }
        excess
    }
}

/// The workers: processes below the server that still run and that are called so.
pub(super) fn workers(server: u32) -> Result<Vec<u32>> {
    let below = below(server)?;
    let running = below.into_iter().filter(|process| !process.is_zombie);
    Ok(running
        .map(|process| process.pid)
        .filter(|pid| is_worker(*pid))
        .collect())
}

/// Whether a process was started as `dormouse worker …`.
pub(super) fn is_worker(pid: u32) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).nth(1) == Some(b"worker")
}

/// All processes below one, at any depth.
fn below(pid: u32) -> Result<Vec<Process>> {
    let mut rest = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let name = entry.context("cannot read /proc")?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        // Those that have ended meanwhile are no processes any more.
        rest.extend(pid.and_then(Process::read));
    }
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let children = rest.iter().filter(|process| process.parent == parent);
        for child in children {
            parents.push(child.pid);
            found.push(*child);
        }
    }
    Ok(found)
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(pid, &stat)
    }

    /// The fields stand after the program's name, which may hold anything (proc_pid_stat(5)).
    fn parse(pid: u32, stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let state = fields.next()?;
        Some(Self {
            pid,
            parent: fields.next()?.parse().ok()?,
            is_zombie: state == "Z" || state == "X",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_cannot_pretend_to_be_fields() {
        let process = Process::parse(7, "7 (a) S 1 (b)) Z 42 7 7 0").unwrap();
        assert_eq!((process.pid, process.parent), (7, 42));
        assert!(process.is_zombie);
        assert!(Process::parse(7, "nonsense").is_none());
    }

    #[test]
    fn children_are_counted_alive_and_dead() {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        let is_child = |process: &Process| process.pid == pid;
        let mine = below(std::process::id()).unwrap();
        assert!(
            mine.iter()
                .any(|process| is_child(process) && !process.is_zombie)
        );
        assert!(!workers(std::process::id()).unwrap().contains(&pid));
        assert!(Resources::now(pid).unwrap().front.pss_kib > 0);
        child.kill().unwrap();
        // Until it is waited for, it is there and holds nothing.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mine = below(std::process::id()).unwrap();
            if mine
                .iter()
                .any(|process| is_child(process) && process.is_zombie)
            {
                break;
            }
            assert!(Instant::now() < deadline, "it is no zombie");
            thread::sleep(Duration::from_millis(10));
        }
        child.wait().unwrap();
        assert!(!below(std::process::id()).unwrap().iter().any(is_child));
    }

    #[test]
    fn what_grew_is_told_and_what_shrank_is_not() {
        let before = Resources {
            front: Usage {
                processes: 1,
                threads: 10,
                descriptors: 50,
                pss_kib: 100 << 10,
            },
            workers: Usage::default(),
            zombies: 0,
        };
        assert!(before.excess(&before).is_empty());
        let mut after = before;
        after.front.threads = 5;
        after.front.pss_kib = before.front.allowed_kib();
        assert!(after.excess(&before).is_empty());
        after.front.pss_kib += 1;
        after.front.threads = 10 + MORE_THREADS + 1;
        after.workers.processes = 1;
        after.zombies = 2;
        let excess = after.excess(&before).join("\n");
        for what in [
            "ended with 15",
            "server",
            "KiB",
            "ended with 1,",
            "2 processes ended",
        ] {
            assert!(excess.contains(what), "{what}: {excess}");
        }
    }
}
