//! Restored equals never stopped: a guest that computes something long gives the same result
//! however often and whenever it is saved, moved to another machine and restored on its way.

mod support;

use std::time::{Duration, Instant};

use dormouse_vmm::{GuestOutput, Host, Placement, Shell, Stop, Symbols, Vm, VmState};
use support::puppet::Puppet;
use support::random::Random;
use support::{Captured, Memory, boot, crash, far, image, kvm_or_skip, machine, run, worker};

/// A saved guest: its state, as it looks after a journey through a file, and its memory.
struct Saved {
    state: Vec<u8>,
    memory: Memory,
}

impl Saved {
    fn of(vm: &mut Vm, symbols: &Symbols) -> Self {
        let state = vm.save(symbols).unwrap();
        Self {
            state: bincode::serde::encode_to_vec(&state, bincode::config::standard()).unwrap(),
            memory: Memory::copy_of(vm.shell().ram()),
        }
    }

    fn state(&self) -> VmState {
        let config = bincode::config::standard();
        let (state, used) = bincode::serde::decode_from_slice(&self.state, config).unwrap();
        assert_eq!(used, self.state.len());
        state
    }

    fn placement(&self) -> Placement {
        self.state().placement()
    }

    fn restore(&self, shell: Shell, output: &Captured) -> Vm {
        self.memory.write_to(shell.ram());
        let state = self.state();
        state.check(Host::open().unwrap().profile()).unwrap();
        let output: Box<dyn GuestOutput> = Box::new(output.clone());
        Vm::restore(shell, &state, output, std::sync::Arc::new(|_| None)).unwrap()
    }

    fn restore_anew(&self, output: &Captured) -> Vm {
        self.restore(Shell::new(self.placement()).unwrap(), output)
    }
}

fn soon(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

#[test]
fn registers_msrs_and_memory_survive_at_any_moment() {
    let profile = kvm_or_skip!();
    let image = worker::image(&profile);
    let (mut whole, output) = boot(&image, &machine());
    let Stop::Exchange {
        mailbox: expected, ..
    } = run(&mut whole)
    else {
        panic!("the worker did not finish")
    };

    let seed = 0xD0_12_03;
    let mut random = Random::new(seed);
    for round in 0..30 {
        // Every other time with the base of the first machine, every time another moment.
        let (mut vm, _) = boot(&image, &machine());
        let mut restores = 0;
        let mut used_shell = None;
        let sum = loop {
            let pause = Instant::now() + Duration::from_micros(200 + random.below(60_000));
            match vm.run(pause).unwrap() {
                Stop::TimedOut => {}
                Stop::Exchange { mailbox, .. } => break mailbox,
                other => panic!("seed {seed:#x}, round {round}: {other:?}"),
            }
            let saved = Saved::of(&mut vm, &Symbols::default());
            let shell = match used_shell.take() {
                Some(shell) => shell,
                None => Shell::new(saved.placement()).unwrap(),
            };
            used_shell = Some(vm.into_shell());
            vm = saved.restore(shell, &output);
            restores += 1;
        };
        assert_eq!(
            sum, expected,
            "seed {seed:#x}, round {round}, {restores} restores"
        );
    }
}

#[test]
fn a_hermit_program_goes_on_after_any_number_of_restores() {
    kvm_or_skip!();
    let image = image("longsum");
    let (mut whole, expected) = boot(&image, &machine());
    assert_eq!(run(&mut whole), Stop::Exit(0), "{}", expected.kernel());
    assert!(expected.stdout().contains("sum "), "{}", expected.stdout());

    let mut random = Random::new(7);
    let (mut vm, output) = boot(&image, &machine());
    let symbols = image.symbols(vm.load_address());
    let mut used_shell = None;
    let mut restores = 0;
    let begun = Instant::now();
    loop {
        // A timer or a wake-up that a restore loses shows as a sleep without end.
        assert!(
            begun.elapsed() < Duration::from_mins(10),
            "still not done after {restores} restores:\n{}",
            output.kernel()
        );
        match vm.run(soon(20 + random.below(200))).unwrap() {
            Stop::TimedOut => {}
            Stop::Exit(code) => {
                assert_eq!(code, 0);
                break;
            }
            other => panic!("after {restores} restores: {other:?}\n{}", output.kernel()),
        }
        let saved = Saved::of(&mut vm, &symbols);
        let shell = match used_shell.take() {
            Some(shell) => shell,
            None => Shell::new(saved.placement()).unwrap(),
        };
        if restores % 2 == 0 {
            used_shell = Some(vm.into_shell());
        }
        vm = saved.restore(shell, &output);
        restores += 1;
    }
    eprintln!("{restores} restores");
    assert_eq!(
        output.stdout(),
        expected.stdout(),
        "after {restores} restores"
    );
    assert!(restores >= 3, "the program was too quick: {restores}");
}

#[test]
fn one_state_is_restored_many_times_with_the_same_end() {
    kvm_or_skip!();
    let image = image("longsum");
    let (mut vm, output) = boot(&image, &machine());
    let symbols = image.symbols(vm.load_address());
    while !output.stdout().contains("started") {
        assert_eq!(
            vm.run(soon(50)).unwrap(),
            Stop::TimedOut,
            "{}",
            output.kernel()
        );
    }
    assert_eq!(vm.run(soon(300)).unwrap(), Stop::TimedOut);
    let saved = Saved::of(&mut vm, &symbols);
    let already = output.stdout().len();
    assert_eq!(run(&mut vm), Stop::Exit(0));
    let rest = output.stdout().split_off(already);

    for _ in 0..2 {
        let clone_output = Captured::default();
        let mut clone = saved.restore_anew(&clone_output);
        assert_eq!(run(&mut clone), Stop::Exit(0));
        assert_eq!(clone_output.stdout(), rest);
    }
    // And in the shell that the guest itself has used to its end.
    let clone_output = Captured::default();
    let mut clone = saved.restore(vm.into_shell(), &clone_output);
    assert_eq!(run(&mut clone), Stop::Exit(0));
    assert_eq!(clone_output.stdout(), rest);
}

#[test]
fn a_function_answers_alike_in_every_clone() {
    kvm_or_skip!();
    use support::function::{Outcome, ready, request};
    let image = image("hello");
    let (mut vm, output) = boot(&image, &machine());
    let mailbox = ready(&mut vm, &output);
    let symbols = image.symbols(vm.load_address());
    let saved = Saved::of(&mut vm, &symbols);
    let answer = |vm: &mut Vm| match request(vm, mailbox, "/") {
        Outcome::Answer { status, body } => (status, body),
        other => panic!("{other:?}"),
    };
    let expected = answer(&mut vm);
    let mut shell = vm.into_shell();
    for _ in 0..20 {
        let mut clone = saved.restore(shell, &Captured::default());
        assert_eq!(answer(&mut clone), expected);
        shell = clone.into_shell();
    }
}

#[test]
fn a_guest_saved_right_after_its_restore_is_the_same_guest() {
    let profile = kvm_or_skip!();
    let image = worker::image(&profile);
    let (mut vm, output) = boot(&image, &machine());
    let stop = vm.run(soon(5)).unwrap();
    assert_eq!(stop, Stop::TimedOut);
    let first = Saved::of(&mut vm, &Symbols::default());
    let Stop::Exchange {
        mailbox: expected, ..
    } = run(&mut vm)
    else {
        panic!("the worker did not finish")
    };
    let mut restored = first.restore_anew(&output);
    let second = Saved::of(&mut restored, &Symbols::default());
    assert_eq!(second.state().registers(), first.state().registers());
    assert!(second.memory == first.memory);
    let mut again = second.restore_anew(&output);
    let stop = run(&mut again);
    assert!(
        matches!(stop, Stop::Exchange { mailbox, .. } if mailbox == expected),
        "{stop:?}"
    );
}

#[test]
fn a_guest_that_ran_on_after_its_save_is_not_disturbed() {
    let profile = kvm_or_skip!();
    let image = worker::image(&profile);
    let (mut whole, _) = boot(&image, &machine());
    let expected = run(&mut whole);
    let (mut vm, _) = boot(&image, &machine());
    let stop = loop {
        match vm.run(soon(3)).unwrap() {
            Stop::TimedOut => drop(vm.save(&Symbols::default()).unwrap()),
            other => break other,
        }
    };
    assert_eq!(stop, expected);
}

#[test]
fn nothing_of_a_shells_last_guest_reaches_the_next() {
    kvm_or_skip!();
    // KVM's steal time, asynchronous page faults, end of interrupt and clock: MSRs that make KVM
    // write to guest memory; and others that only hold something.
    const WRITTEN_BY_KVM: [u32; 4] = [0x4B56_4D03, 0x4B56_4D02, 0x4B56_4D04, 0x4B56_4D01];
    const HELD: [u32; 4] = [0xC000_0081, 0xC000_0082, 0xC000_0102, 0x174];
    let config = dormouse_vmm::MachineConfig {
        base: Some(0x1120_0000),
        ..machine()
    };
    let image = Puppet::image(dormouse_vmm::Interface::V1);
    let (vm, output) = boot(&image, &config);
    let mut clean = Puppet::in_vm(vm, output.clone());
    let saved = Saved::of(&mut clean.vm, &Symbols::default());
    let all = WRITTEN_BY_KVM.into_iter().chain(HELD);
    let before: Vec<u64> = all.clone().map(|index| clean.read_msr(index)).collect();

    let (vm, _) = boot(&image, &config);
    let mut hostile = Puppet::in_vm(vm, output.clone());
    let target = hostile.put(&[0; 4096]);
    for index in WRITTEN_BY_KVM {
        hostile.write_msr(index, target | 1);
    }
    for index in HELD {
        hostile.write_msr(index, 0x4321);
    }
    let vm = saved.restore(hostile.vm.into_shell(), &output);
    let mut next = Puppet::waiting(vm, output, clean.block());
    let after: Vec<u64> = all.map(|index| next.read_msr(index)).collect();
    assert_eq!(after, before);
    let told: [u8; 4096] = next.get(target);
    assert!(
        told.iter().all(|byte| *byte == 0),
        "KVM wrote where the last guest told it to"
    );
}

#[test]
fn no_msr_keeps_what_a_shells_last_guest_wrote() {
    kvm_or_skip!();
    const TSC: u32 = 0x10;
    // All places where CPUs have MSRs that KVM lets guests write (Linux `arch/x86/kvm`).
    let places = [
        0..0x1000,
        0x1400..0x1500,
        0x4000_0000..0x4000_0110,
        0x4B56_4D00..0x4B56_4D10,
        0xC000_0080..0xC000_0110,
        0xC001_0000..0xC001_0300,
        0xC001_1000..0xC001_1040,
    ];
    let image = Puppet::image(dormouse_vmm::Interface::V1);
    let (vm, output) = boot(&image, &machine());
    let mut clean = Puppet::in_vm(vm, output.clone());
    let saved = Saved::of(&mut clean.vm, &Symbols::default());
    let block = clean.block();
    let mut shell = clean.vm.into_shell();
    let mut kept = Vec::new();
    let mut written = 0;
    let read = |vm: Vm, index| {
        let mut next = Puppet::waiting(vm, output.clone(), block);
        let found = next.try_read_msr(index);
        (found, next.vm.into_shell())
    };
    for index in places.into_iter().flatten().filter(|&index| index != TSC) {
        for value in [0xFFFF_FFFF_FFFF_F000, 0x1230, 4, 1] {
            let vm = saved.restore(shell, &output);
            let mut hostile = Puppet::waiting(vm, output.clone(), block);
            let could = hostile.could_write_msr(index, value);
            shell = hostile.vm.into_shell();
            if !could {
                continue;
            }
            written += 1;
            let found;
            (found, shell) = read(saved.restore(shell, &output), index);
            if found != read(saved.restore_anew(&output), index).0 {
                kept.push(format!("{index:#x}"));
            }
        }
    }
    kept.dedup();
    assert_eq!(kept, [""; 0], "they keep what was written");
    assert!(written > 50, "only {written} writes went through");
}

#[test]
fn a_state_is_restored_only_where_it_belongs() {
    kvm_or_skip!();
    let mut puppet = Puppet::v1();
    let saved = Saved::of(&mut puppet.vm, &Symbols::default());
    let other = Placement {
        memory_bytes: saved.placement().memory_bytes * 2,
        base: 0x20_0000,
    };
    let shell = Shell::new(other).unwrap();
    let output: Box<dyn GuestOutput> = Box::new(Captured::default());
    let refused = Vm::restore(shell, &saved.state(), output, std::sync::Arc::new(|_| None));
    let told = refused.unwrap_err().to_string();
    assert!(
        told.starts_with("this snapshot cannot be restored here: "),
        "{told}"
    );

    let here = Host::open().unwrap().profile().clone();
    saved.state().check(&here).unwrap();
    let mut elsewhere = vec![here.clone(); 4];
    elsewhere[0].vendor = "SomeOtherCPU".into();
    elsewhere[1].kvm_flavour = "other".into();
    elsewhere[2].features[0] = 0;
    elsewhere[3].tsc_khz += 5000;
    for host in elsewhere {
        let told = saved.state().check(&host).unwrap_err().to_string();
        assert!(told.contains("deploy the function again"), "{told}");
    }
}

#[test]
fn damaged_states_are_errors_or_harmless() {
    kvm_or_skip!();
    let mut puppet = Puppet::v1();
    let saved = Saved::of(&mut puppet.vm, &Symbols::default());
    let config = bincode::config::standard();
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut bytes = saved.state.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        let Ok((state, _)) = bincode::serde::decode_from_slice::<VmState, _>(&bytes, config) else {
            continue;
        };
        if state.placement() != saved.placement() {
            let _ = state.check(Host::open().unwrap().profile());
            continue;
        }
        let shell = Shell::new(saved.placement()).unwrap();
        saved.memory.write_to(shell.ram());
        let output: Box<dyn GuestOutput> = Box::new(Captured::default());
        if let Ok(mut vm) = Vm::restore(shell, &state, output, std::sync::Arc::new(|_| None)) {
            let _ = vm.run(soon(5));
        }
    }
    assert!(soon(0) < far());
}

#[test]
fn a_crash_after_a_restore_has_a_name() {
    kvm_or_skip!();
    let mut puppet = Puppet::v1();
    let saved = Saved::of(&mut puppet.vm, &Symbols::default());
    let shell = Shell::new(saved.placement()).unwrap();
    saved.memory.write_to(shell.ram());
    let namer = std::sync::Arc::new(|_| Some("the_function+0x5".to_owned()));
    let output = Captured::default();
    let vm = Vm::restore(shell, &saved.state(), Box::new(output.clone()), namer).unwrap();
    let mut next = Puppet::waiting(vm, output, puppet.block());
    let stop = next.out(0x400, 0, 0).unwrap();
    let crash = crash(stop);
    assert_eq!(crash.kind, dormouse_vmm::CrashKind::Hypercall);
    assert!(crash.reason.contains("(the_function+0x5)"), "{crash:?}");
    assert_eq!(crash.symbol.as_deref(), Some("the_function+0x5"));
    assert!(crash.registers.contains(&("rdx", 0x400)), "{crash:?}");
}
