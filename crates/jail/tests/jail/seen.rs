//! A jail as it is seen from outside, in `/proc`, and how it ends.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::Duration;

use dormouse_jail::{Ending, Error, LayerName, Layers, Program, ProgramStderr, Standing, spawn};
use libtest_mimic::Trial;

use crate::deed::Deed;
use crate::order::{Host, Order, Report, Strictness};
use crate::parent::{is_privileged, landlock_version, order, run, stands, start};

pub(crate) fn tests() -> Vec<Trial> {
    type Test = fn();
    let tests: [(&str, Test); 12] = [
        ("seen::only what was given is open", only_what_was_given),
        ("seen::what the kernel says of it", what_the_kernel_says),
        ("seen::namespaces are its own", namespaces_are_its_own),
        ("seen::each is another user", each_is_another_user),
        ("seen::missing layers are told", missing_layers_are_told),
        ("seen::layers on one line", layers_on_one_line),
        ("seen::threads are an error", threads_are_an_error),
        ("seen::leaks are an error", leaks_are_an_error),
        ("ending::none is left a zombie", none_is_left),
        ("ending::killed from outside", killed_from_outside),
        ("ending::a program that is not there", no_program),
        ("ending::a program without a socket", no_socket),
    ];
    let tests = tests.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    tests.into()
}

fn descriptors(pid: u32) -> BTreeSet<OsString> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a process of this user")
        .map(|entry| entry.expect("a descriptor").file_name())
        .collect()
}

/// Of a shell that stays until its socket is closed. It is not a confined process, whose `/proc` is
/// root's; what that one keeps, it says itself (see `leaks_are_an_error`).
fn only_what_was_given() {
    // `dup` makes descriptors that outlive an `exec` (`dup(2)`).
    let file = fs::File::open("/etc/passwd").expect("a file");
    let leaks: Vec<_> = (0..3)
        .map(|_| rustix::io::dup(&file).expect("dup"))
        .collect();
    // Redirected for good: a shell that does so for one command keeps a copy open meanwhile.
    let script =
        "out=$(readlink /proc/$$/fd/1); exec >&0; echo \"$GIVEN, $HOME, $PWD, $out\"; read end";
    let mut shell = spawn(&Program {
        path: "/bin/sh".into(),
        name: "program".into(),
        stderr: ProgramStderr::Shared,
        args: vec!["-c".into(), script.into()],
        environment: vec![
            ("GIVEN".into(), "this".into()),
            ("PATH".into(), "/usr/bin:/bin".into()),
        ],
    })
    .expect("every host has one");
    let mut socket = BufReader::new(shell.take_socket().expect("the first time"));
    assert!(shell.take_socket().is_none());
    let mut line = String::new();
    socket.read_line(&mut line).expect("it speaks");
    assert_eq!(line, "this, , /, /dev/null\n");

    let pid = shell.pid();
    let open = descriptors(pid);
    assert_eq!(open, ["0", "1", "2"].map(OsString::from).into());
    let leads = |number| {
        let target = fs::read_link(format!("/proc/{pid}/fd/{number}")).expect("it is open");
        target.to_string_lossy().into_owned()
    };
    assert!(leads(0).starts_with("socket:"), "{}", leads(0));
    // The sixth field is the session (`proc_pid_stat(5)`), its own.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    assert_eq!(stat.split(' ').nth(5), Some(pid.to_string().as_str()));
    drop(leaks);
}

fn status(pid: u32, field: &str) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let words = line.unwrap_or_else(|| panic!("{field} is not in {status}"));
    words.split_whitespace().map(str::to_owned).collect()
}

fn what_the_kernel_says() {
    let mut child = start(&order(Deed::Stay));
    let layers = child.entered();
    let pid = child.jailed.pid();
    assert_eq!(status(pid, "NoNewPrivs"), ["1"]);
    // SECCOMP_MODE_FILTER (`proc_pid_status(5)`); one for `clone3`'s errno, one for the rest.
    assert_eq!(status(pid, "Seccomp"), ["2"]);
    assert_eq!(status(pid, "Seccomp_filters"), ["2"]);
    assert_eq!(status(pid, "Threads"), ["1"]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(pid, set), ["0000000000000000"], "{set}");
    }
    match layers.standing(LayerName::NoCapabilities) {
        Some(Standing::InPlace) => assert_eq!(status(pid, "CapBnd"), ["0000000000000000"]),
        other => assert!(matches!(other, Some(Standing::Weaker(_))), "{layers}"),
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("a process");
    for limit in [
        "Max core file size",
        "Max msgqueue size",
        "Max locked memory",
    ] {
        let line = limits.lines().find_map(|line| line.strip_prefix(limit));
        let mut words = line.expect("the limit").split_whitespace();
        assert_eq!(
            (words.next(), words.next()),
            (Some("0"), Some("0")),
            "{limit}"
        );
    }
}

/// Of each namespace that is said to be its own, another than the test's.
fn namespaces_are_its_own() {
    let mut child = start(&order(Deed::Stay));
    let layers = child.entered();
    let pid = child.jailed.pid();
    for (layer, file) in [
        (LayerName::UserNamespace, "user"),
        (LayerName::NetworkNamespace, "net"),
        (LayerName::IpcNamespace, "ipc"),
        (LayerName::UtsNamespace, "uts"),
        (LayerName::CgroupNamespace, "cgroup"),
        (LayerName::EmptyRoot, "mnt"),
    ] {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/{file}"));
        let Ok(theirs) = namespace(&pid.to_string()) else {
            // It cannot be looked into by who is not root, since it is not dumpable.
            assert_eq!(
                layers.standing(LayerName::NotDumpable),
                Some(&Standing::InPlace)
            );
            continue;
        };
        let ours = namespace("self").expect("of this process");
        assert_eq!(ours != theirs, stands(&layers, layer), "{layer}: {layers}");
    }
    if stands(&layers, LayerName::EmptyRoot)
        && let Ok(mounts) = fs::read_to_string(format!("/proc/{pid}/mountinfo"))
    {
        let mounts: Vec<_> = mounts.lines().collect();
        let [only] = mounts.as_slice() else {
            panic!("{mounts:?}");
        };
        assert!(only.contains(" / / ro,nosuid,nodev,noexec"), "{only}");
    }
}

fn each_is_another_user() {
    let mut children = [start(&order(Deed::Stay)), start(&order(Deed::Stay))];
    let layers = children.each_mut().map(|child| child.entered());
    let users = children
        .each_ref()
        .map(|child| status(child.jailed.pid(), "Uid"));
    let groups = children
        .each_ref()
        .map(|child| status(child.jailed.pid(), "Gid"));
    let own = rustix::process::geteuid();
    if own.is_root()
        && layers
            .iter()
            .all(|layers| in_place(layers, LayerName::HostUser))
    {
        assert_ne!(users[0], users[1]);
        assert_ne!(groups[0], groups[1]);
        assert!(!users.concat().contains(&"0".to_owned()), "{users:?}");
        assert_eq!(status(children[0].jailed.pid(), "Groups"), [""; 0]);
    } else {
        assert!(
            layers
                .iter()
                .all(|layers| !in_place(layers, LayerName::HostUser))
        );
        assert_eq!(users[0][0], own.as_raw().to_string());
    }
}

fn in_place(layers: &Layers, name: LayerName) -> bool {
    layers.standing(name) == Some(&Standing::InPlace)
}

fn on(host: Host) -> Layers {
    let outcome = run(&Order {
        host,
        filter: Strictness::Lenient,
        ..order(Deed::Nothing)
    });
    assert_eq!(outcome.ending, Ending::Exited(0), "{outcome:?}");
    outcome.layers
}

fn missing_layers_are_told() {
    let missing = |layers: &Layers, name, reason: &str| match layers.standing(name) {
        Some(Standing::Missing(why)) => assert!(why.contains(reason), "{name}: {why}"),
        other => panic!("{name}: {other:?}"),
    };
    let layers = on(Host::WithoutNamespaces);
    for name in [
        LayerName::UserNamespace,
        LayerName::NetworkNamespace,
        LayerName::IpcNamespace,
        LayerName::UtsNamespace,
        LayerName::CgroupNamespace,
        LayerName::EmptyRoot,
    ] {
        missing(&layers, name, "Operation not permitted");
    }
    let layers = on(Host::WithoutLandlock);
    missing(&layers, LayerName::Landlock, "built without it");
    match on(Host::AsItIs).standing(LayerName::Landlock) {
        Some(Standing::Weaker(why)) => {
            let version = format!("version {} of ", landlock_version());
            assert!(why.contains(&version), "{why}");
        }
        Some(Standing::Missing(_)) => assert_eq!(landlock_version(), 0),
        standing => assert_eq!(standing, Some(&Standing::InPlace)),
    }
    if is_privileged() {
        missing(&on(Host::WithoutIds), LayerName::HostUser, "root still");
        match on(Host::Unprivileged).standing(LayerName::HostUser) {
            Some(Standing::Weaker(why)) => assert!(why.contains("user 654321"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

fn layers_on_one_line() {
    let line = on(Host::WithoutLandlock).to_string();
    assert!(line.starts_with("in place: no new privileges, "), "{line}");
    assert!(
        line.contains("; missing: landlock (the kernel is built without it)"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);
}

fn failed_on(host: Host) -> String {
    let mut child = start(&Order {
        host,
        ..order(Deed::Nothing)
    });
    let report = child.hear();
    assert_eq!(child.jailed.wait().expect("a child"), Ending::Exited(1));
    match report {
        Some(Report::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn threads_are_an_error() {
    let error = failed_on(Host::WithThreads);
    assert!(
        error.starts_with("the process has 2 threads already"),
        "{error}"
    );
}

fn leaks_are_an_error() {
    let error = failed_on(Host::WithLeak);
    assert!(error.contains("not to be kept: 4 (/etc/passwd)"), "{error}");
}

fn none_is_left() {
    let gone = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
    let mut child = start(&order(Deed::Stay));
    child.entered();
    let pid = child.jailed.pid();
    assert!(!gone(pid));
    // One that runs.
    drop(child);
    assert!(gone(pid), "{pid} was not reaped");
    // One that has ended by itself and was not asked about.
    let mut child = start(&order(Deed::EndAtEndOfFile));
    child.entered();
    let pid = child.jailed.pid();
    drop(child.socket);
    let mut ended = [rustix::event::PollFd::new(
        &child.jailed,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut ended, None).expect("a pidfd");
    assert_eq!(status(pid, "State"), ["Z", "(zombie)"]);
    drop(child.jailed);
    assert!(gone(pid), "{pid} was not reaped");
}

fn killed_from_outside() {
    let mut child = start(&order(Deed::Stay));
    child.entered();
    let jailed = &child.jailed;
    let at_once = jailed.wait_timeout(Duration::ZERO).expect("a child");
    assert_eq!(at_once, None);
    // A thread that waits does not keep another from killing.
    let ending = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| jailed.wait().expect("a child"));
        jailed.kill().expect("it is ours");
        waiting.join().expect("no panic")
    });
    assert_eq!(ending, Ending::Killed(libc::SIGKILL));
    // All of it may be asked again.
    jailed.kill().expect("it has ended");
    assert_eq!(jailed.try_wait().expect("known"), Some(ending));
    assert_eq!(jailed.wait().expect("known"), ending);
    let long = Duration::MAX;
    assert_eq!(jailed.wait_timeout(long).expect("known"), Some(ending));
}

fn no_program() {
    let error = spawn(&Program {
        path: "/nowhere/dormouse".into(),
        name: "program".into(),
        stderr: ProgramStderr::Shared,
        args: Vec::new(),
        environment: Vec::new(),
    })
    .expect_err("there is none");
    assert!(matches!(&error, Error::Start { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.starts_with("/nowhere/dormouse cannot be started: No such file"),
        "{text}"
    );
}

/// A worker that somebody starts by hand.
fn no_socket() {
    let ending = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(order(Deed::Nothing).arguments())
        .stdin(std::process::Stdio::null())
        .status()
        .expect("the program starts");
    assert_eq!(ending.code(), Some(i32::from(crate::child::SPEECHLESS)));
}
