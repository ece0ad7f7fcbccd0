//! What a guest's CPU meets: absent hardware, instructions that KVM cannot run, faults, and being
//! stopped from outside.

mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dormouse_abi::EXCHANGE_PORT;
use dormouse_vmm::{CrashKind, Stop, Vm};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use support::elf::{Elf, assemble};
use support::puppet::Puppet;
use support::{MIB, assert_crash, boot, crash, far, kvm_or_skip, machine, run};

/// A machine whose guest is this code.
fn guest(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vm {
    boot(&Elf::v1(assemble(write)).image(), &machine()).0
}

/// `cli; 1: jmp 1b`.
fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut here = a.create_label();
    a.cli()?;
    a.set_label(&mut here)?;
    a.jmp(here)
}

/// Hands RDI to the host.
fn exchange(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dx, u32::from(EXCHANGE_PORT))?;
    a.mov(eax, 1)?;
    a.out(dx, eax)
}

const CR4_OSFXSR: i32 = 1 << 9;
const CR4_OSXSAVE: i32 = 1 << 18;

#[test]
fn ports_of_absent_hardware_read_as_ones() {
    kvm_or_skip!();
    let mut guest = Puppet::v1();
    // PCI, PIC, PIT, CMOS, keyboard, COM1, and one that nothing ever had.
    for port in [
        0xCF8, 0xCFC, 0x20, 0x21, 0xA1, 0x40, 0x61, 0x70, 0x71, 0x60, 0x3F8, 0x3FD, 0xABC,
    ] {
        assert_eq!(guest.input(1, port) & 0xFF, 0xFF, "port {port:#x}");
        assert_eq!(guest.input(2, port) & 0xFFFF, 0xFFFF, "port {port:#x}");
        assert_eq!(
            guest.input(4, port) & 0xFFFF_FFFF,
            0xFFFF_FFFF,
            "port {port:#x}"
        );
        assert_eq!(guest.out(port, 0, 0), None, "port {port:#x}");
    }
    // The hypercall ports of either interface are write-only.
    for port in [0x400, 0x540, 0x1010] {
        assert_eq!(
            guest.input(4, port) & 0xFFFF_FFFF,
            0xFFFF_FFFF,
            "port {port:#x}"
        );
    }
}

#[test]
fn memory_that_is_not_there_reads_as_ones() {
    kvm_or_skip!();
    let mut guest = Puppet::v1();
    let ram_end = {
        let here = guest.vm.shell().placement();
        here.base + here.memory_bytes
    };
    let window = guest.map_pages(&[ram_end, 0xFEE0_0000, 0xFED0_0000, 1 << 36]);
    for page in [0, 2, 3] {
        let address = window + page * 4096;
        assert_eq!(guest.load32(address), 0xFFFF_FFFF);
        guest.store32(address, 0);
        assert_eq!(guest.load64(address + 8), u64::MAX);
    }
}

#[test]
fn the_low_memory_is_zeros_that_stay_zeros() {
    kvm_or_skip!();
    let mut guest = Puppet::v1();
    assert!(guest.vm.shell().placement().base >= MIB);
    let window = guest.map_pages(&[0, 0x9_F000, 0xF_F000]);
    for page in 0..3 {
        let address = window + page * 4096 + 0x10;
        assert_eq!(guest.load64(address), 0);
        guest.store32(address, 0x1234_5678);
        assert_eq!(guest.load64(address), 0, "all guests share these pages");
    }
}

#[test]
fn an_io_apic_with_24_entries_answers() {
    kvm_or_skip!();
    for mut guest in [Puppet::v1(), Puppet::v2()] {
        let ioapic = guest.map_pages(&[0xFEC0_0000]);
        // Register select, then its window (Intel 82093AA): the version register.
        guest.store32(ioapic, 1);
        let version = guest.load32(ioapic + 0x10);
        assert_eq!(version >> 16 & 0xFF, 23, "the last entry");
        assert!((0x10..0x20).contains(&(version & 0xFF)));
        for entry in 0x10..0x40 {
            guest.store32(ioapic, entry);
            guest.store32(ioapic + 0x10, 1 << 16);
        }
        assert_eq!(guest.out(0xABC, 0, 0), None);
    }
}

#[test]
fn xgetbv_and_xsetbv_work_wherever_the_guest_runs() {
    kvm_or_skip!();
    let mut vm = guest(|a| {
        a.mov(rax, cr4)?;
        a.or(eax, CR4_OSXSAVE)?;
        a.mov(cr4, rax)?;
        // x87 and SSE, as every CPU with XSAVE has them.
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, 3)?;
        a.xsetbv()?;
        a.mov(rax, -1i64 as u64)?;
        a.mov(rdx, -1i64 as u64)?;
        a.xgetbv()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(rdi, rax)?;
        exchange(a)
    });
    let stop = run(&mut vm);
    assert!(
        matches!(stop, Stop::Exchange { mailbox: 3, .. }),
        "{stop:?}"
    );
}

#[test]
fn an_impossible_xcr0_is_no_panic() {
    kvm_or_skip!();
    let mut vm = guest(|a| {
        a.mov(rax, cr4)?;
        a.or(eax, CR4_OSXSAVE)?;
        a.mov(cr4, rax)?;
        a.xor(ecx, ecx)?;
        a.mov(edx, -1)?;
        a.mov(eax, -2)?;
        a.xsetbv()?;
        exchange(a)
    });
    // The emulating host's assist names it; other CPUs raise #GP, which this guest cannot take.
    match run(&mut vm) {
        Stop::Crashed(crash) if crash.kind == CrashKind::Instruction => {
            assert!(crash.reason.contains("`xsetbv`"), "{}", crash.reason);
        }
        Stop::Crashed(crash) => assert_eq!(crash.kind, CrashKind::TripleFault),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sse_arithmetic_runs_or_is_refused_by_name() {
    let profile = kvm_or_skip!();
    let code = assemble(|a| {
        a.mov(rax, cr4)?;
        a.or(eax, CR4_OSFXSR)?;
        a.mov(cr4, rax)?;
        a.mov(eax, 20)?;
        a.movd(xmm0, eax)?;
        a.paddd(xmm0, xmm0)?;
        a.movd(edi, xmm0)?;
        exchange(a)
    });
    let mut elf = Elf::v1(code);
    elf.symbols
        .push(("compute_everything".to_owned(), 0, 0x100));
    let (mut vm, _) = boot(&elf.image(), &machine());
    let stop = run(&mut vm);
    if profile.emulated_ring0 {
        let here = format!("{:#x}", vm.load_address() >> 8);
        assert_crash(
            stop,
            CrashKind::Instruction,
            &[
                "xmm0",
                " at 0x",
                &here,
                "(compute_everything+0x",
                "--float soft",
                "hardware virtualization",
            ],
        );
    } else {
        assert!(
            matches!(stop, Stop::Exchange { mailbox: 40, .. }),
            "{stop:?}"
        );
    }
}

#[test]
fn a_triple_fault_is_a_crash_with_a_place() {
    kvm_or_skip!();
    // Without an interrupt table any exception is one too many.
    let mut vm = guest(|a| a.ud2());
    let stop = run(&mut vm);
    assert_crash(stop, CrashKind::TripleFault, &["triple fault at 0x"]);

    let mut vm = guest(|a| {
        a.mov(rax, 0x6666_0000_0000u64)?;
        a.mov(qword_ptr(rax), rax)
    });
    assert_crash(run(&mut vm), CrashKind::TripleFault, &[]);

    // It says what the registers held, and where in the image that was.
    let mut elf = Elf::v1(assemble(|a| {
        a.mov(rbx, 0x1234_5678_9abcu64)?;
        a.mov(r15, 0x77u64)?;
        a.ud2()
    }));
    elf.symbols.push(("breaks".to_owned(), 0, 0x100));
    let crash = crash(run(&mut boot(&elf.image(), &machine()).0));
    let register = |name| {
        let mut known = crash.registers.iter();
        known.find(|known| known.0 == name).unwrap().1
    };
    assert_eq!((register("rbx"), register("r15")), (0x1234_5678_9abc, 0x77));
    let place = format!("{:#x}", register("rip"));
    assert!(crash.reason.contains(&place), "{crash:?}");
    assert!(register("cr3") > 0 && register("rsp") > 0, "{crash:?}");
    let symbol = crash.symbol.unwrap();
    assert!(symbol.starts_with("breaks+0x"), "{symbol}");

    // A jump to nowhere.
    let mut vm = guest(|a| {
        a.mov(rax, 0x6666_0000_0000u64)?;
        a.jmp(rax)
    });
    assert_crash(run(&mut vm), CrashKind::TripleFault, &[]);
}

#[test]
fn a_guest_that_executes_device_memory_cannot_go_on() {
    kvm_or_skip!();
    let mut puppet = Puppet::v1();
    let here = puppet.vm.shell().placement();
    let outside = here.base + here.memory_bytes;
    // Page tables outside memory: the next instruction fetch walks them.
    let block = [9u64, 0, outside, 0, 0];
    let bytes: Vec<u8> = block.into_iter().flat_map(u64::to_le_bytes).collect();
    let at = puppet.block();
    puppet.vm.write_virtual(at, &bytes).unwrap();
    let stop = puppet
        .vm
        .run(Instant::now() + Duration::from_secs(5))
        .unwrap();
    assert!(
        !matches!(stop, Stop::Exchange { .. } | Stop::Exit(_)),
        "{stop:?}"
    );
    // Nor can the host follow such tables, and it says so.
    assert!(puppet.vm.read_virtual(at, &mut [0; 8]).is_err());
}

#[test]
fn the_deadline_stops_a_guest_that_spins_with_interrupts_off() {
    kvm_or_skip!();
    let mut vm = guest(spin);
    for _ in 0..3 {
        let deadline = Instant::now() + Duration::from_millis(60);
        assert_eq!(vm.run(deadline).unwrap(), Stop::TimedOut);
        let now = Instant::now();
        assert!(now >= deadline, "too early by {:?}", deadline - now);
        assert!(now - deadline < Duration::from_secs(5));
    }
    // One that has passed already stops it too.
    assert_eq!(vm.run(Instant::now()).unwrap(), Stop::TimedOut);
}

#[test]
fn the_deadline_stops_guests_that_exit_all_the_time_or_sleep() {
    kvm_or_skip!();
    let mut busy = guest(|a| {
        let mut here = a.create_label();
        a.mov(dx, 0xABCu32)?;
        a.set_label(&mut here)?;
        a.out(dx, eax)?;
        a.jmp(here)
    });
    let mut asleep = guest(|a| {
        let mut here = a.create_label();
        a.cli()?;
        a.set_label(&mut here)?;
        a.hlt()?;
        a.jmp(here)
    });
    for vm in [&mut busy, &mut asleep] {
        let deadline = Instant::now() + Duration::from_millis(50);
        assert_eq!(vm.run(deadline).unwrap(), Stop::TimedOut);
        assert!(Instant::now() >= deadline);
    }
}

#[test]
fn an_interrupter_stops_a_spinning_guest_from_another_thread() {
    kvm_or_skip!();
    let mut vm = guest(spin);
    for delay_us in [0, 50, 1000, 30_000] {
        let interrupter = vm.interrupter();
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(delay_us));
            interrupter.interrupt();
        });
        let begun = Instant::now();
        assert_eq!(vm.run(far()).unwrap(), Stop::Interrupted);
        assert!(begun.elapsed() < Duration::from_secs(20));
        kicker.join().unwrap();
    }
}

#[test]
fn a_kick_just_before_the_run_is_never_lost() {
    kvm_or_skip!();
    let mut vm = guest(spin);
    let interrupter = vm.interrupter();
    for round in 0..1000 {
        interrupter.interrupt();
        let stop = vm.run(Instant::now() + Duration::from_secs(10)).unwrap();
        assert_eq!(stop, Stop::Interrupted, "round {round}");
    }
    // And none stays behind.
    let stop = vm.run(Instant::now() + Duration::from_millis(20)).unwrap();
    assert_eq!(stop, Stop::TimedOut);
}

/// Set in the child process of the next test.
const CHILD: &str = "DORMOUSE_TEST_SPIN_CHILD";

#[test]
fn control_c_ends_a_program_whose_guest_spins() {
    kvm_or_skip!();
    if std::env::var_os(CHILD).is_some() {
        let mut vm = guest(spin);
        println!("spinning");
        let stop = vm.run(far()).unwrap();
        panic!("{stop:?}");
    }
    // Whoever runs the tests in the background may have it ignored, which children inherit. With one test
    // thread the test runs on the only thread there is.
    let mut child = Command::new("env")
        .arg("--default-signal=INT")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "control_c_ends_a_program_whose_guest_spins"])
        .args(["--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("spinning")));
    std::thread::sleep(Duration::from_millis(100));
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let begun = Instant::now();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(2), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_kick_in_the_middle_of_entering_is_never_lost() {
    kvm_or_skip!();
    let mut vm = guest(spin);
    let interrupter = vm.interrupter();
    let (sender, receiver) = std::sync::mpsc::channel::<u32>();
    let kicker = std::thread::spawn(move || {
        for delay in receiver {
            for _ in 0..delay {
                std::hint::spin_loop();
            }
            interrupter.interrupt();
        }
    });
    for round in 0..1000 {
        sender.send(round % 400 * 16).unwrap();
        let stop = vm.run(Instant::now() + Duration::from_secs(10)).unwrap();
        assert_eq!(stop, Stop::Interrupted, "round {round}");
    }
    drop(sender);
    kicker.join().unwrap();
}

#[test]
fn a_guest_may_move_between_threads() {
    kvm_or_skip!();
    let mut puppet = Puppet::v1();
    for _ in 0..4 {
        puppet = std::thread::spawn(move || {
            assert_eq!(puppet.input(1, 0x70) & 0xFF, 0xFF);
            puppet
        })
        .join()
        .unwrap();
    }
}

#[test]
fn an_interrupted_guest_goes_on_where_it_was() {
    kvm_or_skip!();
    let mut vm = guest(|a| {
        let mut here = a.create_label();
        a.mov(ecx, 100_000)?;
        a.xor(edi, edi)?;
        a.set_label(&mut here)?;
        a.add(rdi, rcx)?;
        a.dec(ecx)?;
        a.jnz(here)?;
        exchange(a)
    });
    let mut interruptions = 0;
    let sum = loop {
        match vm.run(Instant::now() + Duration::from_millis(1)).unwrap() {
            Stop::TimedOut => interruptions += 1,
            Stop::Exchange { mailbox, .. } => break mailbox,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        sum,
        100_000 * 100_001 / 2,
        "after {interruptions} interruptions"
    );
}

#[test]
fn the_console_text_of_an_exception_ends_the_run_early() {
    kvm_or_skip!();
    let report = b"[0][ERROR] Page fault (#PF)!\npage_fault_linear_address = 0x6000\n\
        stack_frame = InterruptStackFrame {\n    instruction_pointer: VirtAddr(\n        0x1234,\n    ),\n    \
        stack_pointer: VirtAddr(\n        0x7ff0,\n    ),\n}\n";
    let half = b"Exception 13 and then nothing more";
    for (text, words) in [
        (
            report.as_slice(),
            ["#PF", "at address 0x6000", "instruction at 0x1234"],
        ),
        (half.as_slice(), ["Exception 13", "", ""]),
        // More than a report can be, without an end.
        (
            &[b"PANIC ".as_slice(), &[b'x'; 40_000]].concat(),
            ["PANIC", "", ""],
        ),
    ] {
        let code = assemble(|a| {
            let mut parameters = a.create_label();
            let mut text_label = a.create_label();
            a.lea(rbx, ptr(parameters))?;
            a.lea(rax, ptr(text_label))?;
            a.mov(qword_ptr(rbx), rax)?;
            a.mov(eax, ebx)?;
            a.mov(dx, 0x880u32)?;
            a.out(dx, eax)?;
            spin(a)?;
            a.set_label(&mut parameters)?;
            a.dq(&[0, text.len() as u64])?;
            a.set_label(&mut text_label)?;
            a.db(text)
        });
        let image = Elf::v1(code).image();
        let (mut vm, captured) = boot(&image, &machine());
        let deadline = far();
        let stop = vm.run(deadline).unwrap();
        assert!(deadline - Instant::now() > Duration::from_secs(60));
        if words[0] == "#PF" {
            // Of the guest's own the report says these; the vCPU has gone on since.
            let known = crash(stop.clone()).registers;
            assert_eq!(known, [("rip", 0x1234), ("rsp", 0x7ff0), ("cr2", 0x6000)]);
        }
        assert_crash(stop, CrashKind::Exception, &words);
        assert_eq!(captured.kernel().as_bytes(), text);
    }
}
