//! Deploying, giving up, and ending.

mod images;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use dormouse_pool::{Error, FunctionConfig, Outcome, Pool, PoolConfig, Request};
use dormouse_snapshot::Store;
use images::image;

fn pool(folder: &tempfile::TempDir) -> Pool {
    Pool::new(Store::open(folder.path()).unwrap(), PoolConfig::default())
}

async fn get(pool: &Pool, name: &str, target: &str) -> Result<Outcome, Error> {
    let request = Request {
        method: "GET".to_owned(),
        target: target.to_owned(),
        ..Request::default()
    };
    pool.checkout(name).await?.invoke(request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_ends_stops_what_still_runs_and_what_still_boots() {
    let Some(faulty) = image("faulty") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder);
    let config = FunctionConfig {
        timeout_ms: 3_600_000,
        ..FunctionConfig::default()
    };
    pool.deploy("faulty", faulty, config).await.unwrap();
    let spinning = tokio::spawn({
        let pool = pool.clone();
        async move { get(&pool, "faulty", "/spin").await }
    });
    let booting = tokio::spawn({
        let pool = pool.clone();
        let image = image("wordfreq").unwrap();
        async move {
            pool.deploy("wordfreq", image, FunctionConfig::default())
                .await
        }
    });
    while pool.stats().running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    pool.drain(Duration::from_millis(200)).await;
    assert!(matches!(spinning.await.unwrap(), Err(Error::Draining)));
    assert!(booting.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_deploys_at_once_boot_once() {
    let Some(image) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder);
    let deploy = || pool.deploy("hello", image.clone(), FunctionConfig::default());
    let (one, other) = tokio::join!(deploy(), deploy());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert!(one.created != other.created);
    assert_eq!(one.function.snapshot, other.function.snapshot);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_nobody_waits_for_takes_effect_all_the_same() {
    let Some(hello) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder);
    pool.deploy("f", hello, FunctionConfig::default())
        .await
        .unwrap();
    let before = pool.function("f").await.unwrap().snapshot;
    let whoami = image("whoami").unwrap();
    {
        let mut given_up = pin!(pool.deploy("f", whoami, FunctionConfig::default()));
        let begun = poll_fn(|context| Poll::Ready(given_up.as_mut().poll(context)));
        assert!(begun.await.is_pending(), "it was over at once");
    }

    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = get(&pool, "f", "/").await.unwrap().result.unwrap();
        if answer.body.starts_with(b"{") {
            break;
        }
        assert!(Instant::now() < patience, "the deploy was lost");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_ne!(pool.function("f").await.unwrap().snapshot, before);
}
