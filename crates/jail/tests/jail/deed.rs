//! What a confined process tries or does.

use std::fs::File;
use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use dormouse_jail::{Filter, Rule};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recvmsg, socket_with,
};
use serde::{Deserialize, Serialize};

use crate::child;
use crate::order::{Order, Targets};

/// What a confined process tries or does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Deed {
    // What it must not.
    Open(String),
    Create,
    NewTcpConnection,
    NewAbstractConnection,
    /// With a socket of before the jail.
    ConnectTcp,
    ConnectAbstract,
    Execute,
    // Of another process, which is the test's or another jail's.
    Trace,
    ReadMemory,
    Signal,
    /// Into the parent's network, through a descriptor of before the jail.
    EnterNamespace,
    Fork,
    Mount,
    ChangeRoot,
    BecomeRoot,
    Reboot,
    SetHostName,
    MakeExecutable,
    MapExecutable,
    OwnDescriptorsSignals,
    PushIntoTerminal,
    /// Any system call by number, with zeros.
    Call(i64),
    /// Through the gate of 32-bit programs.
    Call32,

    // What it can.
    Nothing,
    Stay,
    EndAtEndOfFile,
    Threads,
    Memory,
    Clocks,
    Chance,
    Echo,
    /// What was opened outside, read inside.
    ReadReceived,
    CountBytesWaiting,
    NewWayToClone,
    CatchPanic,
    GiveUp,
    NarrowedThread,
    /// Not before the parent says so.
    WhenTold(Box<Deed>),

    // What it can up to a limit.
    DuplicateDescriptors(u64),
    WriteInMemory(usize),
    Allocate(usize),
}

/// What a child opens before the jail.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    opened: Option<OwnedFd>,
}

impl Tools {
    pub(crate) fn open(order: &Order) -> io::Result<Self> {
        let socket = |family| {
            socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(io::Error::from)
        };
        let opened = match order.deed {
            Deed::ConnectTcp => Some(socket(AddressFamily::INET)?),
            Deed::ConnectAbstract => Some(socket(AddressFamily::UNIX)?),
            Deed::EnterNamespace => {
                let path = format!("/proc/{}/ns/net", order.targets.process);
                Some(File::open(path)?.into())
            }
            Deed::WriteInMemory(_) => Some(memfd_create("written", MemfdFlags::CLOEXEC)?),
            _ => None,
        };
        Ok(Self { opened })
    }

    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.opened.as_ref().map(OwnedFd::as_fd).into_iter()
    }

    fn opened(&self) -> &OwnedFd {
        self.opened.as_ref().expect("opened before the jail")
    }
}

/// A system call of which the kernel writes nothing into this process but through `pointer`.
fn call(number: i64, arguments: [u64; 6]) -> io::Result<i64> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the callers pass numbers, and addresses of values that live over the call and are of
    // the kind that the call takes, or null.
    let answer = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer)
    }
}

fn number(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

fn address<T: ?Sized>(of: &T) -> u64 {
    (&raw const *of).cast::<u8>().addr() as u64
}

impl Deed {
    pub(crate) fn perform(
        &self,
        targets: &Targets,
        tools: &Tools,
        socket: &mut UnixStream,
    ) -> io::Result<()> {
        let target = number(targets.process);
        match self {
            Self::Open(path) => File::open(path).map(drop),
            Self::Create => File::create_new(&targets.new_file).map(drop),
            Self::NewTcpConnection => {
                let loopback = std::net::Ipv4Addr::LOCALHOST;
                std::net::TcpStream::connect((loopback, targets.tcp_port)).map(drop)
            }
            Self::NewAbstractConnection => {
                let name = UnixAddr::from_abstract_name(&targets.unix_name)?;
                UnixStream::connect_addr(&name).map(drop)
            }
            Self::ConnectTcp => {
                let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], targets.tcp_port));
                Ok(connect(tools.opened(), &loopback)?)
            }
            Self::ConnectAbstract => {
                let name = SocketAddrUnix::new_abstract_name(targets.unix_name.as_bytes())?;
                Ok(connect(tools.opened(), &name)?)
            }
            Self::Execute => {
                let path = c"/bin/true";
                let nothing = [0_u64];
                let list = address(&nothing);
                let program = path.as_ptr().addr() as u64;
                call(libc::SYS_execve, [program, list, list, 0, 0, 0]).map(drop)
            }
            Self::Trace => {
                let seize = u64::from(libc::PTRACE_SEIZE);
                call(libc::SYS_ptrace, [seize, target, 0, 0, 0, 0]).map(drop)
            }
            Self::ReadMemory => {
                let mut byte = [0_u8];
                let local = [(&raw mut byte).addr() as u64, 1];
                let remote = [targets.address, 1];
                let (local, remote) = (address(&local), address(&remote));
                call(libc::SYS_process_vm_readv, [target, local, 1, remote, 1, 0]).map(drop)
            }
            // Nothing comes of this one where nobody waits for it (`signal(7)`).
            Self::Signal => {
                call(libc::SYS_kill, [target, number(libc::SIGURG), 0, 0, 0, 0]).map(drop)
            }
            Self::EnterNamespace => {
                let namespace = number(tools.opened().as_raw_fd());
                call(libc::SYS_setns, [namespace, 0, 0, 0, 0, 0]).map(drop)
            }
            Self::Fork => {
                let flags = number(libc::SIGCHLD);
                match call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0])? {
                    // SAFETY: ends the new process at once.
                    0 => unsafe { libc::_exit(0) },
                    _ => Ok(()),
                }
            }
            Self::Mount => {
                let (kind, place) = (c"tmpfs".as_ptr().addr() as u64, c"/".as_ptr().addr() as u64);
                call(libc::SYS_mount, [kind, place, kind, 0, 0, 0]).map(drop)
            }
            Self::ChangeRoot => {
                let place = c"/".as_ptr().addr() as u64;
                call(libc::SYS_chroot, [place, 0, 0, 0, 0, 0]).map(drop)
            }
            Self::BecomeRoot => call(libc::SYS_setresuid, [0, 0, 0, 0, 0, 0]).map(drop),
            // Without the magic numbers it could not come to it (`reboot(2)`).
            Self::Reboot => call(libc::SYS_reboot, [0; 6]).map(drop),
            Self::SetHostName => {
                let name = c"free".as_ptr().addr() as u64;
                call(libc::SYS_sethostname, [name, 4, 0, 0, 0, 0]).map(drop)
            }
            Self::MakeExecutable => {
                let protection = number(libc::PROT_READ | libc::PROT_EXEC);
                call(libc::SYS_mprotect, [0, 0, protection, 0, 0, 0]).map(drop)
            }
            Self::MapExecutable => {
                let protection = number(libc::PROT_READ | libc::PROT_EXEC);
                let flags = number(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                call(libc::SYS_mmap, [0, 4096, protection, flags, u64::MAX, 0]).map(drop)
            }
            Self::OwnDescriptorsSignals => {
                let own = number(libc::F_SETOWN);
                call(libc::SYS_fcntl, [0, own, target, 0, 0, 0]).map(drop)
            }
            Self::PushIntoTerminal => {
                call(libc::SYS_ioctl, [2, libc::TIOCSTI, address(&b'x'), 0, 0, 0]).map(drop)
            }
            Self::Call(number) => call(*number, [0; 6]).map(drop),
            Self::Call32 => {
                let answer: i32;
                // SAFETY: `getpid` of the 32-bit table (20, `syscall_32.tbl`) takes nothing and
                // changes the one register; the kernel keeps r8 to r15 of nobody here.
                unsafe {
                    std::arch::asm!("int 0x80", inlateout("eax") 20 => answer,
                        out("r8") _, out("r9") _, out("r10") _, out("r11") _);
                }
                if answer > 0 {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(-answer))
                }
            }

            Self::Nothing => Ok(()),
            Self::Stay => child::stay(socket),
            Self::EndAtEndOfFile => {
                let mut rest = Vec::new();
                socket.read_to_end(&mut rest)?;
                std::process::exit(7)
            }
            Self::Threads => threads(),
            Self::Memory => {
                let mut memory = Vec::new();
                for size in [1 << 10, 1 << 20, 64 << 20] {
                    memory.resize(size, 1_u8);
                }
                memory.truncate(1);
                memory.shrink_to_fit();
                if memory == [1] {
                    Ok(())
                } else {
                    Err(io::ErrorKind::Other.into())
                }
            }
            Self::Clocks => {
                let before = (Instant::now(), SystemTime::now());
                thread::sleep(Duration::from_millis(2));
                let waited = before.0.elapsed() >= Duration::from_millis(2);
                let known = before.1 > SystemTime::UNIX_EPOCH;
                if waited && known {
                    Ok(())
                } else {
                    Err(io::ErrorKind::Other.into())
                }
            }
            Self::Chance => {
                // Its keys are drawn from the kernel.
                let set: std::collections::HashSet<i32> = (0..10).collect();
                if set.len() == 10 {
                    Ok(())
                } else {
                    Err(io::ErrorKind::Other.into())
                }
            }
            Self::Echo => {
                let mut word = [0; 4];
                socket.read_exact(&mut word)?;
                word.reverse();
                socket.write_all(&word)
            }
            Self::ReadReceived => {
                let mut text = String::new();
                receive(socket)?.read_to_string(&mut text)?;
                socket.write_all(text.as_bytes())?;
                socket.write_all(b"\n")
            }
            Self::CountBytesWaiting => {
                let mut waiting = 0_i32;
                let into = (&raw mut waiting).addr() as u64;
                call(libc::SYS_ioctl, [0, libc::FIONREAD, into, 0, 0, 0]).map(drop)
            }
            Self::NewWayToClone => call(libc::SYS_clone3, [0; 6]).map(drop),
            Self::CatchPanic => {
                let caught = std::panic::catch_unwind(|| panic!("on purpose"));
                if caught.is_err() {
                    Ok(())
                } else {
                    Err(io::ErrorKind::Other.into())
                }
            }
            Self::GiveUp => std::process::abort(),
            Self::NarrowedThread => narrowed_thread(),
            Self::WhenTold(deed) => {
                socket.read_exact(&mut [0])?;
                deed.perform(targets, tools, socket)
            }

            Self::DuplicateDescriptors(count) => {
                let copies: io::Result<Vec<_>> = (0..*count).map(|_| socket.try_clone()).collect();
                copies.map(drop)
            }
            Self::WriteInMemory(bytes) => {
                let mut file = File::from(tools.opened().try_clone()?);
                file.write_all(&vec![1; *bytes])
            }
            Self::Allocate(bytes) => {
                let mut memory: Vec<u8> = Vec::new();
                memory
                    .try_reserve_exact(*bytes)
                    .map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))
            }
        }
    }
}

/// A descriptor, with one byte beside it.
fn receive(socket: &UnixStream) -> io::Result<File> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let first = descriptors.flatten().next();
    first
        .map(File::from)
        .ok_or_else(|| io::ErrorKind::Other.into())
}

fn threads() -> io::Result<()> {
    let sum = Arc::new(Mutex::new(0));
    let threads: Vec<_> = (1..=4)
        .map(|number| {
            let sum = Arc::clone(&sum);
            thread::Builder::new()
                .name(format!("worker {number}"))
                .spawn(move || *sum.lock().expect("nobody panics") += number)
        })
        .collect::<io::Result<_>>()?;
    for thread in threads {
        thread.join().map_err(|_| io::ErrorKind::Other)?;
    }
    let sum = *sum.lock().expect("nobody panics");
    if sum == 10 {
        Ok(())
    } else {
        Err(io::ErrorKind::Other.into())
    }
}

/// A thread loses what the process may, and makes use of it.
fn narrowed_thread() -> io::Result<()> {
    let mut rules = Rule::runtime();
    rules.retain(|rule| *rule != Rule::allow(libc::SYS_getrandom));
    let filter = Filter::compile(&rules).map_err(io::Error::other)?;
    let thread = thread::spawn(move || {
        filter.apply_to_thread().map_err(io::Error::other)?;
        call(libc::SYS_getrandom, [0; 6]).map(drop)
    });
    thread.join().map_err(|_| io::ErrorKind::Other)?
}
