//! A program that is stopped in its middle, published, and continued elsewhere ends as if nothing had
//! happened.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_snapshot::{Compression, Draft, FunctionName, MemoryDraft, PAGE_BYTES, Store};
use dormouse_tests::{copy_folder, image};
use dormouse_vmm::{
    GuestImage, GuestOutput, Host, MachineConfig, Placement, Shell, Stop, Stream, Vm,
};

/// Standard output, kept.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<String>>);

impl GuestOutput for Output {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Stdout {
            self.text().push_str(&String::from_utf8_lossy(bytes));
        }
    }
}

impl Output {
    fn text(&self) -> std::sync::MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const MEMORY_BYTES: u64 = 64 << 20;

fn boot(image: &Arc<GuestImage>, output: &Output) -> Vm {
    let config = MachineConfig {
        memory_bytes: MEMORY_BYTES,
        ..MachineConfig::default()
    };
    let shell = Shell::new(Placement::choose(&config, image).unwrap()).unwrap();
    Vm::boot(shell, image, &config, Box::new(output.clone())).unwrap()
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

/// A guest that was stopped after about `after` of its life, and what it had printed by then.
fn stopped(image: &Arc<GuestImage>, mut after: Duration) -> (Vm, Output) {
    loop {
        let before = Output::default();
        let mut vm = boot(image, &before);
        let interrupter = vm.interrupter();
        let kick = std::thread::spawn(move || {
            std::thread::sleep(after);
            interrupter.interrupt();
        });
        let stop = vm.run(far()).unwrap();
        kick.join().unwrap();
        match stop {
            Stop::Interrupted => return (vm, before),
            // Faster than the run that was timed, on a machine that does other things as well.
            Stop::Exit(0) => after /= 2,
            other => panic!("the guest ended in {other:?}"),
        }
    }
}

/// Saves the guest as it is and publishes it.
fn publish(vm: &mut Vm, image: &GuestImage, file: &[u8], store: &Store, name: &FunctionName) {
    let state = vm.save(&image.symbols(vm.load_address())).unwrap();
    let ram = vm.shell().ram();
    let mut read = |page: u64, buffer: &mut [u8]| {
        let address = ram.base() + page * PAGE_BYTES as u64;
        ram.read(address, buffer).map_err(std::io::Error::other)
    };
    let draft = Draft {
        created_unix_ms: dormouse_tests::unix_ms(),
        host: String::new(),
        config: serde_json::Value::Null,
        state: &state,
        memory: MemoryDraft {
            pages: MEMORY_BYTES / PAGE_BYTES as u64,
            resident: ram.resident_pages().unwrap(),
            read: &mut read,
        },
        image: file,
        parent: None,
        compression: Compression::None,
    };
    store.publish(name, draft).unwrap();
}

/// What the rest of the program prints in another process.
fn resume(store: &Path, name: &FunctionName) -> String {
    let child = Command::new(env!("CARGO_BIN_EXE_resume"))
        .arg(store)
        .arg(name.as_str())
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stderr)
    );
    String::from_utf8(child.stdout).unwrap()
}

#[test]
fn a_program_goes_on_in_another_process_and_from_a_copied_store() {
    if let Err(error) = Host::open() {
        assert!(
            std::env::var_os("DORMOUSE_TEST_NO_KVM").is_some_and(|value| value == "1"),
            "this host cannot run guests: {error}; set DORMOUSE_TEST_NO_KVM=1 to skip this test"
        );
        println!("skipped: this host cannot run guests: {error}");
        return;
    }
    let file = image("longsum");
    let image = Arc::new(GuestImage::parse(&file).unwrap());

    let whole = Output::default();
    let mut vm = boot(&image, &whole);
    let begun = Instant::now();
    assert_eq!(vm.run(far()).unwrap(), Stop::Exit(0));
    let took = begun.elapsed();
    let whole = whole.text().clone();
    assert!(whole.starts_with("started\nsum "), "{whole}");

    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store")).unwrap();
    for (number, eighths) in [3, 5, 7].into_iter().enumerate() {
        let name = FunctionName::new(&format!("midway-{number}")).unwrap();
        let (mut vm, before) = stopped(&image, took * eighths / 8);
        publish(&mut vm, &image, &file, &store, &name);
        let before = before.text().clone();

        assert_eq!(before.clone() + &resume(store.path(), &name), whole);
        let copy = folder.path().join(format!("copy-{number}"));
        copy_folder(store.path(), &copy);
        assert_eq!(before.clone() + &resume(&copy, &name), whole);

        // The guest that the snapshot was taken of is none the worse for it.
        let rest = vm.run(far()).unwrap();
        assert_eq!(rest, Stop::Exit(0));
    }
}
