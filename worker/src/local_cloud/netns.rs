//! TCP connections into an instance's network namespace, without a bridge and without root outside.
//!
//! A socket belongs for ever to the network namespace of the thread that made it. So one thread
//! per instance enters the namespace and makes sockets on request; connecting them is ordinary
//! async work of whoever asked. The thread ends with the [`Dialer`]; the namespace itself lives as
//! long as a process or socket in it.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::mpsc;

use futures_util::future::BoxFuture;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use oast_daemon::task::{TaskKind, Tasks};

use super::backend::Dial;

type Request = oneshot::Sender<io::Result<OwnedFd>>;

/// Dials 127.0.0.1 inside one network namespace.
pub struct Dialer {
    requests: mpsc::Sender<Request>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

impl Dialer {
    /// Starts the thread that makes sockets in `namespace`.
    ///
    /// # Errors
    /// The thread cannot be started, or may not enter the namespace.
    pub async fn enter(namespace: OwnedFd, tasks: &Tasks) -> io::Result<Dialer> {
        let (requests, asked) = mpsc::channel::<Request>();
        let (entered, wait) = oneshot::channel();
        tasks.thread("instance sockets", TaskKind::BACKGROUND, move || {
            let kind = Some(LinkNameSpaceType::Network);
            let result = move_into_link_name_space(namespace.as_fd(), kind);
            let failed = result.is_err();
            if entered.send(result.map_err(io::Error::from)).is_err() || failed {
                return;
            }
            // Ends when the dialer is dropped.
            while let Ok(request) = asked.recv() {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
                let socket = rustix::net::socket_with(family, kind, flags, None);
                let _ = request.send(socket.map_err(io::Error::from));
            }
        })?;
        wait.await.map_err(|_| io::Error::other("the thread ended"))??;
        Ok(Dialer { requests })
    }

    async fn socket(&self) -> io::Result<TcpSocket> {
        let (answer, wait) = oneshot::channel();
        let gone = || io::Error::new(io::ErrorKind::ConnectionRefused, "the instance is gone");
        self.requests.send(answer).map_err(|_| gone())?;
        let socket = wait.await.map_err(|_| gone())??;
        // SAFETY: the descriptor was just made by `socket_with` and is owned by nobody else.
        Ok(unsafe { TcpSocket::from_raw_fd(socket.into_raw_fd()) })
    }
}

impl Dial for Dialer {
    fn dial(&self, port: u16) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async move {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            self.socket().await?.connect(address).await
        })
    }
}
