//! Seccomp: the system calls that a process may make, and no other.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use crate::error::Error;
use crate::runtime;

/// What a process may do: one system call, with any arguments or with one that is looked at.
///
/// Several rules for the same call add up: any of them allows it. Arguments are counted from 0, in
/// the kernel's order, and are values: what a pointer leads to cannot be looked at (`seccomp(2)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    call: i64,
    verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Allow,
    /// The argument's lower 32 bits are one of these.
    Values(u8, Vec<u32>),
    /// The bits of the argument that the mask has are these.
    Masked {
        argument: u8,
        mask: u64,
        value: u64,
    },
    Refuse(u32),
}

impl Rule {
    /// The system call may be made.
    #[must_use]
    pub fn allow(call: libc::c_long) -> Self {
        Self {
            call,
            verdict: Verdict::Allow,
        }
    }

    /// It may be made where the argument is one of these, compared as the 32 bits that the kernel
    /// takes of an `int`: `ioctl`'s request is argument 1.
    #[must_use]
    pub fn allow_values(call: libc::c_long, argument: u8, values: &[u32]) -> Self {
        Self {
            call,
            verdict: Verdict::Values(argument, values.to_vec()),
        }
    }

    /// It may be made where the argument, of 64 bits, has these bits below the mask.
    #[must_use]
    pub fn allow_masked(call: libc::c_long, argument: u8, mask: u64, value: u64) -> Self {
        Self {
            call,
            verdict: Verdict::Masked {
                argument,
                mask,
                value,
            },
        }
    }

    /// It is answered with this errno, for callers that have another way or can do without. It
    /// never reaches the kernel.
    #[must_use]
    pub fn refuse(call: libc::c_long, errno: i32) -> Self {
        Self {
            call,
            verdict: Verdict::Refuse(errno.unsigned_abs()),
        }
    }

    /// What any Rust program does that starts threads, allocates memory, tells the time and uses
    /// the descriptors that it has.
    ///
    /// Of calls that also have other uses, only that one is allowed: `clone` makes threads of this
    /// process, `tgkill` reaches them (call this in the process that will be confined, its id is in
    /// the rule), and memory is never executable. `clone3`, whose flags cannot be looked at, is
    /// answered with `ENOSYS`, upon which the C library takes `clone`; so are `statx` and
    /// `newfstatat`, and what a file is can be asked with `fstat` only.
    ///
    /// Files are opened by none of this, but a panic under `RUST_BACKTRACE` looks for the program's:
    /// see [`Rule::no_files`].
    #[must_use]
    pub fn runtime() -> Vec<Self> {
        runtime::rules()
    }

    /// Answers calls that look for files by their names with `ENOENT`, for programs that shall
    /// survive what libraries look for on the way: debug information as a panic is printed, the
    /// number of CPUs, time zones. Without this they are death, as all that is not allowed.
    #[must_use]
    pub fn no_files() -> Vec<Self> {
        runtime::no_files()
    }

    /// What [`Filter::apply_to_thread`] does, for the filters of processes whose threads are
    /// narrowed further.
    #[must_use]
    pub fn narrowing() -> Vec<Self> {
        runtime::narrowing()
    }
}

/// An allow-list of system calls, compiled. Any other call kills the process with SIGSYS before
/// the kernel looks at it (`SECCOMP_RET_KILL_PROCESS`, `seccomp(2)`), as does any that is made
/// through the interfaces of other architectures.
#[derive(Debug, Clone)]
pub struct Filter {
    /// One for each errno that is answered, and the allow-list last. The kernel runs all of them,
    /// and the gravest answer holds: killing before an errno before allowing.
    programs: Vec<BpfProgram>,
}

impl Filter {
    /// Compiles rules.
    ///
    /// # Errors
    ///
    /// Where rules for one call contradict each other, where an argument does not exist (there are
    /// six), and where they are too many for the kernel (4096 instructions, `seccomp(2)`).
    pub fn compile(rules: &[Rule]) -> Result<Self, Error> {
        let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut refused: BTreeMap<u32, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
        for rule in rules {
            let conditions = rule.conditions()?;
            if let Verdict::Refuse(errno) = rule.verdict {
                refused
                    .entry(errno)
                    .or_default()
                    .insert(rule.call, Vec::new());
            }
            match allowed.get_mut(&rule.call) {
                None => {
                    allowed.insert(rule.call, conditions);
                }
                // To the compiler no condition is "always", which more conditions would undo.
                Some(known) if known.is_empty() != conditions.is_empty() => {
                    return Err(rule.wrong("one rule allows or refuses it whatever its arguments are, another looks at them"));
                }
                Some(known) => known.extend(conditions),
            }
        }
        check_refusals(rules)?;
        let mut programs = Vec::with_capacity(refused.len() + 1);
        for (errno, calls) in refused {
            let refusal = SeccompAction::Errno(errno);
            programs.push(program(calls, SeccompAction::Allow, refusal)?);
        }
        let kill = SeccompAction::KillProcess;
        programs.push(program(allowed, kill, SeccompAction::Allow)?);
        Ok(Self { programs })
    }

    /// Puts the filter over the calling thread and all that it starts from now on, for good. Over a
    /// filter that is there already it only narrows, and needs what [`Rule::narrowing`] allows.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn apply_to_thread(&self) -> Result<(), Error> {
        for program in &self.programs {
            apply_filter(program)?;
        }
        Ok(())
    }
}

fn program(
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, Error> {
    let filter = SeccompFilter::new(calls, otherwise, matching, TargetArch::x86_64)?;
    Ok(BpfProgram::try_from(filter)?)
}

/// Each call that is refused has that rule alone.
fn check_refusals(rules: &[Rule]) -> Result<(), Error> {
    let mut verdicts: BTreeMap<i64, &Verdict> = BTreeMap::new();
    for rule in rules {
        let first = verdicts.entry(rule.call).or_insert(&rule.verdict);
        let refuses = |verdict: &Verdict| matches!(verdict, Verdict::Refuse(_));
        if (refuses(first) || refuses(&rule.verdict)) && **first != rule.verdict {
            return Err(rule.wrong("one rule refuses it, another allows it or answers otherwise"));
        }
    }
    Ok(())
}

impl Rule {
    fn wrong(&self, reason: &'static str) -> Error {
        Error::Rule {
            call: self.call,
            reason,
        }
    }

    /// As the compiler takes them: any of them holds, and none is always.
    fn conditions(&self) -> Result<Vec<SeccompRule>, Error> {
        // The compiler would panic.
        if u32::try_from(self.call).is_err() {
            return Err(self.wrong("there is no such number"));
        }
        match &self.verdict {
            Verdict::Allow | Verdict::Refuse(_) => Ok(Vec::new()),
            Verdict::Values(_, values) if values.is_empty() => {
                Err(self.wrong("no value of its argument is allowed; leave the rule out"))
            }
            Verdict::Values(argument, values) => {
                let one = |value: &u32| {
                    condition(
                        *argument,
                        SeccompCmpArgLen::Dword,
                        SeccompCmpOp::Eq,
                        u64::from(*value),
                    )
                };
                values.iter().map(one).collect()
            }
            Verdict::Masked {
                argument,
                mask,
                value,
            } => {
                let masked = SeccompCmpOp::MaskedEq(*mask);
                Ok(vec![condition(
                    *argument,
                    SeccompCmpArgLen::Qword,
                    masked,
                    *value,
                )?])
            }
        }
    }
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, Error> {
    let condition = SeccompCondition::new(argument, length, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}
