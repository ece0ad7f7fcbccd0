//! Single stages of the engine: attaching, replaying, rolling back, and the mailbox's encoding.
//!
//! See METHOD.md for how to run it and what the numbers mean.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use dormouse_abi::{HEADER_BYTES, HeadReader, HeadWriter, Header, field_bytes};
use dormouse_pager::{PAGE_BYTES, Pager, PagerConfig, Policy, Source, WorkingSetPlan};
use dormouse_pool::{Engine, FunctionConfig, Pool, PoolConfig, Request};
use dormouse_snapshot::Store;

/// What burn is asked for: so many pages read, and so many written.
const TARGETS: [(&str, &str); 3] = [
    ("10 pages", "/"),
    ("100 pages", "/?read=70&write=20"),
    ("1000 pages", "/?read=700&write=290"),
];

fn get(target: &str) -> Request {
    Request {
        method: "GET".to_owned(),
        target: target.to_owned(),
        ..Request::default()
    }
}

/// burn, which has learned what `target` touches.
fn burn(store: &Store, name: &str, target: &str) -> Engine {
    let images = std::env::var_os("DORMOUSE_TEST_IMAGES")
        .expect("DORMOUSE_TEST_IMAGES names the folder that `cargo xtask functions` built");
    let image = std::fs::read(PathBuf::from(images).join("burn")).expect("a built image");
    let runtime = tokio::runtime::Runtime::new().expect("an async runtime");
    let pool = Pool::new(store.clone(), PoolConfig::default());
    runtime.block_on(async {
        let deployed = pool.deploy(name, image.into(), FunctionConfig::default());
        deployed.await.expect("a deployed function");
        pool.drain(Duration::from_secs(1)).await;
    });
    let mut engine = Engine::open(store, name).expect("an instance");
    engine.learn(&get(target)).expect("a working set");
    engine
}

fn memory(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).expect("a new store");
    for (number, (pages, target)) in TARGETS.into_iter().enumerate() {
        let mut engine = burn(&store, &format!("burn-{number}"), target);
        attach(criterion, pages, &mut engine);
        roll_back(criterion, pages, target, &mut engine);
    }
}

/// Mapping the snapshot, registering it, and replaying the working set; and without the replay.
fn attach(criterion: &mut Criterion, pages: &str, engine: &mut Engine) {
    engine.restore().expect("a clone");
    let parts = engine.parts().expect("descriptors").expect("a clone");
    let set = engine.working_set().expect("a working set");
    let file = parts.file.clone().expect("a memory file");
    let all = parts.ram.len() / PAGE_BYTES;
    let source = Source::shared(file, all, parts.data.clone().into()).expect("a source");
    let plan = WorkingSetPlan::new(&source, &set.read, &set.written).expect("a plan");
    let mut pager = Pager::new(PagerConfig::default()).expect("a pager");
    let mut group = criterion.benchmark_group("attach");
    for (name, policy) in [
        ("lazy".to_owned(), Policy::Lazy),
        (pages.to_owned(), Policy::WorkingSet(Arc::new(plan))),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    let begun = Instant::now();
                    let attached = pager.attach(parts.ram.region(), &source, &policy);
                    spent += begun.elapsed();
                    attached.expect("an attached snapshot");
                    pager.detach();
                }
                spent
            });
        });
    }
    group.finish();
}

/// Making a clone that has run pristine in place; the runs between are not counted.
fn roll_back(criterion: &mut Criterion, pages: &str, target: &str, engine: &mut Engine) {
    let request = get(target);
    let mut group = criterion.benchmark_group("rollback");
    group.bench_function(pages, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                engine.run(&request).expect("a working host");
                let begun = Instant::now();
                let rolled_back = engine.roll_back();
                spent += begun.elapsed();
                rolled_back.expect("a working host");
            }
            spent
        });
    });
    group.finish();
}

/// The head of a usual request, and the mailbox's header, there and back.
fn mailbox(criterion: &mut Criterion) {
    let fields: [&[u8]; 8] = [
        b"GET",
        b"/a/path?and=query",
        b"host",
        b"127.0.0.1:8080",
        b"user-agent",
        b"curl/8.5.0",
        b"accept",
        b"*/*",
    ];
    let bytes = fields.into_iter().map(field_bytes).sum();
    let mut group = criterion.benchmark_group("mailbox");
    group.bench_function("head", |bencher| {
        bencher.iter(|| {
            let mut head = vec![0; bytes];
            let mut writer = HeadWriter::new(&mut head);
            for field in fields {
                writer.put(black_box(field)).expect("room was measured");
            }
            HeadReader::new(black_box(&head)).count()
        });
    });
    group.bench_function("header", |bencher| {
        let page = [0; HEADER_BYTES];
        bencher.iter(|| Header::decode(black_box(&page)).encode());
    });
    group.finish();
}

criterion_group!(benches, mailbox, memory);
criterion_main!(benches);
