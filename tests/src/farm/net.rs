//! Networks of their own for a farm's members, so that single directions between them can be cut.
//!
//! ```text
//! the test, workers            member 1           member 2           member 3
//!   10.213.N.2 ---.         10.213.N.6 ---.    10.213.N.10 --.    10.213.N.14
//!                 '-----------------------'-- hub ------------'----------'
//! ```
//!
//! Each member lives in a network namespace; the hub, one more, forwards between them and drops
//! what goes from one address to another one that is cut off from it, in one direction, without a
//! word. Members without TLS listen on loopback only, so what arrives for them goes there. All of it
//! belongs to processes of the farm and ends with them. Needs root, `ip` and `nft`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oast_daemon::isolate::ChildSpec;

use super::{Farm, START};
use crate::wait::{Seen, seen, until};

/// The process that holds the namespaces.
const NAME: &str = "network";
/// Where it writes what it made.
const MADE: &str = "network";
/// Ports of a block; tells farms of one machine apart.
const BLOCK: u16 = 700;

/// Makes everything; `$1` is the network, `$2` a name for the link, `$3` how many members there are,
/// `$4` where to write the numbers of the processes that hold the hub and the members.
const SCRIPT: &str = r#"
set -e
net=$1 link=$2 members=$3 made=$4
at() { space=$1; shift; nsenter --target "$space" --net -- "$@"; }
own=$(readlink /proc/self/ns/net)
space() {
    unshare --net sleep infinity &
    pid=$!
    until [ "$(cat /proc/$pid/comm)" = sleep ] && [ "$(readlink /proc/$pid/ns/net)" != "$own" ]; do :; done
}
space; hub=$pid pids=$pid
ip link add "$link" type veth peer name out netns $hub
ip address add $net.2/30 dev "$link"
ip link set "$link" up
at $hub ip address add $net.1/30 dev out
at $hub ip link set out up
ip route add $net.0/24 via $net.1
at $hub sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
at $hub nft -f - <<EOF
table ip way {
    set cut { type ipv4_addr . ipv4_addr; }
    chain forward {
        type filter hook forward priority 0;
        ip saddr . ip daddr @cut drop
    }
}
EOF
for member in $(seq $members); do
    space; pids="$pids $pid"
    near=$net.$((4 * member + 1)) far=$net.$((4 * member + 2))
    at $hub ip link add m$member type veth peer name out netns $pid
    at $hub ip address add $near/30 dev m$member
    at $hub ip link set m$member up
    at $pid ip link set lo up
    at $pid ip address add $far/30 dev out
    at $pid ip link set out up
    at $pid ip route add default via $near
    at $pid sh -c 'echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet'
    at $pid nft -f - <<EOF
table ip people {
    chain arrived {
        type nat hook prerouting priority -100;
        ip daddr $far dnat to 127.0.0.1
    }
}
EOF
done
echo $pids > "$made.draft"
mv "$made.draft" "$made"
wait
"#;

/// The networks of a farm.
#[derive(Clone, Debug)]
pub(super) struct Net {
    prefix: String,
    /// The hub, then the members.
    pids: Vec<String>,
}

impl Net {
    pub(super) fn prefix(base: u16) -> String {
        format!("10.213.{}", base / BLOCK)
    }

    /// Makes the networks of a farm whose init runs.
    pub(super) async fn make(farm: &Farm) -> Result<Net> {
        let prefix = Net::prefix(farm.ports.base());
        let made = farm.folder().join(MADE);
        let script = ["/bin/sh", "-c", SCRIPT, "sh"].map(str::to_owned);
        let arguments = [
            prefix.clone(),
            // An interface's name is short.
            format!("oast{}", farm.ports.base()),
            farm.plan.members.to_string(),
            made.display().to_string(),
        ];
        farm.init.spawn(ChildSpec {
            name: NAME.to_owned(),
            argv: script.into_iter().chain(arguments).collect(),
            env: environment(),
            log: farm.log_path(NAME),
        })?;
        let pids = until("the members' networks", START, async || {
            let life = farm.life(NAME);
            if life.started > 0 && life.pid.is_none() {
                return Ok(Seen::Never(farm.log(NAME)));
            }
            let text = fs::read_to_string(&made)?;
            Ok(Seen::This(
                text.split_whitespace().map(str::to_owned).collect(),
            ))
        });
        Ok(Net {
            prefix,
            pids: pids.await?,
        })
    }

    /// Address of a member (from 1), or of everybody outside (0).
    pub(super) fn address(&self, place: usize) -> String {
        format!("{}.{}", self.prefix, 4 * place + 2)
    }

    /// What starts a program in a member's network.
    pub(super) fn inside(&self, member: usize) -> Result<[String; 6]> {
        let pid = self.pids.get(member).context("no such member")?;
        Ok(["/usr/bin/env", "nsenter", "--target", pid, "--net", "--"].map(str::to_owned))
    }
}

fn environment() -> std::collections::BTreeMap<String, String> {
    let path = std::env::var("PATH").unwrap_or_default();
    [("PATH".to_owned(), format!("{path}:/usr/sbin:/sbin"))].into()
}

impl Farm {
    /// From now on nothing gets from the first to the second of each pair: members from 1, and 0 for
    /// the test and the workers.
    ///
    /// # Errors
    /// The farm has no networks, or they are gone.
    pub async fn cut(&self, pairs: &[(usize, usize)]) -> Result<()> {
        let net = self.net.as_ref().context("this farm has no networks")?;
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(from, to)| format!("{} . {}", net.address(*from), net.address(*to)))
            .collect();
        let order = format!("add element ip way cut {{ {} }}", pairs.join(", "));
        self.nft(net, order).await
    }

    /// Everything gets through again.
    ///
    /// # Errors
    /// As [`Farm::cut`].
    pub async fn mend(&self) -> Result<()> {
        let net = self.net.as_ref().context("this farm has no networks")?;
        self.nft(net, "flush set ip way cut".to_owned()).await
    }

    async fn nft(&self, net: &Net, order: String) -> Result<()> {
        const NFT: &str = "nft";
        let before = self.life(NFT).started;
        let argv = net.inside(0)?.into_iter().chain([NFT.to_owned(), order]);
        self.init.spawn(ChildSpec {
            name: NFT.to_owned(),
            argv: argv.collect(),
            env: environment(),
            log: self.log_path(NFT),
        })?;
        let ended = until("nft has ended", Duration::from_secs(10), async || {
            let life = self.life(NFT);
            let ended = life.started > before && life.pid.is_none();
            Ok(seen(ended.then_some(life), format!("{life:?}")))
        });
        let life = ended.await?;
        ensure!(life.code == Some(0), "{}", self.log(NFT));
        Ok(())
    }
}
