//! The encoding of a message head: a sequence of fields, each a 32-bit length and its bytes.
//!
//! A request's fields are method, target (path and query), then name and value of each header.
//! An answer's are name and value of each header (its status stands in the mailbox header).
//! There is no count and no table: a reader stops where the bytes end, so a lean guest that looks
//! at the method alone pays for the method alone.

/// One field: bytes, since header values need not be UTF-8.
pub type Field<'a> = &'a [u8];

/// The fields did not fit into the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

const LENGTH_BYTES: usize = 4;

/// Appends fields to a buffer.
#[derive(Debug)]
pub struct HeadWriter<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> HeadWriter<'a> {
    /// Starts at the first byte of `buffer`.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, used: 0 }
    }

    /// Appends one field.
    ///
    /// # Errors
    /// [`Full`] where it does not fit; nothing is written then.
    pub fn put(&mut self, field: Field<'_>) -> Result<(), Full> {
        let length = u32::try_from(field.len()).map_err(|_| Full)?;
        let room = self.buffer.get_mut(self.used..).ok_or(Full)?;
        let room = room.get_mut(..LENGTH_BYTES + field.len()).ok_or(Full)?;
        room[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        room[LENGTH_BYTES..].copy_from_slice(field);
        self.used += room.len();
        Ok(())
    }

    /// Bytes written so far.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.used
    }
}

/// The space that `field` takes in an encoded head.
#[must_use]
pub const fn field_bytes(field: Field<'_>) -> usize {
    LENGTH_BYTES + field.len()
}

/// Reads fields one after another. A length that runs past the end ends the sequence and leaves
/// [`HeadReader::is_complete`] false.
#[derive(Debug, Clone)]
pub struct HeadReader<'a> {
    rest: &'a [u8],
}

impl<'a> HeadReader<'a> {
    /// Reads from the first byte of `head`.
    #[must_use]
    pub fn new(head: &'a [u8]) -> Self {
        Self { rest: head }
    }

    /// True once every byte was read as part of a field.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.rest.is_empty()
    }
}

impl<'a> Iterator for HeadReader<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let (length, rest) = self.rest.split_first_chunk::<LENGTH_BYTES>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let field = rest.get(..length)?;
        self.rest = &rest[length..];
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order() {
        let mut buffer = [0; 64];
        let mut writer = HeadWriter::new(&mut buffer);
        for field in [b"GET".as_slice(), b"/a?b", b"", b"\xff"] {
            writer.put(field).unwrap();
        }
        let used = writer.used_bytes();
        let mut reader = HeadReader::new(&buffer[..used]);
        assert!(
            reader
                .by_ref()
                .eq([b"GET".as_slice(), b"/a?b", b"", b"\xff"])
        );
        assert!(reader.is_complete());
    }

    #[test]
    fn a_field_that_does_not_fit_changes_nothing() {
        let mut buffer = [0xAA; 8];
        let mut writer = HeadWriter::new(&mut buffer);
        assert_eq!(writer.put(b"12345"), Err(Full));
        assert_eq!(writer.put(b"1234"), Ok(()));
        assert_eq!(writer.put(b""), Err(Full));
        assert_eq!(&buffer, b"\x04\0\0\x001234");
    }

    #[test]
    fn a_length_past_the_end_is_no_field() {
        let mut reader = HeadReader::new(b"\x05\0\0\0abc");
        assert_eq!(reader.next(), None);
        assert!(!reader.is_complete());
        assert_eq!(HeadReader::new(b"\xff\xff\xff\xff").next(), None);
    }
}
