//! What a hypercall may do with guest memory.
//!
//! A guest can change its memory at any time, also while a call of its is served. So nothing here
//! can be read twice: parameters are copied out as a whole ([`Block::fetch`]) and are the host's own
//! from then on, buffers and texts are used up by copying them out, and a result can only be written.
//! The two interfaces see no other access to guest memory than this.

use std::marker::PhantomData;

use crate::error::Error;
use crate::paging;
use crate::ram::GuestRam;

/// The longest path that a guest may name, with its end.
const MAX_PATH_BYTES: usize = 4096;
/// How much of a buffer is copied at a time.
pub(super) const COPY_BYTES: usize = 64 * 1024;
/// The largest parameter block that is fetched; larger ones are only written.
const MAX_BLOCK_BYTES: usize = 64;

/// The guest that makes a call.
#[derive(Clone, Copy)]
pub(super) struct Guest<'a> {
    ram: &'a GuestRam,
    cr3: u64,
}

impl<'a> Guest<'a> {
    pub(super) fn new(ram: &'a GuestRam, cr3: u64) -> Self {
        Self { ram, cr3 }
    }

    /// The parameters at a guest-physical address.
    pub(super) fn block(self, address: u64) -> Block<'a> {
        Block {
            ram: self.ram,
            address,
        }
    }

    /// A buffer at a guest-physical address.
    pub(super) fn physical(self, address: u64) -> Buffer<'a> {
        Buffer {
            ram: self.ram,
            cr3: None,
            address,
        }
    }

    /// A buffer at a guest-virtual address.
    pub(super) fn virtually(self, address: u64) -> Buffer<'a> {
        Buffer {
            cr3: Some(self.cr3),
            ..self.physical(address)
        }
    }

    /// The path at a guest-physical address, up to its NUL; nothing where it is too long.
    pub(super) fn path(self, address: u64) -> Result<Option<Vec<u8>>, Error> {
        let mut path = Vec::new();
        while path.len() < MAX_PATH_BYTES {
            let mut byte = [0];
            let at = address.wrapping_add(path.len() as u64);
            self.ram.read(at, &mut byte)?;
            if byte == [0] {
                return Ok(Some(path));
            }
            path.push(byte[0]);
        }
        Ok(None)
    }

    /// `N` or fewer words at a guest-physical address.
    pub(super) fn words<const N: usize>(
        self,
        address: u64,
        count: usize,
    ) -> Result<Vec<u64>, Error> {
        let mut bytes = vec![0; 8 * count.min(N)];
        self.ram.read(address, &mut bytes)?;
        let words = bytes.as_chunks().0.iter().copied();
        Ok(words.map(u64::from_le_bytes).collect())
    }
}

/// A parameter block that was not looked at yet.
pub(super) struct Block<'a> {
    ram: &'a GuestRam,
    address: u64,
}

impl<'a> Block<'a> {
    /// Copies the block out, which can be done once, and says where results go.
    pub(super) fn fetch<T>(self) -> Result<(Parameters<T>, Reply<'a>), Error> {
        const { assert!(size_of::<T>() <= MAX_BLOCK_BYTES) };
        let mut bytes = [0; MAX_BLOCK_BYTES];
        self.ram.read(self.address, &mut bytes[..size_of::<T>()])?;
        let parameters = Parameters {
            bytes,
            of: PhantomData,
        };
        Ok((parameters, self.reply()))
    }

    /// For calls of whose parameters none counts.
    pub(super) fn reply(self) -> Reply<'a> {
        Reply {
            ram: self.ram,
            address: self.address,
        }
    }
}

/// The host's own copy of the parameters `T`.
pub(super) struct Parameters<T> {
    bytes: [u8; MAX_BLOCK_BYTES],
    of: PhantomData<T>,
}

impl<T> Parameters<T> {
    /// The field at this offset of `T`.
    pub(super) fn i32(&self, offset: usize) -> i32 {
        i32::from_le_bytes(self.field(offset))
    }

    /// The field at this offset of `T`.
    pub(super) fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.field(offset))
    }

    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let field = self.bytes[offset..size_of::<T>()].first_chunk();
        field.copied().unwrap_or([0; N])
    }
}

/// Where the results of a call go: memory that is only written.
#[derive(Clone, Copy)]
pub(super) struct Reply<'a> {
    ram: &'a GuestRam,
    address: u64,
}

impl<'a> Reply<'a> {
    /// A structure elsewhere, by its guest-physical address.
    pub(super) fn elsewhere(self, address: u64) -> Self {
        Self { address, ..self }
    }

    pub(super) fn put(self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        let address = self.address.wrapping_add(offset as u64);
        self.ram.write(address, bytes)
    }

    pub(super) fn put_i32(self, offset: usize, value: i32) -> Result<(), Error> {
        self.put(offset, &value.to_le_bytes())
    }

    pub(super) fn put_i64(self, offset: usize, value: i64) -> Result<(), Error> {
        self.put(offset, &value.to_le_bytes())
    }
}

/// A guest buffer that was not touched yet. Touching it uses it up.
pub(super) struct Buffer<'a> {
    ram: &'a GuestRam,
    /// The tables that translate its address, if it is guest-virtual.
    cr3: Option<u64>,
    address: u64,
}

impl Buffer<'_> {
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Copies `len` bytes out and hands them on piece by piece, in order.
    pub(super) fn copy_out(self, len: u64, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        let piece_bytes = usize::try_from(len).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let mut bytes = vec![0; piece_bytes];
        let mut done = 0;
        while done < len {
            let left = usize::try_from(len - done).unwrap_or(COPY_BYTES);
            let piece = &mut bytes[..left.min(COPY_BYTES)];
            let at = self.address.wrapping_add(done);
            match self.cr3 {
                None => self.ram.read(at, piece)?,
                Some(cr3) => paging::read_virtual(self.ram, cr3, at, piece)?,
            }
            each(piece);
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// Fills it with `bytes`.
    pub(super) fn fill(self, bytes: &[u8]) -> Result<(), Error> {
        match self.cr3 {
            None => self.ram.write(self.address, bytes),
            Some(cr3) => paging::write_virtual(self.ram, cr3, self.address, bytes),
        }
    }
}
