//! What a confined process must not be able to do: each seen refused, with the filter by death and
//! without it by the other layers.

use dormouse_jail::{Ending, LayerName, Layers, Standing};
use libtest_mimic::Trial;

use crate::deed::Deed;
use crate::order::{Host, Order, Report, Strictness};
use crate::parent::{Outcome, landlock_version, order, run, stands};

/// Something forbidden, by name.
fn forbidden() -> Vec<(&'static str, Deed)> {
    let call = |number: libc::c_long| Deed::Call(number);
    vec![
        ("open a file", Deed::Open("/etc/passwd".into())),
        ("open one of /proc", Deed::Open("/proc/self/maps".into())),
        ("open by a relative path", Deed::Open("etc/passwd".into())),
        (
            "create a file",
            Deed::Create("/tmp/dormouse-escaped".into()),
        ),
        ("make a TCP connection", Deed::NewTcpConnection),
        ("make an abstract connection", Deed::NewAbstractConnection),
        ("connect a TCP socket", Deed::ConnectTcp),
        ("connect an abstract socket", Deed::ConnectAbstract),
        ("execute", Deed::Execute),
        ("trace its parent", Deed::Trace),
        ("read its parent's memory", Deed::ReadMemoryOfParent),
        ("signal its parent", Deed::SignalParent),
        ("enter a namespace", Deed::EnterNamespace),
        ("fork", Deed::Fork),
        ("mount", Deed::Mount),
        ("change its root", Deed::ChangeRoot),
        ("become root", Deed::BecomeRoot),
        ("replace the kernel", Deed::ReplaceKernel),
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
        Deed::Open(_) | Deed::Create(_) | Deed::Execute => {
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
        Deed::Trace | Deed::ReadMemoryOfParent => Box::new(move |layers| {
            landlock(layers, 1) || stands(layers, UserNamespace) || in_place(layers, HostUser)
        }),
        Deed::SignalParent => {
            Box::new(move |layers| landlock(layers, 6) || in_place(layers, HostUser))
        }
        Deed::EnterNamespace
        | Deed::Mount
        | Deed::ChangeRoot
        | Deed::ReplaceKernel
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
    tests.push(Trial::test("refused::filter::a call of 32 bits", || {
        // A kernel without them has nothing behind that gate but a fault.
        let ending = run(&order(Deed::Call32)).ending;
        let deaths = [libc::SIGSYS, libc::SIGSEGV].map(Ending::Killed);
        assert!(deaths.contains(&ending), "{ending}");
        Ok(())
    }));
    tests
}

fn refused_by_layers(order: &Order) {
    let outcome = run(order);
    let Outcome {
        layers,
        report,
        ending,
    } = &outcome;
    assert_eq!(*ending, Ending::Exited(0), "{outcome:?}");
    let guarded = guards(&order.deed).expect("layers are for it")(layers);
    match report {
        Some(Report::Refused(errno)) => assert!(*errno > 0, "{outcome:?}"),
        // Only where no layer that is for it could be had, of which `stands` has seen the reasons.
        Some(Report::Done) => assert!(!guarded, "{outcome:?}"),
        _ => panic!("{outcome:?}"),
    }
}
