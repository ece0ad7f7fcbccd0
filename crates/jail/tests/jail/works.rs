//! What a confined process must be able to do, and how much of it.

use std::io::{BufRead as _, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;

use dormouse_jail::{Ending, LayerName, ResourceLimits, Standing};
use libtest_mimic::Trial;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::deed::Deed;
use crate::order::{Host, Order, Report, Strictness};
use crate::parent::{Outcome, order, run, start};

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (name, deed) in [
        ("nothing", Deed::Nothing),
        ("threads start and end", Deed::Threads),
        ("memory grows and shrinks", Deed::Memory),
        ("clocks run", Deed::Clocks),
        ("chance is to be had", Deed::Chance),
        ("one ioctl of many", Deed::CountBytesWaiting),
        ("a panic is caught", Deed::CatchPanic),
    ] {
        tests.push(Trial::test(format!("works::{name}"), move || {
            let outcome = run(&order(deed));
            assert!(matches!(outcome.report, Some(Report::Done)), "{outcome:?}");
            assert_eq!(outcome.ending, Ending::Exited(0));
            Ok(())
        }));
    }
    type Test = fn();
    let more: [(&str, Test); 11] = [
        ("works::the socket goes both ways", echo),
        ("works::descriptors come through the socket", receive),
        ("works::end of file is seen", end_of_file),
        ("works::clone3 is answered", clone3),
        ("works::giving up is seen", giving_up),
        ("works::a thread is narrowed", narrowed),
        ("works::a panic looks for files", backtrace),
        ("limits::descriptors", descriptors),
        ("limits::threads", threads),
        ("limits::file length", file_length),
        ("limits::address space", address_space),
    ];
    tests.extend(more.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    }));
    tests
}

fn echo() {
    let mut child = start(&order(Deed::Echo));
    child.entered();
    child.socket.get_mut().write_all(b"live").expect("it reads");
    let mut word = [0; 4];
    child.socket.read_exact(&mut word).expect("it answers");
    assert_eq!(&word, b"evil");
    assert!(matches!(child.hear(), Some(Report::Done)));
}

/// It may not open the file, and may read what the parent has opened.
fn receive() {
    let mut child = start(&order(Deed::ReadReceived));
    child.entered();
    let file = memfd_create("given", MemfdFlags::CLOEXEC).expect("memory");
    rustix::io::pwrite(&file, b"from outside", 0).expect("memory");
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let byte = [IoSlice::new(&[1])];
    sendmsg(
        child.socket.get_ref(),
        &byte,
        &mut ancillary,
        SendFlags::empty(),
    )
    .expect("it reads");
    let mut line = String::new();
    child.socket.read_line(&mut line).expect("it answers");
    assert_eq!(line, "from outside\n");
    assert!(matches!(child.hear(), Some(Report::Done)));
}

fn end_of_file() {
    let mut child = start(&order(Deed::EndAtEndOfFile));
    child.entered();
    assert_eq!(child.jailed.try_wait().expect("a child"), None);
    drop(child.socket);
    assert_eq!(child.jailed.wait().expect("a child"), Ending::Exited(7));
}

fn clone3() {
    let outcome = run(&order(Deed::NewWayToClone));
    let Some(Report::Refused(errno)) = outcome.report else {
        panic!("{outcome:?}");
    };
    assert_eq!(errno, libc::ENOSYS);
}

fn giving_up() {
    let ending = run(&order(Deed::GiveUp)).ending;
    assert_eq!(ending, Ending::Killed(libc::SIGABRT));
    assert_eq!(ending.to_string(), "killed by SIGABRT: it gave up");
}

/// What the process may, one of its threads may not; and none may narrow itself where the process's
/// filter has not said so.
fn narrowed() {
    let narrowable = Order {
        filter: Strictness::Narrowable,
        ..order(Deed::NarrowedThread)
    };
    let outcome = run(&narrowable);
    assert!(outcome.report.is_none(), "{outcome:?}");
    assert_eq!(outcome.ending, Ending::Killed(libc::SIGSYS));
    // That it was not the narrowing which killed: the call itself is well without it.
    let same_call = Order {
        filter: Strictness::Narrowable,
        ..order(Deed::Call(libc::SYS_getrandom))
    };
    assert!(matches!(run(&same_call).report, Some(Report::Done)));
}

/// A panic that prints where it was looks for the program's file: death, or a file that is not there.
fn backtrace() {
    let order = |filter| Order {
        filter,
        backtrace: true,
        ..order(Deed::CatchPanic)
    };
    let strict = run(&order(Strictness::Strict));
    assert_eq!(strict.ending, Ending::Killed(libc::SIGSYS));
    let forgiving = run(&order(Strictness::Forgiving));
    assert!(
        matches!(forgiving.report, Some(Report::Done)),
        "{forgiving:?}"
    );
    assert_eq!(forgiving.ending, Ending::Exited(0));
}

fn limited(deed: Deed, limits: ResourceLimits) -> Order {
    Order {
        filter: Strictness::Lenient,
        limits,
        ..order(deed)
    }
}

/// Without the limit it is done, with it refused by this errno.
fn refused_by_limit(deed: Deed, limits: ResourceLimits, errno: i32) {
    refused_by_limit_of(Host::AsItIs, deed, limits, errno);
}

fn refused_by_limit_of(host: Host, deed: Deed, limits: ResourceLimits, errno: i32) {
    let on_host = |limits| Order {
        host,
        ..limited(deed.clone(), limits)
    };
    let free = run(&on_host(ResourceLimits::default()));
    assert!(matches!(free.report, Some(Report::Done)), "{free:?}");
    let bound = run(&on_host(limits));
    match bound.report {
        Some(Report::Refused(found)) => assert_eq!(found, errno),
        // Only where it is said that there is less of it.
        Some(Report::Done) => assert!(is_weaker(&bound), "{bound:?}"),
        _ => panic!("{bound:?}"),
    }
}

fn is_weaker(outcome: &Outcome) -> bool {
    let standing = outcome.layers.standing(LayerName::ResourceLimits);
    matches!(standing, Some(Standing::Weaker(_)))
}

fn descriptors() {
    let limits = ResourceLimits {
        open_files: Some(16),
        ..ResourceLimits::default()
    };
    refused_by_limit(Deed::DuplicateDescriptors(16), limits, libc::EMFILE);
}

fn threads() {
    let limits = ResourceLimits {
        threads: Some(1),
        ..ResourceLimits::default()
    };
    refused_by_limit(Deed::Threads, limits, libc::EAGAIN);
    // Its user has other processes, which are not counted in its user namespace.
    refused_by_limit_of(Host::Unprivileged, Deed::Threads, limits, libc::EAGAIN);
    // Where it has neither namespace nor user of its own, the limit is left out, which is said.
    let counted_with_others = Order {
        host: Host::UnprivilegedWithoutNamespaces,
        ..limited(Deed::Threads, limits)
    };
    let outcome = run(&counted_with_others);
    assert!(matches!(outcome.report, Some(Report::Done)), "{outcome:?}");
    assert!(is_weaker(&outcome), "{outcome:?}");
}

fn file_length() {
    let limits = ResourceLimits {
        file_bytes: Some(4096),
        ..ResourceLimits::default()
    };
    let within = run(&limited(Deed::WriteInMemory(4096), limits));
    assert!(matches!(within.report, Some(Report::Done)), "{within:?}");
    let beyond = run(&limited(Deed::WriteInMemory(4097), limits));
    assert_eq!(beyond.ending, Ending::Killed(libc::SIGXFSZ));
}

fn address_space() {
    let limits = ResourceLimits {
        address_space_bytes: Some(256 << 20),
        ..ResourceLimits::default()
    };
    refused_by_limit(Deed::Allocate(1 << 30), limits, libc::ENOMEM);
}
