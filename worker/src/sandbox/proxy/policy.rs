//! Where a sandbox may connect to: pure decisions about hosts and addresses.
//!
//! The default lets a step reach the internet and the organisation's mirrors, and keeps it away
//! from what trusts the worker because of where it runs: the worker itself, the farm, link-local
//! services and cloud metadata. An address hides in many spellings, so each is unwrapped first.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A host and port as they are written in a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Destination {
    pub host: String,
    pub port: u16,
}

/// A block of addresses, `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    address: IpAddr,
    prefix: u8,
}

/// The operator's rules on top of what is never reachable.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Exact destinations that win over everything, for example a mirror on this machine.
    pub allow: Vec<Destination>,
    /// The farm's own private addresses.
    pub deny: Vec<Block>,
}

/// Why a destination is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    Loopback,
    LinkLocal,
    Metadata,
    Multicast,
    Reserved,
    /// One of the worker's own addresses.
    OwnAddress,
    /// In the operator's deny list.
    Denied,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a cloud metadata address",
            Self::Multicast => "a multicast address",
            Self::Reserved => "a reserved address",
            Self::OwnAddress => "an address of the worker itself",
            Self::Denied => "an address the operator has denied",
        })
    }
}

/// Metadata services that are not link-local: Azure's fabric, Alibaba, Oracle, AWS over IPv6.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

impl Policy {
    /// Whether the destination, exactly as written, is the operator's exception.
    pub fn allows(&self, destination: &Destination) -> bool {
        self.allow.iter().any(|allowed| {
            allowed.port == destination.port && allowed.host.eq_ignore_ascii_case(&destination.host)
        })
    }

    /// Why this address may not be dialled, if it may not.
    pub fn refuses(&self, address: IpAddr) -> Option<Refusal> {
        never(address)
            .or_else(|| {
                spelled_otherwise(address).and_then(|inner| self.refuses(IpAddr::V4(inner)))
            })
            .or_else(|| {
                self.deny
                    .iter()
                    .any(|block| block.contains(address))
                    .then_some(Refusal::Denied)
            })
    }
}

/// What no policy opens except by an exact exception.
fn never(address: IpAddr) -> Option<Refusal> {
    if METADATA.contains(&address) {
        return Some(Refusal::Metadata);
    }
    match address {
        IpAddr::V4(v4) => {
            let [first, second, third, _] = v4.octets();
            match (first, second, third) {
                (127, ..) => Some(Refusal::Loopback),
                // 169.254.169.254 is where every big cloud keeps its metadata service.
                (169, 254, 169) => Some(Refusal::Metadata),
                (169, 254, _) => Some(Refusal::LinkLocal),
                (224..=239, ..) => Some(Refusal::Multicast),
                // "This network" reaches the machine itself; the last block has no hosts.
                (0, ..) | (240..=255, ..) | (192, 0, 0) => Some(Refusal::Reserved),
                _ => None,
            }
        }
        IpAddr::V6(v6) => {
            let [first, ..] = v6.segments();
            match first {
                _ if v6.is_loopback() => Some(Refusal::Loopback),
                _ if v6.is_unspecified() => Some(Refusal::Reserved),
                0xfe80..=0xfebf => Some(Refusal::LinkLocal),
                // Site-local: abolished, still routed by some.
                0xfec0..=0xfeff => Some(Refusal::Reserved),
                0xff00..=0xffff => Some(Refusal::Multicast),
                _ => None,
            }
        }
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, NAT64, 6to4, Teredo.
fn spelled_otherwise(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    let from = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => Some(from(high, low)),
        [0, 0, 0, 0, 0xffff, 0, high, low] => Some(from(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(from(high, low)),
        // A local NAT64 prefix can carry anything.
        [0x64, 0xff9b, 1, ..] => Some(Ipv4Addr::LOCALHOST),
        [0x2002, high, low, ..] => Some(from(high, low)),
        [0x2001, 0, .., high, low] => Some(from(!high, !low)),
        _ => None,
    }
}

impl Block {
    pub fn contains(&self, address: IpAddr) -> bool {
        let shift = |width: u8| u32::from(width.saturating_sub(self.prefix));
        match (self.address, address) {
            (IpAddr::V4(block), IpAddr::V4(address)) => {
                let differ = u32::from(block) ^ u32::from(address);
                differ.checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(block), IpAddr::V6(address)) => {
                let differ = u128::from(block) ^ u128::from(address);
                differ.checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// A block that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address block: write 10.0.0.0/8 or a single address")]
pub struct BadBlock {
    text: String,
}

impl FromStr for Block {
    type Err = BadBlock;

    fn from_str(text: &str) -> Result<Self, BadBlock> {
        let bad = || BadBlock { text: text.into() };
        let (address, prefix) = text.split_once('/').unzip();
        let address: IpAddr = address.unwrap_or(text).parse().map_err(|_bad| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(most), |prefix| prefix.parse().map_err(|_bad| bad()))?;
        if prefix > most {
            return Err(bad());
        }
        Ok(Self { address, prefix })
    }
}

impl FromStr for Destination {
    type Err = BadDestination;

    /// `host:port`, `[v6]:port`.
    fn from_str(text: &str) -> Result<Self, BadDestination> {
        let bad = || BadDestination { text: text.into() };
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let port = port.parse().map_err(|_bad| bad())?;
        if host.is_empty() || host.contains(['/', '@', ' ']) {
            return Err(bad());
        }
        Ok(Self {
            host: host.into(),
            port,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A destination that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a destination: write host:port")]
pub struct BadDestination {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(address: &str) -> Option<Refusal> {
        Policy::default().refuses(address.parse().expect("an address"))
    }

    #[test]
    fn every_spelling_of_a_forbidden_address_is_refused() {
        for (address, why) in [
            ("127.0.0.1", Refusal::Loopback),
            ("127.9.9.9", Refusal::Loopback),
            ("0.0.0.0", Refusal::Reserved),
            ("169.254.169.254", Refusal::Metadata),
            ("169.254.1.1", Refusal::LinkLocal),
            ("168.63.129.16", Refusal::Metadata),
            ("224.0.0.1", Refusal::Multicast),
            ("255.255.255.255", Refusal::Reserved),
            ("::1", Refusal::Loopback),
            ("::", Refusal::Reserved),
            ("fe80::1", Refusal::LinkLocal),
            ("ff02::1", Refusal::Multicast),
            ("::ffff:127.0.0.1", Refusal::Loopback),
            ("::ffff:169.254.169.254", Refusal::Metadata),
            ("::127.0.0.1", Refusal::Loopback),
            ("64:ff9b::a9fe:a9fe", Refusal::Metadata),
            ("2002:7f00:1::", Refusal::Loopback),
            ("2001:0:1:2:3:4:80ff:fffe", Refusal::Loopback),
            ("fd00:ec2::254", Refusal::Metadata),
        ] {
            assert_eq!(refusal(address), Some(why), "{address}");
        }
    }

    #[test]
    fn public_and_private_addresses_pass_unless_denied() {
        for address in ["192.0.2.1", "10.1.2.3", "151.101.2.132", "2a04:4e42::644"] {
            assert_eq!(refusal(address), None, "{address}");
        }
        let policy = Policy {
            deny: vec!["10.0.0.0/8".parse().expect("a block")],
            ..Policy::default()
        };
        let refuses = |address: &str| policy.refuses(address.parse().expect("an address"));
        assert_eq!(refuses("10.1.2.3"), Some(Refusal::Denied));
        assert_eq!(refuses("::ffff:10.1.2.3"), Some(Refusal::Denied));
        assert_eq!(refuses("11.1.2.3"), None);
    }

    #[test]
    fn an_exception_is_exact() {
        let policy = Policy {
            allow: vec!["Mirror.example:8080".parse().expect("a destination")],
            ..Policy::default()
        };
        let allows = |text: &str| policy.allows(&text.parse().expect("a destination"));
        assert!(allows("mirror.example:8080"));
        assert!(!allows("mirror.example:80"));
        assert!(!allows("other.mirror.example:8080"));
    }

    #[test]
    fn a_block_of_everything_and_of_one_work() {
        let all: Block = "0.0.0.0/0".parse().expect("a block");
        assert!(all.contains(IpAddr::V4(Ipv4Addr::new(1, 2, 3, 4))));
        let one: Block = "1.2.3.4".parse().expect("a block");
        assert!(!one.contains(IpAddr::V4(Ipv4Addr::new(1, 2, 3, 5))));
        assert!("1.2.3.4/33".parse::<Block>().is_err());
    }
}
