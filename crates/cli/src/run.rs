//! `dormouse run`: any Hermit program in a microVM of its own, as if it were a program of the host.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use dormouse_vmm::{
    Error, GuestImage, GuestOutput, MachineConfig, Mapping, Placement, Shell, Stop, Stream, Vm,
};

use crate::deploy::{GuestArgs, read_file};
use crate::exit::{Exit, Failed};
use crate::output::Shown;

/// Further away than any run lasts.
const NO_DEADLINE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Runs a Hermit program in a microVM
///
/// Its stdout and stderr are this command's, and so is its exit code (the lowest 8 bits of it, so
/// that the -1 of a panic is 255). What the kernel itself prints goes to stderr. A terminal gets no control
/// characters but ends of lines and tabs: the others are written out.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The Hermit image
    image: PathBuf,

    #[command(flatten)]
    guest: GuestArgs,

    /// End the program after this time, for example 5s [default: never]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,

    /// A folder whose files the program may read, under /root
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,

    /// Let the program read this command's stdin (Hermit kernels of hypercall interface v2)
    #[arg(long)]
    stdin: bool,

    /// Map memory as Hermit kernels before 0.10 need it
    #[arg(long)]
    legacy_mapping: bool,

    /// Leave out what the kernel itself prints
    #[arg(short, long)]
    quiet: bool,

    /// The program's arguments
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// Runs the command and returns the program's exit code.
pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let guest = args.guest.config(&args.args)?;
    let config = MachineConfig {
        memory_bytes: guest.memory_bytes,
        base: guest.base,
        mapping: if args.legacy_mapping {
            Mapping::Legacy
        } else {
            Mapping::Guest
        },
        args: guest.args,
        env: guest.env,
        files: args.files.clone(),
        stdin: args.stdin,
    };
    let image = read_file(&args.image)?;
    let deadline = Instant::now() + args.timeout.unwrap_or(NO_DEADLINE).min(NO_DEADLINE);
    let stop = start(&image, &config, args.quiet)
        .and_then(|mut vm| vm.run(deadline))
        .map_err(failed)?;
    match stop {
        Stop::Exit(code) => Ok(ExitCode::from(low_byte(code))),
        Stop::Crashed(crash) => Err(Failed::new(
            Exit::Function,
            format!("the program crashed: {}", crash.reason),
        )
        .into()),
        Stop::TimedOut | Stop::Interrupted => Err(Failed::new(
            Exit::Function,
            format!(
                "the program did not end within {:?}",
                args.timeout.unwrap_or_default()
            ),
        )
        .hint("give it a longer --timeout if it needs one")
        .into()),
        Stop::Exchange { .. } => Err(Failed::new(
            Exit::Data,
            format!(
                "{} is a function, which waits for requests",
                args.image.display()
            ),
        )
        .hint("`dormouse deploy NAME IMAGE`, then `dormouse invoke NAME`")
        .into()),
    }
}

fn start(image: &[u8], config: &MachineConfig, quiet: bool) -> Result<Vm, Error> {
    let image = Arc::new(GuestImage::parse(image)?);
    let shell = Shell::new(Placement::choose(config, &image)?)?;
    Vm::boot(shell, &image, config, Box::new(Streams::new(quiet)))
}

/// Passes on what the guest writes, at once: the program may be talking with somebody.
struct Streams {
    quiet: bool,
    /// Where it is a terminal, which nobody's program may speak to.
    stdout: Option<Shown>,
    stderr: Option<Shown>,
}

impl Streams {
    fn new(quiet: bool) -> Self {
        Self {
            quiet,
            stdout: io::stdout().is_terminal().then(Shown::default),
            stderr: io::stderr().is_terminal().then(Shown::default),
        }
    }
}

impl GuestOutput for Streams {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        // Whoever closed the other end does not want more; the program need not care.
        let _ = match stream {
            Stream::Stdout => write(io::stdout().lock(), &mut self.stdout, bytes),
            Stream::Kernel if self.quiet => Ok(()),
            Stream::Stderr | Stream::Kernel => write(io::stderr().lock(), &mut self.stderr, bytes),
        };
    }
}

fn write(mut to: impl Write, terminal: &mut Option<Shown>, bytes: &[u8]) -> io::Result<()> {
    match terminal {
        Some(shown) => to.write_all(shown.next(bytes).as_bytes())?,
        None => to.write_all(bytes)?,
    }
    to.flush()
}

fn failed(error: Error) -> Failed {
    let exit = match &error {
        Error::Image { .. } => Exit::Data,
        Error::Files { .. } => Exit::NoInput,
        Error::NoKvm { .. } | Error::Memory { .. } => Exit::Unavailable,
        Error::MemorySize { .. }
        | Error::BaseUnaligned { .. }
        | Error::BaseTooHigh { .. }
        | Error::OverDevices { .. }
        | Error::OutOfTableFrames { .. }
        | Error::ImageTooLarge { .. }
        | Error::ArgumentsTooLarge { .. }
        | Error::Argument { .. } => Exit::Usage,
        _ => Exit::Internal,
    };
    let failed = Failed::new(exit, error.to_string());
    if exit == Exit::Unavailable {
        return failed.hint("`dormouse doctor` shows what the host lacks");
    }
    failed
}

fn low_byte(code: i32) -> u8 {
    code.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_cut_as_a_shell_does() {
        assert_eq!(low_byte(0), 0);
        assert_eq!(low_byte(7), 7);
        assert_eq!(low_byte(-1), 255);
        assert_eq!(low_byte(256), 0);
    }
}
