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
        queue_timeout: Duration::from_millis(500),
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
    assert!(held(&pool) < 40 * MIB, "{}", held(&pool));
    pool.drain(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_larger_than_the_budget_is_not_booted() {
    let Some(hello) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let deployed = pool(&folder, 64 * MIB)
        .deploy("hello", hello, config(512 * MIB))
        .await;
    let refused = matches!(
        deployed,
        Err(Error::BadOption {
            option: "memory",
            ..
        })
    );
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
    all.deploy("echo", echo, config(64 * MIB)).await.unwrap();
    all.deploy("hello", hello, config(64 * MIB)).await.unwrap();
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
    let patience = std::time::Instant::now() + Duration::from_secs(30);
    while held(&little) > 5 * MIB {
        assert!(std::time::Instant::now() < patience, "{}", held(&little));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
