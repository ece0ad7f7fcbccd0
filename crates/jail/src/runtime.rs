//! The system calls of Rust's standard library and the C library under it, on x86-64 Linux.

use rustix::process::getpid;

use crate::filter::Rule;

/// Whatever their arguments are: of memory, threads, time, and descriptors that are open.
const PLAIN: &[libc::c_long] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_close,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals, to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
];

/// What looks for a file by its name, and changes nothing.
const BY_NAME: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
];

/// `fcntl(2)`: what changes descriptors of this process only. Not F_SETOWN, which names another process,
/// and not F_SETFL, which changes what a descriptor shares with who gave it.
const FCNTL: &[libc::c_int] = &[
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_DUPFD_CLOEXEC,
];

/// New namespaces (`clone(2)`).
const CLONE_NEW: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// A flag as the kernel sees it in a register.
fn bits(flags: libc::c_int) -> u64 {
    u64::from(flags.cast_unsigned())
}

pub(crate) fn rules() -> Vec<Rule> {
    let mut rules: Vec<_> = PLAIN.iter().map(|call| Rule::allow(*call)).collect();
    let fcntl: Vec<_> = FCNTL
        .iter()
        .map(|command| command.cast_unsigned())
        .collect();
    let this_process = getpid().as_raw_nonzero().get().cast_unsigned();
    let thread = bits(libc::CLONE_THREAD);
    let protection = bits(libc::PROT_EXEC);
    let name = libc::PR_SET_NAME.cast_unsigned();
    rules.extend([
        Rule::allow_values(libc::SYS_fcntl, 1, &fcntl),
        // Protection is the third argument of both (`mmap(2)`, `mprotect(2)`).
        Rule::allow_masked(libc::SYS_mmap, 2, protection, 0),
        Rule::allow_masked(libc::SYS_mprotect, 2, protection, 0),
        // Flags come first on x86-64 (`clone(2)`, "C library/kernel differences").
        Rule::allow_masked(libc::SYS_clone, 0, thread | bits(CLONE_NEW), thread),
        Rule::refuse(libc::SYS_clone3, libc::ENOSYS),
        // Asked of descriptors too, with an empty path (`statx(2)`, AT_EMPTY_PATH), which cannot be
        // looked at. The standard library wants to know how long a file is and can do without.
        Rule::refuse(libc::SYS_statx, libc::ENOSYS),
        Rule::refuse(libc::SYS_newfstatat, libc::ENOSYS),
        Rule::allow_values(libc::SYS_tgkill, 0, &[this_process]),
        Rule::allow_values(libc::SYS_prctl, 0, &[name]),
    ]);
    rules
}

pub(crate) fn narrowing() -> Vec<Rule> {
    let no_new_privs = libc::PR_SET_NO_NEW_PRIVS.cast_unsigned();
    vec![
        Rule::allow_values(libc::SYS_prctl, 0, &[no_new_privs]),
        Rule::allow_values(libc::SYS_seccomp, 0, &[libc::SECCOMP_SET_MODE_FILTER]),
    ]
}

pub(crate) fn no_files() -> Vec<Rule> {
    let refuse = |call: &libc::c_long| Rule::refuse(*call, libc::ENOENT);
    BY_NAME.iter().map(refuse).collect()
}
