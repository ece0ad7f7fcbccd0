//! Publishing is all or nothing, whoever else is at work and whenever it is killed.

use std::fs::{self, File};
use std::io;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::support::{Sample, State, name, temp_store, visible};
use dormouse_snapshot::{Compression, Draft, Error, MemoryDraft, Store, WorkingSet};

const CHILD_STORE: &str = "DORMOUSE_TEST_CHILD_STORE";

fn draft<'a>(state: &'a State, memory: MemoryDraft<'a>, image: &'a [u8]) -> Draft<'a, State> {
    let (host, config) = (String::new(), serde_json::Value::Null);
    Draft {
        created_unix_ms: 0,
        host,
        config,
        state,
        memory,
        image,
        parent: None,
        compression: Compression::None,
    }
}

#[test]
fn a_failed_publish_leaves_nothing() {
    let (_dir, store) = temp_store();
    let state = State::default();
    let mut calls = 0;
    let mut read = |_: u64, buf: &mut [u8]| {
        calls += 1;
        buf.fill(1);
        if calls < 5 {
            Ok(())
        } else {
            Err(io::Error::other("the guest's memory is gone"))
        }
    };
    let memory = MemoryDraft {
        pages: 1000,
        resident: vec![0..1000],
        read: &mut read,
    };
    let error = store
        .publish(&name("fails"), draft(&state, memory, b"image"))
        .unwrap_err();
    assert!(
        error.to_string().contains("the guest's memory is gone"),
        "{error}"
    );
    assert!(visible(&store).is_empty(), "{:?}", visible(&store));
}

#[test]
fn drafts_that_do_not_fit_are_refused() {
    let (_dir, store) = temp_store();
    let state = State::default();
    let huge = State {
        registers: vec![u64::MAX; 1 << 20],
        ..State::default()
    };
    let backwards = std::ops::Range { start: 5, end: 11 };
    for (state, pages, resident, why) in [
        (&state, 0, vec![], "0 pages of memory"),
        (&state, (1 << 26) + 1, vec![], "67108865 pages of memory"),
        (&state, 10, vec![backwards], "beyond the 10 pages"),
        (&huge, 10, vec![], "state cannot be encoded"),
    ] {
        let mut read = |_: u64, _: &mut [u8]| Ok(());
        let memory = MemoryDraft {
            pages,
            resident,
            read: &mut read,
        };
        let error = store
            .publish(&name("unfit"), draft(state, memory, b""))
            .unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let config = serde_json::Value::String("x".repeat(1 << 20));
    let mut read = |_: u64, _: &mut [u8]| Ok(());
    let memory = MemoryDraft {
        pages: 1,
        resident: vec![],
        read: &mut read,
    };
    let draft = Draft {
        config,
        ..draft(&state, memory, b"")
    };
    assert!(matches!(
        store.publish(&name("unfit"), draft),
        Err(Error::Refused { .. })
    ));
    assert!(visible(&store).is_empty(), "{:?}", visible(&store));
}

#[test]
fn leftovers_are_invisible_and_cleared_away_when_old_and_unused() {
    let (_dir, store) = temp_store();
    Sample::small(1).publish(&store, &name("real")).unwrap();
    let old = SystemTime::now() - Duration::from_secs(3600);
    for leftover in [".tmp-old", ".tmp-locked", ".tmp-new"] {
        let folder = store.path().join(leftover);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("memory"), "half").unwrap();
        if leftover != ".tmp-new" {
            File::open(&folder).unwrap().set_modified(old).unwrap();
        }
    }
    let lock = File::open(store.path().join(".tmp-locked")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();

    assert_eq!(store.list().unwrap().len(), 1);
    Store::open(store.path()).unwrap();
    assert_eq!(visible(&store), [".tmp-locked", ".tmp-new", "real"]);
    drop(lock);
    Store::open(store.path()).unwrap();
    assert_eq!(visible(&store), [".tmp-new", "real"]);
    assert_eq!(store.clean_leftovers(Duration::ZERO).unwrap(), 1);
    assert_eq!(visible(&store), ["real"]);
}

#[test]
fn cleaning_does_not_disturb_a_publisher_at_work() {
    let (_dir, store) = temp_store();
    let state = State::default();
    let cleaner = store.clone();
    let mut read = |_: u64, buf: &mut [u8]| {
        assert_eq!(cleaner.clean_leftovers(Duration::ZERO).unwrap(), 0);
        buf.fill(1);
        Ok(())
    };
    let memory = MemoryDraft {
        pages: 64,
        resident: vec![0..64],
        read: &mut read,
    };
    store
        .publish(&name("busy"), draft(&state, memory, b"image"))
        .unwrap();
    store.verify(&name("busy")).unwrap();
}

#[test]
fn publishers_removers_and_readers_at_once() {
    let (_dir, store) = temp_store();
    let functions = [name("one"), name("two")];
    let samples: Vec<_> = (1..5).map(Sample::small).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut opened = 0;
                    while !done.load(Ordering::Relaxed) {
                        for function in &functions {
                            match store.open_newest::<State>(function) {
                                Ok(snapshot) => {
                                    let seed = snapshot.state.notes["seed"][0];
                                    samples[usize::from(seed) - 1].check(&snapshot).unwrap();
                                    opened += 1;
                                }
                                Err(Error::UnknownFunction { .. }) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                        for entry in store.list().unwrap() {
                            entry.manifest.unwrap();
                        }
                    }
                    opened
                })
            })
            .collect();
        let writers: Vec<_> = samples
            .iter()
            .map(|sample| {
                let (store, functions) = (&store, &functions);
                scope.spawn(move || {
                    for round in 0..25 {
                        let function = &functions[round % 2];
                        let id = sample.publish(store, function).unwrap();
                        let set = WorkingSet::from_touched([1], []);
                        match store.save_working_set(function, &id, &set) {
                            Ok(()) | Err(Error::UnknownSnapshot { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                        if round % 5 == 4 {
                            match store.remove(function) {
                                Ok(()) | Err(Error::UnknownFunction { .. }) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                    }
                })
            })
            .collect();
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        let opened: u32 = readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum();
        assert!(opened > 0);
    });
    assert!(
        !visible(&store).iter().any(|name| name.starts_with(".tmp")),
        "{:?}",
        visible(&store)
    );
}

#[test]
fn publishers_of_one_function_get_numbers_of_their_own() {
    let (_dir, store) = temp_store();
    let function = name("crowd");
    thread::scope(|scope| {
        for seed in 1..9 {
            let (store, function) = (&store, &function);
            scope.spawn(move || {
                for _ in 0..5 {
                    Sample::small(seed).publish(store, function).unwrap();
                }
            });
        }
    });
    let numbers: Vec<_> = store
        .list()
        .unwrap()
        .iter()
        .map(|entry| entry.id.sequence())
        .collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
}

/// Not a test of its own: what the next test starts and kills.
#[test]
#[ignore = "runs as a child process of killed_publishers_leave_the_store_good"]
fn child_publisher() {
    let Some(path) = std::env::var_os(CHILD_STORE) else {
        return;
    };
    let store = Store::open(path).unwrap();
    loop {
        for seed in 1..5 {
            let id = Sample::small(seed)
                .publish(&store, &name("victim"))
                .unwrap();
            let set = WorkingSet::from_touched([u64::from(seed)], []);
            store.save_working_set(&name("victim"), &id, &set).unwrap();
        }
        store.remove(&name("victim")).unwrap();
    }
}

#[test]
fn killed_publishers_leave_the_store_good() {
    let (_dir, store) = temp_store();
    let function = name("victim");
    let mut cleaned = 0;
    for round in 0..30u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "publishing::child_publisher", "--ignored"])
            .env(CHILD_STORE, store.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Once the child is at work, it is killed at whatever it is doing some time later.
        let deadline = Instant::now() + Duration::from_secs(60);
        while store.list().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "the child does not publish");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(round * 1_777));
        child.kill().unwrap();
        child.wait().unwrap();

        cleaned += store.clean_leftovers(Duration::ZERO).unwrap();
        for entry in store.list().unwrap() {
            let snapshot = store.open_id::<State>(&function, &entry.id).unwrap();
            Sample::small(snapshot.state.notes["seed"][0])
                .check(&snapshot)
                .unwrap();
            assert!(snapshot.working_set_error.is_none());
        }
        Sample::small(9).publish(&store, &function).unwrap();
        Sample::small(9)
            .check(&store.open_newest(&function).unwrap())
            .unwrap();
        assert_eq!(visible(&store), ["victim"]);
        store.verify(&function).unwrap();
        store.remove(&function).unwrap();
    }
    assert!(cleaned > 0, "no child was killed while it was publishing");
}
