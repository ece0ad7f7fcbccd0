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
