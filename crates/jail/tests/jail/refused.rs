//! What a confined process must not be able to do: each seen refused, with the filter by death and
//! without it by the other layers.

use dormouse_jail::{Ending, LayerName, Layers, Standing};
use libtest_mimic::Trial;

use crate::deed::Deed;
use crate::order::{Host, Order, Report, Strictness};
use crate::parent::{self, Outcome, landlock_version, order, run, stands, start, start_beside};

/// Something forbidden, by name.
fn forbidden() -> Vec<(&'static str, Deed)> {
    let call = |number: libc::c_long| Deed::Call(number);
    vec![
        ("open a file", Deed::Open("/etc/passwd".into())),
        ("open one of /proc", Deed::Open("/proc/self/maps".into())),
        ("open by a relative path", Deed::Open("etc/passwd".into())),
        ("create a file", Deed::Create),
        ("make a TCP connection", Deed::NewTcpConnection),
        ("make an abstract connection", Deed::NewAbstractConnection),
        ("connect a TCP socket", Deed::ConnectTcp),
        ("connect an abstract socket", Deed::ConnectAbstract),
        ("execute", Deed::Execute),
        ("trace its parent", Deed::Trace),
        ("read its parent's memory", Deed::ReadMemory),
        ("signal its parent", Deed::Signal),
        ("enter a namespace", Deed::EnterNamespace),
        ("fork", Deed::Fork),
        ("mount", Deed::Mount),
        ("change its root", Deed::ChangeRoot),
        ("become root", Deed::BecomeRoot),
        ("reboot", Deed::Reboot),
        ("set the host's name", Deed::SetHostName),
        ("make memory executable", Deed::MakeExecutable),
        ("map executable memory", Deed::MapExecutable),
        ("have its parent signalled", Deed::OwnDescriptorsSignals),
        ("type into the terminal", Deed::PushIntoTerminal),
        ("vfork", call(libc::SYS_vfork)),
        ("unshare", call(libc::SYS_unshare)),
        ("bpf", call(libc::SYS_bpf)),
        ("io_uring", call(libc::SYS_io_uring_setup)),
        ("keyctl", call(libc::SYS_keyctl)),
        ("userfaultfd", call(libc::SYS_userfaultfd)),
        ("perf_event_open", call(libc::SYS_perf_event_open)),
        ("pidfd_open", call(libc::SYS_pidfd_open)),
        ("pidfd_getfd", call(libc::SYS_pidfd_getfd)),
        ("memfd_create", call(libc::SYS_memfd_create)),
        ("prlimit", call(libc::SYS_prlimit64)),
        ("prctl", call(libc::SYS_prctl)),
        ("seccomp", call(libc::SYS_seccomp)),
        ("tgkill of others", call(libc::SYS_tgkill)),
        ("a call that does not exist", call(9999)),
        // The bit that makes a number one of x32 (__X32_SYSCALL_BIT, `syscall(2)`).
        ("a call of x32", call(0x4000_0000 + libc::SYS_getpid)),
    ]
}

/// Whether any of the layers stands that are for something.
type Guards = Box<dyn Fn(&Layers) -> bool>;

/// Which of the layers below the filter are for it.
fn guards(deed: &Deed) -> Option<Guards> {
    use LayerName::{
        EmptyRoot, HostUser, Landlock, NetworkNamespace, NoCapabilities, NotDumpable, UserNamespace,
    };
    let landlock = |layers: &Layers, since| stands(layers, Landlock) && landlock_version() >= since;
    Some(match deed {
        Deed::Open(_) | Deed::Create | Deed::Execute => {
            Box::new(move |layers| stands(layers, EmptyRoot) || landlock(layers, 1))
        }
        Deed::NewTcpConnection => {
            Box::new(move |layers| stands(layers, NetworkNamespace) || landlock(layers, 4))
        }
        Deed::NewAbstractConnection => {
            Box::new(move |layers| stands(layers, NetworkNamespace) || landlock(layers, 6))
        }
        Deed::ConnectTcp => Box::new(move |layers| landlock(layers, 4)),
        Deed::ConnectAbstract => Box::new(move |layers| landlock(layers, 6)),
        Deed::Trace | Deed::ReadMemory => Box::new(move |layers| {
            landlock(layers, 1) || stands(layers, UserNamespace) || in_place(layers, HostUser)
        }),
        Deed::Signal => Box::new(move |layers| landlock(layers, 6) || in_place(layers, HostUser)),
        Deed::EnterNamespace
        | Deed::Mount
        | Deed::ChangeRoot
        | Deed::Reboot
        | Deed::SetHostName => Box::new(|layers| stands(layers, NoCapabilities)),
        Deed::BecomeRoot => Box::new(|layers| {
            stands(layers, NoCapabilities)
                && stands(layers, HostUser)
                && stands(layers, NotDumpable)
        }),
        // Only the filter stands before these.
        _ => return None,
    })
}

fn in_place(layers: &Layers, name: LayerName) -> bool {
    stands(layers, name) && layers.standing(name) == Some(&Standing::InPlace)
}

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (name, deed) in forbidden() {
        let strict = order(deed.clone());
        tests.push(Trial::test(format!("refused::filter::{name}"), move || {
            let outcome = run(&strict);
            assert!(outcome.report.is_none(), "{outcome:?}");
            assert_eq!(outcome.ending, Ending::Killed(libc::SIGSYS), "{outcome:?}");
            Ok(())
        }));
        if guards(&deed).is_none() {
            continue;
        }
        for (host_name, host) in [
            ("layers", Host::AsItIs),
            ("layers without namespaces", Host::WithoutNamespaces),
            ("layers without landlock", Host::WithoutLandlock),
            ("layers without privileges", Host::Unprivileged),
        ] {
            let lenient = Order {
                host,
                filter: Strictness::Lenient,
                ..order(deed.clone())
            };
            tests.push(Trial::test(
                format!("refused::{host_name}::{name}"),
                move || {
                    refused_by_layers(&lenient);
                    Ok(())
                },
            ));
        }
    }
    for (name, deed) in [
        ("trace", Deed::Trace),
        ("read its memory", Deed::ReadMemory),
        ("signal", Deed::Signal),
    ] {
        let name = format!("refused::layers::{name} another jail's process");
        tests.push(Trial::test(name, move || {
            refused_to_neighbours(&deed);
            Ok(())
        }));
    }
    tests.push(Trial::test("refused::filter::a call of 32 bits", || {
        // A kernel without them has nothing behind that gate but a fault.
        let ending = run(&order(Deed::Call32)).ending;
        let deaths = [libc::SIGSYS, libc::SIGSEGV].map(Ending::Killed);
        assert!(deaths.contains(&ending), "{ending}");
        Ok(())
    }));
    tests
}

/// How a layer says no. Any other answer is of a deed that went wrong by itself.
fn answers(deed: &Deed) -> &'static [i32] {
    match deed {
        // What is not there cannot be opened, and landlock has its own word.
        Deed::Open(_) | Deed::Create | Deed::Execute => &[libc::ENOENT, libc::EACCES],
        Deed::NewTcpConnection => &[libc::ENETUNREACH, libc::EACCES],
        Deed::NewAbstractConnection => &[libc::ECONNREFUSED, libc::EPERM],
        Deed::ConnectTcp => &[libc::EACCES],
        // An id that its user namespace does not have is no id.
        Deed::BecomeRoot => &[libc::EPERM, libc::EINVAL],
        _ => &[libc::EPERM],
    }
}

fn refused_by_layers(order: &Order) {
    check_refusal(order, &run(order));
}

/// Two jails are as far from each other as from the host.
fn refused_to_neighbours(deed: &Deed) {
    let mut other = start(&parent::order(Deed::Stay));
    other.entered();
    for host in [Host::AsItIs, Host::WithoutNamespaces, Host::WithoutLandlock] {
        let order = Order {
            host,
            filter: Strictness::Lenient,
            ..parent::order(deed.clone())
        };
        let outcome = start_beside(&order, other.jailed.pid()).end();
        check_refusal(&order, &outcome);
    }
    assert_eq!(other.jailed.try_wait().expect("a child"), None);
}

fn check_refusal(order: &Order, outcome: &Outcome) {
    let Outcome {
        layers,
        report,
        ending,
    } = outcome;
    assert_eq!(*ending, Ending::Exited(0), "{outcome:?}");
    let guarded = guards(&order.deed).expect("layers are for it")(layers);
    match report {
        Some(Report::Refused(errno)) => {
            assert!(answers(&order.deed).contains(errno), "{outcome:?}");
        }
        // Only where no layer that is for it could be had, of which `stands` has seen the reasons.
        Some(Report::Done) => assert!(!guarded, "{outcome:?}"),
        _ => panic!("{outcome:?}"),
    }
}
