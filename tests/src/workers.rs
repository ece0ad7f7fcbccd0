//! The worker processes of a server.

use std::collections::BTreeMap;
use std::fs;

/// A worker process.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Its process id.
    pub id: u32,
    /// Its threads' ids and names.
    pub threads: BTreeMap<u32, String>,
}

/// The worker processes of a server, those included that have nothing to do yet. What ends meanwhile is
/// left out.
///
/// # Panics
/// Where there is no `/proc`.
#[must_use]
pub fn workers(server: u32) -> Vec<Worker> {
    let listed = fs::read_dir("/proc").expect("the processes");
    let ids = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter_map(|id| worker(server, id)).collect()
}

fn worker(server: u32, id: u32) -> Option<Worker> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    let command = fs::read(format!("/proc/{id}/cmdline")).ok()?;
    let is_worker = command.split(|byte| *byte == 0).nth(1) == Some(b"worker");
    if parent.trim().parse() != Ok(server) || !is_worker {
        return None;
    }
    let tasks = fs::read_dir(format!("/proc/{id}/task")).ok()?;
    let threads = tasks.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let thread = path.file_name()?.to_str()?.parse().ok()?;
        Some((thread, name.trim_end().to_owned()))
    });
    Some(Worker {
        id,
        threads: threads.collect(),
    })
}
