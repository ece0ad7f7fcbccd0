//! Guests run in worker processes that have nothing but what they need, and that take nothing with them
//! but their own requests when they end.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dormouse_tests::{Dormouse, Serving, Worker, eventually, in_parallel, workers};
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const HELLO: &str = "Hello from Dormouse!\n";

fn serve(folder: &Path, options: &[&str]) -> Option<Serving> {
    let dormouse = Dormouse::over(folder)?;
    for sample in ["hello", "echo"] {
        dormouse.deploy_sample(sample);
    }
    Some(dormouse.serve_with(options))
}

/// The worker that serves a function, once it has one.
fn worker_of(serving: &Serving, function: &str) -> Worker {
    let mut found = None;
    eventually("the function has a worker", || {
        found = workers(serving.process_id())
            .into_iter()
            .find(|worker| worker.threads.values().any(|name| name == &vcpu(function)));
        found.is_some()
    });
    found.expect("it was found")
}

fn vcpu(function: &str) -> String {
    format!("vcpu {function}")
}

/// A field of `/proc/PID/status`.
fn status(folder: &Path, field: &str) -> String {
    let text = fs::read_to_string(folder.join("status")).expect("a status");
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let value = line.and_then(|line| line.strip_prefix(':'));
    value.expect("the field").trim().to_owned()
}

/// Where the descriptors of a process lead.
fn descriptors(process: u32) -> Vec<String> {
    let folder = fs::read_dir(format!("/proc/{process}/fd")).expect("its descriptors");
    let links = folder.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

#[test]
fn a_worker_has_what_it_needs_and_the_front_has_neither_kvm_nor_guest_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(serving) = serve(folder.path(), &[]) else {
        return;
    };
    let client = serving.client();
    for _ in 0..5 {
        assert_eq!(client.invoke("hello", "/").ok().text(), HELLO);
    }
    assert_eq!(client.post("echo", "/", b"some").ok().text(), "some");
    let front = serving.process_id();
    let worker = worker_of(&serving, "hello");
    assert_ne!(worker.id, worker_of(&serving, "echo").id, "one for each");

    // KVM, userfaultfd, memory, sockets; and what belongs to the process itself.
    let may_have = |link: &str| {
        let kinds = [
            "/dev/kvm",
            "/dev/userfaultfd",
            "/dev/null",
            "/memfd:dormouse-memory",
            "anon_inode:kvm-",
            "anon_inode:[userfaultfd]",
            "anon_inode:[eventfd]",
            "socket:",
            // What it says on standard error goes through the front.
            "pipe:",
        ];
        kinds.iter().any(|kind| link.starts_with(kind)) || link.ends_with("/pagemap")
    };
    let has = descriptors(worker.id);
    for needed in ["/dev/kvm", "anon_inode:kvm-vm", "/memfd:dormouse-memory"] {
        assert!(has.iter().any(|link| link.starts_with(needed)), "{has:?}");
    }
    let too_much: Vec<_> = has.iter().filter(|link| !may_have(link)).collect();
    assert!(too_much.is_empty(), "{too_much:?}");

    // Where KVM puts one of its own beside a VM, that never leaves the kernel.
    let own = |(_, name): &(&u32, &String)| !name.starts_with("kvm-");
    let mut names: Vec<_> = worker.threads.iter().filter(own).map(|own| own.1).collect();
    names.sort();
    names.dedup();
    assert_eq!(names, ["dormouse", "front", "hello", "vcpu hello"]);
    for (thread, _) in worker.threads.iter().filter(own) {
        let folder = format!("/proc/{}/task/{thread}", worker.id);
        let is = |field| status(folder.as_ref(), field);
        assert_eq!(is("NoNewPrivs"), "1");
        assert_eq!(is("Seccomp"), "2", "a filter");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(is(set), "0000000000000000", "{set}");
        }
    }

    // Those that listen and that serve page faults may do less than the process.
    let filters = |name: &str| {
        let mut threads = worker.threads.iter();
        let (thread, _) = threads.find(|(_, known)| *known == name).expect(name);
        let folder = format!("/proc/{}/task/{thread}", worker.id);
        let count = status(folder.as_ref(), "Seccomp_filters");
        count.parse::<u32>().expect("a number")
    };
    assert!(filters("front") > filters("dormouse") && filters("hello") > filters("vcpu hello"));

    // Until the background verification is done it still has the file that it verifies.
    eventually("the front has nothing of a guest", || {
        !descriptors(front).iter().any(|link| {
            let parts = ["kvm", "userfaultfd", "memfd:"];
            parts.iter().any(|part| link.contains(part))
        })
    });
    let maps = fs::read_to_string(format!("/proc/{front}/maps")).expect("its mappings");
    for part in ["memfd:", "kvm", "userfaultfd"] {
        assert!(!maps.contains(part), "{part} is mapped");
    }
}

/// What a worker is made to try: a name, a system call, and what it is given.
struct Attempt {
    name: &'static str,
    call: c_long,
    arguments: [u64; 6],
}

fn attempts(front: u32, other: u32) -> Vec<Attempt> {
    let attempt = |name, call, arguments: &[u64]| {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        Attempt {
            name,
            call,
            arguments: all,
        }
    };
    let here = u64::from(libc::AT_FDCWD.cast_unsigned());
    let (front, other) = (u64::from(front), u64::from(other));
    let (executable, readable) = (
        libc::PROT_EXEC.cast_unsigned(),
        libc::PROT_READ.cast_unsigned(),
    );
    vec![
        attempt("open", libc::SYS_open, &[0]),
        attempt("openat", libc::SYS_openat, &[here]),
        attempt("openat2", libc::SYS_openat2, &[here]),
        attempt("creat", libc::SYS_creat, &[]),
        attempt("socket", libc::SYS_socket, &[2, 1]),
        attempt("connect", libc::SYS_connect, &[0]),
        attempt("bind", libc::SYS_bind, &[0]),
        attempt("ptrace the front", libc::SYS_ptrace, &[16, front]),
        attempt("ptrace another worker", libc::SYS_ptrace, &[16, other]),
        attempt("execve", libc::SYS_execve, &[]),
        attempt("fork", libc::SYS_fork, &[]),
        attempt("clone, a process", libc::SYS_clone, &[17]),
        attempt(
            "read another worker's memory",
            libc::SYS_process_vm_readv,
            &[other],
        ),
        attempt("write the front's", libc::SYS_process_vm_writev, &[front]),
        attempt("kill the front", libc::SYS_kill, &[front, 9]),
        attempt("signal its thread", libc::SYS_tgkill, &[front, front, 9]),
        attempt("pidfd_open", libc::SYS_pidfd_open, &[other]),
        attempt("mount", libc::SYS_mount, &[]),
        attempt("setns", libc::SYS_setns, &[]),
        attempt("unshare", libc::SYS_unshare, &[1 << 28]),
        attempt("bpf", libc::SYS_bpf, &[]),
        attempt("io_uring_setup", libc::SYS_io_uring_setup, &[1]),
        attempt("memfd_create", libc::SYS_memfd_create, &[]),
        attempt(
            "make memory executable",
            libc::SYS_mprotect,
            &[0, 4096, u64::from(executable | readable)],
        ),
        attempt("a terminal's ioctl", libc::SYS_ioctl, &[2, 0x5412]),
        attempt("KVM_CREATE_DEVICE", libc::SYS_ioctl, &[2, 0xc00c_aee0]),
        attempt("KVM_SET_GSI_ROUTING", libc::SYS_ioctl, &[2, 0x4008_ae6a]),
    ]
}

/// Stops a thread of another process once it waits in a system call, and returns its registers. One that
/// is stopped elsewhere (it computes, or waits for a page) is let go again: no `syscall` is behind it.
fn stop_in_a_call(thread: Pid) -> user_regs_struct {
    let mut found = None;
    eventually("it waits in a system call", || {
        ptrace::seize(thread, ptrace::Options::empty()).expect("root may trace it");
        ptrace::interrupt(thread).expect("it can be stopped");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("the thread's status");
        let registers = ptrace::getregs(thread).expect("its registers");
        // Negative where it did not come into the kernel by a system call.
        if registers.orig_rax.cast_signed() >= 0 {
            found = Some(registers);
        } else {
            ptrace::detach(thread, None).expect("it is let go");
        }
        found.is_some()
    });
    found.expect("it was stopped")
}

/// Has a thread of another process make a system call, in the place of the one that it waits in. Returns
/// what the kernel answered, or the signal that the process died of.
fn inject(thread: u32, call: c_long, arguments: [u64; 6]) -> Result<i64, Signal> {
    /// `syscall`, after which a thread that waits in the kernel goes on.
    const INSTRUCTION_BYTES: u64 = 2;
    let thread = Pid::from_raw(thread.cast_signed());
    let mut registers = stop_in_a_call(thread);
    let after = registers.rip;
    registers.rip -= INSTRUCTION_BYTES;
    registers.rax = call.cast_unsigned();
    // Not to be taken for the call that was interrupted, and begun again.
    registers.orig_rax = u64::MAX;
    let [a, b, c, d, e, f] = arguments;
    (registers.rdi, registers.rsi, registers.rdx) = (a, b, c);
    (registers.r10, registers.r8, registers.r9) = (d, e, f);
    ptrace::setregs(thread, registers).expect("its registers can be set");
    ptrace::step(thread, None).expect("it goes on");
    match waitpid(thread, Some(WaitPidFlag::__WALL)).expect("the thread's status") {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
        WaitStatus::Signaled(_, signal, _) => return Err(signal),
        other => panic!("{call}: {other:?}"),
    }
    let registers = ptrace::getregs(thread).expect("its registers");
    assert_eq!(registers.rip, after, "it made the call, and nothing else");
    ptrace::detach(thread, Some(Signal::SIGKILL)).expect("it is let go");
    Ok(registers.rax.cast_signed())
}

#[test]
fn whatever_a_worker_tries_is_refused_in_each_of_its_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(serving) = serve(folder.path(), &["--shells-ahead", "1"]) else {
        return;
    };
    let client = serving.client();
    for function in ["hello", "echo"] {
        assert_eq!(client.post(function, "/", b"x").status, 200);
    }
    let (mut tried, mut last) = (0, 0);
    const KINDS: [&str; 4] = ["dormouse", "front", "vcpu hello", "hello"];
    for kind in KINDS {
        let thread = || {
            let worker = worker_of(&serving, "hello");
            let mut threads = worker.threads.iter();
            let (thread, _) = threads.find(|(_, name)| *name == kind)?;
            Some((worker.id, *thread))
        };
        // One of a worker that was not made to try anything yet.
        let mut next = || {
            let mut found = None;
            eventually("the next worker has such a thread", || {
                found = thread().filter(|(process, _)| *process != last);
                found.is_some()
            });
            let (process, thread) = found.expect("it was found");
            last = process;
            (process, thread)
        };
        // What it may do can be injected: so the rest is refused, and not merely gone wrong.
        let (process, waiting) = next();
        let answer = inject(waiting, libc::SYS_getpid, [0; 6]);
        assert_eq!(answer, Ok(i64::from(process)), "{kind}");
        let other = worker_of(&serving, "echo").id;
        for attempt in attempts(serving.process_id(), other) {
            let (_, waiting) = next();
            let answer = inject(waiting, attempt.call, attempt.arguments);
            // Files are said not to be there; all else is death. The kernel sees neither.
            let is_file = attempt.name.starts_with("open");
            assert!(
                answer == Err(Signal::SIGSYS)
                    || (is_file && answer == Ok(-i64::from(libc::ENOENT))),
                "{} by {kind}: {answer:?}",
                attempt.name
            );
            tried += 1;
            // The front is there, and so is the function, in another worker.
            eventually("the function answers", || {
                client.invoke("hello", "/").status == 200
            });
        }
    }
    assert_eq!(tried, KINDS.len() * attempts(0, 0).len());
    assert_eq!(client.post("echo", "/", b"still").ok().text(), "still");
}

#[test]
fn killed_workers_take_only_their_own_requests_with_them() {
    const REQUESTS: usize = 1500;
    const KILL_EVERY: Duration = Duration::from_millis(300);

    let folder = tempfile::tempdir().expect("a folder");
    let Some(serving) = serve(folder.path(), &[]) else {
        return;
    };
    let front = serving.process_id();
    let client = serving.client();
    for function in ["hello", "echo"] {
        assert_eq!(client.post(function, "/", b"x").status, 200);
    }
    let spared = worker_of(&serving, "echo").id;
    let is_over = Over(AtomicBool::new(false));
    let (kills, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.0.load(Ordering::Relaxed) {
                std::thread::sleep(KILL_EVERY);
                // One that was of no use yet is not followed by the next at once.
                eventually("the function answers", || {
                    client.invoke("hello", "/").status == 200
                });
                let victim = worker_of(&serving, "hello").id;
                let killed = kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL);
                kills.fetch_add(usize::from(killed.is_ok()), Ordering::Relaxed);
            }
        });
        let _over = EndOf(&is_over);
        in_parallel(REQUESTS, 6, |number| {
            if number % 3 == 0 {
                let body = format!("{number}");
                let answer = client.post("echo", "/", body.as_bytes()).ok();
                assert_eq!(answer.text(), body, "whose worker nobody touched");
                return;
            }
            let answer = client.invoke("hello", "/");
            if answer.status == 200 {
                assert_eq!(answer.text(), HELLO);
            } else {
                assert_eq!(answer.problem().kind(), (503, "worker-lost"));
                assert_eq!(answer.header("Retry-After"), "1");
                lost.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
    let (kills, lost) = (kills.into_inner(), lost.into_inner());
    println!("{kills} kills, {lost} of {REQUESTS} requests lost");
    assert!(kills > 0);
    // At most as many as the function may run at once.
    assert!(lost <= kills * 8, "{lost} lost to {kills} kills");
    assert_eq!(worker_of(&serving, "echo").id, spared);

    // A worker that was idle when it was killed costs nobody anything.
    let idle = worker_of(&serving, "hello").id;
    kill(Pid::from_raw(idle.cast_signed()), Signal::SIGKILL).expect("it is there");
    eventually("it is replaced", || worker_of(&serving, "hello").id != idle);
    assert_eq!(client.invoke("hello", "/").ok().text(), HELLO);
    // One for each function and one in reserve; nobody that was killed is left.
    eventually("what has ended is gone", || {
        let states: BTreeMap<u32, String> = children(front);
        states.len() == 3 && states.values().all(|state| !state.starts_with('Z'))
    });
}

/// Whether a thread is to go on beside a test.
struct Over(AtomicBool);

/// Ends that thread, also where the test fails.
struct EndOf<'a>(&'a Over);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// The children of a process, with their states.
fn children(process: u32) -> BTreeMap<u32, String> {
    let listed = fs::read_dir("/proc").expect("the processes");
    let ids = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter_map(|id: u32| {
        let text = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
        };
        (field("PPid:")? == process.to_string()).then_some((id, field("State:")?))
    })
    .collect()
}

#[test]
fn a_front_that_is_gone_leaves_no_worker() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(serving) = serve(folder.path(), &[]) else {
        return;
    };
    assert_eq!(serving.client().invoke("hello", "/").status, 200);
    let front = serving.process_id();
    let mut left = Vec::new();
    eventually("it has one that works, and one in reserve", || {
        left = workers(front).into_iter().map(|worker| worker.id).collect();
        left.len() >= 2
    });
    kill(Pid::from_raw(front.cast_signed()), Signal::SIGKILL).expect("it runs");
    eventually("its workers have ended", || {
        left.iter().all(|id| {
            let state = fs::read_to_string(format!("/proc/{id}/status"));
            state.map_or(true, |text| text.contains("State:\tZ"))
        })
    });
}

#[test]
fn without_isolation_there_is_no_worker() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(serving) = serve(folder.path(), &["--isolation", "none"]) else {
        return;
    };
    assert_eq!(serving.client().invoke("hello", "/").ok().text(), HELLO);
    assert!(children(serving.process_id()).is_empty());
}
