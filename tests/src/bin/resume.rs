//! `resume STORE NAME`: restores a plain program's snapshot from a store in this process, lets it run
//! to its end, and passes its output and exit code through. For tests of snapshots that are taken in
//! the middle of a program and continued in another process.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_pager::{Pager, PagerConfig, Policy, Source};
use dormouse_snapshot::{FunctionName, Snapshot, Store};
use dormouse_vmm::{GuestOutput, Shell, Stop, Stream, Vm, VmState};

struct Through;

impl GuestOutput for Through {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Stdout {
            // A closed pipe fails the test that reads from it.
            let _ = std::io::stdout().write_all(bytes);
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, name] = arguments.as_slice() else {
        eprintln!("usage: resume STORE NAME");
        return ExitCode::from(2);
    };
    let name = FunctionName::new(name).expect("a function's name");
    let snapshot: Snapshot<VmState> = Store::open(store)
        .expect("a store")
        .open_newest(&name)
        .expect("a published snapshot");
    let memory = &snapshot.memory;
    let memfd = Arc::new(memory.load(true).expect("the memory is intact"));
    let source = Source::shared(memfd, memory.pages(), memory.data().into()).expect("a source");

    let shell = Shell::new(snapshot.state.placement()).expect("a shell");
    let mut pager = Pager::new(PagerConfig::default()).expect("userfaultfd");
    pager
        .attach(shell.ram().region(), &source, &Policy::Lazy)
        .expect("attached memory");
    let mut vm = Vm::restore(
        shell,
        &snapshot.state,
        Box::new(Through),
        Arc::new(|_| None),
    )
    .expect("a restored guest");
    match vm
        .run(Instant::now() + Duration::from_secs(120))
        .expect("a run")
    {
        Stop::Exit(code) => ExitCode::from(code as u8),
        other => {
            eprintln!("the guest ended in {other:?}");
            ExitCode::FAILURE
        }
    }
}
