//! The simulated cloud: one value, driven by requests and by the time that passes.
//!
//! ```text
//! handle: now = clock(real)  ->  what was due until now happens, each at its own moment
//!         -> fault before?   ->  control | blobs | tokens | Resource Manager
//!         -> contract judges ->  fault after?  ->  answer
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::json;

use crate::blob::Blobs;
use crate::contract::Contract;
use crate::control;
use crate::dice::Dice;
use crate::durations::Durations;
use crate::faults::{Effect, Faults};
use crate::http::{Answer, Content, Reply, Request};
use crate::identity::Identity;
use crate::operations::Operations;
use crate::problem::Problem;
use crate::resources;
use crate::store::Store;
use crate::throttle::Throttle;
use crate::time::{BEGINNING, Clock, Moment, Pace};

mod arm;
mod work;

pub use arm::Call;
pub use work::Begin;

/// Calls that the log remembers; older ones are only counted.
const REMEMBERED_CALLS: usize = 10_000;
/// Violations of the contract that are kept.
const REMEMBERED_VIOLATIONS: usize = 1000;

/// How the world is to behave; all of it can be changed while it runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of everything that is left to chance.
    pub seed: u64,
    /// How virtual time passes.
    pub pace: Pace,
    /// Any `api-version` will do.
    pub lenient_versions: bool,
    /// Retry-After counts virtual seconds: for clients that live on the same clock. Otherwise real
    /// ones, so that an ordinary client waits as long as it has to and not longer.
    pub virtual_retry_after: bool,
    /// So many answers in a million say no Retry-After where Azure would.
    pub no_retry_after_per_million: u64,
    /// Most elements of a page of a list.
    pub page: usize,
    /// A new resource can be read only after at most so long.
    pub appear_ms: u64,
    /// A new resource is in lists only after at most so long.
    pub list_ms: u64,
    /// A deleted resource can be read for at most so long.
    pub vanish_ms: u64,
    /// A changed resource reads as before for at most so long.
    pub stale_ms: u64,
    /// Bytes of signature in the URLs of operations.
    pub url_padding: usize,
    /// No call needs a token.
    pub anonymous: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            seed: 1,
            pace: Pace::Scaled(1),
            lenient_versions: false,
            virtual_retry_after: false,
            no_retry_after_per_million: 0,
            page: 100,
            appear_ms: 0,
            list_ms: 0,
            vanish_ms: 0,
            stale_ms: 0,
            url_padding: 0,
            anonymous: false,
        }
    }
}

/// What happens by itself at a moment.
#[derive(Clone, Debug)]
pub enum Due {
    /// An operation is over.
    Operation(String),
    /// Something that a resource waits for.
    Resource(String, resources::Tick),
}

/// One call, as the control API tells it.
#[derive(Clone, Debug)]
pub struct Logged {
    /// When.
    pub at: Moment,
    /// `PUT`.
    pub method: &'static str,
    /// Without the query.
    pub path: String,
    /// Zero when the connection was cut.
    pub status: u16,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// How it behaves.
    pub settings: Settings,
    /// Virtual time.
    pub clock: Clock,
    /// The moment of the request, or of the due event, that is being handled.
    pub now: Moment,
    /// Chance.
    pub dice: Dice,
    /// How long things take.
    pub durations: Durations,
    /// What exists.
    pub store: Store,
    /// What is under way.
    pub operations: Operations,
    /// Limits.
    pub throttle: Throttle,
    /// What goes wrong.
    pub faults: Faults,
    /// Tokens.
    pub identity: Identity,
    /// The bytes of disks that are uploaded.
    pub blobs: Blobs,
    /// What scripts in machines give.
    pub guests: resources::Guests,
    /// Cores that a subscription may use, and sizes that cannot be had.
    pub capacity: resources::Capacity,
    agenda: BTreeMap<(Moment, u64), Due>,
    agenda_made: u64,
    contract: Contract,
    pub(crate) log: VecDeque<Logged>,
    pub(crate) calls: BTreeMap<(&'static str, u16), u64>,
    pub(crate) violations: Vec<String>,
}

impl World {
    /// An empty cloud.
    #[must_use]
    pub fn new(settings: Settings) -> World {
        World {
            clock: Clock::new(settings.pace, BEGINNING),
            now: BEGINNING,
            dice: Dice::new(settings.seed),
            durations: Durations::default(),
            store: Store::default(),
            operations: Operations::default(),
            throttle: Throttle::default(),
            faults: Faults::default(),
            identity: Identity::default(),
            blobs: Blobs::default(),
            guests: resources::Guests::default(),
            capacity: resources::Capacity::default(),
            agenda: BTreeMap::new(),
            agenda_made: 0,
            contract: Contract::default(),
            log: VecDeque::new(),
            calls: BTreeMap::new(),
            violations: Vec::new(),
            settings,
        }
    }

    /// Answers one request, `real` after the process began.
    pub fn handle(&mut self, real: Duration, request: &Request) -> Answer {
        self.advance(self.clock.now(real));
        if request.path.starts_with(control::PREFIX) {
            return Answer::Reply(control::answer(self, request, real));
        }
        let answer = self.faulty(request);
        let status = match &answer {
            Answer::Reply(reply) => reply.status,
            Answer::Cut => 0,
        };
        *self
            .calls
            .entry((request.method.name(), status))
            .or_default() += 1;
        if self.log.len() == REMEMBERED_CALLS {
            self.log.pop_front();
        }
        self.log.push_back(Logged {
            at: self.now,
            method: request.method.name(),
            path: request.path.clone(),
            status,
        });
        answer
    }

    /// What was done against the contract so far.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// The types that bodies have.
    #[must_use]
    pub fn schema(&self) -> &crate::schema::Schema {
        &self.contract.schema
    }

    /// Lets time pass until `now`: what is due on the way happens, each at its moment.
    pub fn advance(&mut self, now: Moment) {
        while let Some(entry) = self.agenda.first_entry().filter(|e| e.key().0 <= now) {
            self.now = self.now.max(entry.key().0);
            match entry.remove() {
                Due::Operation(id) => self.end(&id),
                Due::Resource(key, tick) => resources::tick(self, &key, tick),
            }
        }
        self.now = self.now.max(now);
    }

    /// Has something happen at a moment.
    pub fn schedule(&mut self, at: Moment, due: Due) {
        self.agenda_made += 1;
        self.agenda.insert((at, self.agenda_made), due);
    }

    /// When the next thing is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Moment> {
        self.agenda.keys().next().map(|(at, _)| *at)
    }

    fn faulty(&mut self, request: &Request) -> Answer {
        let before = |effect: &Effect| matches!(effect, Effect::Answer(_) | Effect::Cut);
        match self.faults.strike(request, &mut self.dice, before).pop() {
            Some(Effect::Cut) => return Answer::Cut,
            Some(Effect::Answer(reply)) => return Answer::Reply(*reply),
            _ => {}
        }
        let reply = self.route(request);
        let found = self.contract.faults(request, &reply);
        let room = REMEMBERED_VIOLATIONS.saturating_sub(self.violations.len());
        self.violations.extend(found.into_iter().take(room));
        let after = |effect: &Effect| matches!(effect, Effect::CutAfter);
        if self
            .faults
            .strike(request, &mut self.dice, after)
            .is_empty()
        {
            Answer::Reply(reply)
        } else {
            Answer::Cut
        }
    }

    fn route(&mut self, request: &Request) -> Reply {
        if Identity::serves(&request.path) {
            return self.identity.answer(request, self.now, &mut self.dice);
        }
        if request.path == "/metadata/scheduledevents" {
            return self.scheduled_events(request);
        }
        if request.path.starts_with(crate::blob::PREFIX) {
            return self.blobs.answer(request, self.now, &mut self.dice);
        }
        let mut reply = match self.arm(request) {
            Ok(reply) => reply,
            Err(problem) => problem.reply(),
        };
        let request_id = self.dice.guid();
        reply.headers.extend([
            ("x-ms-request-id", request_id.clone()),
            ("x-ms-correlation-request-id", request_id.clone()),
            (
                "x-ms-routing-request-id",
                format!("SIMULATED:{}:{request_id}", self.now.short()),
            ),
            (
                "strict-transport-security",
                "max-age=31536000; includeSubDomains".to_owned(),
            ),
            ("x-content-type-options", "nosniff".to_owned()),
            ("cache-control", "no-cache".to_owned()),
            ("date", self.now.rfc1123()),
        ]);
        if let Some(client) = request.header("x-ms-client-request-id") {
            let wanted = request.header("x-ms-return-client-request-id") == Some("true");
            if wanted {
                reply = reply.with("x-ms-client-request-id", client);
            }
        }
        reply
    }

    /// The metadata service's Scheduled Events; `X-Sim-Resource` says on which machine it is asked.
    fn scheduled_events(&self, request: &Request) -> Reply {
        let metadata = request
            .header("metadata")
            .is_some_and(|v| v.eq_ignore_ascii_case("true"));
        if !metadata {
            return Reply::json(
                400,
                json!({"error": "Bad request. Required metadata header not specified"}),
            );
        }
        Reply::json(
            200,
            resources::events(self, request.header("x-sim-resource")),
        )
    }

    /// A Retry-After of so many virtual seconds, or none when chance says so.
    pub fn retry_after(&mut self, seconds: u64) -> Option<String> {
        if self.dice.chance(self.settings.no_retry_after_per_million) {
            return None;
        }
        let factor = match self.clock.pace() {
            Pace::Scaled(factor) if !self.settings.virtual_retry_after => factor,
            _ => 1,
        };
        // What is less than a second of the caller's time is not worth a wait of a second.
        let theirs = if factor > seconds {
            0
        } else {
            seconds.div_ceil(factor)
        };
        Some(theirs.to_string())
    }

    /// A page of a list with a link to the next.
    #[must_use]
    pub fn page(&self, request: &Request, elements: Vec<serde_json::Value>) -> Reply {
        let from = request
            .parameter("$skiptoken")
            .and_then(|token| token.parse().ok())
            .unwrap_or(0);
        let size = self.settings.page.max(1);
        let total = elements.len();
        let page: Vec<_> = elements.into_iter().skip(from).take(size).collect();
        let mut body = json!({"value": page});
        if from + size < total {
            let mut link = format!("{}{}?", request.base, request.path);
            for (name, value) in &request.query {
                if !name.eq_ignore_ascii_case("$skiptoken") {
                    link.extend([name, "=", &escape(value), "&"]);
                }
            }
            link.extend(["%24skiptoken=", &(from + size).to_string()]);
            body["nextLink"] = json!(link.replace(' ', "%20"));
        }
        Reply {
            status: 200,
            headers: Vec::new(),
            content: Content::Json(body),
        }
    }

    /// Whether the caller is somebody, and may do this.
    fn permit(&self, request: &Request, action: &str, scope: &str) -> Result<String, Problem> {
        if self.settings.anonymous {
            return Ok("anonymous".to_owned());
        }
        let who = self.identity.caller(request, self.now)?;
        self.identity.authorize(&who, action, scope)?;
        Ok(who.object_id)
    }
}

/// Percent-encodes what a query value may not have.
fn escape(value: &str) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.extend(["%", &format!("{byte:02X}")]),
        }
    }
    out
}
