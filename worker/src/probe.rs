//! Asking a page and judging the answer: what gates do before a batch takes traffic and while it
//! soaks.
//!
//! Each question is a connection of its own, so that it is answered by what runs now and not by
//! what was connected to before. No retries here: the caller knows what a repeat would mean.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use oast_daemon::clock::{Clock, timeout};
use oast_daemon::telemetry::chain;
use oast_model::fleet::{GateOutcome, GateReading};
use oast_model::names::InstanceName;
use oast_model::pipeline::{HttpCheck, PrometheusGate};
use tokio::net::TcpStream;

/// A page longer than this is cut: a gate's text must stand in its first part.
const BODY_MAX: usize = 1 << 20;
/// Time a metrics server may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its status.
    pub status: u16,
    /// Its body, at most [`BODY_MAX`] bytes.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoPage {
    /// Nobody listens, or not there.
    #[error("connect to {address}")]
    Connect {
        /// Where.
        address: SocketAddr,
        #[source]
        err: std::io::Error,
    },
    /// It is no address or path of HTTP.
    #[error("ask for {path}")]
    Request {
        /// What.
        path: String,
        #[source]
        err: http::Error,
    },
    /// The connection broke, or the answer is no HTTP.
    #[error("ask {address} for {path}")]
    Answer {
        /// Whom.
        address: SocketAddr,
        /// What.
        path: String,
        #[source]
        err: hyper::Error,
    },
    /// The body is too long or broke off.
    #[error("read the answer of {address}: {reason}")]
    Body {
        /// Whose.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// It took too long.
    #[error("no answer from {address} within {limit:?}")]
    Late {
        /// From whom.
        address: SocketAddr,
        /// How long it could have taken.
        limit: Duration,
    },
}

/// Asks `address` for `path`.
pub async fn get(
    clock: &dyn Clock,
    address: SocketAddr,
    host: &str,
    path: &str,
    limit: Duration,
) -> Result<Page, NoPage> {
    match timeout(clock, limit, fetch(address, host, path)).await {
        Ok(done) => done,
        Err(_) => Err(NoPage::Late { address, limit }),
    }
}

async fn fetch(address: SocketAddr, host: &str, path: &str) -> Result<Page, NoPage> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|err| NoPage::Connect { address, err })?;
    let answer = |err| NoPage::Answer {
        address,
        path: path.to_owned(),
        err,
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(answer)?;
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, "oast-gate")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|err| NoPage::Request {
            path: path.to_owned(),
            err,
        })?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(answer)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BODY_MAX)
            .collect()
            .await
            .map_err(|err| NoPage::Body {
                address,
                reason: err.to_string(),
            })?;
        Ok(Page {
            status,
            body: body.to_bytes(),
        })
    };
    tokio::pin!(connection);
    tokio::pin!(asking);
    let mut connected = true;
    loop {
        // The connection makes progress only while it is polled; both end here.
        tokio::select! {
            page = &mut asking => return page,
            ended = &mut connection, if connected => {
                connected = false;
                if let Err(err) = ended {
                    return Err(answer(err));
                }
            }
        }
    }
}

/// The instance that a gate is read for.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name.
    pub name: InstanceName,
    /// Where it answers without the balancer.
    pub direct: Option<SocketAddr>,
    /// The port that the fleet serves and that `direct` leads to.
    pub port: u16,
}

/// Reads a gate that asks a page.
pub async fn http_gate(
    clock: &dyn Clock,
    gate: u16,
    check: &HttpCheck,
    subject: &Subject,
) -> GateReading {
    let (outcome, measured) = judge(clock, check, subject).await;
    GateReading {
        gate,
        instance: Some(subject.name.clone()),
        outcome,
        measured: format!("{} GET {}: {measured}", subject.name, check.path),
    }
}

async fn judge(clock: &dyn Clock, check: &HttpCheck, subject: &Subject) -> (GateOutcome, String) {
    let Some(direct) = subject.direct else {
        return (GateOutcome::Unknown, "it has no address yet".to_owned());
    };
    if let Some(port) = check.port
        && port != subject.port
    {
        return (
            GateOutcome::Unknown,
            format!(
                "port {port} of an instance cannot be reached, only the served port {}",
                subject.port
            ),
        );
    }
    let limit = check.timeout.duration();
    match get(clock, direct, subject.name.as_str(), &check.path, limit).await {
        Err(err) => (GateOutcome::Unknown, chain(&err).to_string()),
        Ok(page) if page.status != check.status => (
            GateOutcome::Shut,
            format!("status {} instead of {}", page.status, check.status),
        ),
        Ok(page) => match &check.contains {
            Some(text) if !contains(&page.body, text.as_bytes()) => (
                GateOutcome::Shut,
                format!("status {} without the text {text:?}", page.status),
            ),
            _ => (GateOutcome::Open, format!("status {}", page.status)),
        },
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|window| window == text)
}

/// What a metrics server answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Measured {
    /// One value.
    Value(f64),
    /// No value, several, or no answer.
    Nothing(String),
}

/// Asks the server at `url` (http only, as a farm's own server is near) for one value.
pub async fn query(clock: &dyn Clock, url: &str, query: &str) -> Measured {
    let nothing = |reason: String| Measured::Nothing(reason);
    let Some((authority, folder)) = split(url) else {
        return nothing(format!("{url} is no http:// address"));
    };
    let with_port = if authority.contains(':') {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    let address = match tokio::net::lookup_host(&with_port)
        .await
        .map(|mut all| all.next())
    {
        Ok(Some(address)) => address,
        Ok(None) => return nothing(format!("{authority} has no address")),
        Err(err) => return nothing(format!("look up {authority}: {err}")),
    };
    let path = format!("{folder}/api/v1/query?query={}", encoded(query));
    match get(clock, address, authority, &path, QUERY_TIMEOUT).await {
        Err(err) => nothing(chain(&err).to_string()),
        Ok(page) => value_of(&page),
    }
}

fn split(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("http://")?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, folder) = rest.split_at(at);
    (!authority.is_empty()).then(|| (authority, folder.trim_end_matches('/')))
}

fn encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn value_of(page: &Page) -> Measured {
    let nothing = |reason: &str| Measured::Nothing(format!("status {}: {reason}", page.status));
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&page.body) else {
        return nothing("the answer is no JSON");
    };
    let data = &answer["data"];
    let sample = match (data["resultType"].as_str(), &data["result"]) {
        (Some("scalar"), sample) => sample,
        (Some("vector"), samples) => match samples.as_array().map(Vec::as_slice) {
            Some([one]) => &one["value"],
            Some([]) => return nothing("the query has no value"),
            Some(several) => {
                return nothing(&format!("the query has {} values, not one", several.len()));
            }
            None => return nothing("the answer has no values"),
        },
        _ => {
            return nothing(
                answer["error"]
                    .as_str()
                    .unwrap_or("no scalar and no vector"),
            );
        }
    };
    match sample[1].as_str().and_then(|text| text.parse::<f64>().ok()) {
        Some(value) if !value.is_nan() => Measured::Value(value),
        _ => nothing("the value is no number"),
    }
}

/// Whether a value is within a gate's limits, in words.
pub fn within(gate: &PrometheusGate, value: f64) -> (bool, String) {
    let too_low = gate.min.as_ref().is_some_and(|min| value < min.value());
    let too_high = gate.max.as_ref().is_some_and(|max| value > max.value());
    let limits = [("min", &gate.min), ("max", &gate.max)]
        .iter()
        .filter_map(|(word, limit)| Some(format!("{word} {}", limit.as_ref()?.as_str())))
        .collect::<Vec<_>>()
        .join(", ");
    (
        !too_low && !too_high,
        format!("{} = {value} ({limits})", gate.query),
    )
}
