//! Hypercall interface v1 (the crate uhyve-interface, module `v1`): a 32-bit OUT to the call's port
//! with the guest-physical address of its parameters. Buffers of `read` and `write` are
//! guest-virtual, all other addresses physical.

use std::mem::offset_of;

use uhyve_interface::v1::parameters::{
    CloseParams, CmdsizeParams, CmdvalParams, ExitParams, LseekParams, OpenParams, ReadParams,
    SerialWriteBufferParams, UnlinkParams, WriteParams,
};
use uhyve_interface::v1::{HypercallAddress, MAX_ARGC_ENVC};

use super::{Answer, BadHypercall, Buffer, Call, Done, GuestIo, errno};
use crate::console::Stream;
use crate::error::Error;
use crate::ram::GuestRam;

/// A parameter block in guest memory. Each field is fetched once.
struct Parameters<'a> {
    ram: &'a GuestRam,
    address: u64,
}

impl Parameters<'_> {
    fn i32(&self, offset: usize) -> Result<i32, Error> {
        let mut bytes = [0; 4];
        self.ram.read(self.address + offset as u64, &mut bytes)?;
        Ok(i32::from_le_bytes(bytes))
    }

    fn u64(&self, offset: usize) -> Result<u64, Error> {
        self.ram.read_u64(self.address + offset as u64)
    }

    fn put_i32(&self, offset: usize, value: i32) -> Result<(), Error> {
        self.ram
            .write(self.address + offset as u64, &value.to_le_bytes())
    }

    fn put_i64(&self, offset: usize, value: i64) -> Result<(), Error> {
        self.ram
            .write(self.address + offset as u64, &value.to_le_bytes())
    }
}

pub(super) fn call(io: &mut GuestIo, ram: &GuestRam, call: Call) -> Option<Answer> {
    let function = HypercallAddress::try_from(call.port).ok()?;
    Some(serve(io, ram, call, function))
}

fn serve(io: &mut GuestIo, ram: &GuestRam, call: Call, function: HypercallAddress) -> Answer {
    let parameters = Parameters {
        ram,
        address: u64::from(call.value),
    };
    let in_virtual = |address| Buffer::Virtual {
        cr3: call.cr3,
        address,
    };
    match function {
        HypercallAddress::Uart => io.serial(&[call.value as u8]),
        HypercallAddress::SerialBufferWrite => {
            let buffer = parameters.u64(offset_of!(SerialWriteBufferParams, buf))?;
            let len = parameters.u64(offset_of!(SerialWriteBufferParams, len))?;
            io.write_out(ram, Stream::Kernel, Buffer::Physical(buffer), len)?;
        }
        HypercallAddress::Exit => {
            return Ok(Done::Exit(parameters.i32(offset_of!(ExitParams, arg))?));
        }
        HypercallAddress::FileWrite => {
            let fd = parameters.i32(offset_of!(WriteParams, fd))?;
            let buffer = parameters.u64(offset_of!(WriteParams, buf))?;
            let len = parameters.u64(offset_of!(WriteParams, len))?;
            // The call has no way to report an error.
            io.write(ram, fd, in_virtual(buffer), len)?;
        }
        HypercallAddress::FileRead => {
            let fd = parameters.i32(offset_of!(ReadParams, fd))?;
            if !io.is_readable(fd) {
                return Ok(Done::Again);
            }
            let buffer = parameters.u64(offset_of!(ReadParams, buf))?;
            let len = parameters.u64(offset_of!(ReadParams, len))?;
            let result = io.read(ram, fd, in_virtual(buffer), len)?;
            parameters.put_i64(offset_of!(ReadParams, ret), result)?;
        }
        HypercallAddress::FileOpen => {
            let name = parameters.u64(offset_of!(OpenParams, name))?;
            let flags = parameters.i32(offset_of!(OpenParams, flags))?;
            let result = io.open(ram, name, flags)?;
            parameters.put_i32(offset_of!(OpenParams, ret), result)?;
        }
        HypercallAddress::FileClose => {
            let fd = parameters.i32(offset_of!(CloseParams, fd))?;
            let result = io.files.close(fd);
            parameters.put_i32(offset_of!(CloseParams, ret), result)?;
        }
        HypercallAddress::FileLseek => {
            let fd = parameters.i32(offset_of!(LseekParams, fd))?;
            let offset = parameters.u64(offset_of!(LseekParams, offset))? as i64;
            let whence = parameters.i32(offset_of!(LseekParams, whence))?;
            let result = io.files.seek(fd, offset, whence.into());
            parameters.put_i64(offset_of!(LseekParams, offset), result)?;
        }
        HypercallAddress::FileUnlink => {
            parameters.put_i32(offset_of!(UnlinkParams, ret), -errno::EROFS)?;
        }
        HypercallAddress::Cmdsize => command_sizes(io, &parameters)?,
        HypercallAddress::Cmdval => command_values(io, ram, &parameters)?,
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

fn command_sizes(io: &GuestIo, parameters: &Parameters<'_>) -> Result<(), Error> {
    let (args, env) = command_line(io);
    parameters.put_i32(offset_of!(CmdsizeParams, argc), args.len() as i32)?;
    parameters.put_i32(offset_of!(CmdsizeParams, envc), env.len() as i32)?;
    for (list, sizes) in [
        (args, offset_of!(CmdsizeParams, argsz)),
        (env, offset_of!(CmdsizeParams, envsz)),
    ] {
        for (index, text) in list.iter().enumerate() {
            parameters.put_i32(sizes + 4 * index, text.len() as i32)?;
        }
    }
    Ok(())
}

fn command_values(io: &GuestIo, ram: &GuestRam, parameters: &Parameters<'_>) -> Result<(), Error> {
    let (args, env) = command_line(io);
    for (list, pointers) in [
        (args, offset_of!(CmdvalParams, argv)),
        (env, offset_of!(CmdvalParams, envp)),
    ] {
        let pointers = parameters.u64(pointers)?;
        for (index, text) in list.iter().enumerate() {
            let target = ram.read_u64(pointers.wrapping_add(8 * index as u64))?;
            ram.write(target, text)?;
        }
    }
    Ok(())
}
