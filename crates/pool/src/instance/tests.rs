//! Dormouse's own panics, put where a bug could have them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_snapshot::{FunctionName, Store};

use crate::error::Error;
use crate::images;
use crate::message::{Outcome, Request};
use crate::{FunctionConfig, Pool, PoolConfig};

/// What an instance's threads do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A page fault is served, on the pager's thread.
    Page,
    Build,
    Run,
    Recycle,
}

/// What is to panic next, by the function's name.
static ARMED: Mutex<Vec<(String, Step)>> = Mutex::new(Vec::new());

/// Where [`ARMED`] strikes.
pub(crate) fn pass(function: &FunctionName, step: Step) {
    let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
    let before = armed.len();
    armed.retain(|(name, at)| name != function.as_str() || *at != step);
    if armed.len() < before {
        panic!("a bug at {step:?}");
    }
}

fn arm(name: &str, step: Step) {
    let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
    armed.push((name.to_owned(), step));
}

fn is_armed(name: &str) -> bool {
    let armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
    armed.iter().any(|(at, _)| at == name)
}

async fn get(pool: &Pool, name: &str) -> Result<Outcome, Error> {
    let request = Request {
        method: "GET".to_owned(),
        target: "/".to_owned(),
        ..Request::default()
    };
    pool.checkout(name).await?.invoke(request).await
}

/// While one runs, another may be built ahead.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_instances_wait_than_may_run() {
    let Some(image) = images::image("hello") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::new(Store::open(folder.path()).unwrap(), PoolConfig::default());
    let config = FunctionConfig {
        concurrency: 1,
        ..FunctionConfig::default()
    };
    pool.deploy("hello", image, config).await.unwrap();
    let function = pool.inner.functions.opened(&"hello".parse().unwrap());
    let function = Arc::clone(function.unwrap().newest());
    let running = function.instance().await.unwrap();
    function.refill();
    assert_eq!(function.idle_instances(), 1);
    function.park(running);
    assert_eq!(function.idle_instances(), 1);
    get(&pool, "hello").await.unwrap().result.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_ours_ends_one_instance_and_its_request_only() {
    let Some(image) = images::image("hello") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let config = PoolConfig {
        // So that it is a request's own instance that is built, and none that waits.
        shells_ahead: 0,
        queue_timeout: Duration::from_secs(30),
        ..PoolConfig::default()
    };
    let pool = Pool::new(Store::open(folder.path()).unwrap(), config);
    for name in ["buggy", "fine"] {
        let config = FunctionConfig {
            // A permit that is lost would be the only one.
            concurrency: 1,
            ..FunctionConfig::default()
        };
        let deployed = pool.deploy(name, image.clone(), config).await;
        deployed.unwrap();
    }
    let mut failures = 0;
    // First the one that a clone that is rolled back does not come to.
    for step in [Step::Page, Step::Build, Step::Run, Step::Recycle, Step::Run] {
        let function = pool.inner.functions.opened(&"buggy".parse().unwrap());
        let function = function.unwrap().newest().clone();
        if step == Step::Build {
            function.end_idle().await;
        }
        arm("buggy", step);
        let (struck, other) = tokio::join!(get(&pool, "buggy"), get(&pool, "fine"));
        assert_eq!(other.unwrap().result.unwrap().status, 200);
        match struck {
            // The answer was out before; or the instance ended before it saw the request, which then
            // moves on to another.
            Ok(outcome) => {
                assert!(matches!(step, Step::Recycle | Step::Build), "{step:?}");
                outcome.result.unwrap();
            }
            Err(Error::Internal { operation, .. }) => {
                failures += 1;
                match step {
                    Step::Page => assert_eq!(operation, "paging guest memory"),
                    Step::Build | Step::Run => assert_eq!(operation, "running a guest"),
                    Step::Recycle => panic!("the answer is out before"),
                }
            }
            Err(other) => panic!("{step:?}: {other}"),
        }
        for _ in 0..3 {
            assert_eq!(
                get(&pool, "buggy").await.unwrap().result.unwrap().status,
                200
            );
        }
        // Given back once the instance is parked.
        drop(function.traffic.permits.acquire().await);
        assert_eq!(function.idle_instances(), 1);
        assert!(!is_armed("buggy"), "{step:?} was never come to");
    }
    let stats = pool.function("buggy").await.unwrap().stats;
    assert_eq!(
        (stats.failures, stats.running, stats.waiting),
        (failures, 0, 0)
    );
    assert_eq!(stats.crash_loops, 0, "the function is not to blame");
    // Waits for every permit.
    pool.drain(Duration::from_secs(10)).await;
}
