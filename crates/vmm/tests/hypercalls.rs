//! What a guest may ask of its host by either hypercall interface: output, exit, arguments, and
//! parameters that make no sense.

mod support;

use dormouse_vmm::{CrashKind, Interface, MachineConfig, Stop, Stream};
use support::puppet::Puppet;
use support::torment::{Rival, Target};
use support::{MIB, assert_crash, kvm_or_skip, machine};

/// Ports of interface v1.
mod v1 {
    pub(crate) const WRITE: u16 = 0x400;
    pub(crate) const OPEN: u16 = 0x440;
    pub(crate) const CLOSE: u16 = 0x480;
    pub(crate) const READ: u16 = 0x500;
    pub(crate) const EXIT: u16 = 0x540;
    pub(crate) const LSEEK: u16 = 0x580;
    pub(crate) const NETWRITE: u16 = 0x640;
    pub(crate) const CMDSIZE: u16 = 0x740;
    pub(crate) const CMDVAL: u16 = 0x780;
    pub(crate) const UART: u16 = 0x800;
    pub(crate) const UNLINK: u16 = 0x840;
    pub(crate) const SERIAL: u16 = 0x880;
}

/// Ports of interface v2.
mod v2 {
    pub(crate) const EXIT: u16 = 0x1010;
    pub(crate) const SERIAL_BYTE: u16 = 0x1020;
    pub(crate) const SERIAL: u16 = 0x1030;
    pub(crate) const WRITE: u16 = 0x1100;
    pub(crate) const GETDENTS: u16 = 0x1160;
    pub(crate) const MKDIR: u16 = 0x1190;
    pub(crate) const SHARED_MEMORY: u16 = 0x1200;
    pub(crate) const ALL: [u16; 15] = [
        0x1030, 0x1050, 0x1100, 0x1110, 0x1120, 0x1130, 0x1140, 0x1150, 0x1160, 0x1170, 0x1180,
        0x1190, 0x1040, 0x1200, 0x1210,
    ];
}

const EBADF: i64 = 9;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;

/// The packed parameters of v1's `write`.
fn v1_write(fd: i32, buffer: u64, len: u64) -> Vec<u8> {
    [
        &fd.to_le_bytes()[..],
        &buffer.to_le_bytes(),
        &len.to_le_bytes(),
    ]
    .concat()
}

/// The parameters of v2's `write` and `read`, and where their result stands.
fn v2_transfer(fd: i32, buffer: u64, len: u64) -> Vec<u8> {
    let zeros = [0; 8];
    [
        &len.to_le_bytes()[..],
        &zeros,
        &buffer.to_le_bytes(),
        &fd.to_le_bytes(),
        &[0; 4],
    ]
    .concat()
}
const V2_RESULT: u64 = 8;

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn v1_output_reaches_its_stream() {
    kvm_or_skip!();
    let mut guest = Puppet::v1();
    for (fd, text) in [(1, "to stdout\n"), (2, "to stderr\n"), (7, "to nobody\n")] {
        let buffer = guest.put(text.as_bytes());
        let call = guest.put(&v1_write(fd, buffer, text.len() as u64));
        assert_eq!(guest.out(v1::WRITE, call, 0), None);
    }
    for byte in *b"uart" {
        assert_eq!(guest.out(v1::UART, byte.into(), 0), None);
    }
    let buffer = guest.put(b" and serial\n");
    let call = guest.put(&words(&[buffer, 12]));
    assert_eq!(guest.out(v1::SERIAL, call, 0), None);

    assert_eq!(guest.output.stdout(), "to stdout\n");
    assert_eq!(guest.output.stderr(), "to stderr\n");
    assert_eq!(guest.output.kernel(), "uart and serial\n");
}

#[test]
fn v1_buffers_are_virtual_and_may_lie_on_scattered_pages() {
    kvm_or_skip!();
    let mut guest = Puppet::v1();
    let text: Vec<u8> = (0..3 * 4096_u32).map(|at| b'!' + (at % 89) as u8).collect();
    let frames: Vec<u64> = text.chunks(4096).map(|page| guest.put(page)).collect();
    // In the opposite order of what the host would read if it took the address as physical.
    let window = guest.map_pages(&[frames[2], frames[0], frames[1]]);
    let (start, len) = (window + 100, 3 * 4096 - 200);
    let call = guest.put(&v1_write(1, start, len));
    assert_eq!(guest.out(v1::WRITE, call, 0), None);
    let expected = [&text[8192..], &text[..8192]].concat();
    assert_eq!(
        guest.output.bytes(Stream::Stdout),
        expected[100..100 + len as usize]
    );

    // One page too many: the pages before it may have come out, the guest may not go on.
    let call = guest.put(&v1_write(1, window, 4 * 4096));
    let stop = guest.out(v1::WRITE, call, 0).unwrap();
    let unmapped = format!("{:#x} is not mapped", window + 3 * 4096);
    assert_crash(stop, CrashKind::Hypercall, &[&unmapped, "call from 0x"]);
}

#[test]
fn large_output_arrives_whole() {
    kvm_or_skip!();
    let text: Vec<u8> = (0..3 * MIB + 5).map(|at| ((at * 7) >> 3) as u8).collect();
    let mut guest = Puppet::v1();
    let buffer = guest.put(&text);
    let call = guest.put(&v1_write(1, buffer, text.len() as u64));
    assert_eq!(guest.out(v1::WRITE, call, 0), None);
    assert!(guest.output.bytes(Stream::Stdout) == text);

    let mut guest = Puppet::v2();
    let buffer = guest.put(&text);
    let call = guest.put(&v2_transfer(1, buffer, text.len() as u64));
    assert_eq!(guest.out(v2::WRITE, 0, call), None);
    assert!(guest.output.bytes(Stream::Stdout) == text);
    assert_eq!(guest.get_i64(call + V2_RESULT), text.len() as i64);
}

#[test]
fn exit_codes_come_out_as_they_are() {
    kvm_or_skip!();
    for code in [0, 1, 42, 255, 256, -1, i32::MIN, i32::MAX] {
        let mut guest = Puppet::v1();
        let call = guest.put(&code.to_le_bytes());
        assert_eq!(guest.out(v1::EXIT, call, 0), Some(Stop::Exit(code)));
        let mut guest = Puppet::v2();
        assert_eq!(
            guest.out(v2::EXIT, 0, code as u32 as u64),
            Some(Stop::Exit(code))
        );
    }
}

#[test]
fn v2_output_reaches_its_stream_and_tells_its_length() {
    kvm_or_skip!();
    let mut guest = Puppet::v2();
    for (fd, text, result) in [
        (1, "out", 3),
        (2, "error", 5),
        (0, "x", -EBADF),
        (9, "x", -EBADF),
    ] {
        let buffer = guest.put(text.as_bytes());
        let call = guest.put(&v2_transfer(fd, buffer, text.len() as u64));
        assert_eq!(guest.out(v2::WRITE, 0, call), None);
        assert_eq!(guest.get_i64(call + V2_RESULT), result, "fd {fd}");
    }
    for byte in *b"byte" {
        assert_eq!(guest.out(v2::SERIAL_BYTE, 0, byte.into()), None);
    }
    let buffer = guest.put(b" and buffer");
    let call = guest.put(&words(&[11, buffer]));
    assert_eq!(guest.out(v2::SERIAL, 0, call), None);
    assert_eq!(guest.output.stdout(), "out");
    assert_eq!(guest.output.stderr(), "error");
    assert_eq!(guest.output.kernel(), "byte and buffer");
}

#[test]
fn v2_works_above_4_gib() {
    kvm_or_skip!();
    let config = MachineConfig {
        base: Some(0x1_2340_0000),
        ..machine()
    };
    let mut guest = Puppet::boot(Interface::V2, &config);
    let buffer = guest.put(b"from above");
    assert!(buffer > u64::from(u32::MAX));
    let call = guest.put(&v2_transfer(1, buffer, 10));
    assert_eq!(guest.out(v2::WRITE, 0, call), None);
    assert_eq!(guest.output.stdout(), "from above");
    assert_eq!(guest.out(v2::EXIT, 0, 5), Some(Stop::Exit(5)));
}

#[test]
fn the_other_interfaces_ports_are_just_ports() {
    kvm_or_skip!();
    let mut guest = Puppet::v1();
    let call = guest.put(&words(&[0, 0, 0, 0]));
    for port in v2::ALL.into_iter().chain([v2::EXIT, v2::SERIAL_BYTE]) {
        assert_eq!(guest.out(port, call, call), None, "port {port:#x}");
    }
    let mut guest = Puppet::v2();
    let call = guest.put(&words(&[0, 0, 0, 0]));
    for port in [
        v1::WRITE,
        v1::OPEN,
        v1::READ,
        v1::EXIT,
        v1::UART,
        v1::CMDSIZE,
    ] {
        assert_eq!(guest.out(port, call, call), None, "port {port:#x}");
    }
    assert_eq!(guest.output.kernel(), "");
}

#[test]
fn v1_tells_arguments_and_environment() {
    kvm_or_skip!();
    const LIST_BYTES: u64 = 4 + 4 * 128;
    let config = MachineConfig {
        args: vec!["first".into(), String::new(), "third one".into()],
        env: vec![("KEY".into(), "value".into())],
        ..machine()
    };
    let mut guest = Puppet::boot(Interface::V1, &config);
    let sizes = guest.put(&[0; 2 * LIST_BYTES as usize]);
    assert_eq!(guest.out(v1::CMDSIZE, sizes, 0), None);
    let list = |guest: &Puppet, at: u64| {
        let count = guest.get_i32(at) as u64;
        let sizes = (1..=count).map(|index| guest.get_i32(at + 4 * index));
        sizes.collect::<Vec<_>>()
    };
    // The program's name comes first; every size counts the NUL.
    assert_eq!(list(&guest, sizes), [4, 6, 1, 10]);
    assert_eq!(list(&guest, sizes + LIST_BYTES), [10]);

    let texts: Vec<u64> = (0..5).map(|_| guest.put(&[0xAA; 64])).collect();
    let arguments = guest.put(&words(&texts[..4]));
    let environment = guest.put(&words(&texts[4..]));
    let call = guest.put(&words(&[arguments, environment]));
    assert_eq!(guest.out(v1::CMDVAL, call, 0), None);
    for (at, text) in texts
        .iter()
        .zip(["bin\0", "first\0", "\0", "third one\0", "KEY=value\0"])
    {
        let bytes: [u8; 64] = guest.get(*at);
        assert_eq!(&bytes[..text.len()], text.as_bytes());
        assert!(
            bytes[text.len()..].iter().all(|byte| *byte == 0xAA),
            "nothing behind {text:?}"
        );
    }

    // A target outside memory is the guest's mistake.
    let bad = guest.put(&words(&[0, 1, 2, u64::MAX]));
    let call = guest.put(&words(&[bad, environment]));
    let stop = guest.out(v1::CMDVAL, call, 0).unwrap();
    assert_crash(stop, CrashKind::Hypercall, &["are not guest memory"]);
}

#[test]
fn what_would_change_the_hosts_files_is_refused() {
    kvm_or_skip!();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kept"), "kept").unwrap();
    let config = MachineConfig {
        files: Some(folder.path().to_owned()),
        ..machine()
    };
    let mut guest = Puppet::boot(Interface::V1, &config);
    let name = guest.put(b"/root/kept\0");
    let call = guest.put(&[&name.to_le_bytes()[..], &[0; 4]].concat());
    assert_eq!(guest.out(v1::UNLINK, call, 0), None);
    assert_eq!(guest.get_i32(call + 8), -EROFS);

    let mut guest = Puppet::boot(Interface::V2, &config);
    let name = guest.put(b"/root/kept\0");
    let call = guest.put(&[&name.to_le_bytes()[..], &[0; 4]].concat());
    assert_eq!(guest.out(0x1150, 0, call), None);
    assert_eq!(guest.get_i32(call + 8), -EROFS);
    // MkdirResult::Error(EROFS), then GetdentResult::Error(ENOSYS).
    let call = guest.put(&words(&[name, 10, 0]));
    assert_eq!(guest.out(v2::MKDIR, 0, call), None);
    assert_eq!(
        (guest.get_i32(call + 16), guest.get_i32(call + 20)),
        (2, EROFS)
    );
    let call = guest.put(&words(&[3, name, 100, 0, 0]));
    assert_eq!(guest.out(v2::GETDENTS, 0, call), None);
    assert_eq!(
        (guest.get_i32(call + 24), guest.get_i32(call + 32)),
        (3, ENOSYS)
    );
    assert!(folder.path().join("kept").exists());
}

#[test]
fn parameters_outside_memory_end_the_guest_and_nothing_else() {
    kvm_or_skip!();
    let v1_ports = [
        v1::WRITE,
        v1::OPEN,
        v1::CLOSE,
        v1::READ,
        v1::EXIT,
        v1::LSEEK,
        v1::CMDSIZE,
        v1::CMDVAL,
        v1::UNLINK,
        v1::SERIAL,
    ];
    for port in v1_ports {
        for address in [0, 0xFFFF_FFFF, 0xFFFF_FFF8] {
            let mut guest = Puppet::v1();
            let stop = guest.out(port, address, 0).unwrap();
            assert_crash(
                stop,
                CrashKind::Hypercall,
                &["hypercall", "are not guest memory"],
            );
        }
    }
    for port in v2::ALL {
        for address in [0, u64::MAX, u64::MAX - 7, 1 << 63] {
            let mut guest = Puppet::v2();
            let stop = guest.out(port, 0, address).unwrap();
            assert_crash(stop, CrashKind::Hypercall, &["hypercall"]);
        }
    }
}

#[test]
fn parameters_that_straddle_the_end_of_memory_end_the_guest() {
    kvm_or_skip!();
    for offset in [1, 4, 8, 12, 20] {
        let mut guest = Puppet::v1();
        let here = guest.vm.shell().placement();
        let address = here.base + here.memory_bytes - offset;
        for port in [v1::SERIAL, v1::READ] {
            if guest.out(port, address, 0).is_some() {
                break;
            }
        }
    }
}

/// Buffers that are not all guest memory, for a guest in `start..end`.
fn bad_buffers(start: u64, end: u64) -> [(u64, u64); 7] {
    [
        (start, u64::MAX),
        (start, 1 << 62),
        (start + MIB, end - start),
        (end - 4, 5),
        (0, 1),
        (u64::MAX - 3, 8),
        (1 << 63, 8),
    ]
}

#[test]
fn impossible_lengths_and_buffers_end_the_guest() {
    kvm_or_skip!();
    for case in 0..7 {
        let buffer = |guest: &Puppet| {
            let here = guest.vm.shell().placement();
            bad_buffers(here.base, here.base + here.memory_bytes)[case]
        };
        let mut guest = Puppet::v1();
        let (address, len) = buffer(&guest);
        let call = guest.put(&words(&[address, len]));
        let stop = guest.out(v1::SERIAL, call, 0).unwrap();
        assert_crash(stop, CrashKind::Hypercall, &["hypercall"]);

        // By virtual address the page behind the end is mapped, but it is no memory either.
        let mut guest = Puppet::v1();
        let (address, len) = buffer(&guest);
        let call = guest.put(&v1_write(1, address, len));
        let stop = guest.out(v1::WRITE, call, 0).unwrap();
        assert_crash(stop, CrashKind::Hypercall, &["hypercall"]);

        let mut guest = Puppet::v2();
        let (address, len) = buffer(&guest);
        let call = guest.put(&v2_transfer(1, address, len));
        let stop = guest.out(v2::WRITE, 0, call).unwrap();
        assert_crash(stop, CrashKind::Hypercall, &["hypercall"]);
    }
}

#[test]
fn calls_that_do_not_exist_here_are_named() {
    kvm_or_skip!();
    let mut guest = Puppet::v1();
    let stop = guest.out(v1::NETWRITE, 0, 0).unwrap();
    assert_crash(stop, CrashKind::Hypercall, &["Netwrite is not supported"]);
    let mut guest = Puppet::v2();
    let stop = guest.out(v2::SHARED_MEMORY, 0, 0).unwrap();
    assert_crash(
        stop,
        CrashKind::Hypercall,
        &["SharedMemOpen is not supported"],
    );
}

/// The length is fine or absurd, and changes all the time: the call must do what one of the two says,
/// not check the one and use the other.
#[test]
fn a_length_that_changes_is_taken_at_one_word() {
    kvm_or_skip!();
    let rival = Rival::new();
    let (mut served, mut refused) = (0, 0);
    for round in 0..200 {
        let mut guest = Puppet::v2();
        let text = guest.put(b"right");
        let call = guest.put(&v2_transfer(1, text, 5));
        rival.aim(Some(Target {
            ram: guest.vm.shell().ram().clone(),
            words: vec![(call, 5, u64::MAX)],
        }));
        let stop = guest.out(v2::WRITE, 0, call);
        rival.aim(None);
        match stop {
            None => {
                assert_eq!(guest.output.stdout(), "right", "round {round}");
                assert_eq!(guest.get_i64(call + V2_RESULT), 5, "round {round}");
                served += 1;
            }
            Some(stop) => {
                let refusal = "18446744073709551615 bytes";
                assert_crash(stop, CrashKind::Hypercall, &[refusal]);
                assert_eq!(guest.output.stdout(), "", "round {round}");
                refused += 1;
            }
        }
    }
    assert!(
        served > 0 && refused > 0,
        "{served} served, {refused} refused"
    );
}
