//! The child: enters the jail, and does what it is told.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use dormouse_jail::{Confinement, Filter, Layers, Rule};

use crate::deed::Tools;
use crate::order::{Host, Order, Report, Strictness};
use crate::parent::is_privileged;

/// Of a child that could not tell what went wrong.
pub(crate) const SPEECHLESS: u8 = 99;

pub(crate) fn carry_out(order: &Order) -> ExitCode {
    let told = || -> io::Result<ExitCode> {
        let mut socket = dormouse_jail::socket().map_err(io::Error::other)?;
        let tools = Tools::open(order)?;
        match enter(order, &socket, &tools) {
            Ok(layers) => tell(&mut socket, &Report::Entered(layers))?,
            Err(error) => {
                tell(&mut socket, &Report::Failed(error.to_string()))?;
                return Ok(ExitCode::FAILURE);
            }
        }
        let report = match order.deed.perform(&order.targets, &tools, &mut socket) {
            Ok(()) => Report::Done,
            Err(error) => Report::Refused(error.raw_os_error().unwrap_or(-1)),
        };
        tell(&mut socket, &report)?;
        Ok(ExitCode::SUCCESS)
    };
    told().unwrap_or(ExitCode::from(SPEECHLESS))
}

fn tell(socket: &mut impl io::Write, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    socket.write_all(&line)
}

fn enter(
    order: &Order,
    socket: &std::os::unix::net::UnixStream,
    tools: &Tools,
) -> Result<Layers, dormouse_jail::Error> {
    let mut keep = vec![socket.as_raw_fd()];
    keep.extend(tools.descriptors().map(|fd| fd.as_raw_fd()));
    let mut leak = None;
    let mut sleeper = None;
    match order.host {
        Host::AsItIs => {}
        Host::WithoutNamespaces => without(libc::SYS_unshare, libc::EPERM)?,
        Host::WithoutLandlock => without(libc::SYS_landlock_create_ruleset, libc::ENOSYS)?,
        Host::WithoutIds => without(libc::SYS_setresuid, libc::EINVAL)?,
        Host::Unprivileged => become_somebody(),
        Host::UnprivilegedWithoutNamespaces => {
            become_somebody();
            without(libc::SYS_unshare, libc::EPERM)?;
        }
        Host::WithThreads => {
            sleeper = Some(thread::spawn(|| thread::sleep(Duration::from_secs(600))));
        }
        Host::WithLeak => leak = Some(File::open("/etc/passwd").expect("a file to leak")),
    }
    let filter = filter(order.filter)?;
    let entered = dormouse_jail::enter(&Confinement {
        keep: &keep,
        limits: order.limits,
        system_calls: &filter,
    });
    drop((leak, sleeper));
    entered
}

/// A kernel that answers so: a filter that refuses one call and allows all others.
fn without(call: libc::c_long, errno: i32) -> Result<(), dormouse_jail::Error> {
    let mut rules = every_call();
    rules.retain(|rule| *rule != Rule::allow(call));
    rules.push(Rule::refuse(call, errno));
    Filter::compile(&rules)?.apply_to_thread()
}

/// Every number that x86-64 has (`syscall_64.tbl` ends below 480 in Linux 6.18, and at 547 with
/// the ones of x32).
fn every_call() -> Vec<Rule> {
    (0..550).map(Rule::allow).collect()
}

fn become_somebody() {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    if !is_privileged() {
        return;
    }
    // Nobody on the host is this one.
    let (user, group) = (Uid::from_raw(654_321), Gid::from_raw(654_321));
    set_thread_groups(&[]).expect("root");
    set_thread_res_gid(group, group, group).expect("root");
    set_thread_res_uid(user, user, user).expect("root");
    // As a program is that somebody without privileges starts.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .expect("any process may");
}

fn filter(strictness: Strictness) -> Result<Filter, dormouse_jail::Error> {
    let mut rules = match strictness {
        Strictness::Lenient => return Filter::compile(&every_call()),
        _ => Rule::runtime(),
    };
    match strictness {
        Strictness::Narrowable => rules.extend(Rule::narrowing()),
        Strictness::Forgiving => rules.extend(Rule::no_files()),
        _ => {}
    }
    // One request of the many that `ioctl` has.
    let bytes_waiting = u32::try_from(libc::FIONREAD).expect("it has 32 bits");
    rules.push(Rule::allow_values(libc::SYS_ioctl, 1, &[bytes_waiting]));
    Filter::compile(&rules)
}

/// Lets the parent look at this process until it closes the socket.
pub(crate) fn stay(socket: &mut std::os::unix::net::UnixStream) -> io::Result<()> {
    tell(socket, &Report::Done)?;
    socket.flush()?;
    io::copy(socket, &mut io::sink()).map(drop)
}
