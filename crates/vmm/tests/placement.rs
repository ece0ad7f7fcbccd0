//! Memory sizes and bases that cannot work, and what the user is told.

mod support;

use std::collections::BTreeSet;

use dormouse_vmm::layout::MAX_MEMORY_BYTES;
use dormouse_vmm::{Error, Interface, MachineConfig, Placement, Shell, Stop, Vm};
use support::puppet::Puppet;
use support::{Captured, MIB, boot, kvm_or_skip, machine, run};

fn choose(memory_bytes: u64, base: Option<u64>, interface: Interface) -> Result<Placement, Error> {
    let config = MachineConfig {
        memory_bytes,
        base,
        ..MachineConfig::default()
    };
    Placement::choose(&config, &Puppet::image(interface))
}

#[test]
fn impossible_memory_sizes_are_refused_with_what_is_possible() {
    for interface in [Interface::V1, Interface::V2] {
        for (memory_bytes, words) in [
            (0, "at least 16 MiB"),
            (1, "at least 16 MiB"),
            (MIB, "at least 16 MiB"),
            (3 * MIB + 1, "at least 16 MiB"),
            (16 * MIB + 4096, "a multiple of 2 MiB"),
            (MAX_MEMORY_BYTES + 2 * MIB, "at most 24 GiB"),
            (1 << 50, "at most 24 GiB"),
            (u64::MAX, "at most 24 GiB"),
        ] {
            let refused = choose(memory_bytes, None, interface).unwrap_err();
            assert!(matches!(refused, Error::MemorySize { .. }), "{refused:?}");
            assert!(refused.to_string().contains(words), "{refused}");
        }
    }
}

#[test]
fn more_memory_than_the_host_has_is_refused() {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = info
        .lines()
        .find(|line| line.starts_with("MemTotal"))
        .unwrap();
    let kib: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    let more = (kib * 1024).next_multiple_of(2 * MIB) + 2 * MIB;
    if more <= MAX_MEMORY_BYTES {
        let refused = choose(more, Some(1 << 33), Interface::V2).unwrap_err();
        assert!(refused.to_string().contains("this host has"), "{refused}");
    }
}

#[test]
fn impossible_bases_are_refused() {
    for base in [1, 4096, MIB, 0x1120_0001] {
        let refused = choose(64 * MIB, Some(base), Interface::V1).unwrap_err();
        assert!(
            matches!(refused, Error::BaseUnaligned { .. }),
            "{refused:?}"
        );
        assert!(
            refused.to_string().contains("is not a multiple of 2 MiB"),
            "{refused}"
        );
    }
    for base in [
        0xC000_0000 - 62 * MIB,
        0xC000_0000,
        1 << 32,
        1 << 47,
        u64::MAX - (2 * MIB - 1),
    ] {
        let refused = choose(64 * MIB, Some(base), Interface::V1).unwrap_err();
        assert!(matches!(refused, Error::BaseTooHigh { .. }), "{refused:?}");
        assert!(
            refused
                .to_string()
                .contains("choose a lower base or less memory"),
            "{refused}"
        );
    }
    assert!(choose(64 * MIB, Some(0xC000_0000 - 64 * MIB), Interface::V1).is_ok());
    for base in [
        1 << 46,
        1 << 47,
        1 << 52,
        1 << 62,
        1 << 63,
        u64::MAX - (2 * MIB - 1),
    ] {
        let refused = choose(64 * MIB, Some(base), Interface::V2).unwrap_err();
        assert!(
            matches!(refused, Error::BaseTooHigh { .. }),
            "{base:#x}: {refused:?}"
        );
    }
}

#[test]
fn a_guest_over_the_interrupt_controllers_is_refused() {
    for (base, memory_bytes) in [
        (0xFEC0_0000, 64 * MIB),
        (0xFC00_0000, 64 * MIB),
        (0, 5 << 30),
    ] {
        let refused = choose(memory_bytes, Some(base), Interface::V2).unwrap_err();
        assert!(refused.to_string().contains("0xfec00000"), "{refused}");
    }
    assert!(choose(64 * MIB, Some(0xE100_0000), Interface::V2).is_ok());
    assert!(choose(64 * MIB, Some(1 << 32), Interface::V2).is_ok());
}

#[test]
fn random_bases_differ_and_are_possible() {
    let mut bases: Vec<u64> = (0..400)
        .map(|_| choose(64 * MIB, None, Interface::V1).unwrap())
        .inspect(|placement| placement.check().unwrap())
        .map(|placement| placement.base)
        .collect();
    bases.sort_unstable();
    bases.dedup();
    assert!(bases.len() > 200, "{bases:x?}");
    assert!(
        bases
            .iter()
            .all(|base| *base > 0 && base + 64 * MIB <= 3 << 30)
    );
    // Hermit 0.10 does not start where its memory crosses a border of 1 GiB.
    assert!(
        bases
            .iter()
            .all(|base| base >> 30 == (base + 64 * MIB) >> 30)
    );
    // Too large to lie below 3 GiB: above 4 GiB then, clear of what stands between.
    let large = choose(4 << 30, None, Interface::V2).unwrap();
    assert!(large.base >= 1 << 32, "{large:?}");
    let refused = choose(4 << 30, None, Interface::V1).unwrap_err();
    assert!(matches!(refused, Error::BaseTooHigh { .. }), "{refused:?}");
}

/// Every base that is drawn for a guest of this size, where there are few.
fn drawn(memory_bytes: u64) -> BTreeSet<u64> {
    let draw = |_| choose(memory_bytes, None, Interface::V1).unwrap().base;
    (0..400).map(draw).collect()
}

#[test]
fn hermit_starts_at_every_base_that_is_drawn_for_a_large_guest() {
    kvm_or_skip!();
    let image = support::image("hello");
    for (memory_bytes, least) in [(1 << 30, 6), (1022 * MIB, 2)] {
        let bases = drawn(memory_bytes);
        assert!(bases.len() >= least, "{bases:x?}");
        for base in bases {
            let config = MachineConfig {
                memory_bytes,
                base: Some(base),
                ..MachineConfig::default()
            };
            let (mut vm, output) = boot(&image, &config);
            let stop = run(&mut vm);
            assert!(
                matches!(stop, Stop::Exchange { .. }),
                "{memory_bytes} bytes at {base:#x}: {stop:?}\n{}",
                output.kernel()
            );
        }
    }
}

#[test]
fn a_guest_boots_at_every_kind_of_base() {
    kvm_or_skip!();
    for (interface, base) in [
        (Interface::V1, 0),
        (Interface::V1, 2 * MIB),
        (Interface::V1, 0x1120_0000),
        (Interface::V1, 0xC000_0000 - 16 * MIB),
        (Interface::V2, 0xE100_0000),
        (Interface::V2, 1 << 32),
        (Interface::V2, 0x12_3460_0000),
    ] {
        let config = MachineConfig {
            memory_bytes: 16 * MIB,
            base: Some(base),
            ..MachineConfig::default()
        };
        let mut puppet = Puppet::boot(interface, &config);
        let here = puppet.vm.shell().placement();
        assert_eq!((here.base, here.memory_bytes), (base, 16 * MIB));
        let last = base + 16 * MIB - 4;
        puppet.store32(last, 0x1234_5678);
        assert_eq!(puppet.load32(last), 0x1234_5678);
    }
}

#[test]
fn a_shell_cannot_be_made_for_an_impossible_placement() {
    kvm_or_skip!();
    for (base, memory_bytes) in [
        (0, 0),
        (1, 64 * MIB),
        (0, u64::MAX),
        (0u64.wrapping_sub(2 * MIB), 64 * MIB),
        (1 << 62, 64 * MIB),
    ] {
        let placement = Placement { base, memory_bytes };
        let refused = Shell::new(placement);
        assert!(refused.is_err(), "{placement:?}");
    }
}

#[test]
fn an_image_that_does_not_fit_and_arguments_that_do_not_fit_are_errors() {
    kvm_or_skip!();
    let image = support::image("hello");
    let boot = |config: MachineConfig| {
        let placement = Placement::choose(&config, &image).unwrap();
        let shell = Shell::new(placement).unwrap();
        Vm::boot(shell, &image, &config, Box::new(Captured::default())).map(|_| ())
    };
    let long = boot(MachineConfig {
        args: vec!["x".repeat(40_000)],
        ..machine()
    });
    assert!(
        matches!(long, Err(Error::ArgumentsTooLarge { .. })),
        "{long:?}"
    );
    let nul = boot(MachineConfig {
        args: vec!["a\0b".to_owned()],
        ..machine()
    });
    assert!(matches!(nul, Err(Error::Argument { .. })), "{nul:?}");
    let name = boot(MachineConfig {
        env: vec![("A=B".to_owned(), String::new())],
        ..machine()
    });
    assert!(matches!(name, Err(Error::Argument { .. })), "{name:?}");
    let folder = boot(MachineConfig {
        files: Some("/no/such/folder".into()),
        ..machine()
    });
    let told = folder.unwrap_err().to_string();
    assert!(
        told.starts_with("cannot open /no/such/folder for the guest: No such file"),
        "{told}"
    );
}

#[test]
fn hermit_runs_in_the_smallest_machine_and_at_a_fixed_base() {
    kvm_or_skip!();
    let config = MachineConfig {
        memory_bytes: 16 * MIB,
        base: Some(0x1120_0000),
        ..MachineConfig::default()
    };
    let (mut vm, output) = boot(&support::image("plain"), &config);
    assert_eq!(run(&mut vm), Stop::Exit(0), "{}", output.kernel());
}
