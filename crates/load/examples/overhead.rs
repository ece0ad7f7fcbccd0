//! What the harness costs beside the bare system calls of the same requests: a timer, a write and a
//! read. Both drive the same server at the same rate, in turns.
//!
//! `cargo run --release -p dormouse-load --example overhead -- http://127.0.0.1:8080/livez [RATE]`

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use dormouse_load::{Arrivals, Pattern, Plan, Rate, Request, Stop, Target, run};
use rustix::time::{ClockId, clock_gettime};

const TIME: Duration = Duration::from_secs(4);
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments
        .next()
        .context("give a URL like http://127.0.0.1:8080/livez")?;
    let rate: f64 = arguments.next().map_or(Ok(1000.0), |rate| rate.parse())?;
    let (ours, bare): (Vec<_>, Vec<_>) = (0..ROUNDS)
        .map(|_| Ok((harness(&url, rate)?, bare(&url, rate)?)))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .unzip();
    let (ours, bare) = (median(ours), median(bare));
    println!(
        "{rate} requests/s, medians of {ROUNDS} rounds of {TIME:?}, in % of a core per 1000/s"
    );
    println!(
        "harness {ours:.2}, bare system calls {bare:.2}, harness alone {:.2}",
        ours - bare
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Host and path of a URL.
fn split(url: &str) -> Result<(&str, &str)> {
    let rest = url
        .strip_prefix("http://")
        .context("it is no http:// URL")?;
    let slash = rest.find('/').unwrap_or(rest.len());
    Ok((&rest[..slash], &rest[slash..]))
}

fn harness(url: &str, rate: f64) -> Result<f64> {
    let (host, path) = split(url)?;
    let target = Target::parse(&format!("http://{host}"))?;
    let plan = Plan {
        name: "overhead".to_owned(),
        pattern: Pattern::Open(Arrivals::Rated {
            rate: Rate::Constant(rate),
            is_poisson: false,
        }),
        requests: vec![Request::new("it", "GET", &target, path, &[], Bytes::new())?],
        weights: vec![1.0],
        warmup: Duration::ZERO,
        measured: TIME,
        connections: 64,
        threads: 1,
        timeout: Duration::from_secs(10),
        seed: 1,
    };
    let run = run(plan, &target, &Stop::default(), |_| {})?;
    ensure!(run.failed == 0, "requests failed: {:?}", run.errors);
    Ok(run.client.cpu_percent_per_1000_per_s)
}

/// One connection, one request at a time, nothing parsed: less cannot be done.
fn bare(url: &str, rate: f64) -> Result<f64> {
    let (host, path) = split(url)?;
    let mut stream = TcpStream::connect(host)?;
    stream.set_nodelay(true)?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let mut reply = [0; 4096];
    let before = cpu();
    let begun = Instant::now();
    let count = (rate * TIME.as_secs_f64()) as u32;
    for number in 0..count {
        let due = begun + Duration::from_secs_f64(f64::from(number) / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(request.as_bytes())?;
        ensure!(stream.read(&mut reply)? > 0, "the connection was closed");
    }
    let spent = cpu().saturating_sub(before);
    Ok(spent.as_secs_f64() * 1e6 / f64::from(count) / 10.0)
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
