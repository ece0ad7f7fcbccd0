//! Layers: what warmed clones have in common with those before, and what not; and snapshots that are
//! damaged.

mod images;

use std::collections::HashSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_pool::{
    Error, FunctionConfig, Outcome, Paging, Pool, PoolConfig, Request, Verify, set_paging,
};
use dormouse_snapshot::{Compression, FunctionName, SnapshotRef, Store};
use images::image;

fn request(method: &str, target: &str, body: &'static [u8]) -> Request {
    Request {
        method: method.to_owned(),
        target: target.to_owned(),
        body: body.into(),
        ..Request::default()
    }
}

async fn get(pool: &Pool, name: &str, target: &str) -> Result<Outcome, Error> {
    let lease = pool.checkout(name).await?;
    lease.invoke(request("GET", target, b"")).await
}

async fn text(pool: &Pool, name: &str, target: &str) -> String {
    let answer = get(pool, name, target).await.unwrap().result.unwrap();
    assert_eq!(answer.status, 200);
    String::from_utf8(answer.body.to_vec()).unwrap()
}

fn manifest(store: &Store, name: &str) -> dormouse_snapshot::Manifest {
    store.manifest(&FunctionName::new(name).unwrap()).unwrap()
}

fn pool_over(folder: &Path, verify: Verify) -> (Store, Pool) {
    let store = Store::open(folder).unwrap();
    let config = PoolConfig {
        verify,
        ..PoolConfig::default()
    };
    (store.clone(), Pool::new(store, config))
}

#[tokio::test(flavor = "multi_thread")]
async fn warmed_clones_keep_what_the_runs_left_and_differ_from_each_other() {
    const SECRET: &[u8] = b"the payload of a warming request";
    let Some(whoami) = image("whoami") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (store, pool) = pool_over(folder.path(), Verify::default());
    let config = FunctionConfig::default();
    let deployed = pool
        .deploy("whoami", whoami.clone(), config.clone())
        .await
        .unwrap();
    // Hash keys from the kernel's pool: it is drawn from before the layer is made.
    let warming = request("POST", "/?kernel=1", SECRET);
    let warmed = pool.warm("whoami", 3, warming, None).await.unwrap();
    assert_eq!(warmed.runs, 3);
    assert_eq!(
        warmed.parent,
        format!("whoami@{}", deployed.function.snapshot)
    );
    let layer = manifest(&store, "whoami").layer.unwrap();
    assert_eq!((layer.parent.to_string(), layer.depth), (warmed.parent, 1));

    // From clones that were restored, in this pool and in another one, and from rolled back ones.
    let (_, other) = pool_over(folder.path(), Verify::Always);
    let mut seen = HashSet::new();
    let mut clocks = Vec::new();
    for pool in [&pool, &other, &pool, &other, &pool, &pool] {
        let now = dormouse_vmm::real_time_unix_ns() / 1_000_000;
        let told: serde_json::Value =
            serde_json::from_str(&text(pool, "whoami", "/?kernel=1").await).unwrap();
        assert_eq!(told["requests"], 4, "three runs before");
        for unique in ["random", "kernel_random", "generation"] {
            assert!(seen.insert((unique, told[unique].to_string())), "{told}");
        }
        let said = told["real_time_unix_ms"].as_u64().unwrap();
        assert!((now..now + 60_000).contains(&said), "{said}, not {now}");
        clocks.push(told["monotonic_ns"].as_u64().unwrap());
    }
    assert!(clocks.is_sorted(), "{clocks:?}");

    // What the host put into the guest's buffers is in no layer.
    for pack in packs(&store, "whoami") {
        let bytes = std::fs::read(&pack).unwrap();
        let leaks = bytes.windows(SECRET.len()).any(|window| window == SECRET);
        assert!(!leaks, "{}", pack.display());
    }
    // The same image again changes nothing: the layer stays.
    let again = pool.deploy("whoami", whoami, config).await.unwrap();
    assert!(!again.created);
    assert_eq!(again.function.snapshot, warmed.function.snapshot);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_stays_one_when_its_paging_changes_and_warms_other_names() {
    let Some(echo) = image("echo") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (store, pool) = pool_over(folder.path(), Verify::Always);
    pool.deploy("echo", echo, FunctionConfig::default())
        .await
        .unwrap();
    // More than the mailbox holds: it goes through the request's buffer.
    let large: &'static [u8] = vec![b'x'; 100_000].leak();
    let base = pool.snapshot_ref("echo").await.unwrap();
    let warmed = pool
        .warm(
            "warm-echo",
            2,
            request("POST", "/", large),
            Some(base.clone()),
        )
        .await
        .unwrap();
    assert_eq!(warmed.function.name, "warm-echo");
    set_paging(&store, "warm-echo", Paging::Map).unwrap();
    let manifest = manifest(&store, "warm-echo");
    assert_eq!(manifest.layer.unwrap().parent, base);
    assert_ne!(manifest.id.to_string(), warmed.function.snapshot);

    let lease = pool.checkout("warm-echo").await.unwrap();
    let outcome = lease.invoke(request("POST", "/", b"to and fro")).await;
    let answer = outcome.unwrap().result.unwrap();
    assert_eq!(&answer.body[..], b"to and fro");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warming_that_fails_publishes_nothing() {
    let Some(faulty) = image("faulty") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (store, pool) = pool_over(folder.path(), Verify::Always);
    let config = FunctionConfig {
        timeout_ms: 500,
        ..FunctionConfig::default()
    };
    pool.deploy("faulty", faulty, config).await.unwrap();
    for target in ["/error", "/spin", "/exit", "/bad-status"] {
        let warming = pool.warm("faulty", 2, request("GET", target, b""), None);
        let failed = warming.await;
        assert!(
            matches!(
                failed,
                Err(Error::Warming {
                    run: 1,
                    runs: 2,
                    ..
                })
            ),
            "{target}: {failed:?}"
        );
        assert_eq!(store.snapshots().unwrap().len(), 1, "{target}");
    }
    let nothing = || request("GET", "/", b"");
    for runs in [0, 10_001] {
        let refused = pool.warm("faulty", runs, nothing(), None).await;
        assert!(matches!(
            refused,
            Err(Error::BadOption { option, .. }) if option == "runs"
        ));
    }
    let unknown = pool.warm("nobody", 1, nothing(), None).await;
    assert!(matches!(unknown, Err(Error::UnknownFunction { .. })));
    let gone: SnapshotRef = "faulty@00000077-9f86d081884c7d65".parse().unwrap();
    let unknown = pool.warm("faulty", 1, nothing(), Some(gone)).await;
    assert!(matches!(unknown, Err(Error::UnknownSnapshot { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warming_ends_with_its_time_and_with_its_caller() {
    const MANY: u32 = 10_000;
    let Some(hello) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (store, pool) = pool_over(folder.path(), Verify::Always);
    let deployed = pool.deploy("hello", hello, FunctionConfig::default());
    deployed.await.unwrap();
    let nothing = || request("GET", "/", b"");

    let hasty = PoolConfig {
        warm_timeout: Duration::from_millis(100),
        ..PoolConfig::default()
    };
    let hasty = Pool::new(store.clone(), hasty);
    let late = hasty.warm("hello", MANY, nothing(), None).await;
    let late = late.unwrap_err();
    assert!(matches!(late, Error::Warming { .. }), "{late:?}");
    assert_eq!(store.snapshots().unwrap().len(), 1);

    let patience = Duration::from_millis(100);
    let left = tokio::time::timeout(patience, pool.warm("hello", MANY, nothing(), None));
    assert!(left.await.is_err(), "it was done at once");
    // This one waits for the end of that one.
    pool.warm("hello", 1, nothing(), None).await.unwrap();
    assert_eq!(store.snapshots().unwrap().len(), 2);
}

/// The packs of the newest snapshot of `name`.
fn packs(store: &Store, name: &str) -> Vec<PathBuf> {
    let id = manifest(store, name).id;
    let folder = store.path().join(name).join(id.to_string());
    let files = std::fs::read_dir(&folder).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let packs = files.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("pack-")
    });
    packs.collect()
}

/// Writes a pack of the newest snapshot of `name` anew with one other byte, as a failing disk would
/// have it. Gives the pack and what it held.
fn damage(store: &Store, name: &str) -> (PathBuf, Vec<u8>) {
    let pack = packs(store, name).remove(0);
    let good = std::fs::read(&pack).unwrap();
    let mut bytes = good.clone();
    // Guest memory comes before the image, in which nobody would look for it here.
    let place = bytes.len() / 4 / 4096 * 4096;
    bytes[place - 1] ^= 0x55;
    replace(&pack, &bytes);
    (pack, good)
}

fn replace(pack: &Path, bytes: &[u8]) {
    std::fs::remove_file(pack).unwrap();
    std::fs::write(pack, bytes).unwrap();
    std::fs::set_permissions(pack, Permissions::from_mode(0o400)).unwrap();
}

fn is_damage(result: &Result<Outcome, Error>) -> bool {
    use dormouse_snapshot::Error as StoreError;
    matches!(result, Err(Error::Store(StoreError::Damaged { .. })))
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_when_the_policy_says() {
    let Some(hello) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (store, pool) = pool_over(folder.path(), Verify::Always);
    let deploy = |pool: Pool| {
        let hello = hello.clone();
        async move { pool.deploy("hello", hello, FunctionConfig::default()).await }
    };
    deploy(pool).await.unwrap();
    damage(&store, "hello");

    // Before the first request, and by each one.
    let (_, always) = pool_over(folder.path(), Verify::Always);
    for _ in 0..2 {
        assert!(is_damage(&get(&always, "hello", "/").await));
        assert_eq!(always.stats().damaged_snapshots, 1);
    }
    // Nobody looks.
    let (_, off) = pool_over(folder.path(), Verify::Off);
    for _ in 0..3 {
        assert!(!is_damage(&get(&off, "hello", "/").await));
    }
    assert_eq!(off.stats().damaged_snapshots, 0);
    // Beside the first requests, and then for good.
    let (_, background) = pool_over(folder.path(), Verify::Background);
    let patience = Instant::now() + Duration::from_secs(60);
    while !is_damage(&get(&background, "hello", "/").await) {
        assert!(Instant::now() < patience, "the damage was not found");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(background.stats().damaged_snapshots, 1);
    assert!(is_damage(&get(&background, "hello", "/").await));
    // Nothing is made of it, whatever is trusted otherwise.
    let warming = off.warm("hello", 1, request("GET", "/", b""), None).await;
    assert!(matches!(warming, Err(Error::Store(_))), "{warming:?}");

    // The same image again heals it, since the old snapshot may not stay.
    let healed = deploy(background.clone()).await.unwrap();
    assert!(healed.created);
    assert!(get(&background, "hello", "/").await.unwrap().result.is_ok());
    assert_eq!(background.stats().damaged_snapshots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_deploy_answers_and_is_deployed_once() {
    let Some(hello) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (_, pool) = pool_over(folder.path(), Verify::Always);
    let config = |compression| FunctionConfig {
        compression,
        ..FunctionConfig::default()
    };
    let mut created = Vec::new();
    for compression in [Compression::Zstd, Compression::Zstd, Compression::None] {
        let deployed = pool.deploy("hello", hello.clone(), config(compression));
        created.push(deployed.await.unwrap().created);
        assert_eq!(text(&pool, "hello", "/").await, "Hello from Dormouse!\n");
    }
    assert_eq!(created, [true, false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repaired_snapshot_is_let_go_and_used_again() {
    let Some(faulty) = image("faulty") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (store, pool) = pool_over(folder.path(), Verify::Always);
    let config = FunctionConfig {
        // Long enough for the damage to be found meanwhile.
        timeout_ms: 20_000,
        ..FunctionConfig::default()
    };
    pool.deploy("faulty", faulty, config).await.unwrap();
    drop(pool);
    let (pack, good) = damage(&store, "faulty");
    let (_, pool) = pool_over(folder.path(), Verify::Background);
    let reference = pool.snapshot_ref("faulty").await.unwrap();

    // What runs while the damage is found is not answered from it either.
    let running = get(&pool, "faulty", "/spin").await;
    assert!(is_damage(&running), "{running:?}");
    assert!(is_damage(&get(&pool, "faulty", "/").await));
    let patience = Instant::now() + Duration::from_secs(60);
    while store.is_in_use(&reference).unwrap() {
        assert!(Instant::now() < patience, "it is held for good");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let (_, always) = pool_over(folder.path(), Verify::Always);
    assert!(is_damage(&get(&always, "faulty", "/").await));

    replace(&pack, &good);
    for pool in [pool, always] {
        loop {
            let answer = get(&pool, "faulty", "/error").await;
            if !is_damage(&answer) {
                assert!(answer.is_ok(), "{answer:?}");
                break;
            }
            assert!(Instant::now() < patience, "it is refused for good");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(pool.stats().damaged_snapshots, 1);
    }
}
