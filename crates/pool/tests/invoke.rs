//! Real functions in real VMs, without HTTP.

use std::path::PathBuf;

use bytes::Bytes;
use dormouse_pool::{FunctionConfig, Outcome, Pool, PoolConfig, Request};
use dormouse_snapshot::Store;

fn image(name: &str) -> Bytes {
    let folder = std::env::var("DORMOUSE_TEST_IMAGES").expect("set by `cargo xtask test`");
    std::fs::read(PathBuf::from(folder).join(name))
        .unwrap()
        .into()
}

async fn get(pool: &Pool, name: &str, target: &str) -> Outcome {
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
async fn functions_answer_from_their_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::new(Store::open(folder.path()).unwrap(), PoolConfig::default());
    let deployed = pool
        .deploy("hello", image("hello"), FunctionConfig::default())
        .await
        .unwrap();
    eprintln!("{deployed:#?}");
    for _ in 0..10 {
        let outcome = get(&pool, "hello", "/").await;
        eprintln!("{:?} {:?}", outcome.start, outcome.timings);
        let answer = outcome.result.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.body.starts_with(b"Hello"), "{:?}", answer.body);
    }
    let deployed = pool
        .deploy("whoami", image("whoami"), FunctionConfig::default())
        .await
        .unwrap();
    eprintln!("{deployed:#?}");
    for _ in 0..6 {
        let outcome = get(&pool, "whoami", "/").await;
        eprintln!("{:?} {:?}", outcome.timings, outcome.result);
    }
}
