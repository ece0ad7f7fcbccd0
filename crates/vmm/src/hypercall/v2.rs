//! Hypercall interface v2 (the crate uhyve-interface, module `v2`): `out dx, eax` to the call's port
//! with the guest-physical address of its parameters in RDI (for `Exit` the code, for
//! `SerialWriteByte` the byte). All addresses are physical.

use std::mem::offset_of;
use std::os::unix::fs::MetadataExt;

use uhyve_interface::v2::HypercallAddress;
use uhyve_interface::v2::parameters::{
    CloseParams, FileAttr, FstatParams, GetdentParams, LseekParams, MkdirParams, OpenParams,
    ReadParams, SerialReadBufferParams, SerialWriteBufferParams, StatKind, StatParams, Timespec,
    UnlinkParams, WriteParams,
};

use super::files::What;
use super::guest::{Guest, Reply};
use super::{Answer, Call, Done, GuestIo, errno};
use crate::console::Stream;
use crate::error::Error;

/// `StatResult`, `MkdirResult` and `GetdentResult` are `repr(C)` enums with data: a C `int` that
/// counts the variants (`Error` is the last) and, behind it, the errno at its alignment.
mod result {
    pub(super) const SUCCESS: i32 = 1;
    pub(super) const STAT_ERROR: i32 = 2;
    pub(super) const GETDENT_ERROR: i32 = 3;
    pub(super) const ERRNO_OFFSET: usize = 4;
    pub(super) const GETDENT_ERRNO_OFFSET: usize = 8;
}

pub(super) fn call(io: &mut GuestIo, guest: Guest<'_>, call: Call) -> Option<Answer> {
    let function = HypercallAddress::try_from(u64::from(call.port)).ok()?;
    Some(serve(io, guest, call.rdi, function))
}

fn serve(io: &mut GuestIo, guest: Guest<'_>, rdi: u64, function: HypercallAddress) -> Answer {
    let block = guest.block(rdi);
    match function {
        HypercallAddress::Exit => return Ok(Done::Exit(rdi as i32)),
        HypercallAddress::SerialWriteByte => io.serial(&[rdi as u8]),
        HypercallAddress::SerialWriteBuffer => {
            let (asked, _) = block.fetch::<SerialWriteBufferParams>()?;
            let len = asked.u64(offset_of!(SerialWriteBufferParams, len));
            let buffer = guest.physical(asked.u64(offset_of!(SerialWriteBufferParams, buf)));
            io.write_out(Stream::Kernel, buffer, len)?;
        }
        HypercallAddress::SerialReadBuffer => {
            if !io.is_readable(0) {
                return Ok(Done::Again);
            }
            let (asked, reply) = block.fetch::<SerialReadBufferParams>()?;
            let len = asked.u64(offset_of!(SerialReadBufferParams, maxlen));
            let buffer = guest.physical(asked.u64(offset_of!(SerialReadBufferParams, buf)));
            let count = io.read(0, buffer, len)?.max(0);
            reply.put_i64(offset_of!(SerialReadBufferParams, len), count)?;
        }
        HypercallAddress::FileWrite => {
            let (asked, reply) = block.fetch::<WriteParams>()?;
            let fd = asked.i32(offset_of!(WriteParams, fd));
            let buffer = guest.physical(asked.u64(offset_of!(WriteParams, buf)));
            let result = io.write(fd, buffer, asked.u64(offset_of!(WriteParams, len)))?;
            reply.put_i64(offset_of!(WriteParams, ret), result)?;
        }
        HypercallAddress::FileRead => {
            let (asked, reply) = block.fetch::<ReadParams>()?;
            let fd = asked.i32(offset_of!(ReadParams, fd));
            if !io.is_readable(fd) {
                return Ok(Done::Again);
            }
            let buffer = guest.physical(asked.u64(offset_of!(ReadParams, buf)));
            let result = io.read(fd, buffer, asked.u64(offset_of!(ReadParams, len)))?;
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
        HypercallAddress::FileStat => {
            let (asked, reply) = block.fetch::<StatParams>()?;
            let attributes = reply.elsewhere(asked.u64(offset_of!(StatParams, attr)));
            let follow = asked.i32(offset_of!(StatParams, kind)) != StatKind::LStat as i32;
            let found = match guest.path(asked.u64(offset_of!(StatParams, name)))? {
                Some(path) => io.files.metadata(What::Path {
                    path: &path,
                    follow,
                }),
                None => Err(errno::ENAMETOOLONG),
            };
            let errno = put_attributes(attributes, found)?;
            put_stat_result(reply, offset_of!(StatParams, ret), errno)?;
        }
        HypercallAddress::FileFstat => {
            let (asked, reply) = block.fetch::<FstatParams>()?;
            let attributes = reply.elsewhere(asked.u64(offset_of!(FstatParams, attr)));
            let fd = asked.i32(offset_of!(FstatParams, fd));
            let errno = put_attributes(attributes, io.files.metadata(What::Open(fd)))?;
            put_stat_result(reply, offset_of!(FstatParams, ret), errno)?;
        }
        HypercallAddress::Mkdir => {
            let reply = block.reply();
            put_stat_result(reply, offset_of!(MkdirParams, ret), Some(errno::EROFS))?;
        }
        HypercallAddress::Getdents => {
            let reply = block.reply();
            reply.put_i32(offset_of!(GetdentParams, ret), result::GETDENT_ERROR)?;
            let errno_offset = offset_of!(GetdentParams, ret) + result::GETDENT_ERRNO_OFFSET;
            reply.put_i32(errno_offset, errno::ENOSYS)?;
        }
        other => {
            return Err(super::BadHypercall(format!(
                "the hypercall {other:?} is not supported"
            )));
        }
    }
    Ok(Done::Continue)
}

/// Writes attributes where there are any, and says with which errno the call ends otherwise.
fn put_attributes(
    attributes: Reply<'_>,
    found: Result<std::fs::Metadata, i32>,
) -> Result<Option<i32>, Error> {
    let metadata = match found {
        Ok(metadata) => metadata,
        Err(errno) => return Ok(Some(errno)),
    };
    let mut bytes = [0; size_of::<FileAttr>()];
    let mut put = |offset: usize, field: &[u8]| {
        bytes[offset..offset + field.len()].copy_from_slice(field);
    };
    put(offset_of!(FileAttr, st_dev), &metadata.dev().to_le_bytes());
    put(offset_of!(FileAttr, st_ino), &metadata.ino().to_le_bytes());
    put(
        offset_of!(FileAttr, st_nlink),
        &metadata.nlink().to_le_bytes(),
    );
    put(
        offset_of!(FileAttr, st_mode),
        &metadata.mode().to_le_bytes(),
    );
    put(
        offset_of!(FileAttr, st_size),
        &metadata.size().to_le_bytes(),
    );
    put(
        offset_of!(FileAttr, st_blksize),
        &metadata.blksize().to_le_bytes(),
    );
    put(
        offset_of!(FileAttr, st_blocks),
        &metadata.blocks().to_le_bytes(),
    );
    for (offset, seconds, nanoseconds) in [
        (
            offset_of!(FileAttr, st_atim),
            metadata.atime(),
            metadata.atime_nsec(),
        ),
        (
            offset_of!(FileAttr, st_mtim),
            metadata.mtime(),
            metadata.mtime_nsec(),
        ),
        (
            offset_of!(FileAttr, st_ctim),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ),
    ] {
        put(
            offset + offset_of!(Timespec, tv_sec),
            &seconds.to_le_bytes(),
        );
        let nanoseconds = (nanoseconds as i32).to_le_bytes();
        put(offset + offset_of!(Timespec, tv_nsec), &nanoseconds);
    }
    attributes.put(0, &bytes)?;
    Ok(None)
}

fn put_stat_result(reply: Reply<'_>, offset: usize, errno: Option<i32>) -> Result<(), Error> {
    let tag = if errno.is_some() {
        result::STAT_ERROR
    } else {
        result::SUCCESS
    };
    reply.put_i32(offset, tag)?;
    reply.put_i32(offset + result::ERRNO_OFFSET, errno.unwrap_or(0))
}
