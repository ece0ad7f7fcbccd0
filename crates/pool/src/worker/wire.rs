//! Messages between two processes: a length of four bytes, little-endian, and as many bytes of bincode.
//! Descriptors travel beside the first of them.
//!
//! Whatever comes is from a process that a guest may have taken over: lengths are bounded before they
//! are used, and what is not a message ends the conversation.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use bincode::config::Configuration;
use bytes::{Buf, BytesMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message: room for a request or an answer of the largest size, and for the tables of the
/// largest snapshot.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 << 20;

const LENGTH_BYTES: usize = 4;

/// The most descriptors that come with one message.
const MAX_DESCRIPTORS: usize = 3;

const CODEC: Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_MESSAGE_BYTES>,
> = bincode::config::standard().with_limit::<MAX_MESSAGE_BYTES>();

fn invalid(reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

/// A message as it travels.
pub(super) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LENGTH_BYTES];
    bincode::serde::encode_into_std_write(message, &mut bytes, CODEC).map_err(invalid)?;
    let length = bytes.len() - LENGTH_BYTES;
    let known = u32::try_from(length).ok();
    let length = known
        .filter(|_| length <= MAX_MESSAGE_BYTES)
        .ok_or_else(|| invalid(format!("a message of {length} bytes is too long")))?;
    bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let (message, used) = bincode::serde::decode_from_slice(bytes, CODEC).map_err(invalid)?;
    if used < bytes.len() {
        return Err(invalid("a message has more bytes than it says"));
    }
    Ok(message)
}

/// How long the message is that begins so.
fn length(header: [u8; LENGTH_BYTES], most_bytes: usize) -> io::Result<usize> {
    let length = u32::from_le_bytes(header) as usize;
    if length > most_bytes {
        return Err(invalid(format!("a message of {length} bytes is too long")));
    }
    Ok(length)
}

/// Takes the first message out of what came, once it is complete; of `most_bytes` at most.
pub(super) fn take<T: DeserializeOwned>(
    came: &mut BytesMut,
    most_bytes: usize,
) -> io::Result<Option<T>> {
    let Some(header) = came.first_chunk() else {
        return Ok(None);
    };
    let length = length(*header, most_bytes)?;
    if came.len() < LENGTH_BYTES + length {
        came.reserve(LENGTH_BYTES + length - came.len());
        return Ok(None);
    }
    came.advance(LENGTH_BYTES);
    decode(&came.split_to(length)).map(Some)
}

/// Sends a message, and descriptors with it.
pub(super) fn send(
    mut socket: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = encode(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(invalid("too many descriptors for one message"));
    }
    let slices = [IoSlice::new(&bytes)];
    let sent = loop {
        match sendmsg(socket.as_fd(), &slices, &mut beside, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => break sent?,
        }
    };
    io::Write::write_all(&mut socket, &bytes[sent..])
}

/// Waits for a message and what came with it; nothing where the other side is gone.
pub(super) fn receive<T: DeserializeOwned>(
    mut socket: &UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut header = [0; LENGTH_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let came = loop {
        let mut slices = [IoSliceMut::new(&mut header)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(socket.as_fd(), &mut slices, &mut beside, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            came => break came?.bytes,
        }
    };
    if came == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    socket.read_exact(&mut header[came..])?;
    let mut bytes = vec![0; length(header, MAX_MESSAGE_BYTES)?];
    socket.read_exact(&mut bytes)?;
    Ok(Some((decode(&bytes)?, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"what is in it").unwrap();
        send(&here, &"first", &[]).unwrap();
        send(&here, &("second", 2_u64), &[file.as_fd(), here.as_fd()]).unwrap();
        drop(here);
        let (first, none) = receive::<String>(&there).unwrap().unwrap();
        assert_eq!((first.as_str(), none.len()), ("first", 0));
        let (second, mut fds) = receive::<(String, u64)>(&there).unwrap().unwrap();
        assert_eq!(second, ("second".to_owned(), 2));
        assert_eq!(fds.len(), 2);
        let mut same = File::from(fds.remove(0));
        let mut text = String::new();
        same.rewind().unwrap();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "what is in it");
        drop(fds);
        assert!(receive::<String>(&there).unwrap().is_none(), "it is gone");
    }

    #[test]
    fn what_is_no_message_is_refused_before_memory_is_taken_for_it() {
        for bytes in [
            &u32::MAX.to_le_bytes()[..],
            &[3, 0, 0, 0, 200, 1, 1],
            &[2, 0, 0, 0, 0],
            &[3, 0],
            // A string that is longer than its message, and one that is shorter.
            &[2, 0, 0, 0, 9, b'a'],
            &[3, 0, 0, 0, 1, b'a', b'b'],
        ] {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(bytes).unwrap();
            drop(here);
            receive::<String>(&there).unwrap_err();
            let mut came = BytesMut::from(bytes);
            assert!(
                !matches!(take::<String>(&mut came, 100), Ok(Some(_))),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn a_message_is_taken_once_all_of_it_is_there() {
        let bytes = encode(&"a message").unwrap();
        let mut came = BytesMut::new();
        for byte in &bytes[..bytes.len() - 1] {
            came.extend_from_slice(&[*byte]);
            assert_eq!(take::<String>(&mut came, 100).unwrap(), None);
        }
        came.extend_from_slice(&bytes[bytes.len() - 1..]);
        came.extend_from_slice(&bytes);
        for _ in 0..2 {
            let message = take::<String>(&mut came, 100).unwrap();
            assert_eq!(message.as_deref(), Some("a message"));
        }
        assert!(came.is_empty());
    }
}
