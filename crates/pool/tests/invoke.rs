//! Real functions in real VMs, without HTTP.

mod images;

use std::time::Duration;

use dormouse_pool::{Error, FunctionConfig, Outcome, Pool, PoolConfig, Request, StartType};
use dormouse_snapshot::Store;
use images::image;

async fn get(pool: &Pool, name: &str) -> Outcome {
    let request = Request {
        method: "GET".to_owned(),
        target: "/".to_owned(),
        ..Request::default()
    };
    pool.checkout(name)
        .await
        .unwrap()
        .invoke(request)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_gets_a_clone_that_nobody_used() {
    let Some(image) = image("whoami") else { return };
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::new(Store::open(folder.path()).unwrap(), PoolConfig::default());
    let deployed = pool
        .deploy("whoami", image, FunctionConfig::default())
        .await
        .unwrap();
    assert!(deployed.created);
    let mut bodies = Vec::new();
    let mut starts = Vec::new();
    for _ in 0..20 {
        let outcome = get(&pool, "whoami").await;
        starts.push(outcome.start);
        let answer = outcome.result.unwrap();
        let body = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(body.contains("\"requests\":1"), "{body}");
        assert!(!bodies.contains(&body), "two clones said the same: {body}");
        bodies.push(body);
    }
    // The first ones are restored, to be recorded; then clones are rolled back, which is cheaper.
    assert_eq!(starts[0], StartType::Restored);
    assert!(starts.contains(&StartType::RolledBack), "{starts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rollback_every_clone_is_restored() {
    let Some(image) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = PoolConfig {
        rolls_back: false,
        ..PoolConfig::default()
    };
    let pool = Pool::new(Store::open(folder.path()).unwrap(), config);
    pool.deploy("hello", image, FunctionConfig::default())
        .await
        .unwrap();
    for request in 0..20 {
        let outcome = get(&pool, "hello").await;
        assert_eq!(outcome.start, StartType::Restored, "request {request}");
        outcome.result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_first_invocations_touched_is_brought_in_for_the_later_ones() {
    let Some(image) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let pool = Pool::new(store.clone(), PoolConfig::default());
    pool.deploy("hello", image.clone(), FunctionConfig::default())
        .await
        .unwrap();
    let first = get(&pool, "hello").await.timings;
    assert!(first.faults > 0 && first.replayed_pages == 0, "{first:?}");
    for _ in 0..10 {
        get(&pool, "hello").await;
    }
    let later = get(&pool, "hello").await.timings;
    assert!(later.faults == 0, "{later:?}");

    // The working set is part of the snapshot: another pool replays it from its first request on.
    pool.drain(Duration::from_secs(10)).await;
    let other = Pool::new(store, PoolConfig::default());
    let first = get(&other, "hello").await.timings;
    assert!(first.faults == 0 && first.replayed_pages > 0, "{first:?}");
    let again = other
        .deploy("hello", image, FunctionConfig::default())
        .await
        .unwrap();
    assert!(
        !again.created,
        "the same image with the same configuration was booted again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_pool_takes_no_more_work() {
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::new(Store::open(folder.path()).unwrap(), PoolConfig::default());
    assert!(matches!(
        pool.checkout("nobody").await,
        Err(Error::UnknownFunction { .. })
    ));
    assert!(matches!(
        pool.checkout("No/Body").await,
        Err(Error::BadOption { option: "name", .. })
    ));
    pool.drain(Duration::from_secs(10)).await;
    assert!(matches!(
        pool.checkout("nobody").await,
        Err(Error::Draining)
    ));
}
