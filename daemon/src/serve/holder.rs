//! Who holds a TCP port, as far as /proc lets us see: for the message, never for a decision.

use std::fs;
use std::path::Path;

/// The state of a listening socket in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Processes looked at before giving up, so that a huge machine does not make an error slow.
const MOST_PROCESSES: usize = 20_000;

/// Names the listener on `port`, or says how to find it.
pub(super) fn describe(port: u16) -> String {
    let Some(inode) = listener_inode(port) else {
        return "another process".to_owned();
    };
    match owner(inode) {
        Some((pid, command)) => format!("process {pid} ({command})"),
        None => format!("a process of another user (see: ss -ltnp 'sport = :{port}')"),
    }
}

/// The inode of the socket that listens on `port`.
fn listener_inode(port: u16) -> Option<u64> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .find_map(|table| {
            let text = fs::read_to_string(table).ok()?;
            text.lines()
                .skip(1)
                .find_map(|line| listening_on(line, port))
        })
}

/// Fields: slot, local address, remote address, state, queues, timer, retransmits, uid, timeout,
/// inode.
fn listening_on(line: &str, port: u16) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    let matches = u16::from_str_radix(local_port, 16) == Ok(port) && *fields.get(3)? == LISTEN;
    if matches {
        fields.get(9)?.parse().ok()
    } else {
        None
    }
}

/// The process that has the socket open, if we may look into it.
fn owner(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .take(MOST_PROCESSES)
        .find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let fds = fs::read_dir(entry.path().join("fd")).ok()?;
            let holds = fds.flatten().any(|fd| {
                fs::read_link(fd.path()).is_ok_and(|target| target == Path::new(&wanted))
            });
            holds.then(|| {
                let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                (pid, command.trim().to_owned())
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listening_socket_of_the_port_counts() {
        let line = "   0: 0100007F:1D13 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 x";
        assert_eq!(listening_on(line, 7443), Some(4242));
        assert_eq!(listening_on(line, 7444), None);
        assert_eq!(listening_on(&line.replace(" 0A ", " 01 "), 7443), None);
    }
}
