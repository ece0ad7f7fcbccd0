//! A worker whose every system call is seen, and may be kept from happening (`ptrace(2)`).

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Output};

use anyhow::{Context, Result, bail};
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::io::Errno;

use crate::worker::Ended;

/// The longest path that is read from a worker.
const MAX_PATH_BYTES: usize = 4096;

/// One system call, before it happens (x86-64).
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Which one.
    pub(crate) number: c_long,
    /// What it was called with.
    pub(crate) arguments: [u64; 5],
    process: Pid,
}

/// What is done to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// It does not happen, and says this.
    Fail(Errno),
    /// The process dies instead.
    Kill,
    /// It happens with this length in place of its own, and then the process dies.
    ShortenAndKill(u64),
    /// It happens with this length in place of its own.
    Shorten(u64),
}

/// Who is asked about every system call.
pub(crate) trait Tracer {
    /// Before the call.
    fn enter(&mut self, call: &Call) -> Result<Verdict>;

    /// After it, with what it returned; not where it was kept from happening.
    fn leave(&mut self, _call: &Call, _returned: i64) -> Result<()> {
        Ok(())
    }
}

impl<F: FnMut(&Call) -> Verdict> Tracer for F {
    fn enter(&mut self, call: &Call) -> Result<Verdict> {
        Ok(self(call))
    }
}

impl Call {
    /// The text that the argument `which` points to.
    pub(crate) fn path(&self, which: usize) -> Result<String> {
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.process))?;
        let mut path = Vec::new();
        let mut at = self.arguments[which];
        while path.len() < MAX_PATH_BYTES {
            // Not across a page's end, behind which there may be nothing.
            let mut part = vec![0; 256 - (at % 256) as usize];
            memory.read_exact_at(&mut part, at)?;
            if let Some(end) = part.iter().position(|byte| *byte == 0) {
                path.extend_from_slice(&part[..end]);
                return Ok(String::from_utf8(path)?);
            }
            at += part.len() as u64;
            path.extend(part);
        }
        bail!("a path has more than {MAX_PATH_BYTES} bytes")
    }

    /// `bytes` of what the argument `which` points to.
    pub(crate) fn bytes(&self, which: usize, bytes: u64) -> Result<Vec<u8>> {
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.process))?;
        let mut content = vec![0; usize::try_from(bytes)?];
        memory.read_exact_at(&mut content, self.arguments[which])?;
        Ok(content)
    }

    /// Whether it writes as many bytes as its third argument says.
    pub(crate) fn is_write(&self) -> bool {
        [libc::SYS_write, libc::SYS_pwrite64].contains(&self.number)
    }

    /// Whether it is about files, and so fails where the disk does.
    pub(crate) fn is_of_files(&self) -> bool {
        let reads = [
            libc::SYS_read,
            libc::SYS_pread64,
            libc::SYS_statx,
            libc::SYS_fstat,
            libc::SYS_newfstatat,
            libc::SYS_getdents64,
            libc::SYS_flock,
            libc::SYS_open,
            libc::SYS_openat,
        ];
        reads.contains(&self.number) || self.changes_files()
    }

    /// Whether it changes files or folders, or makes a change last.
    pub(crate) fn changes_files(&self) -> bool {
        let of_names = [
            libc::SYS_mkdir,
            libc::SYS_mkdirat,
            libc::SYS_rename,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_link,
            libc::SYS_linkat,
            libc::SYS_unlink,
            libc::SYS_unlinkat,
            libc::SYS_rmdir,
        ];
        let of_content = [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_ftruncate];
        self.is_write()
            || of_names.contains(&self.number)
            || of_content.contains(&self.number)
            || self.creates()
    }

    /// Whether it opens a file that it creates if need be.
    pub(crate) fn creates(&self) -> bool {
        let create = libc::O_CREAT as u64;
        match self.number {
            libc::SYS_open => self.arguments[1] & create != 0,
            libc::SYS_openat => self.arguments[2] & create != 0,
            _ => false,
        }
    }
}

/// Lets a worker that was started to be traced run to its end.
pub(crate) fn run(mut child: Child, tracer: &mut dyn Tracer) -> Result<Ended> {
    let process = Pid::from_raw(i32::try_from(child.id())?);
    let traced = trace(process, tracer);
    if traced.is_err() {
        // Whatever went wrong with the tracing: nothing may stay behind.
        let _ = kill(process);
    }
    let mut output = Output {
        status: ExitStatus::from_raw(*traced.as_ref().unwrap_or(&0)),
        stdout: Vec::new(),
        stderr: Vec::new(),
    };
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut output.stdout)?;
    }
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_end(&mut output.stderr)?;
    }
    if let Err(error) = traced {
        std::io::stderr().write_all(&output.stderr)?;
        return Err(error);
    }
    Ended::from(output)
}

/// Traces until the process is gone; tells its exit status as `wait(2)` has it.
fn trace(process: Pid, tracer: &mut dyn Tracer) -> Result<i32> {
    match waitpid(process, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Stopped(_, Signal::SIGSTOP) => {}
        other => bail!("the worker cannot be traced: it is {other:?}"),
    }
    ptrace::setoptions(
        process,
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL,
    )?;
    let mut inside: Option<(Call, Verdict)> = None;
    let mut signal = None;
    loop {
        ptrace::syscall(process, signal.take())?;
        match waitpid(process, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceSyscall(_) => {
                let mut registers = ptrace::getregs(process)?;
                let dies = match inside.take() {
                    None => {
                        let (call, verdict) = enter(process, &mut registers, tracer)?;
                        inside = Some((call, verdict));
                        verdict == Verdict::Kill
                    }
                    Some((call, verdict)) => {
                        leave(&call, verdict, &mut registers, tracer)?;
                        matches!(verdict, Verdict::ShortenAndKill(_))
                    }
                };
                if dies {
                    return kill(process);
                }
            }
            WaitStatus::Stopped(_, sent) => signal = Some(sent),
            WaitStatus::Exited(_, code) => return Ok(code << 8),
            WaitStatus::Signaled(_, died_of, _) => return Ok(died_of as i32),
            other => bail!("the worker is {other:?}"),
        }
    }
}

/// Kills the process and waits until it is gone; tells its exit status as `wait(2)` has it.
fn kill(process: Pid) -> Result<i32> {
    nix::sys::signal::kill(process, Signal::SIGKILL).context("cannot kill the worker")?;
    loop {
        match waitpid(process, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Exited(_, code) => return Ok(code << 8),
            WaitStatus::Signaled(_, signal, _) => return Ok(signal as i32),
            _ => {}
        }
    }
}

fn enter(
    process: Pid,
    registers: &mut user_regs_struct,
    tracer: &mut dyn Tracer,
) -> Result<(Call, Verdict)> {
    let call = Call {
        number: registers.orig_rax as c_long,
        arguments: [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
        ],
        process,
    };
    let verdict = tracer.enter(&call)?;
    match verdict {
        Verdict::Pass | Verdict::Kill => {}
        Verdict::Fail(_) => {
            // No call has this number, so nothing happens.
            registers.orig_rax = u64::MAX;
            ptrace::setregs(process, *registers)?;
        }
        Verdict::ShortenAndKill(bytes) | Verdict::Shorten(bytes) => {
            registers.rdx = bytes;
            ptrace::setregs(process, *registers)?;
        }
    }
    Ok((call, verdict))
}

fn leave(
    call: &Call,
    verdict: Verdict,
    registers: &mut user_regs_struct,
    tracer: &mut dyn Tracer,
) -> Result<()> {
    match verdict {
        Verdict::Fail(errno) => {
            registers.rax = i64::from(-errno.raw_os_error()) as u64;
            ptrace::setregs(call.process, *registers)?;
            return Ok(());
        }
        Verdict::Shorten(_) => {
            // A caller that finds its argument changed would be surprised.
            registers.rdx = call.arguments[2];
            ptrace::setregs(call.process, *registers)?;
        }
        Verdict::Pass | Verdict::Kill | Verdict::ShortenAndKill(_) => {}
    }
    tracer.leave(call, registers.rax as i64)
}
