//! One invocation through the pool, without HTTP: turn, restore, run, answer.
//!
//! See METHOD.md for how to run it and what the numbers mean.

use std::path::PathBuf;

use criterion::{Criterion, criterion_group, criterion_main};
use dormouse_pool::{FunctionConfig, Pool, PoolConfig, Request};
use dormouse_snapshot::Store;
use tokio::runtime::Runtime;

/// Function and what it is asked for.
const INVOKED: [(&str, &str); 3] = [("hello", "/"), ("whoami", "/"), ("wordfreq", "/?word=bade")];

/// Invocations before the measurement: the first ones record the working set.
const WARM_UP: usize = 10;

fn invoke(criterion: &mut Criterion) {
    let images = std::env::var_os("DORMOUSE_TEST_IMAGES")
        .expect("DORMOUSE_TEST_IMAGES names the folder that `cargo xtask functions` built");
    let folder = tempfile::tempdir().expect("a temporary store");
    let runtime = Runtime::new().expect("an async runtime");
    let store = Store::open(folder.path()).expect("a new store");
    let pool = Pool::new(store, PoolConfig::default());

    let mut group = criterion.benchmark_group("restored");
    for (name, target) in INVOKED {
        let image = std::fs::read(PathBuf::from(&images).join(name)).expect("a built image");
        let deployed = pool.deploy(name, image.into(), FunctionConfig::default());
        runtime.block_on(deployed).expect("a deployed function");
        let answer = || async {
            let request = Request {
                method: "GET".to_owned(),
                target: target.to_owned(),
                ..Request::default()
            };
            let lease = pool.checkout(name).await.expect("a free instance");
            let outcome = lease.invoke(request).await.expect("a working host");
            outcome.result.expect("an answer")
        };
        for _ in 0..WARM_UP {
            runtime.block_on(answer());
        }
        group.bench_function(name, |bencher| bencher.to_async(&runtime).iter(answer));
    }
    group.finish();
}

criterion_group!(benches, invoke);
criterion_main!(benches);
