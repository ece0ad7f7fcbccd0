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
use super::{Answer, Buffer, Call, Done, GuestIo, errno};
use crate::console::Stream;
use crate::error::Error;
use crate::ram::GuestRam;

/// `StatResult`, `MkdirResult` and `GetdentResult` are `repr(C)` enums with data: a C `int` that
/// counts the variants (`Error` is the last) and, behind it, the errno at its alignment.
mod result {
    pub(super) const SUCCESS: i32 = 1;
    pub(super) const STAT_ERROR: i32 = 2;
    pub(super) const GETDENT_ERROR: i32 = 3;
    pub(super) const ERRNO_OFFSET: usize = 4;
    pub(super) const GETDENT_ERRNO_OFFSET: usize = 8;
}

pub(super) fn call(io: &mut GuestIo, ram: &GuestRam, call: Call) -> Option<Answer> {
    let function = HypercallAddress::try_from(u64::from(call.port)).ok()?;
    Some(serve(io, ram, call.rdi, function))
}

fn serve(io: &mut GuestIo, ram: &GuestRam, rdi: u64, function: HypercallAddress) -> Answer {
    let at = |offset: usize| rdi.wrapping_add(offset as u64);
    let get_u64 = |offset: usize| ram.read_u64(at(offset));
    let get_i32 = |offset: usize| {
        let mut bytes = [0; 4];
        ram.read(at(offset), &mut bytes)
            .map(|()| i32::from_le_bytes(bytes))
    };
    let put_i32 = |offset: usize, value: i32| ram.write(at(offset), &value.to_le_bytes());
    let put_i64 = |offset: usize, value: i64| ram.write(at(offset), &value.to_le_bytes());

    match function {
        HypercallAddress::Exit => return Ok(Done::Exit(rdi as i32)),
        HypercallAddress::SerialWriteByte => io.serial(&[rdi as u8]),
        HypercallAddress::SerialWriteBuffer => {
            let len = get_u64(offset_of!(SerialWriteBufferParams, len))?;
            let buffer = get_u64(offset_of!(SerialWriteBufferParams, buf))?;
            io.write_out(ram, Stream::Kernel, Buffer::Physical(buffer), len)?;
        }
        HypercallAddress::SerialReadBuffer => {
            if !io.is_readable(0) {
                return Ok(Done::Again);
            }
            let len = get_u64(offset_of!(SerialReadBufferParams, maxlen))?;
            let buffer = get_u64(offset_of!(SerialReadBufferParams, buf))?;
            let count = io.read(ram, 0, Buffer::Physical(buffer), len)?.max(0);
            put_i64(offset_of!(SerialReadBufferParams, len), count)?;
        }
        HypercallAddress::FileWrite => {
            let fd = get_i32(offset_of!(WriteParams, fd))?;
            let buffer = get_u64(offset_of!(WriteParams, buf))?;
            let len = get_u64(offset_of!(WriteParams, len))?;
            let result = io.write(ram, fd, Buffer::Physical(buffer), len)?;
            put_i64(offset_of!(WriteParams, ret), result)?;
        }
        HypercallAddress::FileRead => {
            let fd = get_i32(offset_of!(ReadParams, fd))?;
            if !io.is_readable(fd) {
                return Ok(Done::Again);
            }
            let buffer = get_u64(offset_of!(ReadParams, buf))?;
            let len = get_u64(offset_of!(ReadParams, len))?;
            let result = io.read(ram, fd, Buffer::Physical(buffer), len)?;
            put_i64(offset_of!(ReadParams, ret), result)?;
        }
        HypercallAddress::FileOpen => {
            let name = get_u64(offset_of!(OpenParams, name))?;
            let flags = get_i32(offset_of!(OpenParams, flags))?;
            let result = io.open(ram, name, flags)?;
            put_i32(offset_of!(OpenParams, ret), result)?;
        }
        HypercallAddress::FileClose => {
            let fd = get_i32(offset_of!(CloseParams, fd))?;
            let result = io.files.close(fd);
            put_i32(offset_of!(CloseParams, ret), result)?;
        }
        HypercallAddress::FileLseek => {
            let fd = get_i32(offset_of!(LseekParams, fd))?;
            let offset = get_u64(offset_of!(LseekParams, offset))? as i64;
            let whence = get_i32(offset_of!(LseekParams, whence))?;
            let result = io.files.seek(fd, offset, whence.into());
            put_i64(offset_of!(LseekParams, offset), result)?;
        }
        HypercallAddress::FileUnlink => put_i32(offset_of!(UnlinkParams, ret), -errno::EROFS)?,
        HypercallAddress::FileStat => {
            let name = get_u64(offset_of!(StatParams, name))?;
            let attributes = get_u64(offset_of!(StatParams, attr))?;
            let follow = get_i32(offset_of!(StatParams, kind))? != StatKind::LStat as i32;
            let found = match io.path(ram, name)? {
                Some(path) => io.files.metadata(What::Path {
                    path: &path,
                    follow,
                }),
                None => Err(errno::ENAMETOOLONG),
            };
            let errno = put_attributes(ram, attributes, found)?;
            put_stat_result(ram, at(offset_of!(StatParams, ret)), errno)?;
        }
        HypercallAddress::FileFstat => {
            let fd = get_i32(offset_of!(FstatParams, fd))?;
            let attributes = get_u64(offset_of!(FstatParams, attr))?;
            let found = io.files.metadata(What::Open(fd));
            let errno = put_attributes(ram, attributes, found)?;
            put_stat_result(ram, at(offset_of!(FstatParams, ret)), errno)?;
        }
        HypercallAddress::Mkdir => {
            put_stat_result(ram, at(offset_of!(MkdirParams, ret)), Some(errno::EROFS))?;
        }
        HypercallAddress::Getdents => {
            put_i32(offset_of!(GetdentParams, ret), result::GETDENT_ERROR)?;
            let errno_offset = offset_of!(GetdentParams, ret) + result::GETDENT_ERRNO_OFFSET;
            put_i32(errno_offset, errno::ENOSYS)?;
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
    ram: &GuestRam,
    address: u64,
    found: Result<std::fs::Metadata, i32>,
) -> Result<Option<i32>, Error> {
    let metadata = match found {
        Ok(metadata) => metadata,
        Err(errno) => return Ok(Some(errno)),
    };
    let put = |offset: usize, bytes: &[u8]| ram.write(address.wrapping_add(offset as u64), bytes);
    let time = |offset: usize, seconds: i64, nanoseconds: i64| {
        put(
            offset + offset_of!(Timespec, tv_sec),
            &seconds.to_le_bytes(),
        )?;
        put(
            offset + offset_of!(Timespec, tv_nsec),
            &(nanoseconds as i32).to_le_bytes(),
        )
    };
    ram.zero(address, size_of::<FileAttr>() as u64)?;
    put(offset_of!(FileAttr, st_dev), &metadata.dev().to_le_bytes())?;
    put(offset_of!(FileAttr, st_ino), &metadata.ino().to_le_bytes())?;
    put(
        offset_of!(FileAttr, st_nlink),
        &metadata.nlink().to_le_bytes(),
    )?;
    put(
        offset_of!(FileAttr, st_mode),
        &metadata.mode().to_le_bytes(),
    )?;
    put(
        offset_of!(FileAttr, st_size),
        &metadata.size().to_le_bytes(),
    )?;
    put(
        offset_of!(FileAttr, st_blksize),
        &metadata.blksize().to_le_bytes(),
    )?;
    put(
        offset_of!(FileAttr, st_blocks),
        &metadata.blocks().to_le_bytes(),
    )?;
    time(
        offset_of!(FileAttr, st_atim),
        metadata.atime(),
        metadata.atime_nsec(),
    )?;
    time(
        offset_of!(FileAttr, st_mtim),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )?;
    time(
        offset_of!(FileAttr, st_ctim),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )?;
    Ok(None)
}

fn put_stat_result(ram: &GuestRam, address: u64, errno: Option<i32>) -> Result<(), Error> {
    let tag = if errno.is_some() {
        result::STAT_ERROR
    } else {
        result::SUCCESS
    };
    ram.write(address, &tag.to_le_bytes())?;
    let errno_address = address.wrapping_add(result::ERRNO_OFFSET as u64);
    ram.write(errno_address, &errno.unwrap_or(0).to_le_bytes())
}
