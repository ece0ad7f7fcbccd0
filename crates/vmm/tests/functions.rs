//! Real functions and programs for Hermit: they boot, answer, exit, and fail in every way there is.

mod support;

use std::time::{Duration, Instant};

use dormouse_vmm::{CrashKind, MachineConfig, Stop, Vm};
use support::function::{Outcome, ready, request};
use support::{Captured, assert_crash, boot, far, image, kvm_or_skip, machine, run};

/// A function that waits for its first request.
fn function(name: &str) -> (Vm, u64, Captured) {
    let (mut vm, output) = boot(&image(name), &machine());
    let mailbox = ready(&mut vm, &output);
    (vm, mailbox, output)
}

#[test]
fn a_plain_program_gets_its_arguments_prints_and_exits() {
    kvm_or_skip!();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("note"), "from the host\n").unwrap();
    let config = MachineConfig {
        args: ["one", "two words", "--read", "/root/note", "--exit", "7"]
            .map(String::from)
            .to_vec(),
        env: vec![("GREETING".into(), "good 'morning'".into())],
        files: Some(folder.path().to_owned()),
        ..machine()
    };
    let (mut vm, output) = boot(&image("plain"), &config);
    assert_eq!(vm.guest_time(), Duration::ZERO);
    let begun = Instant::now();
    assert_eq!(run(&mut vm), Stop::Exit(7), "{}", output.kernel());
    let elapsed = begun.elapsed();
    let stdout = output.stdout();
    assert!(
        stdout.contains(r#"["one", "two words", "--read", "/root/note", "--exit", "7"]"#),
        "{stdout}"
    );
    assert!(stdout.contains("GREETING: good 'morning'\n"), "{stdout}");
    assert!(stdout.ends_with("from the host\n"), "{stdout}");
    assert_eq!(output.stderr(), "this line goes to stderr\n");
    // A boot has few exits; thousands would be a search through absent memory.
    assert!(vm.exits() < 1000, "{} exits", vm.exits());
    // Most of what it takes is the guest's own work.
    let in_guest = vm.guest_time();
    assert!(in_guest <= elapsed, "{in_guest:?} of {elapsed:?}");
    assert!(in_guest > elapsed / 2, "{in_guest:?} of {elapsed:?}");
}

#[test]
fn a_panic_in_a_program_is_its_exit() {
    kvm_or_skip!();
    let config = MachineConfig {
        args: vec!["--panic".into()],
        ..machine()
    };
    let (mut vm, output) = boot(&image("plain"), &config);
    assert_eq!(run(&mut vm), Stop::Exit(-1));
    assert!(
        output.stderr().contains("a panic was asked for"),
        "{}",
        output.stderr()
    );
}

#[test]
fn a_function_becomes_ready_and_answers_again_and_again() {
    kvm_or_skip!();
    let (mut vm, mailbox, _) = function("hello");
    for _ in 0..3 {
        match request(&mut vm, mailbox, "/") {
            Outcome::Answer { status: 200, body } => assert!(!body.is_empty()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn cpu_exceptions_are_diagnosed_at_once_with_place_and_name() {
    kvm_or_skip!();
    for (target, words) in [
        (
            "/write-unmapped",
            &[
                "Page fault (#PF)",
                "at address 0x700000000000",
                "instruction at 0x",
                " in ",
            ][..],
        ),
        ("/invalid-opcode", &["instruction at 0x", " in "]),
        ("/stack-overflow", &["instruction at 0x", " in ", "recurse"]),
    ] {
        let (mut vm, mailbox, output) = function("faulty");
        let begun = Instant::now();
        let stop = match request(&mut vm, mailbox, target) {
            Outcome::Stopped(stop) => stop,
            answer => panic!("{target}: {answer:?}"),
        };
        eprintln!(
            "{target}: {stop:?} after {:?}\n{}",
            begun.elapsed(),
            output.kernel()
        );
        assert_crash(stop, CrashKind::Exception, words);
        // Well before the deadline of two minutes, which would find it too.
        assert!(begun.elapsed() < Duration::from_secs(30), "{target}");
    }
}

#[test]
fn failures_that_the_program_notices_are_exits_with_a_message() {
    kvm_or_skip!();
    for (target, code, message) in [
        ("/panic", -1, "a panic was asked for"),
        ("/oom", -1, "memory allocation of"),
        ("/exit?code=42", 42, ""),
    ] {
        let (mut vm, mailbox, output) = function("faulty");
        match request(&mut vm, mailbox, target) {
            Outcome::Stopped(Stop::Exit(found)) => assert_eq!(found, code, "{target}"),
            other => panic!("{target}: {other:?}"),
        }
        assert!(
            output.stderr().contains(message),
            "{target}: {}",
            output.stderr()
        );
    }
}

#[test]
fn guests_that_never_answer_meet_their_deadline() {
    kvm_or_skip!();
    for target in ["/spin", "/no-answer"] {
        let (mut vm, mailbox, _) = function("faulty");
        let interrupter = vm.interrupter();
        let watchdog = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            interrupter.interrupt();
        });
        match request(&mut vm, mailbox, target) {
            Outcome::Stopped(Stop::Interrupted) => {}
            other => panic!("{target}: {other:?}"),
        }
        watchdog.join().unwrap();
        let deadline = Instant::now() + Duration::from_millis(100);
        assert_eq!(vm.run(deadline).unwrap(), Stop::TimedOut, "{target}");
        assert!(Instant::now() >= deadline && Instant::now() < far());
    }
}
