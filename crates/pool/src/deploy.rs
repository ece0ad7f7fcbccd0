//! Cold boot to snapshot: image → boot → ready → save → publish.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_abi::ABI_VERSION;
use dormouse_snapshot::{FunctionName, Layout, SnapshotId, Store};
use dormouse_vmm::{CrashKind, GuestImage, MachineConfig, Placement, Shell, Stop, Vm, VmState};
use serde::{Deserialize, Serialize};

use crate::config::FunctionConfig;
use crate::console::Tail;
use crate::error::{Error, Failure};
use crate::interrupters::{Interrupters, Registered};
use crate::loading::Shared;
use crate::mailbox::{self, MailboxState, Message};
use crate::saved::{Saved, memory_file};

/// What a snapshot's state section holds.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedFunction {
    pub(crate) vm: VmState,
    pub(crate) mailbox: MailboxState,
}

// Written in every snapshot: a change here is a new FORMAT_VERSION, see snapshots/FORMAT.md,
// "Compatibility". A test compares the bytes.
const _: fn(&SavedFunction) = |state| {
    let SavedFunction { vm, mailbox } = state;
    let _: (&VmState, &MailboxState) = (vm, mailbox);
};

impl SavedFunction {
    /// The guest, but for its memory.
    #[must_use]
    pub fn vm(&self) -> &VmState {
        &self.vm
    }

    /// Guest-virtual address of the page through which requests and answers pass.
    #[must_use]
    pub fn mailbox_address(&self) -> u64 {
        self.mailbox.address()
    }
}

/// A finished deployment.
pub(crate) struct Published {
    pub(crate) id: SnapshotId,
    pub(crate) boot_us: u64,
    pub(crate) snapshot_us: u64,
}

/// A guest that was booted and is ready. Its runs must all be on one thread.
pub(crate) struct Booted {
    pub(crate) vm: Vm,
    pub(crate) mailbox: MailboxState,
    pub(crate) console: Tail,
    image: Arc<GuestImage>,
    _registered: Registered,
}

impl Booted {
    /// Boots `file` and waits until it is ready. Blocks for as long as that takes.
    pub(crate) fn new(
        file: &[u8],
        config: &FunctionConfig,
        guests: &Interrupters,
    ) -> Result<Self, Error> {
        let begun = Instant::now();
        let image = Arc::new(GuestImage::parse(file)?);
        let machine = MachineConfig {
            memory_bytes: config.memory_bytes,
            base: config.base,
            args: config.args.clone(),
            env: config.env.clone(),
            ..MachineConfig::default()
        };
        let shell = Shell::new(Placement::choose(&machine, &image)?)?;
        let console = Tail::default();
        let mut vm = Vm::boot(shell, &image, &machine, Box::new(console.clone()))?;
        let interrupter = vm.interrupter();
        let registered = guests.register(move || interrupter.interrupt());
        let limit = Duration::from_millis(config.init_timeout_ms);
        let stop = vm.run(begun + limit)?;
        Ok(Self {
            mailbox: ready(&vm, stop, limit, &console)?,
            vm,
            console,
            image,
            _registered: registered,
        })
    }
}

/// Boots `file`, waits until it is ready, and saves it, with its memory in `memory`. Blocks for as long
/// as that takes. Tells how long the boot took, microseconds.
///
/// # Errors
/// As [`Booted::new`], or what kept the guest from being saved.
pub(crate) fn boot(
    file: &[u8],
    config: &FunctionConfig,
    guests: &Interrupters,
    memory: &File,
) -> Result<(Saved, u64), Error> {
    let begun = Instant::now();
    let mut booted = Booted::new(file, config, guests)?;
    let boot_us = elapsed_us(begun);
    let vm = &mut booted.vm;
    let symbols = booted.image.symbols(vm.load_address());
    let state = SavedFunction {
        vm: vm.save(&symbols)?,
        mailbox: booted.mailbox,
    };
    let ram = vm.shell().ram();
    let saved = Saved::new(state, ram, ram.resident_pages()?, memory)?;
    Ok((saved, boot_us))
}

/// Boots `file`, waits until it is ready, and publishes its snapshot; where it is one of several
/// layouts, booted at that base. Blocks for as long as that takes.
///
/// # Errors
/// As [`boot`]; [`Error::Store`].
pub(crate) fn boot_and_publish(
    store: &Store,
    name: &FunctionName,
    file: &[u8],
    config: &FunctionConfig,
    placed: Option<(u64, &Layout)>,
    shared: &Shared,
) -> Result<Published, Error> {
    let begun = Instant::now();
    let memory = memory_file("dormouse-booted")?;
    let here = placed.map(|(base, _)| config.at(base));
    let here = here.as_ref().unwrap_or(config);
    let (saved, boot_us) = shared.workers.boot(file, here, &shared.guests, &memory)?;
    let stored = (config, placed.map(|(_, layout)| layout));
    let id = saved.publish(store, name, stored, file, &memory, None)?;
    Ok(Published {
        id,
        boot_us,
        snapshot_us: elapsed_us(begun).saturating_sub(boot_us),
    })
}

/// The mailbox of a guest whose first run ended in `stop`, if that means that it is ready.
fn ready(vm: &Vm, stop: Stop, limit: Duration, console: &Tail) -> Result<MailboxState, Error> {
    let failed = |failure| {
        Err(Error::Init {
            failure,
            console: console.text(),
        })
    };
    match stop {
        Stop::Exchange { abi_version, .. } if abi_version != ABI_VERSION => Err(Error::BadImage {
            reason: format!(
                "it speaks Dormouse ABI version {abi_version}, this host speaks version \
                     {ABI_VERSION}; build it against the matching dormouse-guest"
            ),
        }),
        Stop::Exchange { mailbox, .. } => match mailbox::take(vm, mailbox, None) {
            Ok(Message::Ready(state)) => match state.check(vm) {
                Ok(()) => Ok(state),
                Err(failure) => failed(failure),
            },
            Ok(Message::InitError(message)) => failed(Failure::Reported { message }),
            Ok(Message::Answer { .. } | Message::Error(_)) => failed(Failure::BadAnswer {
                reason: "it answered before it was asked".to_owned(),
            }),
            Err(failure) => failed(failure),
        },
        Stop::Exit(0) => Err(Error::BadImage {
            reason: "the program ended without serving requests, so it is not a function; run it \
                     with `dormouse run`"
                .to_owned(),
        }),
        Stop::Exit(code) => {
            let memory_bytes = vm.shell().placement().memory_bytes;
            failed(Failure::exited(code, console, memory_bytes))
        }
        Stop::Crashed(crash) if crash.kind == CrashKind::Instruction => Err(Error::BadImage {
            reason: crash.reason,
        }),
        Stop::Crashed(crash) => failed(Failure::Crashed {
            crash: Box::new(crash),
        }),
        Stop::TimedOut => failed(Failure::TimedOut { limit }),
        Stop::Interrupted => Err(Error::Draining),
    }
}

/// Microseconds since `begun`.
pub(crate) fn elapsed_us(begun: Instant) -> u64 {
    whole_us(begun.elapsed())
}

/// A duration in whole microseconds.
pub(crate) fn whole_us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use dormouse_abi::{HEADER_BYTES, Header, MAGIC, MAILBOX_BYTES, REQUEST_BUFFER_BYTES};
    use dormouse_vmm::layout::PAGE_BYTES;

    use super::*;

    /// The codec of the snapshot format.
    const CODEC: bincode::config::Configuration = bincode::config::standard();

    /// A virtual machine's state as its own crate's test has it.
    const VM: &[u8] = include_bytes!("../../../snapshots/golden/vm-state");

    fn saved() -> SavedFunction {
        let mailbox = MailboxState::at(0x20_3000, 0x2_0000_0001);
        let (vm, _) = bincode::serde::decode_from_slice(VM, CODEC).unwrap();
        SavedFunction { vm, mailbox }
    }

    #[test]
    fn the_state_of_a_function_is_that_of_the_format() {
        let expected = [VM, b"\xfc\0\x30\x20\0", b"\xfd\x01\0\0\0\x02\0\0\0"].concat();
        assert!(
            bincode::serde::encode_to_vec(saved(), CODEC).unwrap() == expected,
            "the state is written in other bytes than before: a change of what is saved is a new \
             FORMAT_VERSION, see snapshots/FORMAT.md, \"Compatibility\""
        );
        let (state, used): (SavedFunction, _) =
            bincode::serde::decode_from_slice(&expected, CODEC).unwrap();
        assert_eq!(used, expected.len());
        assert_eq!(state.mailbox, saved().mailbox);
    }

    /// Asks for the ABI of a guest with this mailbox, all of whose memory is under one huge page.
    fn check_abi(change: impl FnOnce(&mut Header)) -> Result<(), Error> {
        let SavedFunction { vm, mailbox } = saved();
        let base = vm.placement().base;
        let mut header = Header::new();
        header.magic = MAGIC;
        header.abi_version = ABI_VERSION;
        header.request_buffer_bytes = REQUEST_BUFFER_BYTES as u64;
        change(&mut header);
        let mailbox_page = (mailbox.address() - base) / PAGE_BYTES;
        let root_page = (vm.registers().2 - base) / PAGE_BYTES;
        mailbox.check_abi(&vm, |page, bytes: &mut [u8; MAILBOX_BYTES]| {
            bytes.fill(0);
            if page == mailbox_page {
                bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
            } else if page < root_page + 2 {
                bytes[..8].copy_from_slice(&((base + (page + 1) * PAGE_BYTES) | 1).to_le_bytes());
            } else {
                // The second entry: 2 MiB of memory from the base on.
                bytes[8..16].copy_from_slice(&(base | 0x81).to_le_bytes());
            }
            Ok(())
        })
    }

    #[test]
    fn a_snapshot_of_another_abi_is_refused() {
        check_abi(|_| {}).unwrap();
        let error = check_abi(|header| header.abi_version = ABI_VERSION + 1).unwrap_err();
        assert!(matches!(error, Error::OtherAbi { .. }));
        assert_eq!(
            error.to_string(),
            format!(
                "the function in this snapshot speaks Dormouse ABI version {}, this host speaks \
                 version {ABI_VERSION}: build it against the matching dormouse-guest and deploy it \
                 again",
                ABI_VERSION + 1
            )
        );
        // What is no mailbox at all has no version.
        check_abi(|header| header.magic = 0).unwrap();
    }
}
