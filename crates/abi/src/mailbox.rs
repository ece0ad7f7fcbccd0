//! The mailbox page and its header.

use crate::{
    ABI_VERSION, HEADER_BYTES, INLINE_BYTES, MAGIC, MAILBOX_BYTES, MAX_BODY_BYTES, MAX_HEAD_BYTES,
    REQUEST_BUFFER_BYTES,
};

/// What the guest says with an exchange ([`Header::kind`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Initialised and waiting for the first request.
    Ready = 1,
    /// The answer to the last request.
    Answer = 2,
    /// Initialisation failed; the body is the message (UTF-8).
    InitError = 3,
    /// The handler failed on this request; the body is the message (UTF-8).
    Error = 4,
}

/// Where the host put the request ([`Header::request_location`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Location {
    /// In [`Mailbox::inline`]: head, then body.
    Inline = 0,
    /// In the guest's request buffer: head, then body.
    Buffer = 1,
}

/// The header of a mailbox. Offsets are part of the ABI and checked at compile time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Header {
    /// Set once by the guest: [`MAGIC`].
    pub magic: u32,
    /// Set once by the guest: [`ABI_VERSION`].
    pub abi_version: u32,
    /// Set once by the guest: address of the request buffer.
    pub request_buffer_address: u64,
    /// Set once by the guest: size of the request buffer, at least [`REQUEST_BUFFER_BYTES`].
    pub request_buffer_bytes: u64,
    /// Guest to host: a [`Kind`].
    pub kind: u32,
    /// Guest to host: the HTTP status of an answer.
    pub status: u32,
    /// Guest to host: address of the encoded answer head.
    pub answer_head_address: u64,
    /// Guest to host: size of the encoded answer head, at most [`MAX_HEAD_BYTES`].
    pub answer_head_bytes: u64,
    /// Guest to host: address of the answer body.
    pub answer_body_address: u64,
    /// Guest to host: size of the answer body, at most [`MAX_BODY_BYTES`].
    pub answer_body_bytes: u64,
    /// Host to guest: number of this request, unique in the life of the host process.
    pub request_id: u64,
    /// Host to guest: number of this clone, different after every restore; 0 before the first.
    pub generation: u64,
    /// Host to guest: real time at the restore, nanoseconds since the Unix epoch.
    pub real_time_unix_ns: u64,
    /// Host to guest: when the host will stop the guest, nanoseconds since the Unix epoch.
    pub deadline_unix_ns: u64,
    /// Host to guest: fresh random bytes, different after every restore.
    pub entropy: [u8; 32],
    /// Host to guest: a [`Location`], sealed ([`Header::seal`]).
    pub request_location: u32,
    /// Host to guest: size of the encoded request head, at most [`MAX_HEAD_BYTES`]; sealed.
    pub request_head_bytes: u32,
    /// Host to guest: size of the request body, at most [`MAX_BODY_BYTES`]; sealed.
    pub request_body_bytes: u64,
    /// Guest to host: the guest's time-stamp counter when its handler was entered for the request
    /// that this answers; 0 where the guest does not say.
    pub handler_tsc: u64,
    /// Guest to host: [`Header::confirmation`], written once the guest's random numbers are seeded
    /// with [`Header::entropy`] and its hooks have run. The host sets it to 0 with each request.
    pub confirmed: u64,
    /// Zero; room to grow without a new version where old peers may ignore it.
    pub reserved: [u64; 4],
}

/// Where a request stands, and its sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Where it is.
    pub location: Location,
    /// Size of the encoded head, at most [`MAX_HEAD_BYTES`].
    pub head_bytes: u32,
    /// Size of the body, at most [`MAX_BODY_BYTES`].
    pub body_bytes: u64,
}

const _: () = {
    assert!(size_of::<Header>() == HEADER_BYTES);
    assert!(size_of::<Mailbox>() == MAILBOX_BYTES);
    assert!(core::mem::offset_of!(Header, kind) == 24);
    assert!(core::mem::offset_of!(Header, request_id) == 64);
    assert!(core::mem::offset_of!(Header, entropy) == 96);
    assert!(core::mem::offset_of!(Header, request_location) == 128);
    assert!(core::mem::offset_of!(Header, confirmed) == 152);
};

/// The page that guest and host share.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Mailbox {
    /// Addresses, sizes and what a clone must learn.
    pub header: Header,
    /// A message that fits: head, then body.
    pub inline: [u8; INLINE_BYTES],
}

impl Mailbox {
    /// A mailbox with nothing in it.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            header: Header::new(),
            inline: [0; INLINE_BYTES],
        }
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

/// What the host found wrong in a mailbox header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MailboxError {
    /// [`Header::magic`] is this instead of [`MAGIC`].
    Magic(u32),
    /// The guest was built for this ABI version, not for [`ABI_VERSION`].
    Version(u32),
    /// [`Header::kind`] is no [`Kind`].
    Kind(u32),
    /// The request buffer has only this many bytes.
    RequestBuffer(u64),
    /// The answer head has this many bytes, more than [`MAX_HEAD_BYTES`].
    HeadTooLarge(u64),
    /// The answer body has this many bytes, more than [`MAX_BODY_BYTES`].
    BodyTooLarge(u64),
    /// This is no HTTP status that a function may answer with (200–599).
    Status(u32),
}

impl core::fmt::Display for MailboxError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(found) => write!(
                f,
                "the mailbox starts with {found:#010x}, not {MAGIC:#010x}"
            ),
            Self::Version(found) => write!(
                f,
                "the function speaks Dormouse ABI version {found}, this host speaks version {ABI_VERSION}"
            ),
            Self::Kind(found) => write!(f, "the function sent a message of unknown kind {found}"),
            Self::RequestBuffer(found) => write!(
                f,
                "the request buffer has {found} bytes, at least {REQUEST_BUFFER_BYTES} are needed"
            ),
            Self::HeadTooLarge(found) => write!(
                f,
                "the answer's headers take {found} bytes, at most {MAX_HEAD_BYTES} are allowed"
            ),
            Self::BodyTooLarge(found) => {
                write!(
                    f,
                    "the answer's body has {found} bytes, at most {MAX_BODY_BYTES} are allowed"
                )
            }
            Self::Status(found) => {
                write!(
                    f,
                    "the answer's status is {found}, it must be from 200 to 599"
                )
            }
        }
    }
}

impl core::error::Error for MailboxError {}

impl Header {
    /// A header with nothing in it.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            magic: 0,
            abi_version: 0,
            request_buffer_address: 0,
            request_buffer_bytes: 0,
            kind: 0,
            status: 0,
            answer_head_address: 0,
            answer_head_bytes: 0,
            answer_body_address: 0,
            answer_body_bytes: 0,
            request_id: 0,
            generation: 0,
            real_time_unix_ns: 0,
            deadline_unix_ns: 0,
            entropy: [0; 32],
            request_location: 0,
            request_head_bytes: 0,
            request_body_bytes: 0,
            handler_tsc: 0,
            confirmed: 0,
            reserved: [0; 4],
        }
    }

    /// Reads a header from the first [`HEADER_BYTES`] of a mailbox page. Nothing is checked yet.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let u32_at =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        let u64_at =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        Self {
            magic: u32_at(0),
            abi_version: u32_at(4),
            request_buffer_address: u64_at(8),
            request_buffer_bytes: u64_at(16),
            kind: u32_at(24),
            status: u32_at(28),
            answer_head_address: u64_at(32),
            answer_head_bytes: u64_at(40),
            answer_body_address: u64_at(48),
            answer_body_bytes: u64_at(56),
            request_id: u64_at(64),
            generation: u64_at(72),
            real_time_unix_ns: u64_at(80),
            deadline_unix_ns: u64_at(88),
            entropy: bytes[96..128].try_into().unwrap_or_default(),
            request_location: u32_at(128),
            request_head_bytes: u32_at(132),
            request_body_bytes: u64_at(136),
            handler_tsc: u64_at(144),
            confirmed: u64_at(152),
            reserved: core::array::from_fn(|word| u64_at(160 + 8 * word)),
        }
    }

    /// The bytes that [`Header::decode`] reads.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.magic.to_le_bytes());
        put(&self.abi_version.to_le_bytes());
        put(&self.request_buffer_address.to_le_bytes());
        put(&self.request_buffer_bytes.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.status.to_le_bytes());
        put(&self.answer_head_address.to_le_bytes());
        put(&self.answer_head_bytes.to_le_bytes());
        put(&self.answer_body_address.to_le_bytes());
        put(&self.answer_body_bytes.to_le_bytes());
        put(&self.request_id.to_le_bytes());
        put(&self.generation.to_le_bytes());
        put(&self.real_time_unix_ns.to_le_bytes());
        put(&self.deadline_unix_ns.to_le_bytes());
        put(&self.entropy);
        put(&self.request_location.to_le_bytes());
        put(&self.request_head_bytes.to_le_bytes());
        put(&self.request_body_bytes.to_le_bytes());
        put(&self.handler_tsc.to_le_bytes());
        put(&self.confirmed.to_le_bytes());
        for word in self.reserved {
            put(&word.to_le_bytes());
        }
        bytes
    }

    /// What a guest says to confirm that it has taken [`Header::entropy`]: a number that nobody
    /// knows who has not looked at those bytes, another one in every clone, and never 0.
    #[must_use]
    pub fn confirmation(&self) -> u64 {
        // An odd factor keeps every bit; the rotation tells equal words at different places apart.
        const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
        let words = self.entropy.chunks_exact(8);
        let mixed = words.fold(self.generation, |mixed, word| {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            (mixed.rotate_left(23) ^ word).wrapping_mul(FACTOR)
        });
        mixed.max(1)
    }

    /// The host's side of a request: says where it stands, under a seal that only
    /// [`Header::confirmation`] opens. [`Header::generation`] and [`Header::entropy`] must be set.
    pub fn seal(&mut self, sizes: Sizes) {
        let seal = self.confirmation();
        self.confirmed = 0;
        self.request_location = sizes.location as u32 ^ seal as u32;
        self.request_head_bytes = sizes.head_bytes ^ (seal >> 32) as u32;
        self.request_body_bytes = sizes.body_bytes ^ seal.rotate_left(17);
    }

    /// The guest's side: where the request stands. Nothing as long as [`Header::confirmed`] does not
    /// say that the guest has taken its random bytes.
    #[must_use]
    pub fn opened(&self) -> Option<Sizes> {
        let seal = self.confirmation();
        if self.confirmed != seal {
            return None;
        }
        let location = match self.request_location ^ seal as u32 {
            0 => Location::Inline,
            1 => Location::Buffer,
            _ => return None,
        };
        let head_bytes = self.request_head_bytes ^ (seal >> 32) as u32;
        let body_bytes = self.request_body_bytes ^ seal.rotate_left(17);
        let fits = head_bytes as usize <= MAX_HEAD_BYTES && body_bytes <= MAX_BODY_BYTES as u64;
        fits.then_some(Sizes {
            location,
            head_bytes,
            body_bytes,
        })
    }

    /// Checks what the guest set once, at its first exchange.
    ///
    /// # Errors
    /// A wrong magic or version, or a request buffer that is too small.
    pub fn check_registration(&self) -> Result<(), MailboxError> {
        if self.magic != MAGIC {
            return Err(MailboxError::Magic(self.magic));
        }
        if self.abi_version != ABI_VERSION {
            return Err(MailboxError::Version(self.abi_version));
        }
        if self.request_buffer_bytes < REQUEST_BUFFER_BYTES as u64 {
            return Err(MailboxError::RequestBuffer(self.request_buffer_bytes));
        }
        Ok(())
    }

    /// Checks what the guest says with this exchange, and says what kind of message it is.
    ///
    /// # Errors
    /// An unknown kind, an impossible status, or sizes over the limits.
    pub fn check_message(&self) -> Result<Kind, MailboxError> {
        let kind = match self.kind {
            1 => Kind::Ready,
            2 => Kind::Answer,
            3 => Kind::InitError,
            4 => Kind::Error,
            other => return Err(MailboxError::Kind(other)),
        };
        if self.answer_head_bytes > MAX_HEAD_BYTES as u64 {
            return Err(MailboxError::HeadTooLarge(self.answer_head_bytes));
        }
        if self.answer_body_bytes > MAX_BODY_BYTES as u64 {
            return Err(MailboxError::BodyTooLarge(self.answer_body_bytes));
        }
        if kind == Kind::Answer && !(200..=599).contains(&self.status) {
            return Err(MailboxError::Status(self.status));
        }
        Ok(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_encoding() {
        let mut bytes = [0; HEADER_BYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = at as u8;
        }
        assert_eq!(Header::decode(&bytes).encode(), bytes);
    }

    #[test]
    fn sizes_over_the_limit_are_refused() {
        let header = Header {
            kind: Kind::Answer as u32,
            status: 200,
            answer_body_bytes: MAX_BODY_BYTES as u64,
            ..Header::new()
        };
        assert_eq!(header.check_message(), Ok(Kind::Answer));
        let larger = Header {
            answer_body_bytes: MAX_BODY_BYTES as u64 + 1,
            ..header
        };
        assert_eq!(
            larger.check_message(),
            Err(MailboxError::BodyTooLarge(6 * 1024 * 1024 + 1))
        );
        assert_eq!(
            Header {
                status: 99,
                ..header
            }
            .check_message(),
            Err(MailboxError::Status(99))
        );
        assert_eq!(
            Header { kind: 9, ..header }.check_message(),
            Err(MailboxError::Kind(9))
        );
    }

    #[test]
    fn a_guest_of_another_version_is_refused() {
        let header = Header {
            magic: MAGIC,
            abi_version: ABI_VERSION + 1,
            request_buffer_bytes: u64::MAX,
            ..Header::new()
        };
        let refused = Err(MailboxError::Version(ABI_VERSION + 1));
        assert_eq!(header.check_registration(), refused);
    }

    #[test]
    fn a_request_is_found_by_who_confirms_and_by_nobody_else() {
        let sizes = Sizes {
            location: Location::Buffer,
            head_bytes: 345,
            body_bytes: 6789,
        };
        let mut header = Header {
            generation: 7,
            entropy: [0x5A; 32],
            confirmed: 1,
            ..Header::new()
        };
        header.seal(sizes);
        assert_eq!(header.confirmed, 0, "what was confirmed before is not now");
        assert_eq!(header.opened(), None);
        for wrong in [
            1,
            7,
            header.confirmation() ^ 1,
            header.confirmation() ^ (1 << 63),
        ] {
            let guessed = Header {
                confirmed: wrong,
                ..header
            };
            assert_eq!(guessed.opened(), None, "{wrong:#x}");
        }
        header.confirmed = header.confirmation();
        assert_eq!(header.opened(), Some(sizes));
    }

    #[test]
    fn every_byte_of_the_entropy_and_the_generation_make_another_confirmation() {
        let header = Header {
            generation: 1,
            entropy: [3; 32],
            ..Header::new()
        };
        let other = Header {
            generation: 2,
            ..header
        };
        assert_ne!(other.confirmation(), header.confirmation());
        for at in 0..32 {
            let mut other = header;
            other.entropy[at] ^= 0x80;
            assert_ne!(other.confirmation(), header.confirmation(), "byte {at}");
        }
        assert_ne!(Header::new().confirmation(), 0);
    }
}
