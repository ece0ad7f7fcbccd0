//! The main job, shown: cold boot, snapshot, restore, answers over HTTP.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::progress::Step;
use crate::readme::Block;
use crate::repo::Repo;
use crate::server::Server;
use crate::{functions, setup};

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Stop the server at the end instead of leaving it running
    #[arg(long)]
    once: bool,
    /// Write the table into README.md
    #[arg(long)]
    readme: bool,
}

/// What is shown: function, the path below it that is asked for, and what the answer must hold.
const SHOWN: [(&str, &str, &str); 3] = [
    ("hello", "/", "Hello from Dormouse!"),
    ("wordfreq", "/?word=bade", "\"word\":\"bade\""),
    ("whoami", "/", "\"requests\":1}"),
];
/// Where README.md has what is shown.
pub(crate) const README: Block = Block {
    name: "demo",
    title: "What it shows, as `cargo xtask demo --once --readme` wrote it here",
};
/// Answers after the first that the medians are taken of.
const NEXT_ANSWERS: usize = 50;
const PAGE_BYTES: u64 = 4096;
/// What stands under the table.
const EXPLAINED: &str = "\
Times as this client sees them, over one connection that stays open; `restore` is the server's part
of the first answer. Each answer comes from a clone that nobody used before.";

/// Runs the demo.
pub(crate) fn run(repo: &Repo, args: &DemoArgs) -> Result<()> {
    setup::run(repo)?;
    let dormouse = functions::dormouse(repo, true)?;
    let images = functions::build(repo, &dormouse)?;

    let (transcript, server) = show(repo, &dormouse, &images)?;
    println!("\n{transcript}");
    if args.readme {
        README.write(&repo.path("README.md"), &transcript)?;
    }
    let url = server.url();
    if args.once {
        return server.stop();
    }
    println!("\nThe server runs at {url}; try:");
    for (name, path, _) in SHOWN {
        println!("  curl -i '{url}/v1/functions/{name}/invoke{path}'");
    }
    println!("  curl -i --data-binary @README.md '{url}/v1/functions/echo/invoke'");
    println!("  curl '{url}/v1/functions'");
    println!("Ctrl-C stops it.");
    server.wait()
}

/// Deploys and invokes the functions that are shown. Returns what is said of them, and the server
/// that still runs.
pub(crate) fn show(repo: &Repo, dormouse: &Path, images: &Path) -> Result<(String, Server)> {
    let listen = ["--listen", free_address()];
    let server = Server::start(
        dormouse,
        &repo.path("target/demo"),
        listen,
        Stdio::inherit(),
    )?;
    let client = Client::new(server.url());
    let mut rows = Vec::new();
    for (name, path, expected) in SHOWN {
        rows.push(client.show(images, name, path, expected)?);
    }
    client.deploy(images, "echo")?;

    let shown = client.transcript("hello", "/")?;
    let transcript = format!("{}\n{EXPLAINED}\n\n{shown}", table(&rows));
    Ok((transcript, server))
}

/// The usual port, or any where that one is taken.
fn free_address() -> &'static str {
    const USUAL: &str = "127.0.0.1:8080";
    if TcpListener::bind(USUAL).is_ok() {
        USUAL
    } else {
        "127.0.0.1:0"
    }
}

struct Client {
    agent: ureq::Agent,
    url: String,
}

struct Answer {
    took: Duration,
    start_type: String,
    restore_ms: String,
}

impl Client {
    fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(300)))
            .build();
        Self {
            agent: config.into(),
            url: url.to_owned(),
        }
    }

    /// Deploys an image and returns what the server says of it.
    fn deploy(&self, images: &Path, name: &str) -> Result<Value> {
        let image: PathBuf = images.join(name);
        let bytes = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
        let step = Step::begin(&format!("deploying {name}: cold boot and snapshot"));
        let mut response = self
            .agent
            .put(format!("{}/v1/functions/{name}", self.url))
            .content_type("application/octet-stream")
            .send(&bytes[..])
            .with_context(|| format!("cannot deploy {name}"))?;
        let status = response.status();
        let said = response.body_mut().read_to_string()?;
        if !status.is_success() {
            bail!("the server refused {name} with {status}: {said}");
        }
        step.done();
        serde_json::from_str(&said).context("the server did not answer with JSON")
    }

    fn invoke(&self, name: &str, path: &str, expected: &str) -> Result<Answer> {
        let url = format!("{}/v1/functions/{name}/invoke{path}", self.url);
        let started = Instant::now();
        let mut response = self.agent.get(&url).call()?;
        let body = response.body_mut().read_to_string()?;
        let took = started.elapsed();
        if !body.contains(expected) {
            bail!("{url} answered {} and {body:?}", response.status());
        }
        let header = |name| {
            let value = response.headers().get(name);
            value
                .and_then(|value| value.to_str().ok())
                .unwrap_or("?")
                .to_owned()
        };
        Ok(Answer {
            took,
            start_type: header("x-start-type"),
            restore_ms: timing(&header("server-timing"), "restore"),
        })
    }

    /// One more request and its whole answer, as `curl -i` shows them.
    fn transcript(&self, name: &str, path: &str) -> Result<String> {
        let url = format!("{}/v1/functions/{name}/invoke{path}", self.url);
        let mut response = self.agent.get(&url).call()?;
        let mut text = format!(
            "$ curl -i {url}\n{:?} {}\n",
            response.version(),
            response.status()
        );
        for (name, value) in response.headers() {
            text.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
        }
        text.push('\n');
        text.push_str(&response.body_mut().read_to_string()?);
        Ok(text)
    }

    /// Deploys a function, invokes it, and returns its row of the table.
    fn show(&self, images: &Path, name: &str, path: &str, expected: &str) -> Result<[String; 8]> {
        let deployed = self.deploy(images, name)?;
        // A connection that is open already, as a client's usually is; it stays open only when its
        // answer has been read.
        let mut alive = self.agent.get(format!("{}/livez", self.url)).call()?;
        alive.body_mut().read_to_string()?;

        let first = self.invoke(name, path, expected)?;
        let step = Step::begin(&format!("invoking {name} {NEXT_ANSWERS} times"));
        let mut next = Vec::new();
        for _ in 0..NEXT_ANSWERS {
            next.push(self.invoke(name, path, expected)?);
        }
        step.done();
        next.sort_by_key(|answer| answer.took);
        let median = &next[NEXT_ANSWERS / 2];

        let mut info = self
            .agent
            .get(format!("{}/v1/functions/{name}", self.url))
            .call()?;
        let info: Value = serde_json::from_str(&info.body_mut().read_to_string()?)?;
        let boot = Duration::from_micros(deployed["boot_us"].as_u64().unwrap_or(0));
        let ratio = boot.as_secs_f64() / first.took.as_secs_f64();
        Ok([
            name.to_owned(),
            milliseconds(boot),
            format!("{} ({})", first.restore_ms, first.start_type),
            milliseconds(first.took),
            format!("{ratio:.0} times"),
            format!("{} ({})", milliseconds(median.took), median.start_type),
            (info["data_bytes"].as_u64().unwrap_or(0) / PAGE_BYTES).to_string(),
            info["working_set_pages"].to_string(),
        ])
    }
}

/// The duration of one metric of a `Server-Timing` header, milliseconds.
fn timing(header: &str, metric: &str) -> String {
    header
        .split(", ")
        .filter_map(|entry| entry.strip_prefix(metric)?.strip_prefix(";dur="))
        .map(|rest| rest.split(';').next().unwrap_or(rest).to_owned())
        .next()
        .unwrap_or_else(|| "?".to_owned())
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1e3)
}

fn table(rows: &[[String; 8]]) -> String {
    let head = [
        "function",
        "cold boot, ms",
        "restore, ms",
        "first answer, ms",
        "sooner",
        "next answers, ms (median)",
        "pages in memory",
        "pages touched",
    ]
    .map(str::to_owned);
    let lines: Vec<&[String; 8]> = std::iter::once(&head).chain(rows).collect();
    let widths: [usize; 8] = std::array::from_fn(|column| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    });
    let mut text = String::new();
    for line in lines {
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            // Names to the left, numbers to the right.
            let cell = if column == 0 {
                format!("{cell:<width$}")
            } else {
                format!("  {cell:>width$}")
            };
            text.push_str(&cell);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_in_its_header() {
        let header = "queue;dur=0.012, restore;dur=0.047, faults;dur=0.030;desc=\"3\", run;dur=1";
        assert_eq!(timing(header, "restore"), "0.047");
        assert_eq!(timing(header, "faults"), "0.030");
        assert_eq!(timing(header, "run"), "1");
        assert_eq!(timing(header, "boot"), "?");
    }
}
