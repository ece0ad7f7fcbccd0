//! Real functions in real VMs, without HTTP.

mod images;

use std::time::Duration;

use dormouse_pool::{
    CrashKind, Error, Failure, FunctionConfig, Outcome, Pool, PoolConfig, Request, SavedFunction,
    StartType,
};
use dormouse_snapshot::{FunctionName, Store};
use images::image;

async fn get(pool: &Pool, name: &str) -> Outcome {
    ask(pool, name, "/").await
}

async fn ask(pool: &Pool, name: &str, target: &str) -> Outcome {
    let request = Request {
        method: "GET".to_owned(),
        target: target.to_owned(),
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
async fn an_instance_whose_guest_failed_is_never_used_again() {
    let Some(image) = image("faulty") else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = PoolConfig {
        // Where another stands ready, it may be one that was rolled back, too.
        shells_ahead: 0,
        ..PoolConfig::default()
    };
    let pool = Pool::new(Store::open(folder.path()).unwrap(), config);
    for (name, timeout_ms) in [("faulty", 8000), ("impatient", 3000)] {
        let config = FunctionConfig {
            // So that there is one instance, but for those that are built anew.
            concurrency: 1,
            timeout_ms,
            ..FunctionConfig::default()
        };
        pool.deploy(name, image.clone(), config).await.unwrap();
    }
    let crash_of = |failure: &Failure| match failure {
        Failure::Crashed { crash } => Some(crash.kind),
        _ => None,
    };
    for (name, target) in [
        ("faulty", "/panic"),
        ("faulty", "/exit"),
        ("faulty", "/oom"),
        ("faulty", "/invalid-opcode"),
        ("faulty", "/triple-fault"),
        ("faulty", "/bad-hypercall"),
        ("faulty", "/huge-answer"),
        ("faulty", "/huge-head"),
        ("impatient", "/spin"),
        ("impatient", "/no-answer"),
    ] {
        let mut tries = 0;
        while get(&pool, name).await.start != StartType::RolledBack {
            tries += 1;
            assert!(tries < 20, "no clone was ever rolled back");
        }
        let failed = ask(&pool, name, target).await;
        // The clone that would be rolled back next.
        assert_eq!(failed.start, StartType::RolledBack, "{target}");
        let failure = failed.result.unwrap_err();
        let is_right = match target {
            "/panic" => failure == Failure::Exited { code: -1 },
            "/exit" => failure == Failure::Exited { code: 0 },
            "/oom" => matches!(failure, Failure::OutOfMemory { .. }),
            "/invalid-opcode" => crash_of(&failure) == Some(CrashKind::Exception),
            "/triple-fault" => crash_of(&failure) == Some(CrashKind::TripleFault),
            "/bad-hypercall" => crash_of(&failure) == Some(CrashKind::Hypercall),
            "/spin" | "/no-answer" => matches!(failure, Failure::TimedOut { .. }),
            _ => matches!(failure, Failure::BadAnswer { .. }),
        };
        assert!(is_right, "{target}: {failure:?}");
        let next = get(&pool, name).await;
        assert_eq!(next.start, StartType::Restored, "after {target}");
        assert_eq!(next.result.unwrap().body, "fine\n");
    }
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

/// What is learned is stored after the answer, and after the permits of its request are back.
#[tokio::test(flavor = "multi_thread")]
async fn a_drained_pool_has_stored_what_it_learned() {
    /// So many runs are learned from.
    const RUNS: usize = 3;
    let Some(image) = image("hello") else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let pool = Pool::new(store.clone(), PoolConfig::default());
    pool.deploy("hello", image, FunctionConfig::default())
        .await
        .unwrap();
    for _ in 0..RUNS {
        while pool.stats().running > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        get(&pool, "hello").await;
    }
    pool.drain(Duration::from_secs(60)).await;
    let name = FunctionName::new("hello").unwrap();
    let snapshot = store.open_newest::<SavedFunction>(&name).unwrap();
    assert!(snapshot.working_set.is_some());
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
        Err(Error::BadOption { option, .. }) if option == "name"
    ));
    pool.drain(Duration::from_secs(10)).await;
    assert!(matches!(
        pool.checkout("nobody").await,
        Err(Error::Draining)
    ));
}
