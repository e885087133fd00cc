//! Smart HTTP: `git clone` and `git push` against any member.
//!
//! The protocol is git's own: this runs `git upload-pack` and `git receive-pack` without state
//! and carries bytes. Who may do what is decided before git is started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use bytes::Bytes;
use flate2::write::GzDecoder;
use futures_util::StreamExt;
use oast_daemon::task::{TaskKind, Tasks};
use oast_model::digest::Digest;
use oast_model::names::RepositoryName;
use oast_model::principal::{Principal, Verb, authorize};
use oast_model::resource::Repository;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdin;
use tracing::{info, warn};

use super::process::{GitError, git, output, parse_heads};
use super::{hosted_name, observe};
use crate::farm::Farm;

/// Largest request body of a push, compressed or not.
const PUSH_MAX: u64 = 2 << 30;
/// Largest answer of a push: a report with a line for each branch.
const REPORT_MAX: u64 = 1 << 20;
/// Bytes that are read from git at once.
const PIECE: usize = 64 << 10;
/// Pieces that may wait for a slow client.
const PIECES: usize = 8;

/// What hosting needs.
#[derive(Clone, Debug)]
pub struct Host {
    /// The group.
    pub farm: Farm,
    /// Bare repositories, shared by the members.
    pub folder: PathBuf,
    /// Where answers are pumped.
    pub tasks: Tasks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Upload,
    Receive,
}

impl Service {
    fn parse(name: &str) -> Option<Service> {
        match name {
            "git-upload-pack" => Some(Service::Upload),
            "git-receive-pack" => Some(Service::Receive),
            _ => None,
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Service::Upload => "upload-pack",
            Service::Receive => "receive-pack",
        }
    }

    fn needs(self) -> Verb {
        match self {
            Service::Upload => Verb::View,
            Service::Receive => Verb::Run,
        }
    }
}

/// The routes under `/git`.
pub fn routes(host: Host) -> Router {
    Router::new()
        .route("/git/{repository}/info/refs", get(advertise))
        .route("/git/{repository}/{service}", post(exchange))
        .with_state(host)
}

/// The branches of a repository that the farm serves; none before its first push.
///
/// # Errors
/// [`GitError`].
pub async fn heads(folder: &Path, name: &str) -> Result<BTreeMap<String, String>, GitError> {
    let place = place(folder, name);
    if !place.join("HEAD").exists() {
        return Ok(BTreeMap::new());
    }
    let mut command = git(folder);
    command.arg("--git-dir").arg(&place);
    let lines = output(
        command,
        [
            "for-each-ref",
            "--format=%(objectname) %(refname)",
            "refs/heads",
        ],
    )
    .await?;
    Ok(parse_heads(&lines))
}

fn place(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.git"))
}

/// A refusal as git shows it.
fn refuse(status: StatusCode, text: impl Into<String>) -> Response {
    let mut response = (status, text.into() + "\n").into_response();
    if status == StatusCode::UNAUTHORIZED {
        let realm = HeaderValue::from_static("Basic realm=\"oast\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, realm);
    }
    response
}

#[derive(Deserialize)]
struct Wanted {
    service: Option<String>,
}

struct Admitted {
    name: RepositoryName,
    repository: Repository,
    place: PathBuf,
}

impl Host {
    /// Finds the repository, checks who asks, and makes the folder before the first use.
    async fn admit(
        &self,
        path: &str,
        service: Service,
        headers: &HeaderMap,
    ) -> Result<Admitted, Response> {
        let view = self
            .farm
            .read()
            .await
            .map_err(|err| refuse(StatusCode::SERVICE_UNAVAILABLE, err.to_string()))?;
        let token = token(headers).ok_or_else(|| {
            refuse(
                StatusCode::UNAUTHORIZED,
                "a token is needed: any user name, the token as password",
            )
        })?;
        let principal: Principal = view
            .token(&Digest::of(token.as_bytes()).to_string())
            .map(|known| known.principal.clone())
            .ok_or_else(|| refuse(StatusCode::UNAUTHORIZED, "this token is not known here"))?;
        let wanted = path.strip_suffix(".git").unwrap_or(path);
        let found = view
            .repositories()
            .iter()
            .find(|(_, record)| hosted_name(&record.spec) == Some(wanted))
            .map(|(name, record)| (name.clone(), record.spec.clone()));
        let Some((name, repository)) = found else {
            let text = format!(
                "no repository `{wanted}` is served here: make a resource of kind Repository with `url: farm:{wanted}` and `oast apply` it"
            );
            return Err(refuse(StatusCode::NOT_FOUND, text));
        };
        authorize(&principal, service.needs(), Some(&repository.team))
            .map_err(|denied| refuse(StatusCode::FORBIDDEN, denied.to_string()))?;
        let place = place(&self.folder, wanted);
        if !place.join("HEAD").exists() {
            self.make(&place).await.map_err(|err| {
                warn!(repository = %name, error = %err, "A repository could not be made.");
                refuse(StatusCode::INTERNAL_SERVER_ERROR, err.to_string())
            })?;
        }
        Ok(Admitted {
            name,
            repository,
            place,
        })
    }

    /// Safe when two members do it at once: git keeps what is there.
    async fn make(&self, place: &Path) -> Result<(), GitError> {
        std::fs::create_dir_all(&self.folder).map_err(GitError::Start)?;
        let command = git(&self.folder);
        let path = place.as_os_str();
        let arguments = [
            "init",
            "--quiet",
            "--bare",
            "--initial-branch=main",
            "--shared=0600",
        ];
        let arguments = arguments
            .map(std::ffi::OsStr::new)
            .into_iter()
            .chain([path]);
        output(command, arguments).await.map(drop)
    }

    /// Tells the ledger what a push moved. Never fails the push: it is received.
    async fn tell(&self, admitted: &Admitted) {
        let hosted = hosted_name(&admitted.repository).unwrap_or_default();
        let told = match heads(&self.folder, hosted).await {
            Ok(refs) => observe(&self.farm, &admitted.name, &admitted.repository, refs).await,
            Err(error) => {
                warn!(repository = %admitted.name, %error, "A push could not be looked at.");
                return;
            }
        };
        match told {
            Ok(runs) => {
                for run in runs {
                    info!(repository = %admitted.name, run_id = %run, "A push started a run.");
                }
            }
            // The poller sees it within its interval.
            Err(error) => warn!(repository = %admitted.name, %error, "A push was not told yet."),
        }
    }
}

async fn advertise(
    State(host): State<Host>,
    UrlPath(path): UrlPath<String>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Response {
    let Some(service) = wanted.service.as_deref().and_then(Service::parse) else {
        return refuse(
            StatusCode::FORBIDDEN,
            "only git's smart protocol is spoken here",
        );
    };
    let admitted = match host.admit(&path, service, &headers).await {
        Ok(admitted) => admitted,
        Err(refused) => return refused,
    };
    let mut command = git(&host.folder);
    if let Some(protocol) = protocol(&headers) {
        command.env("GIT_PROTOCOL", protocol);
    }
    let arguments = [service.verb(), "--stateless-rpc", "--advertise-refs"];
    let arguments = arguments
        .map(std::ffi::OsStr::new)
        .into_iter()
        .chain([admitted.place.as_os_str()]);
    match output(command, arguments).await {
        Ok(refs) => {
            let line = format!("# service=git-{}\n", service.verb());
            let mut body = format!("{:04x}{line}0000", line.len() + 4).into_bytes();
            body.extend_from_slice(&refs);
            let kind = format!("application/x-git-{}-advertisement", service.verb());
            (
                [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache".into())],
                body,
            )
                .into_response()
        }
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn exchange(
    State(host): State<Host>,
    UrlPath((path, service)): UrlPath<(String, String)>,
    request: Request,
) -> Response {
    let Some(service) = Service::parse(&service) else {
        return refuse(StatusCode::NOT_FOUND, "git knows no such service");
    };
    let admitted = match host.admit(&path, service, request.headers()).await {
        Ok(admitted) => admitted,
        Err(refused) => return refused,
    };
    let headers = request.headers().clone();
    let mut command = git(&host.folder);
    if let Some(protocol) = protocol(&headers) {
        command.env("GIT_PROTOCOL", protocol);
    }
    command
        .arg(service.verb())
        .arg("--stateless-rpc")
        .arg(&admitted.place)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(err) => {
            return refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                GitError::Start(err).to_string(),
            );
        }
    };
    let (Some(stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "git has no pipes");
    };
    let compressed = headers
        .get(CONTENT_ENCODING)
        .is_some_and(|encoding| encoding.as_bytes() == b"gzip");
    // Git reads all of a request before it answers, but its pipe is small: feed beside reading.
    host.tasks
        .spawn("git-request", TaskKind::BACKGROUND, async move {
            if let Err(error) = feed(request.into_body(), stdin, compressed).await {
                warn!(%error, "A git request ended early.");
            }
        });
    let kind = format!("application/x-git-{}-result", service.verb());
    let head = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache".into())];
    if service == Service::Receive {
        // The run is started before the pusher is told that the push arrived.
        let mut report = Vec::new();
        let read = stdout.take(REPORT_MAX).read_to_end(&mut report).await;
        let ended = child.wait().await;
        if read.is_err() || ended.is_err() {
            return refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "git ended without a report",
            );
        }
        host.tell(&admitted).await;
        return (head, report).into_response();
    }
    let (pieces, body) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(PIECES);
    host.tasks
        .spawn("git-answer", TaskKind::BACKGROUND, async move {
            loop {
                let mut piece = bytes::BytesMut::with_capacity(PIECE);
                let read = stdout.read_buf(&mut piece).await;
                let last = !matches!(read, Ok(read) if read > 0);
                let next = match read {
                    Ok(0) => break,
                    Ok(_) => Ok(piece.freeze()),
                    Err(err) => Err(err),
                };
                if pieces.send(next).await.is_err() || last {
                    break;
                }
            }
            // Reaped here; a client that left ends it by the closed pipe.
            let _ = child.wait().await;
        });
    let stream = tokio_stream::wrappers::ReceiverStream::new(body);
    (head, Body::from_stream(stream)).into_response()
}

/// Gives git the request's body, unpacked, and closes its input.
async fn feed(body: Body, mut stdin: ChildStdin, compressed: bool) -> Result<(), String> {
    let mut stream = body.into_data_stream();
    let mut total = 0_u64;
    let mut unpacker = GzDecoder::new(Vec::new());
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|err| err.to_string())?;
        let piece = if compressed {
            std::io::Write::write_all(&mut unpacker, &piece).map_err(|err| err.to_string())?;
            Bytes::from(std::mem::take(unpacker.get_mut()))
        } else {
            piece
        };
        total += piece.len() as u64;
        if total > PUSH_MAX {
            return Err(format!("more than {PUSH_MAX} bytes"));
        }
        stdin
            .write_all(&piece)
            .await
            .map_err(|err| err.to_string())?;
    }
    if compressed {
        let rest = unpacker.finish().map_err(|err| err.to_string())?;
        stdin
            .write_all(&rest)
            .await
            .map_err(|err| err.to_string())?;
    }
    stdin.shutdown().await.map_err(|err| err.to_string())
}

/// Only what git itself would accept as a protocol.
fn protocol(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("git-protocol")?.to_str().ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '=' | ':' | '.' | '-');
    (text.len() < 100 && text.chars().all(plain)).then(|| text.to_owned())
}

/// The token of a Bearer header, or the password of a Basic one.
fn token(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
    if let Some(token) = text.strip_prefix("Bearer ") {
        return Some(token.to_owned());
    }
    let encoded = text.strip_prefix("Basic ")?;
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .ok()?;
    let pair = String::from_utf8(decoded).ok()?;
    Some(pair.split_once(':')?.1.to_owned())
}
