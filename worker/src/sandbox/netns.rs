//! Sockets in another network namespace, without moving there.
//!
//! A socket belongs for life to the namespace it was created in, so one thread per namespace that
//! only creates sockets is enough: the caller connects and uses them from its own runtime. This
//! needs neither a virtual network device nor real root.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait for the thread, which answers each in microseconds.
const QUEUE: usize = 64;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Opens sockets inside one namespace. Clones share the thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Dialer {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    family: AddressFamily,
    answer: oneshot::Sender<io::Result<OwnedFd>>,
}

impl Dialer {
    /// Starts the thread and moves it into the namespace (see [`super::Sandbox::namespace`]).
    ///
    /// # Errors
    /// No thread to be had, or no right to enter the namespace.
    pub async fn enter(namespace: OwnedFd) -> io::Result<Self> {
        let (requests, mut queue) = mpsc::channel::<Request>(QUEUE);
        let (tell, entered) = oneshot::channel();
        std::thread::Builder::new()
            .name("netns-dialer".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                let moved =
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
                let failed = moved.is_err();
                if tell.send(moved.map_err(io::Error::from)).is_err() || failed {
                    return;
                }
                while let Some(request) = queue.blocking_recv() {
                    // A caller that stopped waiting drops its socket unused.
                    let _ = request.answer.send(socket(request.family));
                }
            })?;
        entered.await.map_err(|_gone| thread_gone())??;
        Ok(Self { requests })
    }

    /// Connects to an address as seen inside.
    ///
    /// # Errors
    /// What `connect(2)` says inside.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.socket(address).await?.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Listens on an address inside.
    ///
    /// # Errors
    /// What `bind(2)` or `listen(2)` says inside.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.socket(address).await?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG as u32)
    }

    async fn socket(&self, address: SocketAddr) -> io::Result<TcpSocket> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let (answer, fd) = oneshot::channel();
        self.requests
            .send(Request { family, answer })
            .await
            .map_err(|_gone| thread_gone())?;
        let fd = fd.await.map_err(|_gone| thread_gone())??;
        // SAFETY: the descriptor is a fresh non-blocking TCP socket whose ownership moves over.
        Ok(unsafe { TcpSocket::from_raw_fd(fd.into_raw_fd()) })
    }
}

/// Makes the listening socket that a sandbox handed over usable here.
///
/// # Errors
/// The descriptor is not a socket, or there is no runtime.
pub fn adopt(listener: StdListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        family,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

fn thread_gone() -> io::Error {
    io::Error::other("the thread of this network namespace has ended")
}
