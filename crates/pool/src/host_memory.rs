//! What the host, or this process's control group, has left of its memory. Below a floor nothing new
//! is started and idle instances end, whoever took the memory: a request that is refused can be sent
//! again, a process that the kernel ends takes all requests with it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::pool::Inner;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Whether there is memory left.
#[derive(Debug, Default)]
pub(crate) struct HostMemory {
    is_low: AtomicBool,
    recovered: Notify,
}

impl HostMemory {
    /// Whether less than the floor is left.
    pub(crate) fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }

    /// Waits until there is more than the floor.
    pub(crate) async fn until_enough(&self) {
        loop {
            let told = self.recovered.notified();
            if !self.is_low() {
                return;
            }
            told.await;
        }
    }

    /// Says what was seen.
    pub(crate) fn note(&self, is_low: bool) {
        let was_low = self.is_low.swap(is_low, Ordering::Relaxed);
        if was_low && !is_low {
            self.recovered.notify_waiters();
        }
    }
}

/// Ends the watch when it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    _alive: mpsc::Sender<Infallible>,
}

/// Watches for `pool`, on a thread of its own, from now on: the host's memory, unless the floor is 0, and
/// instances that wait for long. What it sees first is known when this returns.
pub(crate) fn watch(pool: &Weak<Inner>, memory: &Arc<HostMemory>, floor_bytes: u64) -> Watch {
    let (alive, ended) = mpsc::channel();
    let (pool, memory) = (pool.clone(), Arc::clone(memory));
    look(&pool, &memory, floor_bytes);
    let watching = std::thread::Builder::new()
        .name("memory watch".to_owned())
        .spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK_EVERY) {
                look(&pool, &memory, floor_bytes);
                if let Some(pool) = pool.upgrade() {
                    pool.rest_idle_instances();
                }
            }
        });
    if let Err(error) = watching {
        tracing::warn!(%error, "the host's memory is not watched");
    }
    Watch { _alive: alive }
}

fn look(pool: &Weak<Inner>, memory: &HostMemory, floor_bytes: u64) {
    if floor_bytes == 0 {
        return;
    }
    // Where nothing can be read there is nothing to go by.
    let Some(available_bytes) = available_bytes() else {
        return;
    };
    let is_low = available_bytes < floor_bytes;
    if is_low != memory.is_low() {
        if is_low {
            tracing::warn!(
                available_bytes,
                floor_bytes,
                "memory is low: nothing new starts"
            );
        } else {
            tracing::info!(available_bytes, "there is memory again");
        }
    }
    memory.note(is_low);
    if is_low && let Some(pool) = pool.upgrade() {
        pool.end_idle_instances();
        // The memory of a snapshot that nobody uses may be what the host lacks.
        drop(pool.functions.close_idle());
    }
}

/// What is left, of the host's memory and of what the control groups allow: the smaller.
pub(crate) fn available_bytes() -> Option<u64> {
    let free = [host_available_bytes(), groups_available_bytes()];
    free.into_iter().flatten().min()
}

/// `MemAvailable` of `/proc/meminfo` (`proc_meminfo(5)`), in KiB there.
fn host_available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The least that a control group of this process leaves. Nothing where none has a limit.
fn groups_available_bytes() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(path);
    let folders = own
        .ancestors()
        .take_while(|folder| folder.starts_with(root));
    folders.filter_map(group_available_bytes).min()
}

/// Linux `Documentation/admin-guide/cgroup-v2.rst`: `memory.max`, `memory.current`, `memory.stat`.
/// Nothing where there is no limit.
fn group_available_bytes(folder: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let limit_bytes: u64 = read("memory.max")?.trim().parse().ok()?;
    let used_bytes: u64 = read("memory.current")?.trim().parse().ok()?;
    // A group's page cache counts as used, but the kernel takes it back before it ends anybody: also
    // what is read often (active), which is all of it where snapshots are read again and again. Guests'
    // memory is not among it, be it a snapshot's, which counts as shared memory.
    let stat = read("memory.stat").unwrap_or_default();
    let given_back = ["inactive_file ", "active_file ", "slab_reclaimable "];
    let cache_bytes: u64 = stat
        .lines()
        .filter_map(|line| given_back.iter().find_map(|name| line.strip_prefix(name)))
        .filter_map(|bytes| bytes.trim().parse::<u64>().ok())
        .fold(0, u64::saturating_add);
    Some(limit_bytes.saturating_sub(used_bytes.saturating_sub(cache_bytes)))
}

#[cfg(test)]
mod tests {
    use dormouse_snapshot::Store;

    use super::*;
    use crate::{Error, FunctionConfig, Outcome, Pool, PoolConfig, Request, images};

    #[test]
    fn this_host_has_some_memory() {
        let available = available_bytes().unwrap();
        assert!((1 << 20..u64::MAX / 2).contains(&available), "{available}");
    }

    #[test]
    fn a_group_leaves_what_its_limit_does_and_its_page_cache() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        assert_eq!(group_available_bytes(folder.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "900\n");
        assert_eq!(group_available_bytes(folder.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(group_available_bytes(folder.path()), Some(100));
        let stat = "anon 400\nshmem 100\ninactive_file 200\nactive_file 80\nslab_reclaimable 20\n";
        write("memory.stat", stat);
        assert_eq!(group_available_bytes(folder.path()), Some(400));
        write("memory.current", "5000\n");
        assert_eq!(group_available_bytes(folder.path()), Some(0));
    }

    async fn get(pool: &Pool) -> Result<Outcome, Error> {
        let request = Request {
            method: "GET".to_owned(),
            target: "/".to_owned(),
            ..Request::default()
        };
        pool.checkout("hello").await?.invoke(request).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn while_memory_is_low_nothing_starts_and_idle_instances_end() {
        let Some(image) = images::image("hello") else {
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let config = PoolConfig {
            memory_floor_bytes: 0,
            queue_timeout: Duration::from_secs(2),
            ..PoolConfig::default()
        };
        let pool = Pool::new(Store::open(folder.path()).unwrap(), config);
        let function = FunctionConfig::default();
        let deploy = || pool.deploy("hello", image.clone(), function.clone());
        deploy().await.unwrap();
        get(&pool).await.unwrap();
        assert!(pool.stats().shells > 0);

        // An instance is parked before its permits are back.
        while pool.stats().running > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let memory = pool.inner.budget.host();
        memory.note(true);
        pool.inner.end_idle_instances();
        assert_eq!(pool.stats().shells, 0);
        let refused = get(&pool).await.unwrap_err();
        assert!(matches!(refused, Error::LowMemory { .. }), "{refused}");
        let other = pool.deploy("other", image.clone(), function.clone());
        let refused = other.await.unwrap_err();
        assert!(matches!(refused, Error::LowMemory { .. }), "{refused}");
        let stats = pool.stats();
        assert_eq!((stats.shells, stats.memory_is_low), (0, true));
        assert_eq!(
            (stats.refused_low_memory, stats.refused_over_budget),
            (2, 0)
        );

        memory.note(false);
        assert!(!pool.stats().memory_is_low);
        get(&pool).await.unwrap().result.unwrap();
    }

    #[tokio::test]
    async fn who_waits_for_memory_is_woken_when_there_is_some() {
        let memory = Arc::new(HostMemory::default());
        memory.until_enough().await;
        memory.note(true);
        let waiting = tokio::spawn({
            let memory = Arc::clone(&memory);
            async move { memory.until_enough().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        memory.note(false);
        waiting.await.unwrap();
    }
}
