//! Control groups: a worker in one, or the reason why there is none.

use std::fs;
use std::io::Write as _;

use dormouse_jail::{Ending, Error, GroupLimits};
use libtest_mimic::Trial;

use crate::deed::Deed;
use crate::order::{Order, Report, Strictness};
use crate::parent::{Child, order, start};

pub(crate) fn tests() -> Vec<Trial> {
    type Test = fn();
    let tests: [(&str, Test); 3] = [
        ("group::it comes and goes with its process", comes_and_goes),
        ("group::memory", memory),
        ("group::threads", threads),
    ];
    let tests = tests.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    tests.into()
}

fn groups_of(pid: u32) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
    let version2 = groups.lines().find_map(|line| line.strip_prefix("0::"));
    version2.unwrap_or_default().to_owned()
}

/// All of them, where version 2 is mounted.
fn count(name: &str) -> usize {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("of this process");
    let roots = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = words.next()?;
        (words.next()? == "cgroup2").then_some(place)
    });
    roots
        .flat_map(dormouse_folders)
        .filter(|found| found.as_str() == name)
        .count()
}

fn dormouse_folders(root: &str) -> Vec<String> {
    let mut open = vec![std::path::PathBuf::from(root)];
    let mut names = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                names.push(entry.file_name().to_string_lossy().into_owned());
                open.push(entry.path());
            }
        }
    }
    names
}

/// Where there is no group to be had: the reason is told, none is left, the process lives on.
fn goes_on_without(child: &mut Child, error: &Error) {
    let pid = child.jailed.pid();
    let text = error.to_string();
    assert!(
        matches!(error, Error::Group { reason } if !reason.is_empty()),
        "{text}"
    );
    assert_eq!(count(&format!("dormouse-{pid}")), 0, "{text}");
    assert_eq!(groups_of(pid), groups_of(std::process::id()), "{text}");
    assert_eq!(child.jailed.try_wait().expect("a child"), None);
}

fn comes_and_goes() {
    let mut child = start(&order(Deed::Stay));
    child.entered();
    let pid = child.jailed.pid();
    match child.jailed.limit(&GroupLimits::default()) {
        Ok(()) => {
            let name = format!("dormouse-{pid}");
            assert!(
                groups_of(pid).ends_with(&format!("/{name}")),
                "{}",
                groups_of(pid)
            );
            assert_eq!(count(&name), 1);
            // There is one already.
            child
                .jailed
                .limit(&GroupLimits::default())
                .expect_err("it has one");
            assert_eq!(count(&name), 1);
            drop(child);
            assert_eq!(count(&name), 0);
        }
        Err(error) => goes_on_without(&mut child, &error),
    }
}

fn lenient(deed: Deed) -> Order {
    Order {
        filter: Strictness::Lenient,
        ..order(deed)
    }
}

fn memory() {
    let mut child = start(&lenient(Deed::WhenTold(Box::new(Deed::Memory))));
    let limits = GroupLimits {
        memory_bytes: Some(16 << 20),
        threads: None,
    };
    let limited = child.jailed.limit(&limits);
    child.entered();
    match limited {
        Ok(()) => {
            child.socket.get_mut().write_all(&[1]).expect("it reads");
            let ending = child.jailed.wait().expect("a child");
            assert_eq!(ending, Ending::Killed(libc::SIGKILL));
        }
        Err(error) => goes_on_without(&mut child, &error),
    }
}

fn threads() {
    let mut child = start(&lenient(Deed::WhenTold(Box::new(Deed::Threads))));
    let limits = GroupLimits {
        memory_bytes: None,
        threads: Some(1),
    };
    let limited = child.jailed.limit(&limits);
    child.entered();
    match limited {
        Ok(()) => {
            child.socket.get_mut().write_all(&[1]).expect("it reads");
            let report = child.hear();
            assert!(
                matches!(report, Some(Report::Refused(libc::EAGAIN))),
                "{report:?}"
            );
        }
        Err(error) => goes_on_without(&mut child, &error),
    }
}
