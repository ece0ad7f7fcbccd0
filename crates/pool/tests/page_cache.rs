//! A first restore with a cold page cache reads the disk. What a process reads from disks is counted
//! for all of it (`proc_pid_io(5)`, `read_bytes`), so this test is alone in its own.

mod images;

use std::path::Path;

use dormouse_pool::{FunctionConfig, Pool, PoolConfig, Request, Start};
use dormouse_snapshot::Store;
use images::image;

/// What this process has had fetched from disks so far.
fn read_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_uncached_start_reads_the_disk() {
    let Some(image) = image("burn") else { return };
    // Temporary folders may be on a file system without a disk.
    let folder = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let pool = Pool::new(Store::open(folder.path()).unwrap(), PoolConfig::default());
    pool.deploy("burn", image, FunctionConfig::default())
        .await
        .unwrap();
    let memory_bytes = pool.function("burn").await.unwrap().data_bytes;
    for (start, is_read) in [
        (Start::First, false),
        (Start::FirstUncached, true),
        (Start::First, false),
        (Start::FirstUncached, true),
        (Start::Restored, false),
    ] {
        let before = read_bytes();
        let lease = pool.checkout_for("burn", start).await.unwrap();
        let outcome = lease.invoke(Request::default()).await.unwrap();
        assert!(outcome.result.is_ok(), "{outcome:?}");
        let fetched_bytes = read_bytes() - before;
        if is_read {
            assert!(
                fetched_bytes >= memory_bytes,
                "{start:?} has read {fetched_bytes} of {memory_bytes} bytes from the disk"
            );
        } else {
            // Somebody else may have needed the memory of the page cache.
            assert!(
                fetched_bytes < memory_bytes / 2,
                "{start:?} has read {fetched_bytes} bytes from the disk"
            );
        }
    }
}
