//! The loopback device of a fresh network namespace: up, with the addresses an instance is known by.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use oast_daemon::isolate::{Fault, Named};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Brings `lo` up and adds the addresses, for the calling process's network namespace.
pub(crate) fn up(addresses: &[Ipv4Addr]) -> Result<(), Fault> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .named("socket for the loopback device")?;
    let mut request = request("lo");
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(&socket, libc::SIOCSIFFLAGS, &mut request).named("bring up the loopback device")?;
    for (index, address) in addresses.iter().enumerate() {
        let mut request = self::request(&format!("lo:{}", index + 1));
        let address_in = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: u32::from_ne_bytes(address.octets()),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: sockaddr_in and sockaddr have the same size and any bytes are a valid sockaddr.
        request.ifr_ifru.ifru_addr =
            unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address_in) };
        ioctl(&socket, libc::SIOCSIFADDR, &mut request)
            .at("add loopback address", address.to_string())?;
    }
    Ok(())
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from as libc::c_char;
    }
    request
}

fn ioctl(socket: &OwnedFd, number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the request is a valid ifreq for the interface ioctls used here and outlives the call.
    let answer =
        unsafe { libc::ioctl(socket.as_raw_fd(), number as _, request as *mut libc::ifreq) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
