//! Functions with several layouts: what differs between them, what they share, and what happens where
//! one of them is missing.

mod images;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_pool::{
    Deployed, Error, Failure, FunctionConfig, Outcome, Paging, Pool, PoolConfig, Request,
    SavedFunction, Verify, set_paging,
};
use dormouse_snapshot::{FunctionName, SnapshotId, SnapshotRef, Store};
use images::image;
use tempfile::TempDir;

/// Guests are booted at multiples of 2 MiB, and the samples' images are smaller.
const BASE_BYTES: u64 = 2 << 20;

fn name(name: &str) -> FunctionName {
    FunctionName::new(name).unwrap()
}

fn pool_over(folder: &Path, config: PoolConfig) -> (Store, Pool) {
    let store = Store::open(folder).unwrap();
    (store.clone(), Pool::new(store, config))
}

async fn deploy(pool: &Pool, function: &str, layouts: u32) -> Option<Result<Deployed, Error>> {
    let config = FunctionConfig {
        layouts,
        ..FunctionConfig::default()
    };
    let image = image(function)?;
    Some(pool.deploy(function, image, config).await)
}

/// A function in a store of its own, and the pool that it was deployed to.
async fn deployed(function: &str, layouts: u32) -> Option<(TempDir, Store, Pool, Deployed)> {
    let folder = tempfile::tempdir().unwrap();
    let (store, pool) = pool_over(folder.path(), PoolConfig::default());
    let deployed = deploy(&pool, function, layouts).await?.unwrap();
    Some((folder, store, pool, deployed))
}

fn request(target: &str) -> Request {
    Request {
        method: "GET".to_owned(),
        target: target.to_owned(),
        ..Request::default()
    }
}

async fn get(pool: &Pool, function: &str, target: &str) -> Result<Outcome, Error> {
    let lease = pool.checkout(function).await?;
    lease.invoke(request(target)).await
}

async fn answers(pool: &Pool, function: &str) {
    let answer = get(pool, function, "/").await.unwrap().result.unwrap();
    assert_eq!(answer.status, 200);
}

/// Where the snapshots that a function is served with were booted.
fn bases(store: &Store, function: &str) -> BTreeSet<u64> {
    let function = name(function);
    let served = store.served(&function).unwrap();
    let bases: BTreeSet<u64> = served.iter().map(|id| base(store, &function, id)).collect();
    assert_eq!(
        bases.len(),
        served.len(),
        "two layouts have a base in common"
    );
    bases
}

fn base(store: &Store, function: &FunctionName, id: &SnapshotId) -> u64 {
    let snapshot = store.open_id::<SavedFunction>(function, id).unwrap();
    snapshot.state.vm().placement().base
}

/// The base of the clone that answers, which it gives away by where it crashes.
async fn crash(pool: &Pool, function: &str) -> u64 {
    let outcome = get(pool, function, "/triple-fault").await.unwrap();
    let Err(Failure::Crashed { crash }) = outcome.result else {
        panic!("{outcome:?}");
    };
    let rip = crash.registers.iter().find(|(name, _)| *name == "rip");
    rip.unwrap().1 / BASE_BYTES * BASE_BYTES
}

fn ids(store: &Store) -> Vec<SnapshotId> {
    let entries = store.list().unwrap();
    entries.into_iter().map(|entry| entry.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_take_turns_between_layouts_whose_addresses_differ() {
    let folder = tempfile::tempdir().unwrap();
    // None is built ahead: nobody must prefer what happens to be idle.
    for shells_ahead in [2, 0] {
        let config = PoolConfig {
            shells_ahead,
            ..PoolConfig::default()
        };
        let (store, pool) = pool_over(folder.path(), config);
        let Some(deployed) = deploy(&pool, "faulty", 3).await else {
            return;
        };
        deployed.unwrap();
        let bases = bases(&store, "faulty");
        assert_eq!(bases.len(), 3);

        for _ in 0..3 {
            let mut seen = BTreeSet::new();
            for _ in 0..3 {
                seen.insert(crash(&pool, "faulty").await);
            }
            assert_eq!(seen, bases);
            // One answer, and it is no loop of crashes.
            answers(&pool, "faulty").await;
            for _ in 0..2 {
                answers(&pool, "faulty").await;
            }
        }

        let crashes: Vec<_> = (0..6)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move { crash(&pool, "faulty").await })
            })
            .collect();
        let mut seen = BTreeSet::new();
        for crash in crashes {
            seen.insert(crash.await.unwrap());
        }
        assert_eq!(seen, bases);

        // They count as one function's.
        let stats = pool.function("faulty").await.unwrap().stats;
        assert_eq!((stats.invocations, stats.failures), (9 + 9 + 6, 9 + 6));
        assert_eq!(stats.crash_loops, 0);
        pool.drain(Duration::from_secs(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_function_hold_for_all_its_layouts_together() {
    const SLEEP: Duration = Duration::from_millis(100);
    let Some(whoami) = image("whoami") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (_, pool) = pool_over(folder.path(), PoolConfig::default());
    let config = FunctionConfig {
        layouts: 3,
        concurrency: 1,
        ..FunctionConfig::default()
    };
    pool.deploy("whoami", whoami, config).await.unwrap();
    let begun = Instant::now();
    let requests: Vec<_> = (0..6)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let target = format!("/?sleep_ms={}", SLEEP.as_millis());
                let answer = get(&pool, "whoami", &target).await.unwrap().result.unwrap();
                assert_eq!(answer.status, 200);
            })
        })
        .collect();
    for request in requests {
        request.await.unwrap();
    }
    // Those that sleep one after the other take as long as all of them; of which one is left out,
    // since guests and host do not have the same clock.
    assert!(begun.elapsed() > 5 * SLEEP);
    assert_eq!(pool.function("whoami").await.unwrap().stats.invocations, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deployed_with_all_layouts_stays_and_goes_as_one() {
    let Some((folder, store, pool, first)) = deployed("hello", 3).await else {
        return;
    };
    assert!(first.created && first.boot_us > 0);
    assert_eq!(first.function.config.layouts, 3);
    let layouts = ids(&store);
    assert_eq!(layouts.len(), 3);
    assert_eq!(first.function.snapshot, layouts[2].to_string());
    assert_eq!(pool.stats().shells, 6, "two ahead for each");

    for pool in [
        pool.clone(),
        pool_over(folder.path(), PoolConfig::default()).1,
    ] {
        let again = deploy(&pool, "hello", 3).await.unwrap().unwrap();
        assert!(!again.created);
        assert_eq!(ids(&store), layouts);
        answers(&pool, "hello").await;
    }

    // Another number is another deployment.
    assert!(deploy(&pool, "hello", 1).await.unwrap().unwrap().created);
    assert_eq!(store.served(&name("hello")).unwrap().len(), 1);
    assert!(deploy(&pool, "hello", 2).await.unwrap().unwrap().created);
    assert_eq!(store.served(&name("hello")).unwrap().len(), 2);
    pool.remove("hello").await.unwrap();
    assert_eq!(ids(&store), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_was_cut_off_serves_what_it_has_until_the_next_one() {
    let Some((folder, store, pool, _)) = deployed("faulty", 3).await else {
        return;
    };
    pool.drain(Duration::from_secs(10)).await;
    drop(pool);

    // As if it had died after the first of them.
    let published = ids(&store);
    for id in &published[1..] {
        fs::remove_dir_all(folder.path().join("faulty").join(id.to_string())).unwrap();
    }
    let (_, pool) = pool_over(folder.path(), PoolConfig::default());
    let alone = base(&store, &name("faulty"), &published[0]);
    for _ in 0..3 {
        assert_eq!(crash(&pool, "faulty").await, alone);
    }
    answers(&pool, "faulty").await;
    assert!(deploy(&pool, "faulty", 3).await.unwrap().unwrap().created);
    assert_eq!(bases(&store, "faulty").len(), 3);
    assert!(!deploy(&pool, "faulty", 3).await.unwrap().unwrap().created);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layout_is_left_out_and_made_anew_by_the_next_deployment() {
    let Some((folder, store, pool, _)) = deployed("faulty", 3).await else {
        return;
    };
    let all = bases(&store, "faulty");
    let published = ids(&store);
    drop(pool);

    let damage = |id: &SnapshotId| {
        let path = folder.path().join("faulty").join(id.to_string());
        let path = path.join("snapshot.dms");
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let gone = base(&store, &name("faulty"), &published[1]);
    damage(&published[1]);
    let (_, pool) = pool_over(folder.path(), PoolConfig::default());
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        seen.insert(crash(&pool, "faulty").await);
    }
    answers(&pool, "faulty").await;
    let expected: BTreeSet<u64> = all.into_iter().filter(|base| *base != gone).collect();
    assert_eq!(seen, expected);

    assert!(deploy(&pool, "faulty", 3).await.unwrap().unwrap().created);
    let anew = bases(&store, "faulty");
    assert_eq!(anew.len(), 3);
    for id in store.served(&name("faulty")).unwrap() {
        damage(&id);
    }
    let (_, pool) = pool_over(folder.path(), PoolConfig::default());
    let error = get(&pool, "faulty", "/").await.unwrap_err();
    assert!(matches!(error, Error::Store(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_warming_nor_tuning_takes_one_of_several_layouts() {
    let Some((_folder, store, pool, deployed)) = deployed("hello", 2).await else {
        return;
    };
    let from = SnapshotRef {
        function: name("hello"),
        id: deployed.function.snapshot.parse().unwrap(),
    };
    for (target, from) in [("hello", None), ("other", Some(from))] {
        let warmed = pool.warm(target, 1, request("/"), from).await;
        let error = warmed.unwrap_err();
        assert!(matches!(error, Error::BadOption { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains("deploy hello with one layout"), "{error}");
    }
    let error = set_paging(&store, "hello", Paging::Map).unwrap_err();
    assert!(matches!(error, Error::BadOption { .. }), "{error}");
    assert_eq!(ids(&store).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_layouts_that_cannot_be() {
    let Some(hello) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (store, pool) = pool_over(folder.path(), PoolConfig::default());
    for (layouts, base) in [(0, None), (17, None), (2, Some(0x1120_0000))] {
        let config = FunctionConfig {
            layouts,
            base,
            ..FunctionConfig::default()
        };
        let error = pool.deploy("hello", hello.clone(), config).await;
        let error = error.unwrap_err();
        assert!(
            matches!(&error, Error::BadOption { option, .. } if option == "layouts"),
            "{error}"
        );
    }
    assert_eq!(ids(&store), []);

    // With one, manifests are as they were before there were several.
    pool.deploy("hello", hello, FunctionConfig::default())
        .await
        .unwrap();
    let config = store.manifest(&name("hello")).unwrap().config;
    assert_eq!(config.get("layouts"), None);
    assert_eq!(config.get("layout"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_found_while_it_is_served_ends_the_use_of_one_layout() {
    let Some((folder, store, pool, _)) = deployed("faulty", 3).await else {
        return;
    };
    let all = bases(&store, "faulty");
    let published = ids(&store);
    let gone = base(&store, &name("faulty"), &published[1]);
    drop(pool);

    // One other byte in the pages that the first of them does not have.
    let path = |id: &SnapshotId| folder.path().join("faulty").join(id.to_string());
    let pack = fs::read_dir(path(&published[1]))
        .unwrap()
        .map(|file| file.unwrap())
        .find(|file| {
            let is_pack = file.file_name().to_string_lossy().starts_with("pack-");
            is_pack && !path(&published[0]).join(file.file_name()).exists()
        })
        .unwrap()
        .path();
    let mut bytes = fs::read(&pack).unwrap();
    // In the last of its blocks: page tables and mailbox, in earlier ones, are looked at when it is
    // opened, and it would be left out from the start.
    let place = bytes.len() * 9 / 10 / 4096 * 4096;
    bytes[place - 1] ^= 0x55;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();

    let config = PoolConfig {
        verify: Verify::Background,
        ..PoolConfig::default()
    };
    let (_, pool) = pool_over(folder.path(), config);
    let patience = Instant::now() + Duration::from_secs(60);
    while pool.stats().damaged_snapshots == 0 {
        assert!(Instant::now() < patience, "the damage was not found");
        // Whether the layout that is damaged answers until then is of no matter here.
        let _ = get(&pool, "faulty", "/").await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut seen = BTreeSet::new();
    for _ in 0..6 {
        seen.insert(crash(&pool, "faulty").await);
    }
    answers(&pool, "faulty").await;
    let expected: BTreeSet<u64> = all.into_iter().filter(|base| *base != gone).collect();
    assert_eq!(seen, expected);
    assert!(deploy(&pool, "faulty", 3).await.unwrap().unwrap().created);
    assert_eq!(bases(&store, "faulty").len(), 3);
    for _ in 0..3 {
        answers(&pool, "faulty").await;
    }
}
