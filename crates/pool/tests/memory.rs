//! Memory is admitted by what instances hold, and given back.

mod images;

use std::time::Duration;

use dormouse_pool::{Error, FunctionConfig, Outcome, Pool, PoolConfig, Request};
use dormouse_snapshot::Store;
use images::image;

const MIB: u64 = 1 << 20;

fn pool(folder: &tempfile::TempDir, budget_bytes: u64) -> Pool {
    let config = PoolConfig {
        memory_budget_bytes: Some(budget_bytes),
        queue_timeout: Duration::from_secs(60),
        ..PoolConfig::default()
    };
    Pool::new(Store::open(folder.path()).unwrap(), config)
}

fn config(memory_bytes: u64) -> FunctionConfig {
    FunctionConfig {
        memory_bytes,
        ..FunctionConfig::default()
    }
}

/// With one instance, so that what is held does not depend on which one a request gets.
fn alone(memory_bytes: u64) -> FunctionConfig {
    FunctionConfig {
        concurrency: 1,
        ..config(memory_bytes)
    }
}

async fn ask(pool: &Pool, name: &str, target: &str, body: Vec<u8>) -> Result<Outcome, Error> {
    let request = Request {
        method: "POST".to_owned(),
        target: target.to_owned(),
        body: body.into(),
        ..Request::default()
    };
    pool.checkout(name).await?.invoke(request).await
}

fn held(pool: &Pool) -> u64 {
    pool.stats().memory_held_bytes
}

#[track_caller]
fn assert_over_budget(result: Result<Outcome, Error>) {
    assert!(
        matches!(result, Err(Error::OverBudget { .. })),
        "{result:?}"
    );
}

/// The guests are larger, together, than what all may hold.
#[tokio::test(flavor = "multi_thread")]
async fn guests_may_be_larger_than_the_budget_and_hold_little() {
    let Some(hello) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder, 600 * MIB);
    for name in ["one", "two", "three"] {
        pool.deploy(name, hello.clone(), config(512 * MIB))
            .await
            .unwrap();
    }
    for _ in 0..10 {
        for name in ["one", "two", "three"] {
            ask(&pool, name, "/", Vec::new())
                .await
                .unwrap()
                .result
                .unwrap();
        }
    }
    held_falls_to(&pool, 40 * MIB).await;
    pool.drain(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_larger_than_the_budget_is_not_booted() {
    let Some(hello) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let deployed = pool(&folder, 64 * MIB)
        .deploy("hello", hello, config(512 * MIB))
        .await;
    let refused = matches!(&deployed, Err(Error::BadOption { option, .. }) if option == "memory");
    assert!(refused, "{deployed:?}");
}

/// A run that wants more than there is ends with that reason, and what it held is there again.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_over_the_budget_is_ended_and_others_go_on() {
    let (Some(echo), Some(hello)) = (image("echo"), image("hello")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let all = pool(&folder, 600 * MIB);
    all.deploy("echo", echo, alone(64 * MIB)).await.unwrap();
    all.deploy("hello", hello, alone(64 * MIB)).await.unwrap();
    let body = vec![7; 6 << 20];
    let answer = ask(&all, "echo", "/", body.clone()).await.unwrap();
    assert_eq!(answer.result.unwrap().body, body);
    all.drain(Duration::from_secs(10)).await;

    // Room for the snapshots and some instances, not for a large body.
    let little = pool(&folder, 7 * MIB);
    for _ in 0..3 {
        assert_over_budget(ask(&little, "echo", "/", body.clone()).await);
    }
    for _ in 0..20 {
        let fine = ask(&little, "hello", "/", Vec::new()).await.unwrap();
        fine.result.unwrap();
    }
    // Memory that was held for a run is given back right after its answer.
    held_falls_to(&little, 5 * MIB).await;
}

async fn get(pool: &Pool, name: &str, target: &str) {
    let outcome = ask(pool, name, target, Vec::new()).await.unwrap();
    outcome.result.unwrap();
}

/// Waits until no more than so much is held.
async fn held_falls_to(pool: &Pool, bytes: u64) {
    let patience = std::time::Instant::now() + Duration::from_secs(60);
    while held(pool) > bytes {
        let held = held(pool);
        assert!(
            std::time::Instant::now() < patience,
            "{held} bytes are still held"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A clone that is rolled back keeps the pages that it writes each time: until another function needs
/// them, or nobody came for a while.
#[tokio::test(flavor = "multi_thread")]
async fn idle_clones_give_their_memory_back() {
    const WRITTEN_BYTES: u64 = 1500 * 4096;
    let (Some(burn), Some(hello)) = (image("burn"), image("hello")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let all = pool(&folder, 600 * MIB);
    all.deploy("burn", burn, alone(64 * MIB)).await.unwrap();
    all.deploy("hello", hello, alone(64 * MIB)).await.unwrap();
    // The working set becomes known, and is stored.
    for _ in 0..5 {
        get(&all, "burn", "/?write=1500").await;
    }
    all.drain(Duration::from_secs(10)).await;

    let pool = pool(&folder, 34 * MIB);
    let idle = rolled_back(&pool, 24 * MIB + WRITTEN_BYTES).await;
    get(&pool, "hello", "/").await;
    held_falls_to(&pool, idle - WRITTEN_BYTES / 2).await;

    let idle = rolled_back(&pool, 24 * MIB + WRITTEN_BYTES).await;
    held_falls_to(&pool, idle - WRITTEN_BYTES / 2).await;
}

/// Runs `burn` until a clone of it is rolled back, so that more than so much is held at rest, which it
/// returns. It is by what both ways took, so not always where other work has the cores.
async fn rolled_back(pool: &Pool, bytes: u64) -> u64 {
    let patience = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        get(pool, "burn", "/?write=1500").await;
        while pool.stats().running > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let idle = held(pool);
        if idle > bytes {
            return idle;
        }
        assert!(
            std::time::Instant::now() < patience,
            "only {idle} bytes are held"
        );
    }
}

/// Functions that nobody uses hold the memory of their snapshots no longer than until others need it.
#[tokio::test(flavor = "multi_thread")]
async fn functions_take_turns_where_there_is_memory_for_one_of_them() {
    let Some(hello) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let names = ["one", "two", "three"];
    let roomy = pool(&folder, 600 * MIB);
    let mut data_bytes = 0;
    for name in names {
        let deployed = roomy.deploy(name, hello.clone(), alone(64 * MIB)).await;
        data_bytes = deployed.unwrap().function.data_bytes;
    }
    roomy.drain(Duration::from_secs(10)).await;
    let config = PoolConfig {
        memory_budget_bytes: Some(3 * data_bytes),
        shells_ahead: 0,
        ..PoolConfig::default()
    };
    let tight = Pool::new(Store::open(folder.path()).unwrap(), config);
    for name in names.into_iter().cycle().take(4) {
        let outcome = ask(&tight, name, "/", Vec::new()).await;
        let outcome = outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        outcome.result.unwrap();
    }
    assert!(held(&tight) <= 3 * data_bytes);
    tight.drain(Duration::from_secs(10)).await;
}
