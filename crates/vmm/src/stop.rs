//! How a run of a guest ends.

use serde::{Deserialize, Deserializer, Serialize};

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The guest made the exchange hypercall (see [`dormouse_abi`]).
    Exchange {
        /// The ABI version that the guest speaks.
        abi_version: u32,
        /// Guest-virtual address of its mailbox.
        mailbox: u64,
    },
    /// The program ended with this code.
    Exit(i32),
    /// The guest cannot go on.
    Crashed(Crash),
    /// The deadline passed.
    TimedOut,
    /// [`crate::Interrupter::interrupt`] was called.
    Interrupted,
}

/// How a guest crashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// What kind of crash it was.
    pub kind: CrashKind,
    /// What happened, in one sentence, with addresses and symbols where they are known.
    pub reason: String,
    /// Registers by name, as far as they are known of the moment of the crash. Of an exception that
    /// the guest's kernel reported these are the few that its report names: the vCPU's own have
    /// gone on since. Of all other kinds they are the vCPU's, from `rip` to `cr4`.
    #[serde(deserialize_with = "known_registers")]
    pub registers: Vec<(&'static str, u64)>,
    /// What the image has at the instruction that crashed, as `function+0x1f`.
    pub symbol: Option<String>,
}

/// Kinds of crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CrashKind {
    /// A CPU exception or a panic that the guest's kernel reported.
    Exception,
    /// The vCPU shut down: an exception while handling an exception.
    TripleFault,
    /// An instruction that this host's KVM cannot run.
    Instruction,
    /// A hypercall that makes no sense.
    Hypercall,
    /// KVM left the guest for a reason that means nothing here.
    UnknownExit,
    /// Memory could not be had.
    Host,
}

impl CrashKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Exception,
        Self::TripleFault,
        Self::Instruction,
        Self::Hypercall,
        Self::UnknownExit,
        Self::Host,
    ];

    /// The stable word for it, for example `triple-fault`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exception => "exception",
            Self::TripleFault => "triple-fault",
            Self::Instruction => "instruction",
            Self::Hypercall => "hypercall",
            Self::UnknownExit => "unknown-exit",
            Self::Host => "host",
        }
    }
}

/// The names that a crash can have, from `rip` to `cr4`.
const REGISTERS: [&str; 22] = [
    "rip", "rflags", "rsp", "rbp", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10",
    "r11", "r12", "r13", "r14", "r15", "cr0", "cr2", "cr3", "cr4",
];

/// Leaves out what is no register's name.
fn known_registers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<(&'static str, u64)>, D::Error> {
    let told = Vec::<(String, u64)>::deserialize(deserializer)?;
    let known = told.into_iter().filter_map(|(told, value)| {
        let name = REGISTERS.into_iter().find(|name| *name == told)?;
        Some((name, value))
    });
    Ok(known.collect())
}
