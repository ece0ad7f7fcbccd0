//! What goes wrong, or only on, beside the load: workers are killed, functions published anew,
//! functions and snapshots removed.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;
use serde_json::Value;
use ureq::http::Method;

use super::client::{Client, Failure, Reply};
use super::judge::{Judge, is_loss, is_refusal};
use super::requests::{FUNCTIONS, Function, GREETING};
use super::resources;

/// From one kill to the next, in milliseconds.
const KILL_EVERY_MS: std::ops::Range<u64> = 2000..5000;
/// From one publication to the next, and from one removal to the next.
const PUBLISH_EVERY_MS: std::ops::Range<u64> = 8000..16_000;
const REMOVE_EVERY_MS: std::ops::Range<u64> = 8000..16_000;
/// What a request that boots may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(180);
/// The function that comes and goes.
const PASSING: &str = "passing";
/// Functions that are deployed again: they boot in about a second.
const DEPLOYED: [&str; 5] = ["echo", "hello", "burn", "whoami", "faulty"];
/// Functions that are warmed, and with what.
const WARMED: [(&str, &str); 3] = [
    ("hello", "/"),
    ("burn", "/?read=100"),
    ("wordfreq", "/words"),
];
/// How `dormouse snapshot rm` ends where it refuses: what layers stand on, what is gone already, what
/// is in use (the exit codes in its help).
const RM_REFUSES: [i32; 3] = [2, 66, 75];

/// How often what happened.
#[derive(Debug, Default, Clone)]
pub(super) struct Events {
    pub(super) deployed: u64,
    pub(super) warmed: u64,
    pub(super) functions_removed: u64,
    pub(super) snapshots_removed: u64,
    pub(super) collections: u64,
    /// Of these, what was refused, or lost with a worker.
    pub(super) refused: u64,
    /// What went wrong, one sentence each.
    pub(super) wrong: Vec<String>,
}

/// A snapshot, as `dormouse snapshot ls` tells of it.
#[derive(Debug, Deserialize)]
struct Row {
    function: String,
    id: String,
    /// What it is a layer on.
    parent: Option<String>,
}

impl Row {
    fn name(&self) -> String {
        format!("{}@{}", self.function, self.id)
    }
}

/// What is hurt, and how far it has come.
pub(super) struct Chaos<'a> {
    pub(super) dormouse: &'a Path,
    pub(super) images: &'a Path,
    pub(super) url: &'a str,
    pub(super) store: &'a Path,
    pub(super) server: u32,
    pub(super) judge: &'a Judge,
    /// Set when the load has ended: then nothing more is begun.
    pub(super) is_over: AtomicBool,
    pub(super) events: Mutex<Events>,
}

/// Something that is done again and again; an error where it went wrong.
type Act<'a> = fn(&Chaos<'a>, &mut ChaCha8Rng) -> Result<()>;

impl<'a> Chaos<'a> {
    /// Goes on until it is over. Each kind of thing has a thread of its own.
    pub(super) fn run(&self, seed: u64) {
        thread::scope(|scope| {
            let acts: [(Act<'a>, _); 3] = [
                (Self::kill, KILL_EVERY_MS),
                (Self::publish, PUBLISH_EVERY_MS),
                (Self::remove, REMOVE_EVERY_MS),
            ];
            for (number, (act, every_ms)) in (1..).zip(acts) {
                scope.spawn(move || {
                    // Streams of their own: what one does does not depend on the others.
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    rng.set_stream(number);
                    while self.pause(rng.random_range(every_ms.clone())) {
                        if let Err(error) = act(self, &mut rng) {
                            let sentence = format!("{error:#}");
                            eprintln!("wrong: {sentence}");
                            self.note(|events| events.wrong.push(sentence));
                        }
                    }
                });
            }
        });
    }

    /// Whether there is to be more after a pause.
    fn pause(&self, pause_ms: u64) -> bool {
        const LOOK_EVERY: Duration = Duration::from_millis(200);
        let until = Instant::now() + Duration::from_millis(pause_ms);
        loop {
            if self.is_over.load(Ordering::Relaxed) {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(LOOK_EVERY));
        }
    }

    fn note(&self, note: impl FnOnce(&mut Events)) {
        note(&mut self.events.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Kills a worker, whichever.
    fn kill(&self, rng: &mut ChaCha8Rng) -> Result<()> {
        let workers = resources::workers(self.server)?;
        let Some(&worker) = workers.choose(rng) else {
            return Ok(());
        };
        let pid = i32::try_from(worker).ok().and_then(Pid::from_raw);
        let pid = pid.with_context(|| format!("{worker} is no process id"))?;
        // A descriptor stays with its process: nobody else is hit where that one ends now.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        if !resources::is_worker(worker) {
            return Ok(());
        }
        self.judge.kills.begin();
        // It may have ended by itself.
        let _ = pidfd_send_signal(process, Signal::KILL);
        Ok(())
    }

    /// Deploys a function with another environment, or warms one.
    fn publish(&self, rng: &mut ChaCha8Rng) -> Result<()> {
        if rng.random_ratio(1, 2) {
            let name = DEPLOYED.choose(rng).copied().unwrap_or(DEPLOYED[0]);
            let function = FUNCTIONS.iter().find(|function| function.name == name);
            let Function { options, .. } = function.context("it is under load")?;
            let value: u32 = rng.random();
            let options = format!("?env=SOAK={value}&{options}");
            if self.deploy(name, name, options.trim_end_matches('&'))? {
                self.note(|events| events.deployed += 1);
            }
            return Ok(());
        }
        let (name, path) = WARMED.choose(rng).copied().unwrap_or(WARMED[0]);
        let path = path.replace('?', "%3F");
        let path = format!("/v1/functions/{name}/warm?runs=2&path={path}");
        let begun = Instant::now();
        let reply = self.send(&Method::POST, &path, b"")?;
        if self.is_done(begun, &reply, 201, &path)? {
            self.note(|events| events.warmed += 1);
        }
        Ok(())
    }

    /// Deploys, invokes and removes a function that nobody else uses; then removes snapshots.
    fn remove(&self, rng: &mut ChaCha8Rng) -> Result<()> {
        let begun = Instant::now();
        if self.deploy(PASSING, "hello", "")? {
            let path = format!("/v1/functions/{PASSING}/invoke/");
            let reply = self.send(&Method::GET, &path, b"")?;
            if self.is_done(begun, &reply, 200, &path)? {
                ensure!(
                    reply.body == GREETING.as_bytes(),
                    "{path} answered {}",
                    reply.describe()
                );
            }
        }
        self.remove_passing()?;

        self.remove_snapshot(rng)?;
        let gc = ["gc", "--keep-last", "3", "--format", "json"];
        let (code, said) = self.snapshot(&gc)?;
        ensure!(code == 0, "dormouse snapshot gc ended with {code}: {said}");
        let collected: Value = serde_json::from_str(&said)?;
        let removed = collected["removed"].as_array().map_or(0, Vec::len);
        self.note(|events| {
            events.collections += 1;
            events.snapshots_removed += removed as u64;
        });
        Ok(())
    }

    /// Removes the function that comes and goes, and sees that it is gone.
    fn remove_passing(&self) -> Result<()> {
        let path = format!("/v1/functions/{PASSING}");
        loop {
            let begun = Instant::now();
            let reply = self.send(&Method::DELETE, &path, b"")?;
            // What was never deployed cannot be removed.
            if reply.error.as_deref() == Some("unknown-function") {
                return Ok(());
            }
            if self.is_done(begun, &reply, 204, &path)? {
                break;
            }
            thread::sleep(Duration::from_millis(500));
        }
        self.note(|events| events.functions_removed += 1);
        let path = format!("{path}/invoke/");
        let reply = self.send(&Method::GET, &path, b"")?;
        ensure!(
            reply.error.as_deref() == Some("unknown-function"),
            "{path} answered after its removal: {}",
            reply.describe()
        );
        Ok(())
    }

    /// Removes one snapshot that is not its function's newest and that no layer stands on, whichever.
    fn remove_snapshot(&self, rng: &mut ChaCha8Rng) -> Result<()> {
        let (code, said) = self.snapshot(&["ls", "--all", "--format", "json"])?;
        ensure!(code == 0, "dormouse snapshot ls ended with {code}: {said}");
        let rows: Vec<Row> = serde_json::from_str(&said)?;
        let parents: HashSet<&str> = rows
            .iter()
            .filter_map(|row| row.parent.as_deref())
            .collect();
        // From old to new, function by function.
        let older = rows
            .windows(2)
            .filter(|pair| pair[0].function == pair[1].function);
        let names = older.map(|pair| pair[0].name());
        let names: Vec<String> = names.filter(|name| !parents.contains(&**name)).collect();
        let Some(name) = names.choose(rng) else {
            return Ok(());
        };
        let (code, said) = self.snapshot(&["rm", name])?;
        match code {
            0 => self.note(|events| events.snapshots_removed += 1),
            // A warming may have begun on it since.
            code if RM_REFUSES.contains(&code) => {}
            code => bail!("dormouse snapshot rm {name} ended with {code}: {said}"),
        }
        Ok(())
    }

    /// `dormouse snapshot …` on the server's store: its exit code, and what it said.
    fn snapshot(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let output = Command::new(self.dormouse)
            .arg("snapshot")
            .args(arguments)
            .arg("--store")
            .arg(self.store)
            .output()
            .with_context(|| format!("cannot start {}", self.dormouse.display()))?;
        let code = output.status.code().unwrap_or(-1);
        let said = if code == 0 {
            output.stdout
        } else {
            output.stderr
        };
        Ok((code, String::from_utf8_lossy(&said).into_owned()))
    }

    /// Deploys a sample under a name, with options (a query with its question mark); says whether
    /// that was done.
    pub(super) fn deploy(&self, name: &str, sample: &str, options: &str) -> Result<bool> {
        let image = self.images.join(sample);
        let image =
            std::fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
        let path = format!("/v1/functions/{name}{options}");
        let begun = Instant::now();
        let reply = self.send(&Method::PUT, &path, &image)?;
        // 200 where it was there.
        let status = if reply.status == 200 { 200 } else { 201 };
        self.is_done(begun, &reply, status, &path)
    }

    fn send(&self, method: &Method, path: &str, body: &[u8]) -> Result<Reply> {
        match Client::new(self.url, PATIENCE).send(method, path, body) {
            Ok(reply) => Ok(reply),
            Err(Failure::Hung) => bail!("{method} {path}: no answer came"),
            Err(Failure::Broken(why)) => bail!("{method} {path}: {why}"),
        }
    }

    /// Whether a reply says that it was done, and not that it cannot be now.
    fn is_done(&self, begun: Instant, reply: &Reply, status: u16, path: &str) -> Result<bool> {
        let Some(code) = &reply.error else {
            let describe = || format!("{path} answered {}", reply.describe());
            ensure!(reply.status == status, describe());
            return Ok(true);
        };
        let kills = &self.judge.kills;
        let is_allowed = is_refusal(code) || (is_loss(code) && kills.can_have_hurt(begun));
        ensure!(is_allowed, "{path} answered {}", reply.describe());
        self.judge.documented(reply, code)?;
        self.note(|events| events.refused += 1);
        Ok(false)
    }
}
