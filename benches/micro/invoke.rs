//! One invocation through the pool, without HTTP: turn, restore, run, answer.
//!
//! See METHOD.md for how to run it and what the numbers mean.

use std::ffi::OsStr;
use std::path::Path;

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
    for (group, rolls_back) in [("restored", false), ("rolled-back", true)] {
        let config = PoolConfig {
            rolls_back,
            ..PoolConfig::default()
        };
        let pool = Pool::new(store.clone(), config);
        invoke_by(criterion, group, &images, &runtime, &pool);
    }
}

fn invoke_by(
    criterion: &mut Criterion,
    group: &str,
    images: &OsStr,
    runtime: &Runtime,
    pool: &Pool,
) {
    let mut group = criterion.benchmark_group(group);
    for (name, target) in INVOKED {
        let image = std::fs::read(Path::new(images).join(name)).expect("a built image");
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
        group.bench_function(name, |bencher| bencher.to_async(runtime).iter(answer));
    }
    group.finish();
}

criterion_group!(benches, invoke);
criterion_main!(benches);
