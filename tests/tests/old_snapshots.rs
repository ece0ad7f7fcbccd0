//! Snapshots that are old: time is right in their clones, and where they cannot be restored any
//! more the function is booted anew.
//!
//! They are new ones whose saved clocks are changed. Where the host lets guests have a TSC of their
//! own, that is as good as waiting: the TSC is set by the saved clocks. Where it does not, a guest's
//! TSC is the host's, and no change makes it older: what is tested there is that nothing relies on
//! the saved time.

use dormouse_abi::{ABI_VERSION, MAGIC};
use dormouse_tests::{Client, Edited, Server, edit, unix_ms};
use serde_json::Value;

const HOUR_NS: u64 = 3600 * 1_000_000_000;
const WEEK_NS: u64 = 7 * 24 * HOUR_NS;

/// Real time may be wrong by that: the bound.
const CLOCK_MS: u64 = 100;

#[track_caller]
fn knows_the_time(client: &Client) -> Value {
    let before = unix_ms();
    let json = client.invoke("whoami", "/").ok().json();
    let after = unix_ms();
    let time = json["real_time_unix_ms"].as_u64().expect("a time");
    assert!(
        (before - CLOCK_MS..=after + CLOCK_MS).contains(&time),
        "{time} is not between {before} and {after}"
    );
    json
}

/// Whether guests may have a TSC of their own here.
fn tsc_is_settable() -> bool {
    let host = dormouse_vmm::Host::open().expect("KVM");
    host.profile().tsc_settable
}

/// Where the state has the time of the snapshot, and which. The TSC stands just before it, the
/// TSC's frequency just after.
struct Clock {
    at: usize,
    unix_ns: u64,
    tsc: (usize, u64),
}

fn clock(edited: &Edited) -> Clock {
    let now_ns = unix_ms() * 1_000_000;
    let integers = edited.integers();
    let mut found = integers
        .iter()
        .filter(|(_, value)| (now_ns - HOUR_NS..now_ns).contains(value));
    let &(at, unix_ns) = found.next().expect("the time of the snapshot");
    assert!(found.next().is_none(), "more than one time in the state");
    let &tsc = integers
        .iter()
        .find(|(place, _)| place + 9 == at)
        .expect("the TSC before it");
    Clock { at, unix_ns, tsc }
}

/// kHz, an integer of 32 bits (251 and two bytes, or 252 and four).
fn tsc_khz(edited: &Edited, clock: &Clock) -> u64 {
    let after = &edited.state[clock.at + 9..];
    match after[0] {
        251 => u64::from(u16::from_le_bytes([after[1], after[2]])),
        252 => u64::from(u32::from_le_bytes([after[1], after[2], after[3], after[4]])),
        other => panic!("not a frequency: {other}"),
    }
}

#[test]
fn clones_of_a_snapshot_that_is_a_week_old_know_the_time() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("whoami");
    let folder = server.store().to_owned();
    edit(&folder, "whoami", |edited| {
        let clock = clock(edited);
        edited.set_integer(clock.at, clock.unix_ns - WEEK_NS);
    });
    let Some(later) = Server::over(&folder) else {
        return;
    };
    let first = knows_the_time(later.client());
    let mut last_ns = first["monotonic_ns"].as_u64().expect("a time");
    // Since the function started. A week and a little, or what it really was.
    let about_ns = if tsc_is_settable() { WEEK_NS } else { 0 };
    assert!(
        (about_ns..about_ns + HOUR_NS).contains(&last_ns),
        "{last_ns} ns since the start"
    );
    for _ in 0..20 {
        let json = knows_the_time(later.client());
        let now_ns = json["monotonic_ns"].as_u64().expect("a time");
        assert!(now_ns > last_ns, "{now_ns} comes after {last_ns}");
        last_ns = now_ns;
    }
}

/// The host's boot has another name, and its TSC stands higher than in the snapshot: only the name
/// tells that it was counted from elsewhere.
#[test]
fn a_snapshot_of_another_boot_never_shows_that_boots_time() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("whoami");
    let folder = server.store().to_owned();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a name");
    let boot_id = boot_id.trim().as_bytes();
    edit(&folder, "whoami", |edited| {
        let mut found = edited.state.windows(boot_id.len());
        let at = found.position(|name| name == boot_id).expect("the boot");
        edited.state[at] = if boot_id[0] == b'0' { b'1' } else { b'0' };
    });
    let Some(later) = Server::over(&folder) else {
        return;
    };
    let first = later.client().invoke("whoami", "/").ok();
    let expected = if tsc_is_settable() {
        "restored"
    } else {
        "cold"
    };
    assert_eq!(first.header("x-start-type"), expected);
    for _ in 0..5 {
        let json = knows_the_time(later.client());
        let ns = json["monotonic_ns"].as_u64().expect("a time");
        assert!(ns < HOUR_NS, "time jumped by {ns} ns");
    }
}

/// What drift does to the clock of an old guest, only much more of it: the boot time that the
/// kernel keeps is wrong by hours.
#[test]
fn the_kernels_own_clock_is_put_right() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("whoami");
    let folder = server.store().to_owned();
    edit(&folder, "whoami", |edited| {
        let clock = clock(edited);
        let mhz = tsc_khz(edited, &clock) / 1000;
        let boot_us = clock.unix_ns / 1000 - clock.tsc.1 / mhz;
        let near = boot_us - 2_000_000..boot_us + 2_000_000;
        let mut changed = 0;
        for word in edited.memory.chunks_exact_mut(8) {
            let value = u64::from_le_bytes((&*word).try_into().expect("eight bytes"));
            if near.contains(&value) {
                word.copy_from_slice(&(value - 7 * HOUR_NS / 1000).to_le_bytes());
                changed += 1;
            }
        }
        assert!(
            changed > 0,
            "no boot time near {boot_us} in the guest's memory"
        );
    });
    let Some(later) = Server::over(&folder) else {
        return;
    };
    for _ in 0..5 {
        knows_the_time(later.client());
    }
}

/// Where a host does not let guests have a TSC of their own, a restart takes the TSC back: clones
/// of older snapshots would see time run backwards. Elsewhere the TSC is set, and nothing happens.
#[test]
fn a_snapshot_from_before_the_hosts_restart_is_made_anew() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("whoami");
    let folder = server.store().to_owned();
    edit(&folder, "whoami", |edited| {
        let clock = clock(edited);
        edited.set_integer(clock.tsc.0, clock.tsc.1 << 8);
    });
    let Some(later) = Server::over(&folder) else {
        return;
    };
    let settable = tsc_is_settable();
    let target = "/?sleep_ms=20&thread=1&print=1";
    let first = later.client().invoke("whoami", target).ok();
    let expected = if settable { "restored" } else { "cold" };
    assert_eq!(first.header("x-start-type"), expected);
    assert_eq!(first.json()["thread"], 42);
    let next = later.client().invoke("whoami", "/").ok();
    assert_eq!(next.header("x-start-type"), "restored");
    if !settable {
        knows_the_time(later.client());
    }
}

/// Nothing that this host could boot would speak its ABI: the function must be built anew, and the
/// answer says so.
#[test]
fn a_snapshot_of_another_abi_is_refused_with_what_to_do() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("whoami");
    let folder = server.store().to_owned();
    edit(&folder, "whoami", |edited| {
        let mut mailboxes = 0;
        for page in edited.memory.chunks_exact_mut(4096) {
            let registered = [MAGIC, ABI_VERSION].map(u32::to_le_bytes).concat();
            if page.starts_with(&registered) {
                page[4..8].copy_from_slice(&(ABI_VERSION + 1).to_le_bytes());
                mailboxes += 1;
            }
        }
        assert_eq!(mailboxes, 1);
    });
    let Some(later) = Server::over(&folder) else {
        return;
    };
    let problem = later.client().invoke("whoami", "/").problem();
    assert_eq!(problem.kind(), (503, "host-cannot"));
    let expected = format!(
        "speaks Dormouse ABI version {}, this host speaks version {ABI_VERSION}: build it against \
         the matching dormouse-guest",
        ABI_VERSION + 1
    );
    assert!(problem.detail.contains(&expected), "{}", problem.detail);
}

/// The snapshot does not fit the host, and the function has a millisecond to start, which it needs longer
/// for: every request would have it booted in vain.
#[test]
fn a_function_that_cannot_be_booted_anew_rests_between_its_boots() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("whoami");
    let folder = server.store().to_owned();
    let vendor = dormouse_vmm::Host::open()
        .expect("KVM")
        .profile()
        .vendor
        .clone();
    edit(&folder, "whoami", |edited| {
        let bytes = edited.state.windows(vendor.len());
        let at = bytes.clone().position(|bytes| bytes == vendor.as_bytes());
        let at = at.expect("the vendor in the state");
        edited.state[at..at + vendor.len()].fill(b'x');
        edited.config["init_timeout_ms"] = 1.into();
    });
    let Some(later) = Server::over(&folder) else {
        return;
    };
    let first = later.client().invoke("whoami", "/").problem();
    assert_eq!(first.kind(), (504, "init-timeout"), "{first:?}");
    // Each boot in vain makes the next rest twice as long, so one is refused however slow this is.
    let refused = (0..8).find_map(|_| {
        let reply = later.client().invoke("whoami", "/");
        (reply.status != 504).then_some(reply)
    });
    let refused = refused.expect("it rests");
    let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
    let problem = refused.problem();
    assert_eq!(problem.kind(), (503, "crash-loop"), "{problem:?}");
    assert!(
        problem.detail.contains("did not answer within 1ms"),
        "{problem:?}"
    );
    std::thread::sleep(std::time::Duration::from_secs(seconds));
    let again = later.client().invoke("whoami", "/").problem();
    assert_eq!(again.kind(), (504, "init-timeout"), "{again:?}");
    // A deployment ends it.
    later.deploy("whoami");
    knows_the_time(later.client());
}
