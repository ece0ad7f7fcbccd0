//! Cold boots, each in a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_pool::FunctionConfig;
use dormouse_vmm::{GuestImage, GuestOutput, MachineConfig, Placement, Shell, Stop, Stream, Vm};

use super::Group;
use super::lab::Lab;
use crate::{Error, Pair, Row, us};

pub(super) const GROUP: Group = Group {
    title: "cold boots",
    names: &["cold-boot/hello"],
    measure,
};

/// More than any boot takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn measure(lab: &Lab) -> Result<Vec<Row>, Error> {
    let mut pair = Pair::default();
    for _ in 0..lab.rounds(30) {
        let (all_us, guest_us) = in_a_process(lab)?;
        pair.ours.push(all_us / 1e3);
        pair.floor.push(guest_us / 1e3);
    }
    let row = Row::of_pair("cold-boot/hello", "ms", pair);
    Ok(row.map(|row| row.with_limit(1.1)).into_iter().collect())
}

/// From the start of a process until its guest is ready, and of that the time in `KVM_RUN`.
fn in_a_process(lab: &Lab) -> Result<(f64, f64), Error> {
    let wrong = |answer: String| Error::Answer {
        what: "a booting process".to_owned(),
        answer,
    };
    let begun = Instant::now();
    let mut process = Command::new(lab.dormouse())
        .args(["bench", "boot"])
        .arg(lab.image_path("hello"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Error::system("starting a process"))?;
    let mut line = String::new();
    let read = match process.stdout.take() {
        Some(output) => BufReader::new(output).read_line(&mut line),
        None => Ok(0),
    };
    let all_us = us(begun.elapsed());
    let status = process
        .wait()
        .map_err(Error::system("waiting for a process"))?;
    read.map_err(Error::system("listening to a process"))?;
    let guest_us = line.trim().parse();
    match guest_us {
        Ok(guest_us) if status.success() => Ok((all_us, guest_us)),
        _ => Err(wrong(format!("{status}, {line:?}"))),
    }
}

/// Boots an image until it is ready, as a deployment does. Returns how long the guest was in
/// `KVM_RUN` for that, in microseconds.
///
/// # Errors
/// [`Error::Image`], [`Error::Vmm`], or [`Error::Answer`] where the guest stops in another way.
pub fn boot(path: &Path) -> Result<f64, Error> {
    let file = std::fs::read(path).map_err(|source| Error::Image {
        path: path.to_owned(),
        source,
    })?;
    let image = Arc::new(GuestImage::parse(&file)?);
    let config = MachineConfig {
        memory_bytes: FunctionConfig::default().memory_bytes,
        ..MachineConfig::default()
    };
    let shell = Shell::new(Placement::choose(&config, &image)?)?;
    let mut vm = Vm::boot(shell, &image, &config, Box::new(Silent))?;
    match vm.run(Instant::now() + PATIENCE)? {
        Stop::Exchange { .. } => Ok(us(vm.guest_time())),
        other => Err(Error::Answer {
            what: path.display().to_string(),
            answer: format!("{other:?}"),
        }),
    }
}

/// Nobody reads what is printed at boot.
struct Silent;

impl GuestOutput for Silent {
    fn write(&mut self, _stream: Stream, _bytes: &[u8]) {}
}
