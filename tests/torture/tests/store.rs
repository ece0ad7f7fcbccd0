//! A short torture of each kind, and the whole of one publish and one removal.

use std::path::{Path, PathBuf};

use dormouse_snapshot::FunctionName;
use dormouse_torture::{
    Content, Operation, Outcome, Report, Scene, Torture, fail_every_call, kill_at_every_call,
    lose_power_after_every_death,
};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dormouse-torture"))
}

fn images() -> PathBuf {
    std::env::var_os("DORMOUSE_TEST_IMAGES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../functions/target/images"),
        PathBuf::from,
    )
}

fn name(name: &str) -> FunctionName {
    FunctionName::new(name).expect("a name")
}

fn publish(function: &str, content: u64) -> Operation {
    Operation::Publish {
        function: name(function),
        content: Content(content),
        layer: false,
    }
}

/// A store with two functions that have pages in common, and an operation on it.
fn scene(place: &Path, operation: Operation) -> Scene {
    let mut scene = Scene::empty(place, operation).expect("a scene");
    let store = dormouse_snapshot::Store::open(scene.store()).expect("a store");
    for operation in [publish("alpha", 1), publish("beta", 2)] {
        let outcome = operation.run(&store);
        assert!(matches!(outcome, Outcome::Published(_)), "{outcome:?}");
        scene
            .model
            .apply(&operation, &outcome)
            .expect("it can be so");
    }
    scene
}

/// Runs `torture` on a publish and a removal; there must be at least so many cases of each.
#[track_caller]
fn whole(least: u64, torture: impl Fn(&Path, &Scene, &mut Report) -> Result<u64, anyhow::Error>) {
    let place = tempfile::tempdir().expect("a folder");
    for operation in [publish("alpha", 3), Operation::Remove(name("beta"))] {
        let scene = scene(place.path(), operation);
        let mut report = Report::default();
        match torture(program(), &scene, &mut report) {
            Ok(cases) => assert!(cases >= least, "only {cases} of {:?}", scene.operation),
            Err(error) => panic!("{error:#}"),
        }
    }
}

#[test]
fn a_process_may_die_at_every_system_call() {
    whole(10, kill_at_every_call);
}

/// A publish that is told to have failed is not there: not when what comes after the rename fails,
/// either.
#[test]
fn every_system_call_on_files_may_fail() {
    whole(10, fail_every_call);
}

/// Who made a folder may have died before it was on disk, and whoever finds it there must not rely
/// on that.
#[test]
fn what_is_published_lasts_although_another_died_before() {
    let place = tempfile::tempdir().expect("a folder");
    let mut report = Report::default();
    match lose_power_after_every_death(program(), place.path(), &mut report) {
        Ok(deaths) => assert!(deaths >= 20, "only {deaths} deaths"),
        Err(error) => panic!("{error:#}"),
    }
}

#[test]
fn a_store_survives_some_of_everything() {
    let place = tempfile::tempdir().expect("a folder");
    let torture = Torture {
        program: program().to_owned(),
        place: place.path().to_owned(),
        images: images(),
        may_skip_guests: std::env::var_os("DORMOUSE_TEST_NO_KVM").is_some_and(|value| value == "1"),
        iterations: 200,
        seed: 5,
        only: None,
    };
    let mut report = Report::default();
    if let Err(error) = torture.run(&mut report) {
        panic!("{error:#}");
    }
    println!("{report}");
    assert!(report.total() >= 150, "{report}");
}
