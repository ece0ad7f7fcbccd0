//! Functions that do their worst behind a pool: whatever they say in their mailbox, wherever it is
//! mapped, and whoever changes it while the host reads it, each request ends in an outcome or an
//! error, the other functions answer right, and nothing of it is left.

mod images;
#[path = "../../vmm/tests/support/torment.rs"]
mod torment;

use std::time::{Duration, Instant};

use bytes::Bytes;
use dormouse_pool::{
    Engine, Error, Failure, FunctionConfig, Outcome, Pool, PoolConfig, Request, StartType,
};
use dormouse_snapshot::{PAGE_BYTES, Store};
use images::image;
use torment::{Rival, Tally, Target, Watch, resources, told};

const MIB: u64 = 1 << 20;
/// Longer than any request but for those that never end.
const TIMEOUT_MS: u64 = 400;

/// What comes of a request to a guest that does `actions` things, all by `seed`.
fn request(seed: u64, actions: u64, padding: usize) -> Request {
    let mut body = [seed, actions].map(u64::to_le_bytes).concat();
    body.resize(16 + padding, b'x');
    Request {
        method: "POST".to_owned(),
        target: "/".to_owned(),
        body: Bytes::from(body),
        ..Request::default()
    }
}

fn count(tally: &mut Tally, outcome: &Result<Outcome, Error>) {
    match outcome {
        Err(error) => {
            tally.count("error");
            tally.error("error", error);
        }
        Ok(Outcome {
            result: Err(Failure::Crashed { crash }),
            ..
        }) => tally.error("crashed", &crash.reason),
        Ok(outcome) => tally.count(match &outcome.result {
            Ok(_) => "answered",
            Err(Failure::Exited { .. }) => "exited",
            Err(Failure::TimedOut { .. }) => "timed out",
            Err(Failure::BadAnswer { .. }) => "bad answer",
            Err(Failure::Reported { .. }) => "reported an error",
            Err(_) => "another failure",
        }),
    }
}

async fn invoke(pool: &Pool, name: &str, request: Request) -> Result<Outcome, Error> {
    pool.checkout(name).await?.invoke(request).await
}

/// Deploys `hostile` twice, tame and wild (all its mailboxes are in the window), and `echo`; asks them
/// in turn while `go_on` says so of the number of requests.
async fn through_a_pool(seed: u64, mut go_on: impl FnMut(u64) -> bool) -> Option<Tally> {
    let (hostile, echo) = (image("hostile")?, image("echo")?);
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::new(Store::open(folder.path()).unwrap(), PoolConfig::default());
    let mut tally = Tally::default();
    let mut names = Vec::new();
    for (name, arguments) in [("tame", 0), ("wild", seed | 1)] {
        let config = FunctionConfig {
            timeout_ms: TIMEOUT_MS,
            args: vec![arguments.to_string()],
            ..FunctionConfig::default()
        };
        match pool.deploy(name, hostile.clone(), config).await {
            Ok(_) => names.push(name),
            Err(error) => tally.error("deploying", &error),
        }
    }
    assert!(names.contains(&"tame"), "{tally}");
    pool.deploy("echo", echo, FunctionConfig::default())
        .await
        .unwrap();
    let watch = Watch::new(seed);
    let mut number = 0;
    while go_on(number) {
        watch.beat();
        let name = names[number as usize % names.len()];
        let seed = seed.wrapping_add(number);
        // Now and then one that does not fit the mailbox.
        let padding = if seed.is_multiple_of(5) { 200_000 } else { 0 };
        let outcome = invoke(&pool, name, request(seed, seed % 7, padding)).await;
        count(&mut tally, &outcome);
        if number % 4 == 3 {
            let asked = request(number, 0, 3000);
            let answer = invoke(&pool, "echo", asked.clone()).await.unwrap();
            assert_eq!(
                answer.result.unwrap().body,
                asked.body,
                "beside seed {seed}"
            );
            tally.count("the other function answered right");
        }
        number += 1;
    }
    pool.drain(Duration::from_secs(10)).await;
    Some(tally)
}

/// Changes the header of `echo`'s mailbox while requests are answered. What is left is rolled back,
/// or restored afresh.
async fn raced(seed: u64, mut go_on: impl FnMut(u64) -> bool) -> Option<Tally> {
    let echo = image("echo")?;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let pool = Pool::new(store.clone(), PoolConfig::default());
    let config = FunctionConfig {
        timeout_ms: TIMEOUT_MS,
        ..FunctionConfig::default()
    };
    pool.deploy("echo", echo, config).await.unwrap();
    pool.drain(Duration::from_secs(10)).await;
    let mut engine = Engine::open(&store, "echo").unwrap();
    // It goes on where it was ended by the short timeout, which is for guests that hang.
    while let Err(error) = engine.learn(&request(1, 0, 0)) {
        assert!(matches!(error, Error::Unanswered { .. }), "{error}");
    }
    engine.restore().unwrap();

    let (mut tally, rival, watch) = (Tally::default(), Rival::new(), Watch::new(seed));
    let mut random = seed;
    let mut next = move || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        random >> 33
    };
    let mut number = 0;
    while go_on(number) {
        watch.beat();
        let parts = engine.parts().unwrap().unwrap();
        let mailbox = parts.ram.base() + parts.mailbox_page * PAGE_BYTES as u64;
        // Words of the registration and of the answer; the first, which is checked every time, often.
        let words = (0..1 + next() % 3).map(|_| {
            let at = mailbox + 8 * (next() % 12).saturating_sub(3);
            let other = [next() % 5000, 1 << 62, u64::MAX, next() << 20][next() as usize % 4];
            (at, parts.ram.read_u64(at).unwrap(), other)
        });
        let words = words.collect();
        let ram = parts.ram.clone();
        drop(parts);
        rival.aim(Some(Target { ram, words }));
        rival.meet(Duration::from_millis(1));
        let outcome = engine.run(&request(number, 0, next() as usize % 9000));
        rival.aim(None);
        count(&mut tally, &outcome);
        if let Ok(Outcome {
            start: StartType::RolledBack,
            ..
        }) = outcome
        {
            tally.count("in a clone that was rolled back");
        }
        // As a pool does: what failed is not rolled back.
        let is_answered = outcome.is_ok_and(|outcome| outcome.result.is_ok());
        if !(is_answered && engine.roll_back().unwrap()) {
            engine.restore().unwrap();
        }
        if number % 50 == 0 {
            assert_eq!(engine.changed_pages().unwrap(), [0_u64; 0], "{number}");
            assert!(engine.changed_state().unwrap().is_empty(), "{number}");
            tally.count("nothing was left");
        }
        number += 1;
    }
    Some(tally)
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_functions_harm_nobody_else() {
    let Some(tally) = through_a_pool(1, |number| number < 60).await else {
        return;
    };
    println!("{tally}");
    for expected in [
        "answered",
        "bad answer",
        "the other function answered right",
    ] {
        assert!(tally.of(expected) > 0, "no {expected}\n{tally}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_that_changes_while_it_is_read_harms_nobody() {
    let Some(tally) = raced(1, |number| number < 100).await else {
        return;
    };
    println!("{tally}");
    assert!(
        tally.of("answered") > 0 && tally.of("bad answer") > 0,
        "{tally}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as it is told: `cargo xtask torture guest` runs it"]
async fn for_as_long_as_told() {
    let (seed, time) = told();
    // What is made once is there after the first requests.
    if through_a_pool(seed, |number| number < 40).await.is_none() {
        return;
    }
    raced(seed, |number| number < 40).await;
    let before = resources();
    let (begun, half) = (Instant::now(), time / 2);
    let pool = through_a_pool(seed, |_| begun.elapsed() < half).await;
    let begun = Instant::now();
    let raced = raced(seed, |_| begun.elapsed() < half).await;
    let after = resources();
    for (what, tally) in [("through a pool", pool), ("raced", raced)] {
        println!("{what}:\n{}", tally.unwrap_or_default());
    }
    println!("{before:?} descriptors and bytes before, {after:?} after");
    assert!(after.0 <= before.0 + 4, "descriptors were leaked");
    assert!(after.1 < before.1 + 32 * MIB, "memory was leaked");
}
