//! A clone that was rolled back in place is the snapshot, byte for byte.

mod images;

use dormouse_pool::{Engine, FunctionConfig, Pool, PoolConfig, Request, StartType};
use dormouse_snapshot::Store;
use images::image;

fn get(target: &str) -> Request {
    Request {
        method: "GET".to_owned(),
        target: target.to_owned(),
        ..Request::default()
    }
}

/// xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Deploys a sample and opens it by hand.
async fn engine(folder: &tempfile::TempDir, name: &str) -> Option<Engine> {
    let image = image(name)?;
    let store = Store::open(folder.path()).unwrap();
    let pool = Pool::new(store.clone(), PoolConfig::default());
    pool.deploy(name, image, FunctionConfig::default())
        .await
        .unwrap();
    pool.drain(std::time::Duration::from_secs(10)).await;
    Some(Engine::open(&store, name).unwrap())
}

#[track_caller]
fn assert_pristine(engine: &mut Engine, when: &str) {
    assert_eq!(engine.changed_pages().unwrap(), [0_u64; 0], "{when}");
    let nothing: [&str; 0] = [];
    assert_eq!(engine.changed_state().unwrap(), nothing, "{when}");
}

#[tokio::test]
async fn memory_and_vcpu_equal_the_snapshot_after_every_rollback() {
    for (name, targets) in [
        ("hello", &["/"][..]),
        ("whoami", &["/", "/?kernel=1"]),
        ("wordfreq", &["/?word=bade", "/?word=so", "/nothing"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let Some(mut engine) = engine(&folder, name).await else {
            return;
        };
        engine.learn(&get(targets[0])).unwrap();
        engine.restore().unwrap();
        assert_pristine(&mut engine, &format!("{name} restored"));
        for round in 0..40 {
            let target = targets[round % targets.len()];
            let outcome = engine.run(&get(target)).unwrap();
            assert!(outcome.result.is_ok(), "{name}{target}: {outcome:?}");
            let changed = engine.changed_pages().unwrap();
            assert!(!changed.is_empty(), "{name}{target} wrote nothing");
            let rolled_back = engine.roll_back().unwrap();
            if !rolled_back {
                engine.restore().unwrap();
            }
            let when = format!("{name}{target}, round {round}, in place: {rolled_back}");
            assert_pristine(&mut engine, &when);
            if round > 0 {
                continue;
            }
            assert!(rolled_back, "{name} could not be rolled back at all");
            let again = engine.run(&get(target)).unwrap();
            assert_eq!(again.start, StartType::RolledBack, "{name}");
            engine.restore().unwrap();
        }
    }
}

/// As many pages as come, anywhere: some are copied back, long runs are dropped, and sometimes a
/// fresh clone is cheaper.
#[tokio::test]
async fn random_writes_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut engine) = engine(&folder, "burn").await else {
        return;
    };
    engine.learn(&get("/?write=40&seed=7")).unwrap();
    let mut random = Random(0xD0_12_03);
    let mut in_place = 0;
    for round in 0..60 {
        let pages = match round % 3 {
            0 => random.below(40),
            1 => random.below(600),
            _ => random.below(3000),
        };
        let seed = if round % 4 == 0 {
            0
        } else {
            random.below(1 << 40) + 1
        };
        let target = format!("/?write={pages}&seed={seed}&read={}", random.below(3000));
        let outcome = engine.run(&get(&target)).unwrap();
        assert!(outcome.result.is_ok(), "{target}: {outcome:?}");
        assert!(!engine.changed_pages().unwrap().is_empty(), "{target}");
        if engine.roll_back().unwrap() {
            in_place += 1;
        } else {
            engine.restore().unwrap();
        }
        assert_pristine(&mut engine, &format!("round {round}: {target}"));
    }
    assert!(in_place > 10, "only {in_place} were rolled back in place");
}
