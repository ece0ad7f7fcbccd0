//! Nothing slow stands between a request and its run: the server's system calls in between, by kind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use dormouse_tests::{Dormouse, Serving, Trace, Worker, eventually, files_below, workers};

/// What may not be called in between, by what stands in strace's line.
const FORBIDDEN: &[&str] = &[
    // Making VMs, vCPUs and interrupt controllers, or changing memslots.
    "KVM_CREATE",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_ENABLE_CAP",
    "KVM_SET_CPUID2",
    "KVM_IRQ",
    "KVM_SET_GSI_ROUTING",
    // Setting a vCPU's state, which is done after the run before.
    "KVM_SET_SREGS",
    "KVM_SET_MSRS",
    "KVM_SET_LAPIC",
    "KVM_SET_XSAVE",
    "KVM_SET_XCRS",
    "KVM_SET_DEBUGREGS",
    "KVM_SET_MP_STATE",
    // Mapping snapshots and asking for their faults, which is done ahead as well.
    "MAP_FIXED",
    "UFFDIO_REGISTER",
    // Opening files, and reading or writing them.
    "open(",
    "openat(",
    "openat2(",
    "memfd_create(",
    "userfaultfd(",
    "pread64(",
    "pwrite64(",
    "fsync(",
    // Log lines.
    "write(1,",
    "write(2,",
    "writev(2,",
    // Threads.
    "clone(",
    "clone3(",
];

/// What a clone's restore calls to bring in its working set; nothing of it is called for one that was
/// rolled back.
const RESTORING: &[&str] = &["UFFDIO_CONTINUE", "UFFDIO_COPY"];

/// The longest anonymous mapping that is not guest memory: what an allocator may ask for.
const MOST_MAPPED_BYTES: u64 = 1 << 20;

const REQUESTS: usize = 20;

#[test]
fn nothing_slow_stands_between_a_request_and_its_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    dormouse.deploy_sample("hello");
    // Nothing is done beside the requests: no verifying, and no building of a second instance.
    let quiet = ["--verify", "always", "--shells-ahead", "1"];
    for (options, start) in [(&["--no-rollback"][..], "restored"), (&[], "rolled-back")] {
        let server = dormouse.serve_with(&[&quiet, options].concat());
        let paths = traced(&server, folder.path(), start);
        assert_eq!(paths.len(), REQUESTS, "of {start}");
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for call in paths.iter().flatten() {
            *kinds.entry(kind(call)).or_default() += 1;
        }
        println!("{start}: {kinds:?}");
        for path in &paths {
            check(path, start);
        }
    }
}

/// Waits until nothing runs, so that an instance is ready again: how long that takes after an answer is
/// not for a sleep to guess.
fn at_rest(server: &Serving) {
    eventually("nothing runs", || {
        let metrics = server.client().get("/metrics").ok().text();
        metrics.lines().any(|line| line == "dormouse_running 0")
    });
}

/// Whether the working set is in the store. The folder that it comes from is removed last of all.
fn keeps_working_set(store: &Path) -> bool {
    let is_there = files_below(store)
        .iter()
        .any(|file| file.ends_with("working-set") && !file.to_string_lossy().contains("/.tmp-"));
    let mut entries = fs::read_dir(store).expect("the store").flatten();
    is_there && !entries.any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"))
}

/// Whether a worker process has come so far that it can open nothing any more, and listens.
fn is_confined(worker: &Worker) -> bool {
    // Where KVM puts one of its own beside a VM, that never leaves the kernel.
    let own = worker
        .threads
        .iter()
        .filter(|own| !own.1.starts_with("kvm-"));
    let is_filtered = |thread: &u32| {
        let status = fs::read_to_string(format!("/proc/{}/task/{thread}/status", worker.id));
        status.is_ok_and(|status| status.lines().any(|line| line == "Seccomp:\t2"))
    };
    let (threads, names): (Vec<_>, Vec<_>) = own.unzip();
    names.iter().any(|name| *name == "front") && threads.into_iter().all(is_filtered)
}

/// The calls between each request and its run.
fn traced(server: &Serving, store: &Path, start: &str) -> Vec<Vec<String>> {
    // The working set is recorded, and all that happens once has happened.
    for _ in 0..10 {
        let _ = server.client().invoke("hello", "/").ok();
        at_rest(server);
    }
    eventually("the working set is stored", || keeps_working_set(store));
    let mut of_server = Vec::new();
    eventually("one works, and one is in reserve", || {
        of_server = workers(server.process_id());
        of_server.len() == 2 && of_server.iter().all(is_confined)
    });
    // That one looks at the host's memory from time to time, and no request waits for it.
    let mut processes = vec![server.process_id()];
    processes.extend(of_server.iter().map(|worker| worker.id));
    let trace = Trace::attach(&processes).without_threads("memory watch");
    for _ in 0..REQUESTS {
        // What comes after an answer must not be taken for the next request's.
        at_rest(server);
        thread::sleep(Duration::from_millis(100));
        let reply = server.client().invoke("hello", "/").ok();
        assert_eq!(reply.header("x-start-type"), start);
    }
    let mut paths = Vec::new();
    let mut path: Option<Vec<String>> = None;
    for call in trace.end() {
        if call.contains("GET /v1/functions/hello/invoke") {
            path = Some(Vec::new());
        } else if call.contains("KVM_RUN") {
            paths.extend(path.take());
        } else if let Some(path) = &mut path {
            path.push(call);
        }
    }
    paths
}

#[track_caller]
fn check(path: &[String], start: &str) {
    let restores = RESTORING
        .iter()
        .all(|word| path.iter().any(|call| call.contains(word)));
    let touches_memory = RESTORING
        .iter()
        .any(|word| path.iter().any(|call| call.contains(word)));
    assert_eq!(restores, start == "restored", "{start}: {path:#?}");
    assert_eq!(touches_memory, start == "restored", "{start}: {path:#?}");
    for call in path {
        let forbidden = FORBIDDEN.iter().find(|word| call.contains(*word));
        assert_eq!(forbidden, None, "{start}: {call}\nin {path:#?}");
        let is_allocation = call.starts_with("mmap(") && call.contains("MAP_ANONYMOUS");
        if is_allocation {
            let bytes = call.split(", ").nth(1).and_then(|text| text.parse().ok());
            let bytes: u64 = bytes.expect("a length");
            assert!(bytes <= MOST_MAPPED_BYTES, "{start}: {call}");
        }
    }
}

/// What sort of call it is: its name, and for an ioctl what it asks for.
fn kind(call: &str) -> String {
    let name = call.trim_start_matches("<... ");
    let name: String = name
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect();
    let request = call
        .strip_prefix("ioctl(")
        .and_then(|rest| rest.split(", ").nth(1))
        .map(|request| request.split([',', ')']).next().unwrap_or_default());
    request.map_or(name, |request| format!("ioctl {request}"))
}
