//! Each way to start happens when it is asked for, and leaves all others as they were.

mod images;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use dormouse_pool::{Error, FunctionConfig, Outcome, Pool, PoolConfig, Request, Start, StartType};
use dormouse_snapshot::Store;
use images::image;

async fn get(pool: &Pool, name: &str, target: &str, start: Start) -> Result<Outcome, Error> {
    let request = Request {
        method: "GET".to_owned(),
        target: target.to_owned(),
        ..Request::default()
    };
    pool.checkout_for(name, start).await?.invoke(request).await
}

/// A pool over a sample whose working set is known and stored, so that its clones are rolled back and
/// nothing is written into the store any more.
async fn pool(folder: &Path, name: &str) -> Option<Pool> {
    let image = image(name)?;
    let new = || {
        let config = PoolConfig {
            // Functions are closed and opened again by many requests at once here.
            queue_timeout: Duration::from_secs(120),
            ..PoolConfig::default()
        };
        Pool::new(Store::open(folder).unwrap(), config)
    };
    let learning = new();
    let config = FunctionConfig::default();
    learning.deploy(name, image, config).await.unwrap();
    for _ in 0..5 {
        answered(get(&learning, name, "/", Start::Ready).await);
        is_idle(&learning).await;
    }
    learning.drain(Duration::from_secs(60)).await;
    let pool = new();
    answered(get(&pool, name, "/", Start::Ready).await);
    is_idle(&pool).await;
    Some(pool)
}

/// Waits until what comes after an answer is over as well.
async fn is_idle(pool: &Pool) {
    while pool.stats().running > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[track_caller]
fn answered(outcome: Result<Outcome, Error>) -> Outcome {
    let outcome = outcome.unwrap();
    let answer = outcome.result.as_ref().unwrap();
    assert_eq!(answer.status, 200, "{outcome:?}");
    assert!(!answer.body.is_empty());
    outcome
}

/// Every file below, with its size and when it was written.
fn files(folder: &Path) -> Vec<(String, u64, SystemTime)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::metadata(&path).unwrap();
        if metadata.is_dir() {
            found.extend(files(&path));
        } else {
            let modified = metadata.modified().unwrap();
            found.push((path.display().to_string(), metadata.len(), modified));
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn each_start_is_what_was_asked_for_and_shows_what_it_took() {
    let folder = tempfile::tempdir().unwrap();
    let Some(pool) = pool(folder.path(), "hello").await else {
        return;
    };
    let ready = answered(get(&pool, "hello", "/", Start::Ready).await);
    let body = ready.result.as_ref().unwrap().body.clone();
    for _ in 0..3 {
        for (start, expected) in [
            (Start::Ready, StartType::RolledBack),
            (Start::Restored, StartType::Restored),
            (Start::Cold, StartType::Cold),
            (Start::First, StartType::Restored),
            (Start::Ready, StartType::RolledBack),
            (Start::FirstUncached, StartType::Restored),
        ] {
            is_idle(&pool).await;
            let outcome = answered(get(&pool, "hello", "/", start).await);
            assert_eq!(outcome.start, expected, "{start:?}");
            assert_eq!(outcome.result.as_ref().unwrap().body, body, "{start:?}");
            let timings = outcome.timings;
            let is_first = matches!(start, Start::First | Start::FirstUncached);
            let is_cleared = is_first || start == Start::Restored;
            assert_eq!(timings.clear_us.is_some(), is_cleared, "{start:?}");
            assert_eq!(timings.open_us.is_some(), is_first, "{start:?}");
            assert_eq!(timings.boot_us.is_some(), start == Start::Cold, "{start:?}");
            assert!(timings.run_us > 0, "{start:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_of_a_pool_opens_the_function() {
    let folder = tempfile::tempdir().unwrap();
    let Some(deployed) = pool(folder.path(), "hello").await else {
        return;
    };
    deployed.drain(Duration::from_secs(10)).await;
    let pool = Pool::new(Store::open(folder.path()).unwrap(), PoolConfig::default());
    let first = answered(get(&pool, "hello", "/", Start::Ready).await);
    assert_eq!(first.start, StartType::Restored);
    assert!(first.timings.open_us.is_some_and(|us| us > 0));
    assert_eq!(
        (first.timings.clear_us, first.timings.boot_us),
        (None, None)
    );
    let next = answered(get(&pool, "hello", "/", Start::Ready).await);
    assert_eq!(next.timings.open_us, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn cold_starts_leave_the_store_and_the_instances_alone() {
    let folder = tempfile::tempdir().unwrap();
    let Some(pool) = pool(folder.path(), "whoami").await else {
        return;
    };
    let before = (pool.function("whoami").await.unwrap(), files(folder.path()));
    let stats = pool.stats();
    let mut bodies = Vec::new();
    for _ in 0..3 {
        let outcome = answered(get(&pool, "whoami", "/", Start::Cold).await);
        assert_eq!(outcome.start, StartType::Cold);
        bodies.push(outcome.result.unwrap().body);
        is_idle(&pool).await;
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 3, "each is an instance of its own");
    let after = (pool.function("whoami").await.unwrap(), files(folder.path()));
    assert_eq!(after.0.snapshot, before.0.snapshot);
    assert_eq!(after.1, before.1);
    assert_eq!(after.0.stats.invocations, before.0.stats.invocations + 3);
    assert_eq!(pool.stats().shells, stats.shells);
    // Less where boots take so long that idle clones give their memory back meanwhile.
    // What an instance held is given back right after its permits.
    let patience = Instant::now() + Duration::from_secs(60);
    while pool.stats().memory_held_bytes > stats.memory_held_bytes {
        assert!(Instant::now() < patience, "{:?}", pool.stats());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_that_fails_says_how() {
    let folder = tempfile::tempdir().unwrap();
    let Some(image) = image("faulty") else { return };
    let pool = Pool::new(Store::open(folder.path()).unwrap(), PoolConfig::default());
    let config = FunctionConfig {
        timeout_ms: 3000,
        ..FunctionConfig::default()
    };
    pool.deploy("faulty", image, config).await.unwrap();
    for (target, word) in [("/exit", "exited"), ("/spin", "did not answer")] {
        let outcome = get(&pool, "faulty", target, Start::Cold).await.unwrap();
        assert_eq!(outcome.start, StartType::Cold);
        let failure = outcome.result.unwrap_err().to_string();
        assert!(failure.contains(word), "{failure}");
    }
    let unknown = get(&pool, "nobody", "/", Start::Cold).await;
    assert!(matches!(unknown, Err(Error::UnknownFunction { .. })));
    let unknown = get(&pool, "nobody", "/", Start::FirstUncached).await;
    assert!(matches!(unknown, Err(Error::UnknownFunction { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_while_a_function_is_closed_ends_where_it_began() {
    let folder = tempfile::tempdir().unwrap();
    let Some(pool) = pool(folder.path(), "burn").await else {
        return;
    };
    let slow = tokio::spawn({
        let pool = pool.clone();
        async move { get(&pool, "burn", "/?ms=1500&read=100", Start::Ready).await }
    });
    while pool.stats().running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let starts = [
        Start::First,
        Start::Ready,
        Start::FirstUncached,
        Start::Restored,
        Start::Ready,
    ];
    let tasks: Vec<_> = (0..20)
        .map(|number: usize| {
            let pool = pool.clone();
            let start = starts[number % starts.len()];
            tokio::spawn(async move { get(&pool, "burn", "/?read=10&write=10", start).await })
        })
        .collect();
    for task in tasks {
        let answer = answered(task.await.unwrap()).result.unwrap();
        assert_eq!(
            answer.body,
            "{\"ms\":0,\"read\":10,\"write\":10,\"sum\":55}\n"
        );
    }
    let answer = answered(slow.await.unwrap()).result.unwrap();
    assert_eq!(
        answer.body,
        "{\"ms\":1500,\"read\":100,\"write\":0,\"sum\":5050}\n"
    );
}

#[test]
fn every_start_has_its_word() {
    for start in Start::ALL {
        assert_eq!(start.as_str().parse(), Ok(start));
    }
    let error = "warm".parse::<Start>().unwrap_err();
    assert!(error.contains("\"warm\"") && error.contains("first-uncached"));
    assert_eq!(Start::default().as_str(), "rolled-back");
}
