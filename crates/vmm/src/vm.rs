//! One guest in a shell: boot or restore, run, save.
//!
//! ```text
//!  Shell ── boot(image) ───┐                      ┌──► Stop::Exchange, Exit, Crashed,
//!                          ├──► Vm ──► run(until) ┤     TimedOut, Interrupted
//!  Shell ── restore(state)─┘    │                 └──► run again after Exchange or Interrupted
//!                               ├── save() ──► VmState
//!                               └── into_shell() ──► Shell, for the next restore
//! ```

mod crash;

use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_abi::EXCHANGE_PORT;
use kvm_ioctls::VcpuExit;

use crate::boot::{self, Booted};
use crate::clock::{self, ClockState, GuestClock};
use crate::config::MachineConfig;
use crate::console::GuestOutput;
use crate::error::Error;
use crate::host::Host;
use crate::hypercall::{BadHypercall, Call, Done, GuestIo};
use crate::image::{GuestImage, Symbols};
use crate::kick::{self, Interrupter, VcpuThread};
use crate::layout::IOAPIC;
use crate::paging;
use crate::shell::Shell;
use crate::state::VmState;
use crate::stop::{CrashKind, Stop};
use crate::vcpu::VcpuState;

/// Names guest addresses for messages, for example by [`Symbols::name`].
pub type Namer = Arc<dyn Fn(u64) -> Option<String> + Send + Sync>;

/// One guest.
pub struct Vm {
    shell: Shell,
    io: GuestIo,
    host: Arc<Host>,
    namer: Namer,
    booted: Booted,
    /// Known of guests that were restored.
    clock: Option<GuestClock>,
    /// Restored, and not run since.
    is_asleep: bool,
    /// The host's TSC when the last run began.
    entered_tsc: u64,
    exits: u64,
    guest_time: Duration,
    /// A hypercall that a kick ended while it waited for input; to be made again first.
    waiting: Option<(u16, u32)>,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("shell", &self.shell)
            .finish_non_exhaustive()
    }
}

/// How long a guest may take to finish reporting an exception. It takes some 20 ms where its code is
/// emulated, and longer where others have the cores; one that comes to no end keeps nobody for long.
const REPORT_TIME: Duration = Duration::from_secs(1);

/// What one exit means for the run.
enum Next {
    /// Back into the guest.
    Continue,
    /// The run has ended.
    Stop(Stop),
    /// KVM could not run an instruction.
    Assist,
    /// A signal came.
    Signal,
}

impl Vm {
    /// Loads `image` into `shell`. The guest has not run yet.
    ///
    /// # Errors
    /// What does not fit (memory, arguments, folder), or the KVM call that failed.
    pub fn boot(
        mut shell: Shell,
        image: &Arc<GuestImage>,
        config: &MachineConfig,
        output: Box<dyn GuestOutput>,
    ) -> Result<Self, Error> {
        let host = Host::open()?;
        let io = GuestIo::new(image.interface(), output, config)?;
        let booted = boot::boot(&mut shell, image, config, host.profile().tsc_khz)?;
        let (image, load_address) = (Arc::clone(image), booted.load_address);
        let namer: Namer = Arc::new(move |address| image.symbols(load_address).name(address));
        Ok(Self {
            shell,
            io,
            host,
            namer,
            booted,
            clock: None,
            is_asleep: false,
            entered_tsc: 0,
            exits: 0,
            guest_time: Duration::ZERO,
            waiting: None,
        })
    }

    /// Sets a saved state in `shell`. Memory is not looked at: the snapshot's must be there before
    /// the guest runs or its virtual addresses are used, and may come after this.
    ///
    /// The kernel's clock is put right at the first [`Vm::run`], however long that is from now.
    ///
    /// # Errors
    /// [`Error::NotRestorable`], or the KVM call that failed.
    pub fn restore(
        mut shell: Shell,
        state: &VmState,
        output: Box<dyn GuestOutput>,
        namer: Namer,
    ) -> Result<Self, Error> {
        let host = Host::open()?;
        if shell.placement() != state.placement {
            return Err(Error::NotRestorable {
                reason: format!(
                    "it was made for a guest at {:#x} with {} bytes, this shell is for another",
                    state.placement.base, state.placement.memory_bytes
                ),
            });
        }
        let io = GuestIo::new(state.interface, output, &MachineConfig::default())?;
        // A kick that was meant for the guest before this one must not end the next run.
        shell.interrupter.take();
        shell.complete_io()?;
        let clock = state.clock.set_tsc(&host, &shell)?;
        state.vcpu.set(&host, &mut shell)?;
        // Registers and events wait in the shared page: should the guest be saved before it has
        // run, KVM must take them first.
        shell.io_pending = true;
        let booted = Booted {
            clock: state.clock.origin(),
            load_address: state.load_address,
        };
        Ok(Self {
            shell,
            io,
            host,
            namer,
            booted,
            clock: Some(clock),
            is_asleep: true,
            entered_tsc: 0,
            exits: 0,
            guest_time: Duration::ZERO,
            waiting: None,
        })
    }

    /// Runs the guest until it stops or `deadline` passes.
    ///
    /// # Errors
    /// The KVM call that failed; the guest should be thrown away.
    pub fn run(&mut self, deadline: Instant) -> Result<Stop, Error> {
        if std::mem::take(&mut self.is_asleep)
            && let Some(clock) = self.clock
        {
            clock.wake(&self.shell)?;
        }
        self.entered_tsc = clock::host_tsc();
        kick::on_vcpu_thread(|thread| {
            let _entered = self.shell.interrupter.enter(thread);
            thread.arm(deadline);
            let result = self.run_armed(thread, deadline);
            thread.disarm();
            result
        })
    }

    fn run_armed(&mut self, thread: &VcpuThread, deadline: Instant) -> Result<Stop, Error> {
        // A kick from before this thread was known sent no signal.
        if self.shell.interrupter.take() {
            return Ok(Stop::Interrupted);
        }
        let mut report_end: Option<Instant> = None;
        loop {
            self.exits += 1;
            let next = self.enter()?;
            match next {
                Next::Continue => {}
                Next::Stop(stop) => return Ok(stop),
                Next::Assist => {
                    if let Some(stop) = self.assist()? {
                        return Ok(stop);
                    }
                }
                Next::Signal => {
                    thread.consume();
                    if self.shell.interrupter.take() {
                        return Ok(Stop::Interrupted);
                    }
                    let now = Instant::now();
                    if report_end.is_some_and(|end| now >= end) {
                        return Ok(self.reported_crash());
                    }
                    if now >= deadline {
                        return Ok(Stop::TimedOut);
                    }
                }
            }
            if self.io.watch.is_complete() {
                return Ok(self.reported_crash());
            }
            if report_end.is_none() && self.io.watch.feed(&[]) {
                let end = deadline.min(Instant::now() + REPORT_TIME);
                thread.arm(end);
                report_end = Some(end);
            }
        }
    }

    /// One `KVM_RUN` and what its exit asks for.
    fn enter(&mut self) -> Result<Next, Error> {
        if let Some((port, value)) = self.waiting.take() {
            return Ok(self.port_written(port, value));
        }
        let entered = Instant::now();
        let exit = self.shell.vcpu.run();
        self.guest_time += entered.elapsed();
        let exit = match exit {
            Ok(exit) => exit,
            Err(errno) => {
                self.shell.io_pending = false;
                return match errno.errno() {
                    libc::EINTR => Ok(Next::Signal),
                    libc::EAGAIN => Ok(Next::Continue),
                    libc::EFAULT => Ok(Next::Stop(self.without_memory())),
                    _ => Err(Error::kvm("KVM_RUN")(errno)),
                };
            }
        };
        self.shell.io_pending = true;
        let (port, value) = match exit {
            VcpuExit::IoOut(port, data) => {
                let mut bytes = [0; 4];
                let len = data.len().min(4);
                bytes[..len].copy_from_slice(&data[..len]);
                (port, u32::from_le_bytes(bytes))
            }
            // Absent hardware: the bus floats high, and writes go nowhere.
            VcpuExit::IoIn(_, data) => {
                data.fill(0xFF);
                return Ok(Next::Continue);
            }
            VcpuExit::MmioRead(address, data) => {
                read_mmio(address, data);
                return Ok(Next::Continue);
            }
            VcpuExit::MmioWrite(..) | VcpuExit::IoapicEoi(_) | VcpuExit::Intr => {
                return Ok(Next::Continue);
            }
            VcpuExit::InternalError => return Ok(Next::Assist),
            VcpuExit::Shutdown => return Ok(Next::Stop(self.triple_fault())),
            VcpuExit::SystemEvent(kind, _) => {
                let reason =
                    format!("the guest asked for a reset or shutdown (system event {kind})");
                return Ok(Next::Stop(self.crashed(CrashKind::TripleFault, reason)));
            }
            other => {
                let reason = crash::unknown_exit(&other);
                return Ok(Next::Stop(self.crashed(CrashKind::UnknownExit, reason)));
            }
        };
        Ok(self.port_written(port, value))
    }

    /// An OUT instruction: the exchange, a hypercall, or hardware that is not there.
    fn port_written(&mut self, port: u16, value: u32) -> Next {
        let shared = self.shell.vcpu.sync_regs();
        if port == EXCHANGE_PORT {
            return Next::Stop(Stop::Exchange {
                abi_version: value,
                mailbox: shared.regs.rdi,
            });
        }
        let call = Call {
            port,
            value,
            rdi: shared.regs.rdi,
            cr3: shared.sregs.cr3,
        };
        match self.io.call(&self.shell.ram, call) {
            None | Some(Ok(Done::Continue)) => Next::Continue,
            Some(Ok(Done::Exit(code))) => Next::Stop(Stop::Exit(code)),
            Some(Ok(Done::Again)) => {
                self.waiting = Some((port, value));
                Next::Signal
            }
            Some(Err(BadHypercall(reason))) => {
                let place = self.place(self.shell.vcpu.sync_regs().regs.rip);
                let reason = format!("{reason} (call from {place})");
                Next::Stop(self.crashed(CrashKind::Hypercall, reason))
            }
        }
    }

    /// Saves all of the guest but its memory, which is the caller's to copy: see
    /// [`crate::GuestRam::resident_pages`]. The guest may run on afterwards.
    ///
    /// # Errors
    /// [`Error::NotSavable`] where the guest has host files open, or the KVM call that failed.
    pub fn save(&mut self, symbols: &Symbols) -> Result<VmState, Error> {
        if self.io.open_files() > 0 {
            return Err(Error::NotSavable {
                reason: format!(
                    "it has {} files of the host open; close them before it becomes ready",
                    self.io.open_files()
                ),
            });
        }
        if self.waiting.is_some() {
            return Err(Error::NotSavable {
                reason: "it waits for input; let it read before it becomes ready".to_owned(),
            });
        }
        self.shell.complete_io()?;
        let profile = self.host.profile();
        let vcpu = VcpuState::save(&self.host, &self.shell)?;
        let clock = ClockState::save(&self.shell, profile, symbols, &self.booted.clock)?;
        Ok(VmState {
            placement: self.shell.placement(),
            interface: self.io.interface(),
            load_address: self.booted.load_address,
            vcpu,
            clock,
            host: profile.clone(),
        })
    }

    /// Where the kernel was loaded, for [`GuestImage::symbols`].
    #[must_use]
    pub fn load_address(&self) -> u64 {
        self.booted.load_address
    }

    /// The shell with its memory, VM and vCPU.
    #[must_use]
    pub fn shell(&self) -> &Shell {
        &self.shell
    }

    /// Ends the guest and gives its shell back for the next restore.
    #[must_use]
    pub fn into_shell(self) -> Shell {
        self.shell
    }

    /// Ends the current or next run from any thread.
    #[must_use]
    pub fn interrupter(&self) -> Interrupter {
        self.shell.interrupter()
    }

    /// How long after the last run began the guest's TSC stood at `guest_tsc`. Nothing where the
    /// guest was not restored, or says a time outside its run.
    #[must_use]
    pub fn into_run(&self, guest_tsc: u64) -> Option<Duration> {
        self.clock?.elapsed(self.entered_tsc, guest_tsc)
    }

    /// How often the guest was entered.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.exits
    }

    /// How long the guest was in `KVM_RUN`, over all its runs.
    #[must_use]
    pub fn guest_time(&self) -> Duration {
        self.guest_time
    }

    /// Copies from the guest's memory by guest-virtual address, as its ring 0 sees it now.
    ///
    /// # Errors
    /// [`Error::Unmapped`] or [`Error::OutOfBounds`]; part of `buffer` may have been filled.
    pub fn read_virtual(&self, address: u64, buffer: &mut [u8]) -> Result<(), Error> {
        paging::read_virtual(&self.shell.ram, self.cr3(), address, buffer)
    }

    /// Copies into the guest's memory by guest-virtual address.
    ///
    /// # Errors
    /// [`Error::Unmapped`] or [`Error::OutOfBounds`]; part of `bytes` may have been written.
    pub fn write_virtual(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        paging::write_virtual(&self.shell.ram, self.cr3(), address, bytes)
    }

    /// Where a guest-virtual address stands in guest-physical memory.
    #[must_use]
    pub fn translate(&self, address: u64) -> Option<u64> {
        paging::translate(&self.shell.ram, self.cr3(), address)
    }

    /// Names the parts of a guest that was restored from `state` and has not run that differ from
    /// it: none, unless something is wrong. Counters that go on by themselves are left out.
    ///
    /// # Errors
    /// [`Error::Kvm`] where KVM does not tell.
    pub fn differences(&self, state: &VmState) -> Result<Vec<&'static str>, Error> {
        state.vcpu.differences(&self.host, &self.shell)
    }

    fn cr3(&self) -> u64 {
        self.shell.vcpu.sync_regs().sregs.cr3
    }
}

/// Memory that is not there reads as ones, but for an I/O APIC, which newer kernels insist on: its
/// version register says 24 entries (Intel 82093AA, 3.2.2), everything else reads as zeros.
fn read_mmio(address: u64, data: &mut [u8]) {
    const WINDOW_OFFSET: u64 = 0x10;
    const VERSION: u32 = 23 << 16 | 0x11;
    if !IOAPIC.contains(&address) {
        data.fill(0xFF);
        return;
    }
    data.fill(0);
    if address - IOAPIC.start == WINDOW_OFFSET {
        let len = data.len().min(4);
        data[..len].copy_from_slice(&VERSION.to_le_bytes()[..len]);
    }
}

/// Real time in nanoseconds since the Unix epoch, as restores see it.
#[must_use]
pub fn real_time_unix_ns() -> u64 {
    clock::unix_ns()
}
