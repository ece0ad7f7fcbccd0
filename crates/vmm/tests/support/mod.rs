//! What the tests of this crate share: hosts without KVM, captured output, images and machines.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "every test file uses some of these helpers, none uses all"
)]

pub(crate) mod elf;
pub(crate) mod function;
pub(crate) mod puppet;
pub(crate) mod random;
pub(crate) mod torment;
pub(crate) mod worker;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_vmm::{
    Crash, CrashKind, GuestImage, GuestOutput, GuestRam, Host, HostProfile, MachineConfig,
    Placement, Shell, Stop, Stream, Vm,
};

/// The host's profile, or `None` where the test has to be skipped for want of KVM.
///
/// # Panics
/// Where there is no KVM and nobody said that this is meant (`DORMOUSE_TEST_NO_KVM=1`).
pub(crate) fn kvm() -> Option<HostProfile> {
    match Host::open() {
        Ok(host) => Some(host.profile().clone()),
        Err(error) if std::env::var("DORMOUSE_TEST_NO_KVM").as_deref() == Ok("1") => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("this test needs KVM (DORMOUSE_TEST_NO_KVM=1 skips it): {error}"),
    }
}

/// Returns from the test where there is no KVM; see [`kvm`].
macro_rules! kvm_or_skip {
    () => {
        match $crate::support::kvm() {
            Some(profile) => profile,
            None => return,
        }
    };
}
pub(crate) use kvm_or_skip;

/// Everything that a guest wrote, stream by stream.
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<Piece>>>);

type Piece = (Stream, Vec<u8>);

impl GuestOutput for Captured {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.push((stream, bytes.to_vec()));
    }
}

impl Captured {
    pub(crate) fn bytes(&self, wanted: Stream) -> Vec<u8> {
        let pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = pieces.iter().filter(|(stream, _)| *stream == wanted);
        wanted.flat_map(|(_, bytes)| bytes.clone()).collect()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.bytes(Stream::Stdout)).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.bytes(Stream::Stderr)).into_owned()
    }

    pub(crate) fn kernel(&self) -> String {
        String::from_utf8_lossy(&self.bytes(Stream::Kernel)).into_owned()
    }
}

/// The bytes of a real Hermit image.
pub(crate) fn image_file(name: &str) -> Vec<u8> {
    let folder = std::env::var_os("DORMOUSE_TEST_IMAGES").unwrap_or_else(|| {
        panic!("DORMOUSE_TEST_IMAGES must name the folder of built functions; `cargo xtask test` sets it")
    });
    let path = PathBuf::from(folder).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A real Hermit image.
pub(crate) fn image(name: &str) -> Arc<GuestImage> {
    Arc::new(GuestImage::parse(&image_file(name)).unwrap_or_else(|e| panic!("{name}: {e}")))
}

pub(crate) const MIB: u64 = 1 << 20;

/// A machine with the memory that a small function needs.
pub(crate) fn machine() -> MachineConfig {
    MachineConfig {
        memory_bytes: 64 * MIB,
        ..MachineConfig::default()
    }
}

/// Boots `image` in a shell of its own.
pub(crate) fn boot(image: &Arc<GuestImage>, config: &MachineConfig) -> (Vm, Captured) {
    let output = Captured::default();
    let placement = Placement::choose(config, image).unwrap();
    let shell = Shell::new(placement).unwrap();
    let vm = Vm::boot(shell, image, config, Box::new(output.clone())).unwrap();
    (vm, output)
}

/// A deadline that no test should reach.
pub(crate) fn far() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

/// Runs until the guest stops by itself.
pub(crate) fn run(vm: &mut Vm) -> Stop {
    vm.run(far()).unwrap()
}

/// The crash that `stop` must be.
pub(crate) fn crash(stop: Stop) -> Crash {
    match stop {
        Stop::Crashed(crash) => crash,
        other => panic!("expected a crash, got {other:?}"),
    }
}

/// Asserts a crash of this kind whose reason contains every one of `words`.
pub(crate) fn assert_crash(stop: Stop, kind: CrashKind, words: &[&str]) {
    let crash = crash(stop);
    assert_eq!(crash.kind, kind, "{}", crash.reason);
    for word in words {
        assert!(
            crash.reason.contains(word),
            "{word:?} not in: {}",
            crash.reason
        );
    }
}

/// A copy of a guest's memory: the pages that may hold anything but zeros.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Memory(Vec<(u64, Box<[u8; 4096]>)>);

impl Memory {
    pub(crate) fn copy_of(ram: &GuestRam) -> Self {
        let pages = ram.resident_pages().unwrap().into_iter().flatten();
        Self(
            pages
                .map(|page| {
                    let mut bytes = Box::new([0; 4096]);
                    ram.read(ram.base() + page * 4096, bytes.as_mut_slice())
                        .unwrap();
                    (page, bytes)
                })
                .collect(),
        )
    }

    /// Makes `ram` hold these pages and zeros elsewhere, whatever it held before.
    pub(crate) fn write_to(&self, ram: &GuestRam) {
        for page in ram.resident_pages().unwrap().into_iter().flatten() {
            ram.zero(ram.base() + page * 4096, 4096).unwrap();
        }
        for (page, bytes) in &self.0 {
            ram.write(ram.base() + page * 4096, bytes.as_slice())
                .unwrap();
        }
    }
}
