//! Hypercall interface v1 (the crate uhyve-interface, module `v1`): a 32-bit OUT to the call's port
//! with the guest-physical address of its parameters. Buffers of `read` and `write` are
//! guest-virtual, all other addresses physical.

use std::mem::offset_of;

use uhyve_interface::v1::parameters::{
    CloseParams, CmdsizeParams, CmdvalParams, ExitParams, LseekParams, OpenParams, ReadParams,
    SerialWriteBufferParams, UnlinkParams, WriteParams,
};
use uhyve_interface::v1::{HypercallAddress, MAX_ARGC_ENVC};

use super::guest::{Guest, Reply};
use super::{Answer, BadHypercall, Call, Done, GuestIo, errno};
use crate::console::Stream;
use crate::error::Error;

pub(super) fn call(io: &mut GuestIo, guest: Guest<'_>, call: Call) -> Option<Answer> {
    let function = HypercallAddress::try_from(call.port).ok()?;
    Some(serve(io, guest, call.value, function))
}

fn serve(io: &mut GuestIo, guest: Guest<'_>, value: u32, function: HypercallAddress) -> Answer {
    let block = guest.block(u64::from(value));
    match function {
        HypercallAddress::Uart => io.serial(&[value as u8]),
        HypercallAddress::SerialBufferWrite => {
            let (asked, _) = block.fetch::<SerialWriteBufferParams>()?;
            let buffer = guest.physical(asked.u64(offset_of!(SerialWriteBufferParams, buf)));
            let len = asked.u64(offset_of!(SerialWriteBufferParams, len));
            io.write_out(Stream::Kernel, buffer, len)?;
        }
        HypercallAddress::Exit => {
            let (asked, _) = block.fetch::<ExitParams>()?;
            return Ok(Done::Exit(asked.i32(offset_of!(ExitParams, arg))));
        }
        HypercallAddress::FileWrite => {
            let (asked, _) = block.fetch::<WriteParams>()?;
            let fd = asked.i32(offset_of!(WriteParams, fd));
            let buffer = guest.virtually(asked.u64(offset_of!(WriteParams, buf)));
            let len = asked.u64(offset_of!(WriteParams, len));
            // The call has no way to report an error.
            io.write(fd, buffer, len)?;
        }
        HypercallAddress::FileRead => {
            let (asked, reply) = block.fetch::<ReadParams>()?;
            let fd = asked.i32(offset_of!(ReadParams, fd));
            if !io.is_readable(fd) {
                return Ok(Done::Again);
            }
            let buffer = guest.virtually(asked.u64(offset_of!(ReadParams, buf)));
            let len = asked.u64(offset_of!(ReadParams, len));
            let result = io.read(fd, buffer, len)?;
            reply.put_i64(offset_of!(ReadParams, ret), result)?;
        }
        HypercallAddress::FileOpen => {
            let (asked, reply) = block.fetch::<OpenParams>()?;
            let path = guest.path(asked.u64(offset_of!(OpenParams, name)))?;
            let result = io.open(path.as_deref(), asked.i32(offset_of!(OpenParams, flags)));
            reply.put_i32(offset_of!(OpenParams, ret), result)?;
        }
        HypercallAddress::FileClose => {
            let (asked, reply) = block.fetch::<CloseParams>()?;
            let result = io.files.close(asked.i32(offset_of!(CloseParams, fd)));
            reply.put_i32(offset_of!(CloseParams, ret), result)?;
        }
        HypercallAddress::FileLseek => {
            let (asked, reply) = block.fetch::<LseekParams>()?;
            let fd = asked.i32(offset_of!(LseekParams, fd));
            let offset = asked.u64(offset_of!(LseekParams, offset)) as i64;
            let whence = asked.i32(offset_of!(LseekParams, whence));
            let result = io.files.seek(fd, offset, whence.into());
            reply.put_i64(offset_of!(LseekParams, offset), result)?;
        }
        HypercallAddress::FileUnlink => {
            let reply = block.reply();
            reply.put_i32(offset_of!(UnlinkParams, ret), -errno::EROFS)?;
        }
        HypercallAddress::Cmdsize => command_sizes(io, block.reply())?,
        HypercallAddress::Cmdval => {
            let (asked, reply) = block.fetch::<CmdvalParams>()?;
            let pointers = [
                asked.u64(offset_of!(CmdvalParams, argv)),
                asked.u64(offset_of!(CmdvalParams, envp)),
            ];
            command_values(io, guest, pointers, reply)?;
        }
        other => {
            return Err(BadHypercall(format!(
                "the hypercall {other:?} is not supported"
            )));
        }
    }
    Ok(Done::Continue)
}

/// The strings of the command line and of the environment, each with its NUL. The program's name,
/// which the interface puts first, is `bin` as in Hermit itself.
fn command_line(io: &GuestIo) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let terminated = |text: String| text.into_bytes().into_iter().chain([0]).collect();
    let args = std::iter::once("bin".to_owned()).chain(io.args.iter().cloned());
    let env = io.env.iter().map(|(key, value)| format!("{key}={value}"));
    (
        args.take(MAX_ARGC_ENVC).map(terminated).collect(),
        env.take(MAX_ARGC_ENVC).map(terminated).collect(),
    )
}

fn command_sizes(io: &GuestIo, reply: Reply<'_>) -> Result<(), Error> {
    let (args, env) = command_line(io);
    reply.put_i32(offset_of!(CmdsizeParams, argc), args.len() as i32)?;
    reply.put_i32(offset_of!(CmdsizeParams, envc), env.len() as i32)?;
    for (list, sizes) in [
        (args, offset_of!(CmdsizeParams, argsz)),
        (env, offset_of!(CmdsizeParams, envsz)),
    ] {
        for (index, text) in list.iter().enumerate() {
            reply.put_i32(sizes + 4 * index, text.len() as i32)?;
        }
    }
    Ok(())
}

/// Writes the strings to where the lists of addresses at `pointers` say.
fn command_values(
    io: &GuestIo,
    guest: Guest<'_>,
    pointers: [u64; 2],
    reply: Reply<'_>,
) -> Result<(), Error> {
    let (args, env) = command_line(io);
    for (list, pointers) in [args, env].into_iter().zip(pointers) {
        let targets = guest.words::<MAX_ARGC_ENVC>(pointers, list.len())?;
        for (text, target) in list.iter().zip(targets) {
            reply.elsewhere(target).put(0, text)?;
        }
    }
    Ok(())
}
