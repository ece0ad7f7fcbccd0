//! How a run of a guest ends.

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// What kind of crash it was.
    pub kind: CrashKind,
    /// What happened, in one sentence, with addresses and symbols where they are known.
    pub reason: String,
}

/// Kinds of crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashKind {
    /// A CPU exception or a panic that the guest's kernel reported.
    Exception,
    /// The vCPU shut down: an exception while handling an exception.
    TripleFault,
    /// An instruction that this host's KVM cannot run.
    Instruction,
    /// A hypercall that makes no sense.
    Hypercall,
    /// KVM could not go on with the guest, or memory could not be had.
    Host,
}

/// A crash as a stop.
pub(crate) fn crash(kind: CrashKind, reason: String) -> Stop {
    Stop::Crashed(Crash { kind, reason })
}
