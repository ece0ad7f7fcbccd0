//! A guest that does its worst: random ports, sizes and addresses, page tables that change under its
//! feet, and parameters that change while they are read, as another vCPU of the guest would do it.
//! Whatever it does, its run ends in a stop or an error, and its shell is good for the next guest.
//!
//! All choices follow from a seed; what the second thread hits does not. `cargo xtask torture guest`
//! runs [`for_as_long_as_told`] with as much time as it is given.

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_abi::EXCHANGE_PORT;
use dormouse_vmm::layout::PML4_OFFSET;
use dormouse_vmm::{
    CrashKind, GuestImage, GuestOutput, GuestRam, Interface, MachineConfig, Placement, Shell, Stop,
    Stream, Vm, VmState,
};
use support::puppet::{Action, Puppet};
use support::random::Random;
use support::torment::{Rival, Tally, Target, Watch, resources, told};
use support::{Captured, MIB, Memory, kvm_or_skip, machine};

/// Every port of either interface that means something, and some of hardware.
const PORTS: [u16; 42] = [
    0x400,
    0x440,
    0x480,
    0x500,
    0x540,
    0x580,
    0x640,
    0x740,
    0x780,
    0x800,
    0x840,
    0x880,
    0x1010,
    0x1020,
    0x1030,
    0x1040,
    0x1050,
    0x1100,
    0x1110,
    0x1120,
    0x1130,
    0x1140,
    0x1150,
    0x1160,
    0x1170,
    0x1180,
    0x1190,
    0x1200,
    0x1210,
    EXCHANGE_PORT,
    0x20,
    0x21,
    0x40,
    0x43,
    0x60,
    0x64,
    0x70,
    0x71,
    0x80,
    0x3F8,
    0xCF8,
    0xCFC,
];
/// Ports that end the guest: rare, or nothing else would be seen.
const EXITS: [u16; 2] = [0x540, 0x1010];
const MSRS: [u32; 10] = [
    0x10,
    0x1B,
    0x174,
    0x277,
    0x6E0,
    0x802,
    0x830,
    0xC000_0080,
    0xC000_0082,
    0x4B56_4D01,
];
const PATHS: [&[u8]; 8] = [
    b"/root/file\0",
    b"/root/../../etc/passwd\0",
    b"/root/link\0",
    b"/root/out\0",
    b"/root\0",
    b"/proc/self/mem\0",
    b"\0",
    b"/root/pipe\0",
];
/// How long one action may take the guest.
const ACTION_TIME: Duration = Duration::from_millis(20);
const ACTIONS_PER_GUEST: u64 = 40;

fn count_stop(tally: &mut Tally, stop: &Stop) {
    tally.count(match stop {
        Stop::Exchange { .. } => "exchange".to_owned(),
        Stop::Exit(_) => "exit".to_owned(),
        Stop::Crashed(crash) => format!("crash: {:?}", crash.kind),
        Stop::TimedOut => "timed out".to_owned(),
        Stop::Interrupted => "interrupted".to_owned(),
    });
}

/// Keeps nothing.
struct Nowhere;

impl GuestOutput for Nowhere {
    fn write(&mut self, _: Stream, _: &[u8]) {}
}

/// A puppet that waits for its first command, to be restored from.
struct Origin {
    image: Arc<GuestImage>,
    config: MachineConfig,
    state: VmState,
    memory: Memory,
    block: u64,
    /// The shell of the guest before, if it had the same origin.
    shell: Option<Shell>,
}

impl Origin {
    fn new(interface: Interface, files: &Path) -> Self {
        let config = MachineConfig {
            memory_bytes: 18 * MIB,
            args: vec!["one".into(), "two".into()],
            env: vec![("KEY".into(), "value".into())],
            files: Some(files.to_owned()),
            ..machine()
        };
        let image = Puppet::image(interface);
        let mut puppet = Self::boot(&image, &config);
        let symbols = image.symbols(puppet.vm.load_address());
        let block = puppet.block();
        Self {
            state: puppet.vm.save(&symbols).unwrap(),
            memory: Memory::copy_of(puppet.vm.shell().ram()),
            image,
            config,
            block,
            shell: Some(puppet.vm.into_shell()),
        }
    }

    fn boot(image: &Arc<GuestImage>, config: &MachineConfig) -> Puppet {
        let shell = Shell::new(Placement::choose(config, image).unwrap()).unwrap();
        let vm = Vm::boot(shell, image, config, Box::new(Nowhere)).unwrap();
        Puppet::in_vm(vm, Captured::default())
    }

    /// A guest in the shell of the one before: as the first of them, whatever that one did.
    fn restore(&mut self) -> Puppet {
        let shell = match self.shell.take() {
            Some(shell) => shell,
            None => Shell::new(self.state.placement()).unwrap(),
        };
        let vm = Vm::restore(shell, &self.state, Box::new(Nowhere), Arc::new(|_| None)).unwrap();
        self.memory.write_to(vm.shell().ram());
        let differences = vm.differences(&self.state).unwrap();
        assert!(differences.is_empty(), "it left {differences:?}");
        Puppet::waiting(vm, Captured::default(), self.block)
    }
}

/// One guest and what is done with it.
struct Attack<'a> {
    random: Random,
    puppet: Puppet,
    /// Pages for parameters, buffers and what is mapped far away.
    pages: u64,
    window: u64,
    rival: &'a Rival,
    tally: &'a mut Tally,
}

impl Attack<'_> {
    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.random.below(list.len() as u64) as usize]
    }

    fn one_in(&mut self, cases: u64) -> bool {
        self.random.below(cases) == 0
    }

    fn ram(&self) -> &GuestRam {
        self.puppet.vm.shell().ram()
    }

    fn address(&mut self) -> u64 {
        let (base, len) = (self.ram().base(), self.ram().len());
        let near = self.random.below(64);
        match self.random.below(16) {
            0..=5 => self.pages + self.random.below(4 * 4096),
            6 => self.window + self.random.below(5 * 4096),
            7 => base + len - near,
            8 => base + len + near,
            9 => base + self.random.below(len),
            10 => u64::MAX - near,
            11 => base + PML4_OFFSET + 8 * self.random.below(512),
            12 => near,
            13 => self.one_of(&[
                0xFEE0_0000,
                0xFEC0_0010,
                1 << 47,
                1 << 63,
                0xFFFF_FF80_0000_0000,
            ]),
            14 => (self.window + 4 * 4096).wrapping_sub(near),
            _ => self.random.next(),
        }
    }

    fn length(&mut self) -> u64 {
        let small = self.random.below(200);
        match self.random.below(8) {
            0..=3 => small,
            4 => self.random.below(80_000),
            5 => self.one_of(&[0, 4096, 65_536, 65_537, MIB]),
            6 => self.one_of(&[16 * MIB + 1, 1 << 32, 1 << 62, u64::MAX, i64::MAX as u64]),
            _ => self.random.next(),
        }
    }

    fn word(&mut self) -> u64 {
        match self.random.below(3) {
            0 => self.address(),
            1 => self.length(),
            _ => self.random.below(8).wrapping_sub(1),
        }
    }

    /// Parameters somewhere in the pages; either of their packings. Returns where they stand.
    fn parameters(&mut self) -> u64 {
        let at = self.pages + 8 * self.random.below(3 * 512);
        let mut bytes = Vec::new();
        if self.one_in(2) {
            bytes.extend((self.random.below(8) as i32 - 1).to_le_bytes());
        }
        for _ in 0..6 {
            bytes.extend(self.word().to_le_bytes());
        }
        self.ram().write(at, &bytes).unwrap();
        if self.one_in(3) {
            let path = self.one_of(&PATHS);
            let name = self.pages + 4096 * self.random.below(4);
            self.ram().write(name, path).unwrap();
            self.ram().write(at, &name.to_le_bytes()).unwrap();
        }
        at
    }

    /// Changes tables, buffers, and sometimes the guest's own code.
    fn corrupt(&mut self) {
        let base = self.ram().base();
        let frame = match self.random.below(5) {
            0 => self.pages,
            1 => base + PML4_OFFSET,
            2 => base + self.ram().len(),
            3 => 0xFEE0_0000,
            _ => self.random.next() & 0x000F_FFFF_FFFF_F000,
        };
        let entry = frame | self.one_of(&[0, 1, 3, 0x83, 0xFFF]);
        let at = match self.random.below(12) {
            0 => base + PML4_OFFSET + 8 * self.random.below(512),
            1 => self.puppet.block() & !7,
            // The tables of the window stand behind its frames.
            _ => self.pages + 4 * 4096 + 8 * self.random.below(3 * 512),
        };
        self.ram().write(at, &entry.to_le_bytes()).unwrap();
    }

    /// What the rival changes during the next action: parameters, and the window's tables.
    fn rivalry(&mut self, parameters: u64) -> Target {
        let mut words = Vec::new();
        for _ in 0..1 + self.random.below(5) {
            let at = if self.one_in(5) {
                self.pages + 4 * 4096 + 8 * self.random.below(8)
            } else {
                parameters + 4 * self.random.below(12)
            };
            let one = self.ram().read_u64(at).unwrap();
            words.push((at, one, self.word()));
        }
        Target {
            ram: self.ram().clone(),
            words,
        }
    }

    fn action(&mut self) -> [u64; 4] {
        let mut port = match self.random.below(10) {
            0 => self.random.next() as u16,
            _ => self.one_of(&PORTS),
        };
        if EXITS.contains(&port) && !self.one_in(8) {
            port = 0x400;
        }
        let port = u64::from(port);
        let parameters = self.parameters();
        if self.one_in(2) {
            let target = self.rivalry(parameters);
            self.rival.aim(Some(target));
            self.rival.meet(Duration::from_micros(50));
        }
        let parameters = if self.one_in(10) {
            self.address()
        } else {
            parameters
        };
        let (action, target, value) = match self.random.below(50) {
            0..=1 => (Action::Out8, port, parameters),
            2..=3 => (Action::Out16, port, parameters),
            4 => (Action::In8, port, 0),
            5 => (Action::In16, port, 0),
            6 => (Action::In32, port, 0),
            7 => (Action::OutString, port, self.length()),
            8 => (Action::InString, port, self.length()),
            9 => (Action::Load32, self.address(), 0),
            10 => (Action::Load64, self.address(), 0),
            11 => (Action::Store32, self.address(), self.word()),
            12 => (Action::ReadMsr, u64::from(self.one_of(&MSRS)), 0),
            13 => (Action::WriteMsr, u64::from(self.one_of(&MSRS)), self.word()),
            14 => (Action::LoadCr3, 0, self.address()),
            _ => (Action::Out, port, parameters),
        };
        [action as u64, target, value, parameters]
    }

    /// Does one thing. False once the guest is over.
    fn step(&mut self) -> bool {
        if self.one_in(4) {
            self.corrupt();
        }
        let words = self.action();
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        let block = self.puppet.block();
        self.ram().write(block, &bytes).unwrap();
        let deadline = Instant::now() + ACTION_TIME;
        loop {
            let stop = match self.puppet.vm.run(deadline) {
                Ok(stop) => stop,
                Err(error) => {
                    self.tally.error("running", &error);
                    return false;
                }
            };
            count_stop(self.tally, &stop);
            let Stop::Exchange { mailbox, .. } = stop else {
                // A spinning guest can go on, but would spin.
                return false;
            };
            if mailbox == block {
                self.rival.aim(None);
                return true;
            }
            self.exchange(mailbox);
        }
    }

    /// What a host does with a mailbox.
    fn exchange(&mut self, mailbox: u64) {
        let vm = &self.puppet.vm;
        let mut page = [0; 4096];
        let read = vm.read_virtual(mailbox, &mut page);
        let written = read.and_then(|()| vm.write_virtual(mailbox, &page));
        match written {
            Ok(()) => self.tally.count("mailbox served"),
            Err(error) => self.tally.error("mailbox", &error),
        }
    }
}

/// Folder with one of each kind that a guest may try to open.
fn files() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), vec![b'x'; 70_000]).unwrap();
    symlink("file", folder.path().join("link")).unwrap();
    symlink("/etc/passwd", folder.path().join("out")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    folder
}

/// Attacks by guest after guest, while `go_on` says so of their number.
fn attack(seed: u64, mut go_on: impl FnMut(u64) -> bool) -> Tally {
    let files = files();
    let mut origins =
        [Interface::V1, Interface::V2].map(|interface| Origin::new(interface, files.path()));
    let (mut tally, rival) = (Tally::default(), Rival::new());
    let mut guest = 0;
    while go_on(guest) {
        let seed = seed.wrapping_add(guest);
        let watch = Watch::new(seed);
        let mut random = Random::new(seed);
        let origin = &mut origins[random.below(2) as usize];
        let is_booted = random.below(4) == 0;
        let mut puppet = if is_booted {
            Origin::boot(&origin.image, &origin.config)
        } else {
            origin.restore()
        };
        let pages = puppet.put(&[0; 4 * 4096]);
        let window = puppet.map_pages(&[pages + 8192, pages, pages + 4096, pages + 12_288]);
        let mut attack = Attack {
            random,
            puppet,
            pages,
            window,
            rival: &rival,
            tally: &mut tally,
        };
        for _ in 0..ACTIONS_PER_GUEST {
            watch.beat();
            if !attack.step() {
                break;
            }
        }
        rival.aim(None);
        let Attack { mut puppet, .. } = attack;
        // Deploying such a guest saves it.
        let symbols = origin.image.symbols(puppet.vm.load_address());
        match puppet.vm.save(&symbols) {
            Ok(_) => tally.count("saved"),
            Err(error) => tally.error("saving", &error),
        }
        if !is_booted {
            origin.shell = Some(puppet.vm.into_shell());
        }
        tally.count("guests");
        guest += 1;
    }
    tally
}

#[test]
fn whatever_a_guest_does_ends_in_a_stop_and_leaves_its_shell_good() {
    kvm_or_skip!();
    let tally = attack(1, |guest| guest < 300);
    println!("{tally}");
    for expected in ["exchange", "exit", "mailbox served", "saved"] {
        assert!(tally.of(expected) > 0, "no {expected}\n{tally}");
    }
    for kind in [CrashKind::Hypercall, CrashKind::TripleFault] {
        assert!(
            tally.of(&format!("crash: {kind:?}")) > 0,
            "no {kind:?}\n{tally}"
        );
    }
}

#[test]
#[ignore = "takes as long as it is told: `cargo xtask torture guest` runs it"]
fn for_as_long_as_told() {
    kvm_or_skip!();
    let (seed, time) = told();
    // What is made once is there after the first guests.
    attack(seed, |guest| guest < 20);
    let before = resources();
    let begun = Instant::now();
    let tally = attack(seed, |_| begun.elapsed() < time);
    let after = resources();
    println!("{tally}{before:?} descriptors and bytes before, {after:?} after");
    assert_eq!(after.0, before.0, "descriptors were leaked");
    assert!(after.1 < before.1 + 64 * MIB, "memory was leaked");
}
