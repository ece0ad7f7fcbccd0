//! A real function whose snapshot is damaged: it answers right, or not at all.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use dormouse_pool::{FunctionConfig, Pool, PoolConfig, Request, StartType, Verify};
use dormouse_snapshot::Store;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use tokio::runtime::Runtime;

use crate::damage::Damage;
use crate::drive::Cases;
use crate::operation::Operation;
use crate::report::Report;
use crate::scene::Scene;

pub(crate) const KIND: &str = "function";

const FUNCTION: &str = "hello";

/// What is asked of each damaged function, one after the other: the later ones meet clones that were
/// rolled back, and pages that came in behind the first.
const TARGETS: [&str; 3] = ["/", "/torture", "/again?and=again"];

/// Says why this host cannot run functions; nothing where it can.
fn missing() -> Option<String> {
    if let Err(error) = dormouse_vmm::Host::open() {
        return Some(error.to_string());
    }
    match dormouse_pager::probe() {
        Err(error) => Some(error.to_string()),
        Ok(support) if !support.usable() => Some("userfaultfd lacks features".to_owned()),
        Ok(_) => None,
    }
}

/// Damages the sample function `hello`; where no guest can run this fails, unless `may_skip`.
pub(crate) fn run(
    place: &Path,
    images: &Path,
    may_skip: bool,
    seed: u64,
    mut cases: Cases,
    report: &mut Report,
) -> Result<()> {
    if let Some(missing) = missing() {
        ensure!(
            may_skip,
            "this host cannot run guests: {missing}; set DORMOUSE_TEST_NO_KVM=1 to go without them"
        );
        let reason = format!("no guest can run here: {missing}");
        report.skip(KIND, cases.left(), reason);
        return Ok(());
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let runtime = Runtime::new().context("cannot start tokio")?;
    let scene = Scene::empty(place, Operation::Verify)?;
    let right = deploy(&runtime, &scene.store(), images)?;
    while cases.next() {
        damage_once(&runtime, &scene, &right, &mut rng, report)?;
    }
    Ok(())
}

/// Deploys the function and tells its answers.
fn deploy(runtime: &Runtime, store: &Path, images: &Path) -> Result<Vec<Vec<u8>>> {
    let path = images.join(FUNCTION);
    let image = std::fs::read(&path).with_context(|| {
        format!(
            "cannot read {}; `cargo xtask functions` builds the images",
            path.display()
        )
    })?;
    let pool = Pool::new(Store::open(store)?, PoolConfig::default());
    let deployed = pool.deploy(FUNCTION, image.into(), FunctionConfig::default());
    runtime.block_on(deployed)?;
    let answers = TARGETS.iter().map(|target| {
        let (_, answer) = ask(runtime, &pool, target)?;
        Ok(answer)
    });
    let answers = answers.collect::<Result<_>>();
    runtime.block_on(pool.drain(Duration::from_secs(5)));
    answers
}

fn ask(runtime: &Runtime, pool: &Pool, target: &str) -> Result<(StartType, Vec<u8>)> {
    let request = Request {
        method: "GET".to_owned(),
        target: target.to_owned(),
        ..Request::default()
    };
    let outcome =
        runtime.block_on(async { pool.checkout(FUNCTION).await?.invoke(request).await })?;
    match outcome.result {
        Ok(answer) => Ok((outcome.start, answer.body.to_vec())),
        Err(failure) => bail!("the function failed: {failure:?}"),
    }
}

fn damage_once(
    runtime: &Runtime,
    scene: &Scene,
    right: &[Vec<u8>],
    rng: &mut ChaCha8Rng,
    report: &mut Report,
) -> Result<()> {
    let copy = scene.copied()?;
    let files = files(&copy.store().join(FUNCTION))?;
    let (Some(file), Some(other)) = (files.choose(rng), files.choose(rng)) else {
        bail!("the function has no files");
    };
    let damage = Damage::any(rng);
    damage.inflict(file, other, rng)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let asked = catch_unwind(AssertUnwindSafe(|| {
        // What promises that no damaged byte is used.
        let config = PoolConfig {
            verify: Verify::Always,
            ..PoolConfig::default()
        };
        let pool = Pool::new(Store::open(copy.store())?, config);
        let how = check(runtime, &pool, right);
        runtime.block_on(pool.drain(Duration::from_secs(5)));
        how
    }));
    let how = asked
        .unwrap_or_else(|_| Err(anyhow!("a panic")))
        .with_context(|| format!("{damage:?} in {name}"))?;
    report.count(KIND, format!("{} in a file", damage.name()), how);
    Ok(())
}

fn check(runtime: &Runtime, pool: &Pool, right: &[Vec<u8>]) -> Result<&'static str> {
    let mut how = "answered right";
    for (target, right) in TARGETS.iter().zip(right) {
        match ask(runtime, pool, target) {
            Ok((start, answer)) => {
                ensure!(
                    answer == *right,
                    "WRONG: {target} was answered with {:?} and not with {:?}",
                    String::from_utf8_lossy(&answer),
                    String::from_utf8_lossy(right)
                );
                if start == StartType::Cold {
                    how = "booted cold, answered right";
                }
            }
            Err(error) => {
                let message = format!("{error:#}");
                // It ran, so something was taken for right that is not.
                ensure!(
                    !message.contains("the function failed"),
                    "WRONG: {target}: {message}"
                );
                how = "refused";
            }
        }
    }
    Ok(how)
}

/// The files below `folder`, in an order that is always the same.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => files.extend(self::files(&path)?),
            false => files.push(path),
        }
    }
    files.sort();
    Ok(files)
}
