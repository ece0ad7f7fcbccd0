//! Real Hermit guests: boot, run, save, restore.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dormouse_vmm::{GuestImage, GuestOutput, MachineConfig, Placement, Shell, Stop, Stream, Vm};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<(Stream, u8)>>>);

impl GuestOutput for Captured {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        self.0
            .lock()
            .unwrap()
            .extend(bytes.iter().map(|&byte| (stream, byte)));
    }
}

impl Captured {
    fn text(&self, wanted: Option<Stream>) -> String {
        let bytes = self.0.lock().unwrap();
        let bytes: Vec<u8> = bytes
            .iter()
            .filter(|(stream, _)| wanted.is_none_or(|wanted| wanted == *stream))
            .map(|(_, byte)| *byte)
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn image(name: &str) -> Arc<GuestImage> {
    let folder = std::env::var("DORMOUSE_TEST_IMAGES").expect("set by `cargo xtask test`");
    let file = std::fs::read(format!("{folder}/{name}")).unwrap();
    Arc::new(GuestImage::parse(&file).unwrap())
}

fn run(name: &str, config: MachineConfig) -> (Stop, Captured) {
    let image = image(name);
    let config = MachineConfig {
        memory_bytes: 64 << 20,
        ..config
    };
    let output = Captured::default();
    let shell = Shell::new(Placement::choose(&config, &image).unwrap()).unwrap();
    let mut vm = Vm::boot(shell, &image, &config, Box::new(output.clone())).unwrap();
    let begun = Instant::now();
    let stop = vm.run(Instant::now() + Duration::from_secs(20)).unwrap();
    eprintln!(
        "{name}: {stop:?} after {:?}, {} exits",
        begun.elapsed(),
        vm.exits()
    );
    (stop, output)
}

#[test]
fn a_plain_program_prints_and_exits() {
    let config = MachineConfig {
        args: vec!["one".into(), "two words".into()],
        env: vec![("GREETING".into(), "good morning".into())],
        ..MachineConfig::default()
    };
    let (stop, output) = run("plain", config);
    eprintln!("{}", output.text(None));
    assert_eq!(stop, Stop::Exit(0));
}

#[test]
fn a_function_becomes_ready() {
    let (stop, output) = run("hello", MachineConfig::default());
    eprintln!("{}", output.text(None));
    assert!(
        matches!(stop, Stop::Exchange { abi_version: 1, .. }),
        "{stop:?}"
    );
}
