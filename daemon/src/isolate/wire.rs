//! Messages between a process and the helpers it started: whole JSON messages with file descriptors, over a
//! `SOCK_SEQPACKET` pair.
//!
//! The kernel keeps message boundaries and closes the pair when a side dies, so the same socket is the lifeline:
//! end of file means that the other side is gone. Used between the worker and a sandbox's monitor, and between
//! quickstart and the farm's init. It knows nothing of what the messages say.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Larger things travel as a memory file beside the message.
const MAX_MESSAGE: usize = 64 * 1024;
/// More than any of our messages carries.
const MAX_FDS: usize = 8;

/// A connected pair, closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message; `WouldBlock` when the socket is non-blocking and full.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "message larger than 64 KiB",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more file descriptors than a message carries",
        ));
    }
    loop {
        match rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(drop).map_err(Into::into),
        }
    }
}

/// Receives one message with its descriptors; `None` when the other side is gone.
pub fn recv<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            // The peer died with our message unread: for us that is the same end.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message larger than 64 KiB",
        ));
    }
    let message = serde_json::from_slice(&bytes[..got.bytes]).map_err(io::Error::other)?;
    Ok(Some((message, fds)))
}

/// Puts something of any size into a memory file that can ride on a message.
pub fn memory_file<T: Serialize>(name: &str, value: &T) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(
        name,
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
    file.write_all(&bytes)?;
    Ok(file.into())
}

/// Reads what [`memory_file`] wrote.
pub fn read_memory_file<T: DeserializeOwned>(file: OwnedFd) -> io::Result<T> {
    let mut file = File::from(file);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_bounds_and_carry_files() {
        let (a, b) = pair().expect("socketpair");
        let file = memory_file("test", &vec!["x"; 100_000]).expect("memfd");
        send(&a, &"one", &[]).expect("send");
        send(&a, &"two", &[file.as_fd()]).expect("send");
        let (first, none) = recv::<String>(&b).expect("recv").expect("a message");
        assert_eq!((first.as_str(), none.len()), ("one", 0));
        let (second, mut fds) = recv::<String>(&b).expect("recv").expect("a message");
        assert_eq!(second, "two");
        let back: Vec<String> = read_memory_file(fds.pop().expect("a descriptor")).expect("read");
        assert_eq!(back.len(), 100_000);
        drop(a);
        assert!(
            recv::<String>(&b).expect("recv").is_none(),
            "a closed peer is the end"
        );
    }

    #[test]
    fn an_oversized_message_is_refused_before_it_is_sent() {
        let (a, _b) = pair().expect("socketpair");
        assert!(send(&a, &"x".repeat(MAX_MESSAGE), &[]).is_err());
    }
}
