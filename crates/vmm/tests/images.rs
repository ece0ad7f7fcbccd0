//! Files that are no Hermit images, and images that lie: each gets one sentence or can be loaded,
//! never a panic. But for one test, none needs KVM.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_vmm::{Error, GuestImage, Host, MachineConfig, Placement, Shell, Stop, Vm};
use proptest::prelude::*;
use support::elf::{Elf, PT_NOTE, assemble};
use support::random::Random;
use support::{Captured, MIB, boot, image_file, kvm_or_skip, machine, run};

/// What the user is told about a file that is no image.
fn refusal(file: &[u8]) -> String {
    match GuestImage::parse(file) {
        Err(Error::Image { reason }) => {
            assert_one_sentence(&reason);
            reason
        }
        other => panic!("{other:?}"),
    }
}

/// A message for people: one line, no source code in it.
fn assert_one_sentence(text: &str) {
    assert!(!text.contains('\n') && !text.is_empty(), "{text:?}");
    for noise in ["Err(", "Some(", "None", "{ ", " }", "::", "unwrap"] {
        assert!(!text.contains(noise), "{noise:?} in: {text}");
    }
}

#[test]
fn ordinary_files_are_refused_by_what_they_are() {
    for file in [
        &b""[..],
        b"\x7f",
        b"#!/bin/sh\n",
        b"MZ\x90\0",
        &[0; 4096],
        b"\x7fELE",
    ] {
        let told = refusal(file);
        assert!(told.contains("not an ELF file"), "{told}");
    }
    for len in 4..64 {
        let told = refusal(&image_file("hello")[..len]);
        assert!(told.contains("truncated"), "{told}");
    }
    let linux = refusal(&std::fs::read("/bin/ls").unwrap());
    assert!(linux.contains("Linux"), "{linux}");
}

#[test]
fn what_the_c_compiler_makes_is_refused_by_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("a.c");
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let compile = |arguments: &[&str]| {
        let made = folder.path().join("made");
        let status = Command::new("gcc")
            .args(arguments)
            .args(["-o".as_ref(), made.as_os_str(), source.as_os_str()])
            .status()
            .expect("gcc is one of the project's requirements");
        assert!(status.success());
        std::fs::read(made).unwrap()
    };
    let object = refusal(&compile(&["-c"]));
    assert!(
        object.contains("not an executable (an object file"),
        "{object}"
    );
    for arguments in [&["-static"][..], &["-static-pie"]] {
        let told = refusal(&compile(arguments));
        assert!(
            told.contains("not a Hermit program") || told.contains("Linux"),
            "{told}"
        );
        assert!(told.contains("`dormouse build`"), "{told}");
    }
    for arguments in [&["-no-pie"][..], &["-pie"], &["-shared", "-fPIC"]] {
        let told = refusal(&compile(arguments));
        assert!(told.contains("`dormouse build`"), "{told}");
    }
}

#[test]
fn elf_files_for_other_machines_are_refused_by_name() {
    let good = image_file("hello");
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(&file)
    };
    for (machine, name) in [
        (183, "AArch64"),
        (243, "RISC-V"),
        (40, "Arm, 32-bit"),
        (3, "x86, 32-bit"),
    ] {
        let told = with(18, &[machine, 0]);
        assert!(told.contains(name) && told.contains("x86-64"), "{told}");
    }
    assert!(with(4, &[1]).contains("64-bit little-endian"));
    assert!(with(5, &[2]).contains("64-bit little-endian"));
    for kind in [0, 1, 4] {
        assert!(with(16, &[kind, 0]).contains("not an executable"));
    }
}

#[test]
fn another_entry_version_is_refused_with_both_versions() {
    for entry_version in [0, 3, 5, 255] {
        let told = refusal(
            &Elf {
                entry_version,
                ..Elf::v1(vec![0x90])
            }
            .file(),
        );
        let found = format!("has entry version {entry_version}, Dormouse boots version 4");
        assert!(told.contains(&found), "{told}");
    }
    // Without its note, and without any.
    let mut file = Elf::v1(vec![0x90]).file();
    file[0x20C..0x212].copy_from_slice(b"NETBSD");
    assert!(refusal(&file).contains("not a Hermit program"));
    let mut file = Elf::v1(vec![0x90]).file();
    assert_eq!(file[0x78], PT_NOTE as u8);
    file[0x78] = 0;
    assert!(refusal(&file).contains("not a Hermit program"));
}

/// Parses `file` and, where that succeeds and the host can, boots it in a small machine; panics
/// with `label` if anything panics.
fn survive(file: &[u8], label: impl Fn() -> String) -> bool {
    let attempt = || match GuestImage::parse(file) {
        Err(error) => {
            assert_one_sentence(&error.to_string());
            false
        }
        Ok(image) => {
            let image = Arc::new(image);
            let _ = image.symbols(0x1124_0000).name(0x1124_0100);
            if Host::open().is_ok() {
                try_boot(&image);
            }
            true
        }
    };
    catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|_| panic!("panicked: {}", label()))
}

fn try_boot(image: &Arc<GuestImage>) {
    let config = MachineConfig {
        memory_bytes: 16 * MIB,
        ..MachineConfig::default()
    };
    let booted = Placement::choose(&config, image)
        .and_then(Shell::new)
        .and_then(|shell| Vm::boot(shell, image, &config, Box::new(Captured::default())));
    match booted {
        Ok(vm) => {
            let symbols = image.symbols(vm.load_address());
            let mut vm = vm;
            let _ = vm.save(&symbols);
        }
        Err(error) => assert_one_sentence(&error.to_string()),
    }
}

#[test]
fn truncated_images_are_refused() {
    let good = image_file("hello");
    let mut lengths: Vec<usize> = (0..4096).chain((4096..good.len()).step_by(1013)).collect();
    // Around every border that the headers name.
    let sections = u64::from_le_bytes(good[40..48].try_into().unwrap()) as usize;
    let count = usize::from(u16::from_le_bytes(good[60..62].try_into().unwrap()));
    for section in good[sections..sections + 64 * count].chunks(64) {
        let offset = u64::from_le_bytes(section[24..32].try_into().unwrap()) as usize;
        let end = offset + u64::from_le_bytes(section[32..40].try_into().unwrap()) as usize;
        lengths.extend([
            offset.wrapping_sub(1),
            offset,
            offset + 1,
            end.wrapping_sub(1),
            end,
        ]);
    }
    lengths.extend([good.len() - 1, good.len() - 8, good.len() - 64]);
    for len in lengths.into_iter().filter(|len| *len < good.len()) {
        let loadable = survive(&good[..len], || format!("cut to {len} bytes"));
        // The section headers are last, so no cut leaves a whole image.
        assert!(!loadable, "cut to {len} bytes");
    }
    assert!(survive(&good, || "the whole image".to_owned()));
}

/// The parts of an image that the loader interprets: headers, notes, dynamic section, relocations,
/// dynamic symbols and section headers.
fn interpreted(file: &[u8]) -> Vec<std::ops::Range<usize>> {
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([file[at], file[at + 1]]));
    let (segments, sections) = (u64_at(32), u64_at(40));
    let mut parts = vec![0..64, segments..segments + 56 * u16_at(56)];
    parts.push(sections..sections + 64 * u16_at(60));
    for header in parts[2].clone().step_by(64) {
        const NOTE: u8 = 7;
        const RELA: u8 = 4;
        const DYNAMIC: u8 = 6;
        const DYNSYM: u8 = 11;
        if [NOTE, RELA, DYNAMIC, DYNSYM].contains(&file[header + 4]) {
            let (offset, bytes) = (u64_at(header + 24), u64_at(header + 32));
            parts.push(offset..offset + bytes.min(512));
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[test]
fn damaged_headers_are_refused_or_harmless() {
    let small = Elf::v2(vec![0x90; 64]).file();
    let good = image_file("hello");
    let parts = interpreted(&good);
    assert!(parts.len() >= 5, "{parts:?}");
    // Every bit of the small image's headers and notes.
    for at in (0..0xB0).chain(0x200..0x240) {
        for bit in 0..8 {
            let mut file = small.clone();
            file[at] ^= 1 << bit;
            survive(&file, || format!("small image, byte {at:#x}, bit {bit}"));
        }
    }
    // Random damage to what the loader interprets of a real one.
    for seed in 0..4000 {
        let mut random = Random::new(seed);
        let mut file = good.clone();
        for _ in 0..=random.below(3) {
            let part = &parts[random.below(parts.len() as u64) as usize];
            let at = part.start + random.below(part.len() as u64) as usize;
            match random.below(4) {
                0 => file[at] ^= 1 << random.below(8),
                1 => file[at] = random.next() as u8,
                2 => {
                    // A whole aligned word, with a value that likes to overflow.
                    let word = [0, 1, 7, 1 << 31, 1 << 40, 1 << 63, u64::MAX, u64::MAX - 7];
                    let value = word[random.below(8) as usize];
                    let at = at / 8 * 8;
                    file[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
                _ => {
                    let at = at / 4 * 4;
                    file[at..at + 4].copy_from_slice(&(random.next() as u32).to_le_bytes());
                }
            }
        }
        survive(&file, || format!("seed {seed}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_behind_an_elf_header_are_harmless(
        tail in prop::collection::vec(any::<u8>(), 0..2000),
        counts in any::<[u8; 2]>(),
        offsets in any::<[u16; 2]>(),
    ) {
        let mut file = Elf::v1(vec![0x90]).file()[..64].to_vec();
        file.extend(&tail);
        file[32..40].copy_from_slice(&u64::from(offsets[0] & !7).to_le_bytes());
        file[40..48].copy_from_slice(&u64::from(offsets[1] & !7).to_le_bytes());
        file[56] = counts[0] % 8;
        file[60] = counts[1] % 8;
        survive(&file, || format!("{file:02x?}"));
    }
}

#[test]
fn symbols_that_lie_cost_neither_time_nor_memory() {
    kvm_or_skip!();
    let code = assemble(|a| {
        a.mov(
            iced_x86::code_asm::dx,
            u32::from(dormouse_abi::EXCHANGE_PORT),
        )?;
        a.out(iced_x86::code_asm::dx, iced_x86::code_asm::eax)
    });
    // The places that a save looks for in the kernel, with sizes and addresses that nothing has.
    for (address, size) in [
        (0, u64::MAX),
        (u64::MAX - 0x4_0003, 16),
        (1 << 63, 1 << 63),
        (u64::MAX, 8),
    ] {
        let mut elf = Elf::v1(code.clone());
        for name in [
            "_ZN6hermit7entropy4POOL17h0123456789abcdefE",
            "_ZN6hermit4arch6x86_646kernel10systemtime9BOOT_TIME17h0123456789abcdefE",
        ] {
            elf.symbols.push((name.to_owned(), address, size));
        }
        let image = elf.image();
        let (mut vm, _) = boot(&image, &machine());
        let stop = run(&mut vm);
        assert!(matches!(stop, Stop::Exchange { .. }), "{stop:?}");
        let begun = Instant::now();
        let symbols = image.symbols(vm.load_address());
        vm.save(&symbols).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    // Ten thousand symbols that all have one name of a megabyte.
    let mut elf = Elf::v1(code);
    elf.symbols = (0..10_000).map(|at| (String::new(), at, 1)).collect();
    let mut file = elf.file();
    let sections = u64::from_le_bytes(file[40..48].try_into().unwrap()) as usize;
    let names = sections + 64;
    let table = u64::from_le_bytes(file[names + 24..names + 32].try_into().unwrap()) as usize;
    let symbols = u64::from_le_bytes(file[names + 88..names + 96].try_into().unwrap()) as usize;
    let long = file.len() - table;
    file.extend(vec![b'x'; 1 << 20]);
    file.push(0);
    let bytes = (file.len() - table) as u64;
    file[names + 32..names + 40].copy_from_slice(&bytes.to_le_bytes());
    for entry in 1..=10_000 {
        let at = symbols + 24 * entry;
        file[at..at + 4].copy_from_slice(&(long as u32).to_le_bytes());
    }
    let image = GuestImage::parse(&file).unwrap();
    let kib = |when: &str| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .expect(when)
    };
    let before = kib("before");
    let symbols = image.symbols(0);
    assert!(
        kib("after") < before + (1 << 20),
        "names took more than a GiB"
    );
    // A crash has the name in its reply.
    let name = symbols.name(0).unwrap();
    assert!(name.len() < 1000, "{} bytes", name.len());
}

#[test]
fn an_image_for_a_fixed_place_gets_it_or_is_refused() {
    kvm_or_skip!();
    let code = || {
        assemble(|a| {
            a.mov(
                iced_x86::code_asm::dx,
                u32::from(dormouse_abi::EXCHANGE_PORT),
            )?;
            a.lea(iced_x86::code_asm::rdi, iced_x86::code_asm::ptr(0))?;
            a.out(iced_x86::code_asm::dx, iced_x86::code_asm::eax)
        })
    };
    let fixed = |start: u64| {
        let elf = Elf {
            fixed_start: Some(start),
            ..Elf::v1(code())
        };
        elf.image()
    };
    let (mut vm, _) = boot(&fixed(0x1124_0000), &machine());
    assert_eq!(vm.shell().placement().base, 0x1120_0000);
    assert_eq!(vm.load_address(), 0x1124_0000);
    assert!(matches!(run(&mut vm), Stop::Exchange { .. }));

    // Over the boot tables, outside the machine, and up to its very end.
    let try_boot = |start: u64, base: u64| {
        let config = MachineConfig {
            base: Some(base),
            ..machine()
        };
        let image = fixed(start);
        let shell = Shell::new(Placement::choose(&config, &image).unwrap()).unwrap();
        Vm::boot(shell, &image, &config, Box::new(Captured::default())).map(|_| ())
    };
    for (start, base) in [
        (0x1120_0000, 0x1120_0000),
        (0x1121_0000, 0x1120_0000),
        (0x1124_0000, 0x2000_0000),
    ] {
        let told = try_boot(start, base).unwrap_err().to_string();
        assert!(told.contains("it can stand from"), "{told}");
        assert_one_sentence(&told);
    }
    let told = try_boot(0x1124_0000, 0x20_0000).unwrap_err().to_string();
    assert!(told.contains("give it more memory"), "{told}");
    try_boot(0x1124_0000, 0x1100_0000).unwrap();
}

#[test]
fn an_image_larger_than_the_machine_is_refused() {
    kvm_or_skip!();
    for zero_bytes in [17 * MIB, 1 << 30, 1 << 40] {
        let elf = Elf {
            zero_bytes,
            ..Elf::v1(vec![0x90])
        };
        let Ok(image) = GuestImage::parse(&elf.file()) else {
            continue;
        };
        let image = Arc::new(image);
        let config = MachineConfig {
            memory_bytes: 16 * MIB,
            ..MachineConfig::default()
        };
        let shell = Shell::new(Placement::choose(&config, &image).unwrap()).unwrap();
        let refused = Vm::boot(shell, &image, &config, Box::new(Captured::default()));
        assert!(
            matches!(refused, Err(Error::ImageTooLarge { .. })),
            "{refused:?}"
        );
    }
}
