//! The API over a real member: consensus, ledger and stores on a disk, calls over a real port.

mod changes;
mod group;
mod limits;
mod lists;
mod logs;
mod resources;
mod runs;
mod submit;
mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8Path;
use oast_artifacts::ArtifactStore;
use oast_daemon::clock::{SystemClock, timeout};
use oast_daemon::metrics::Metrics;
use oast_daemon::secret::Secret;
use oast_daemon::serve::{Limits, Port, Serving};
use oast_daemon::task::Tasks;
use oast_model::fleet::Observation;
use oast_model::ledger::{Answer, Command, Request};
use oast_model::names::FleetName;
use oast_model::principal::Principal;
use oast_model::schedule::Session;
use oast_proto::v1;
use oast_proto::v1::changes_client::ChangesClient;
use oast_proto::v1::fleets_client::FleetsClient;
use oast_proto::v1::images_client::ImagesClient;
use oast_proto::v1::operator_client::OperatorClient;
use oast_proto::v1::resources_client::ResourcesClient;
use oast_proto::v1::runs_client::RunsClient;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::sight::{LeaderSight, WorkerSight};
use super::{Parts, auth};
use crate::archive::Archive;
use crate::consensus::driver::{self, Running, Setup};
use crate::consensus::halt::Halt;
use crate::consensus::handle::Handle;
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::open::{Membership, StoreOptions};
use crate::consensus::options::Options;
use crate::consensus::replica::Role;
use crate::consensus::transport::grpc::PeerServer;
use crate::consensus::transport::memory::MemoryNetwork;
use crate::farm::Farm;
use crate::notary::Notary;
use crate::secrets::Secrets;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the farm's first administrator shows.
pub(crate) const ADMIN: &str = "oast_admin";
const WORKER: &str = "oast_worker";
const BOOTSTRAP: &str = "bootstrap secret";

/// A leader's memory that a test writes.
#[derive(Debug, Default)]
pub(crate) struct Eye {
    pub(crate) seen: Mutex<Option<Observation>>,
}

impl LeaderSight for Eye {
    fn workers(&self) -> Vec<WorkerSight> {
        Vec::new()
    }

    fn observation(&self, _fleet: &FleetName) -> Option<Observation> {
        self.seen.lock().unwrap().clone()
    }

    fn note(&self, _fleet: &FleetName) -> Option<String> {
        None
    }

    fn sessions(&self) -> Vec<Session> {
        Vec::new()
    }
}

/// One member with its port.
pub(crate) struct Member {
    pub(crate) farm: Farm,
    pub(crate) address: SocketAddr,
    pub(crate) artifacts: ArtifactStore,
    pub(crate) eye: Arc<Eye>,
    pub(crate) folder: tempfile::TempDir,
    channel: Channel,
    handle: Handle<LedgerMachine>,
    running: Option<Running>,
    shutdown: CancellationToken,
}

/// Puts a token into every call.
#[derive(Clone)]
pub(crate) struct Shown(String);

impl tonic::service::Interceptor for Shown {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if !self.0.is_empty() {
            let value = format!("Bearer {}", self.0).parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

type Authenticated = InterceptedService<Channel, Shown>;

impl Member {
    /// A member that leads, not initialised yet.
    pub(crate) async fn bare() -> Member {
        Member::group(1).await.remove(0)
    }

    /// Members that know a leader, not initialised yet.
    async fn group(count: u64) -> Vec<Member> {
        let network = MemoryNetwork::new(1);
        let ports: BTreeMap<u64, Port> = (1..=count)
            .map(|id| (id, Port::bind("127.0.0.1:0".parse().unwrap()).unwrap()))
            .collect();
        let peers: BTreeMap<u64, String> = ports
            .iter()
            .map(|(id, port)| (*id, port.address().to_string()))
            .collect();
        let mut members = Vec::new();
        for (id, port) in ports {
            members.push(Member::open(id, port, &peers, &network));
        }
        for member in &members {
            let mut status = member.handle.status();
            let led = status.wait_for(|status| {
                let own = status.leader == Some(status.member);
                status.leader.is_some() && (!own || status.role == Role::Leader)
            });
            let led = timeout(&SystemClock, PATIENCE, led).await;
            led.expect("somebody leads soon").unwrap();
        }
        members
    }

    fn open(
        id: u64,
        port: Port,
        peers: &BTreeMap<u64, String>,
        network: &Arc<MemoryNetwork<LedgerMachine>>,
    ) -> Member {
        let folder = tempfile::tempdir().unwrap();
        let clock = SystemClock::shared();
        let setup = Setup {
            directory: folder.path().join("member"),
            membership: Membership {
                cluster: "test".to_owned(),
                member: id,
                initial: peers.clone(),
                ..Membership::default()
            },
            options: Options {
                tick: Duration::from_millis(20),
                ..Options::default()
            },
            stores: StoreOptions::default(),
            clock: clock.clone(),
            halt: Halt::report(|reason| panic!("the member stopped: {reason}")),
        };
        let open = driver::open::<LedgerMachine>(setup).unwrap();
        let handle = open.handle();
        network.join(handle.clone());
        let running = open.start(network.clone()).unwrap();
        let shutdown = CancellationToken::new();
        let tasks = Tasks::new(clock.clone(), shutdown.clone());
        let farm = Farm::new(handle.clone(), "peers", clock.clone());
        let root = Utf8Path::from_path(folder.path()).unwrap();
        let artifacts = ArtifactStore::open(&root.join("store")).unwrap();
        let eye = Arc::new(Eye::default());
        let address = port.address();
        let router = super::router(Parts {
            farm: farm.clone(),
            archive: Archive::open(handle.clone(), &folder.path().join("index")).unwrap(),
            artifacts: artifacts.clone(),
            secrets: Secrets::open(&folder.path().join("secrets")).unwrap(),
            notary: Notary::open(None, &folder.path().join("secrets"), artifacts.clone()).unwrap(),
            sight: eye.clone(),
            tasks: tasks.clone(),
            peer_token: Secret::new(BOOTSTRAP.to_owned()),
            git_dir: folder.path().join("git"),
            identity: None,
            address: format!("http://{address}"),
        });
        let peer = tonic::service::Routes::new(PeerServer::service(handle.clone()));
        let router = router.merge(peer.into_axum_router().reset_fallback());
        let serving = Serving {
            limits: Limits::default(),
            clock,
            tasks,
            metrics: Metrics::new(),
        };
        let _accept = port.serve(router, &serving).unwrap();
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        Member {
            farm,
            address,
            artifacts,
            eye,
            channel: channel.connect_lazy(),
            folder,
            handle,
            running: Some(running),
            shutdown,
        }
    }

    /// A farm of several members with the team `payments` and the repository `web`: the leader,
    /// then the others.
    async fn farm_of(count: u64) -> Vec<Member> {
        let mut members = Member::group(count).await;
        members.sort_by_key(|member| member.farm.leading().is_none());
        members[0].init(BOOTSTRAP).await.unwrap();
        members[0].apply(TEAM).await.unwrap();
        members[0].apply(REPOSITORY).await.unwrap();
        members
    }

    /// A farm with the team `payments` and the repository `web`.
    pub(crate) async fn start() -> Member {
        let member = Member::bare().await;
        member.init(BOOTSTRAP).await.unwrap();
        member.apply(TEAM).await.unwrap();
        member.apply(REPOSITORY).await.unwrap();
        member
    }

    async fn init(&self, bootstrap: &str) -> Result<v1::Identity, Status> {
        let asked = v1::InitFarmRequest {
            name: "test".into(),
            bootstrap: bootstrap.into(),
            admin_hash: auth::hash(ADMIN),
            worker_hash: auth::hash(WORKER),
        };
        let answer = self.operator("").init_farm(asked).await?;
        Ok(answer.into_inner())
    }

    pub(crate) async fn apply(&self, document: &str) -> Result<v1::ApplyResourceResponse, Status> {
        self.apply_as(ADMIN, document, -1, false).await
    }

    async fn apply_as(
        &self,
        token: &str,
        document: &str,
        expected_revision: i64,
        validate_only: bool,
    ) -> Result<v1::ApplyResourceResponse, Status> {
        let asked = v1::ApplyResourceRequest {
            document: document.into(),
            expected_revision,
            validate_only,
            ..v1::ApplyResourceRequest::default()
        };
        let answer = self.resources(token).apply_resource(asked).await?;
        Ok(answer.into_inner())
    }

    /// A new token's value.
    async fn token(&self, name: &str, role: &str, team: &str) -> String {
        let asked = v1::CreateTokenRequest {
            name: name.into(),
            role: role.into(),
            team: team.into(),
            ..v1::CreateTokenRequest::default()
        };
        let answer = self.operator(ADMIN).create_token(asked).await.unwrap();
        answer.into_inner().token
    }

    /// Writes as the leader.
    pub(crate) async fn lead(&self, command: Command) -> Answer {
        let request = Request {
            principal: Principal::farm(),
            request_id: None,
            command,
        };
        self.farm.write(&request).await.unwrap().answer
    }

    /// Sets a secret of `payments`.
    pub(crate) async fn secret(&self, name: &str, value: &[u8]) {
        let asked = v1::SetSecretRequest {
            team: "payments".into(),
            name: name.into(),
            value: value.to_vec().into(),
            ..v1::SetSecretRequest::default()
        };
        self.resources(ADMIN).set_secret(asked).await.unwrap();
    }

    /// Lets the poller see a commit on `main`.
    pub(crate) async fn see(&self, commit: char) -> Answer {
        let commit = commit.to_string().repeat(40);
        let refs = [("main".to_owned(), commit)].into();
        let repository = "web".parse().unwrap();
        self.lead(Command::ObserveRefs { repository, refs }).await
    }

    pub(crate) fn runs(&self, token: &str) -> RunsClient<Authenticated> {
        RunsClient::with_interceptor(self.channel.clone(), Shown(token.into()))
    }

    fn resources(&self, token: &str) -> ResourcesClient<Authenticated> {
        ResourcesClient::with_interceptor(self.channel.clone(), Shown(token.into()))
    }

    fn operator(&self, token: &str) -> OperatorClient<Authenticated> {
        OperatorClient::with_interceptor(self.channel.clone(), Shown(token.into()))
    }

    fn images(&self, token: &str) -> ImagesClient<Authenticated> {
        ImagesClient::with_interceptor(self.channel.clone(), Shown(token.into()))
    }

    fn changes(&self, token: &str) -> ChangesClient<Authenticated> {
        ChangesClient::with_interceptor(self.channel.clone(), Shown(token.into()))
    }

    /// A stored tree that can be run.
    fn tree(&self, text: &str) -> String {
        let file = oast_artifacts::SourceFile {
            path: "oast.yaml".into(),
            source: oast_artifacts::FileSource::Bytes {
                bytes: text.as_bytes().to_vec(),
                executable: false,
            },
        };
        self.artifacts
            .put_files(vec![file])
            .unwrap()
            .blob
            .to_string()
    }

    /// Stops at once, as a process that is killed.
    fn kill(&mut self) {
        self.shutdown.cancel();
        self.handle.stop();
        if let Some(running) = self.running.take() {
            running.join();
        }
    }

    fn fleets(&self, token: &str) -> FleetsClient<Authenticated> {
        FleetsClient::with_interceptor(self.channel.clone(), Shown(token.into()))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) const TEAM: &str =
    "apiVersion: oast/v1\nkind: Team\nname: payments\nspec: { description: pays }\n";
pub(crate) const REPOSITORY: &str = "apiVersion: oast/v1\nkind: Repository\nname: web\nspec: { team: payments, url: 'https://git.invalid/web.git', branches: [main, 'release/*'], webhookSecret: { secret: hook } }\n";
pub(crate) const FLEET: &str = "apiVersion: oast/v1\nkind: Fleet\nname: web-prod\nspec:\n  team: payments\n  provider: local\n  sets: [ { name: a, count: 3 } ]\n  listen: 127.0.0.1:8080\n  serve: { port: 80 }\n  health: { http: { port: 80 } }\n  channel: { image: web, channel: candidate }\n";

/// The code and the stable reason of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.expect_err("this must be refused");
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone());
    (status.code(), reason.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_begins_once_and_only_with_the_bootstrap_secret() {
    let member = Member::bare().await;
    let who = v1::WhoAmIRequest {};
    assert_eq!(
        refusal(member.operator(ADMIN).who_am_i(who).await).0,
        Code::Unauthenticated
    );
    assert_eq!(
        refusal(member.init("guess").await),
        (Code::PermissionDenied, "BOOTSTRAP".into())
    );
    let admin = member.init(BOOTSTRAP).await.unwrap();
    assert_eq!(
        (admin.role.as_str(), admin.farm.as_str()),
        ("admin", "test")
    );
    // A repeat with the same values is the same farm, another name is not.
    member.init(BOOTSTRAP).await.unwrap();
    let asked = v1::InitFarmRequest {
        name: "other".into(),
        bootstrap: BOOTSTRAP.into(),
        admin_hash: auth::hash("x"),
        worker_hash: auth::hash("y"),
    };
    assert_eq!(
        refusal(member.operator("").init_farm(asked).await),
        (Code::FailedPrecondition, "WRONG_STATE".into())
    );
    let identity = member.operator(ADMIN).who_am_i(v1::WhoAmIRequest {}).await;
    assert_eq!(identity.unwrap().into_inner().name, "admin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_what_its_role_and_team_allow_and_nothing_after_it_is_revoked() {
    let member = Member::start().await;
    member
        .apply("apiVersion: oast/v1\nkind: Team\nname: ads\nspec: {}\n")
        .await
        .unwrap();
    member.see('a').await;
    let viewer = member.token("vera", "viewer", "payments").await;
    let operator = member.token("olga", "operator", "payments").await;
    let foreign = member.token("fred", "operator", "ads").await;
    let submit = || v1::SubmitRunRequest {
        repository: "web".into(),
        branch: "main".into(),
        ..v1::SubmitRunRequest::default()
    };
    let denied = (Code::PermissionDenied, "DENIED".to_owned());
    let missing = (Code::NotFound, "NOT_FOUND".to_owned());
    assert_eq!(
        refusal(member.runs(&viewer).submit_run(submit()).await),
        denied
    );
    // What belongs to another team does not even exist.
    assert_eq!(
        refusal(member.runs(&foreign).submit_run(submit()).await),
        missing
    );
    assert_eq!(
        refusal(member.runs(WORKER).submit_run(submit()).await),
        denied
    );
    let run = member.runs(&operator).submit_run(submit()).await.unwrap();
    let run = run.into_inner().id;
    let asked = v1::GetRunRequest { run };
    assert!(member.runs(&viewer).get_run(asked.clone()).await.is_ok());
    assert_eq!(refusal(member.runs(&foreign).get_run(asked).await), missing);
    let list = v1::ListRunsRequest::default();
    let seen = member.runs(&foreign).list_runs(list).await.unwrap();
    assert!(seen.into_inner().runs.is_empty());
    let secret = v1::SetSecretRequest {
        team: "payments".into(),
        name: "hook".into(),
        value: b"x".to_vec().into(),
        ..v1::SetSecretRequest::default()
    };
    assert_eq!(
        refusal(member.resources(&operator).set_secret(secret).await),
        denied
    );
    assert!(!member.folder.path().join("secrets/payments/hook").exists());

    let revoke = v1::RevokeTokenRequest {
        name: "vera".into(),
    };
    member.operator(ADMIN).revoke_token(revoke).await.unwrap();
    let who = member
        .operator(&viewer)
        .who_am_i(v1::WhoAmIRequest {})
        .await;
    assert_eq!(refusal(who).0, Code::Unauthenticated);
}

/// One HTTP/1.1 request; the answer's status and its text, for pages with the head.
pub(crate) async fn http(
    member: &Member,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    use std::fmt::Write as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        let _ = write!(head, "host: {}\r\n", member.address);
    }
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = write!(head, "content-length: {}\r\n\r\n{body}", body.len());
    let mut stream = tokio::net::TcpStream::connect(member.address)
        .await
        .unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    // Small plain answers are compared whole.
    let text = if method == "GET" {
        format!("{head}\n{body}")
    } else {
        body.to_owned()
    };
    (code, text)
}
