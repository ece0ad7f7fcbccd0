//! Where a snapshot's pages come from.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::faults::Layout;
use crate::mapping::MemoryFile;
use crate::{Error, PAGE_BYTES, ranges};

/// Reads snapshot pages that are not local: fills the whole buffer from the given page on, or
/// fails, in bounded time. It is called on the handler's thread while a guest waits, and on the
/// attaching thread for a replay.
pub type ReadPages = dyn Fn(u64, &mut [u8]) -> io::Result<()> + Send + Sync;

/// A snapshot's memory, shared by all clones. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Source(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: u64,
    pages: u64,
    data: Arc<[Range<u64>]>,
    origin: Origin,
}

pub(crate) enum Origin {
    Shared(MemoryFile),
    NotLocal(Arc<ReadPages>),
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Shared(_) => "Shared",
            Self::NotLocal(_) => "NotLocal",
        })
    }
}

impl Source {
    /// One sealed memory file (memfd) whose clean pages all clones share.
    ///
    /// `data` lists the pages that may hold anything but zeros, ascending and disjoint; the pages
    /// between are taken for zero. The table may call a zero page data, never the reverse.
    ///
    /// # Errors
    /// [`Error::NotSealed`] without `F_SEAL_WRITE` and `F_SEAL_SHRINK`, [`Error::ShortFile`],
    /// [`Error::BadRange`], or [`Error::Os`] when the file cannot be mapped.
    pub fn shared(memfd: Arc<File>, pages: u64, data: Arc<[Range<u64>]>) -> Result<Self, Error> {
        ranges::check("data", &data, pages)?;
        let file = MemoryFile::new(memfd, pages)?;
        Ok(Self::new(pages, data, Origin::Shared(file)))
    }

    /// Pages that must be read from somewhere, each clone into its own memory.
    ///
    /// `data` as for [`Source::shared`]; only pages in it are ever read.
    ///
    /// # Errors
    /// [`Error::BadRange`].
    pub fn not_local(
        pages: u64,
        data: Arc<[Range<u64>]>,
        read: Arc<ReadPages>,
    ) -> Result<Self, Error> {
        ranges::check("data", &data, pages)?;
        Ok(Self::new(pages, data, Origin::NotLocal(read)))
    }

    fn new(pages: u64, data: Arc<[Range<u64>]>, origin: Origin) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Inner {
            id,
            pages,
            data,
            origin,
        }))
    }

    /// Pages of the snapshot.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.0.pages
    }

    /// Length of the snapshot's memory in bytes.
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        self.0.pages * PAGE_BYTES
    }

    /// Pages that may hold anything but zeros.
    #[must_use]
    pub fn data(&self) -> &[Range<u64>] {
        &self.0.data
    }

    /// Distinguishes this source from all others in the process.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.0.origin
    }

    /// Reads data pages into memory that is no guest's.
    pub(crate) fn read(&self, first_page: u64, buffer: &mut [u8]) -> Result<(), Error> {
        match self.origin() {
            Origin::Shared(file) => file.read(first_page, buffer),
            Origin::NotLocal(read) => read(first_page, buffer),
        }
        .map_err(|source| Error::ReadPages {
            first_page,
            pages: buffer.len() as u64 / PAGE_BYTES,
            source,
        })
    }

    pub(crate) fn layout(&self) -> Layout<'_> {
        let local = matches!(self.0.origin, Origin::Shared(_));
        Layout {
            local,
            pages: self.0.pages,
            data: &self.0.data,
        }
    }
}
