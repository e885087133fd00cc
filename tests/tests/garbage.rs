//! A member that is fed garbage on its port, as a stranger and as one who has the members' secret,
//! answers precisely or hangs up, and stays.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oast_proto::peer::v1::peer_client::PeerClient;
use oast_proto::peer::v1::{
    FetchHistoryRequest, FetchSnapshotRequest, Letterhead, LoggedCommand, ProposeRequest, RaftBatch,
};
use oast_proto::v1::{ListPeersRequest, Peer};
use oast_tests::api::call;
use oast_tests::farm::{Farm, Plan, START};
use oast_tests::need;
use oast_tests::wait::{seen, until};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

/// Connections of each kind.
const ROUNDS: u64 = 40;
/// How long a stranger's connection may take to be closed or answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = self.next() % most;
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_fed_garbage_on_its_port_stays_up() -> Result<()> {
    let Some(oast) = need::oast("a_member_fed_garbage_on_its_port_stays_up") else {
        return Ok(());
    };
    let farm = Plan::new(&oast).start().await?;
    let seed = 0x0a57;
    println!("seed {seed}");
    let mut random = Random(seed);
    let victim = farm.leader().await?;
    let other = victim as u64 % 3 + 1;
    let address = farm.members().swap_remove(victim - 1);

    // Bytes of no protocol, and of the right one for the first moment only.
    for round in 0..ROUNDS {
        let mut stream = TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let beginning: &[u8] = match round % 4 {
            0 => b"",
            1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            // And a frame that announces 16 MiB.
            2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\0\0\0\0\0\x01",
            _ => b"POST /oast.peer.v1.Peer/Deliver HTTP/1.1\r\n",
        };
        stream.write_all(beginning)?;
        // The member may hang up in the middle, which is an answer.
        let _ = stream.write_all(&random.bytes(4096));
        if round % 8 < 4 {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    well(&farm, victim).await?;
    // Until then nobody knows which data directory is which member, and a stamp is taken as told.
    let bound = until("the members are known", START, async || {
        let list = ListPeersRequest { from_leader: true };
        let peers = farm.api(victim)?.operator().list_peers(call(list)).await;
        let joined = |peers: &[Peer]| peers.len() == 3 && peers.iter().all(|peer| peer.joined);
        let known = peers
            .as_ref()
            .is_ok_and(|found| joined(&found.get_ref().peers));
        Ok(seen(known.then_some(()), format!("{peers:?}")))
    });
    farm.explain(bound.await)?;

    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    // Without the secret nobody is a peer, whatever is said.
    let stranger = deliver(&channel, None, vec![RaftBatch::default()]).await;
    ensure!(stranger == Code::Unauthenticated, "{stranger:?}");

    // With it, but a letter that is not from here.
    let peer = farm.token("peer").to_owned();
    let letters = [
        None,
        Some(letter("elsewhere", other, victim)),
        Some(letter("test", other, victim + 7)),
        Some(letter("test", other, victim)),
        // Nobody was ever member 99.
        Some(letter("test", 99, victim)),
    ];
    for letter in letters {
        let batch = RaftBatch {
            letter,
            messages: vec![random.bytes(64).into()],
            ..RaftBatch::default()
        };
        let refused = deliver(&channel, Some(&peer), vec![batch]).await;
        ensure!(
            matches!(refused, Code::FailedPrecondition | Code::InvalidArgument),
            "{refused:?}"
        );
    }
    for _ in 0..ROUNDS {
        let batches: Vec<RaftBatch> = (0..4)
            .map(|_| RaftBatch {
                letter: Some(letter("test", other, victim)),
                messages: (0..3).map(|_| random.bytes(300).into()).collect(),
                ..RaftBatch::default()
            })
            .collect();
        let answer = deliver(&channel, Some(&peer), batches).await;
        ensure!(answer != Code::Ok && answer != Code::Internal, "{answer:?}");
        let mut client = PeerClient::new(channel.clone());
        let command = LoggedCommand {
            kind: u32::try_from(random.next() % 40)?,
            body: random.bytes(300).into(),
        };
        let proposed = ProposeRequest {
            letter: Some(letter("test", other, victim)),
            command: Some(command),
        };
        let refused = client.propose(shown(proposed, &peer)?).await;
        let refused = refused.err().context("garbage was proposed")?;
        ensure!(
            matches!(
                refused.code(),
                Code::InvalidArgument | Code::FailedPrecondition
            ),
            "{refused:?}"
        );
        let snapshot = FetchSnapshotRequest {
            letter: Some(letter("test", other, victim)),
            index: random.next(),
            term: random.next(),
            length: random.next(),
            checksum: random.bytes(64).into(),
            offset: random.next(),
        };
        let answer = client.fetch_snapshot(shown(snapshot, &peer)?).await;
        if let Ok(answer) = answer {
            let piece = answer.into_inner().message().await;
            ensure!(piece.is_err(), "a file that nobody has: {piece:?}");
        }
        let history = FetchHistoryRequest {
            letter: Some(letter("test", other, victim)),
            first: random.next(),
            max_bytes: u64::MAX,
        };
        let _ = client.fetch_history(shown(history, &peer)?).await;
    }
    well(&farm, victim).await?;
    farm.finish().await
}

/// A letter with a stamp that nobody has.
fn letter(cluster: &str, from: u64, to: usize) -> Letterhead {
    Letterhead {
        cluster_id: cluster.to_owned(),
        from,
        to: to as u64,
        stamp: 0x0bad,
        ..Letterhead::default()
    }
}

fn shown<T>(message: T, token: &str) -> Result<Request<T>> {
    let mut request = call(message);
    let value = format!("Bearer {token}").parse()?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

async fn deliver(channel: &Channel, token: Option<&str>, batches: Vec<RaftBatch>) -> Code {
    let stream = tokio_stream::iter(batches);
    let request = match token {
        Some(token) => shown(stream, token).expect("a token is a header value"),
        None => call(stream),
    };
    let answer = PeerClient::new(channel.clone()).deliver(request).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// The member is the process that it was, and still takes part.
async fn well(farm: &Farm, member: usize) -> Result<()> {
    let life = farm.life(&format!("member-{member}"));
    ensure!(life.pid.is_some() && life.started == 1, "{life:?}");
    farm.everybody_answers().await?;
    let peers = farm
        .api(member)?
        .operator()
        .list_peers(call(ListPeersRequest::default()))
        .await?
        .into_inner();
    ensure!(peers.leader != 0, "{peers:?}");
    Ok(())
}
