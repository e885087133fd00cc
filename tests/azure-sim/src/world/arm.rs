//! The Resource Manager: which type a path means, who may, how often, and then the type's rules.

use serde_json::json;

use super::World;
use crate::http::{Method, Reply, Request, Target, check_version};
use crate::operations::{POLL_SECONDS, Verb};
use crate::problem::Problem;
use crate::resources::{self, Kind};
use crate::store::{Key, key};
use crate::throttle::Charge;

/// One request about a resource, a collection or an action.
#[derive(Clone, Debug)]
pub struct Call<'r> {
    /// As it came.
    pub request: &'r Request,
    /// What its path says.
    pub target: Target,
    /// The type of the resource or of the collection's elements.
    pub kind: Kind,
    /// Of the resource (for an action: of what it is done to).
    pub key: Key,
    /// The `api-version`.
    pub version: String,
}

impl Call<'_> {
    /// The last part of the path when it is an action or a collection, in lower case.
    #[must_use]
    pub fn action(&self) -> String {
        if is_upgrade(&self.target) {
            return self.target.name().to_ascii_lowercase();
        }
        if !self.target.is_open() {
            return String::new();
        }
        let last = self.target.types.last().map_or("", String::as_str);
        last.to_ascii_lowercase()
    }

    /// The body as JSON; an empty body is null.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn body(&self) -> Result<serde_json::Value, Problem> {
        if self.request.body.is_empty() {
            return Ok(serde_json::Value::Null);
        }
        serde_json::from_slice(&self.request.body).map_err(|error| {
            Problem::new(
                400,
                "InvalidRequestContent",
                format!(
                    "The request content was invalid and could not be deserialized: '{error}'."
                ),
            )
        })
    }
}

/// What a path is about.
enum About {
    /// A resource, or an action on it.
    One(Kind),
    /// The elements of a collection.
    Many(Kind),
    /// Something of a location: operations, usages, sizes.
    Location,
    /// The subscription itself.
    Subscription,
}

impl World {
    /// Answers a request to the Resource Manager.
    pub(super) fn arm(&mut self, request: &Request) -> Result<Reply, Problem> {
        let Some(target) = Target::parse(&request.path) else {
            return Err(Problem::new(
                404,
                "InvalidResourceType",
                format!("There is nothing at '{}'.", request.path),
            ));
        };
        let route = target.route();
        let provider = target
            .provider
            .as_deref()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let version = request
            .parameter("api-version")
            .unwrap_or_default()
            .to_owned();
        let about = about(&target, &provider, &route, &version)?;
        let action = action_name(&target, request.method);
        let principal = self.permit(request, &action, &target.id())?;
        check_version(
            request.parameter("api-version"),
            &provider,
            &route,
            self.settings.lenient_versions,
        )?;
        let left = self.admit(request, &target, &about, &principal)?;
        let subject = match about {
            About::One(_) if target.is_open() || is_upgrade(&target) => target.parent(),
            _ => target.clone(),
        };
        let done = match about {
            About::Location => self.of_location(request, &target, &version),
            About::Subscription if request.method == Method::Get => {
                Ok(Reply::json(200, subscription(&target.subscription)))
            }
            About::Subscription => Err(Problem::no_method(request.method.name())),
            About::One(kind) => {
                let call = Call {
                    request,
                    key: key(&subject.id()),
                    target,
                    kind,
                    version,
                };
                resources::answer(self, &call)
            }
            About::Many(kind) => {
                let call = Call {
                    request,
                    key: key(&target.parent().id()),
                    target,
                    kind,
                    version,
                };
                resources::list(self, &call)
            }
        };
        // What is left of the limits is said with every answer.
        match done {
            Ok(mut reply) => {
                reply.headers.extend(left);
                Ok(reply)
            }
            Err(mut problem) => {
                problem.headers.extend(left);
                Err(problem)
            }
        }
    }

    fn admit(
        &mut self,
        request: &Request,
        target: &Target,
        about: &About,
        principal: &str,
    ) -> Result<Vec<(&'static str, String)>, Problem> {
        let (kind, list) = match about {
            About::One(kind) => (Some(*kind), false),
            About::Many(kind) => (Some(*kind), true),
            About::Location => (None, false),
            About::Subscription => (Some(Kind::Any), false),
        };
        let resource = match about {
            About::One(_) if target.is_open() || is_upgrade(target) => target.parent().id(),
            _ => target.id(),
        };
        let key = key(&resource);
        let expand = request.parameter("$expand").unwrap_or_default();
        let charge = Charge {
            method: request.method,
            kind,
            list,
            view: target.route().ends_with("/instanceview")
                || expand.eq_ignore_ascii_case("instanceView"),
            key: &key,
            subscription: &target.subscription,
            principal,
        };
        match self.throttle.admit(&charge, self.now) {
            Ok(left) => Ok(left),
            Err(refused) => {
                let bare = self.dice.chance(500_000);
                let mut problem = refused.problem(&charge, bare);
                if let Some(seconds) = self.retry_after(refused.wait_ms.div_ceil(1000)) {
                    problem = problem.with("retry-after", seconds);
                }
                Err(problem)
            }
        }
    }

    /// `/subscriptions/S/providers/Microsoft.Compute/locations/L/…` and what is like it.
    fn of_location(
        &mut self,
        request: &Request,
        target: &Target,
        version: &str,
    ) -> Result<Reply, Problem> {
        let route = target.route();
        let family = target.types.get(1).map(|s| s.to_ascii_lowercase());
        match family.as_deref().unwrap_or(route.as_str()) {
            "operations" | "diskoperations" | "capsoperations" | "operationresults" => {
                self.poll(request, target.name(), version)
            }
            "usages" => Ok(resources::usages(self, request, target)),
            "skus" => Ok(resources::skus(self, request)),
            other => Err(Problem::no_type(
                &format!("locations/{other}"),
                "Microsoft.Compute",
                version,
            )),
        }
    }

    fn poll(&mut self, request: &Request, id: &str, _version: &str) -> Result<Reply, Problem> {
        if request.method != Method::Get {
            return Err(Problem::no_method(request.method.name()));
        }
        let shown = |operation: &crate::operations::Operation| {
            let resource = self.store.get(&operation.key)?;
            Some(resources::show(self, resource, ""))
        };
        let mut reply = self.operations.poll(request, id, self.now, shown)?;
        let running = self
            .operations
            .get(id, self.now)
            .is_some_and(crate::operations::Operation::running);
        if running {
            if reply.status == 202 {
                let (url, monitor) = self.urls(request, id);
                reply = reply
                    .with("location", monitor)
                    .with("azure-asyncoperation", url);
            }
            if let Some(seconds) = self.retry_after(POLL_SECONDS) {
                reply = reply.with("retry-after", seconds);
            }
        }
        Ok(reply)
    }

    fn urls(&self, request: &Request, id: &str) -> (String, String) {
        let padding = self.settings.url_padding;
        self.operations
            .get(id, self.now)
            .map(|operation| operation.urls(&request.base, padding))
            .unwrap_or_default()
    }

    /// Adds to the answer where the operation that has begun can be followed.
    #[must_use]
    pub fn following(&mut self, call: &Call<'_>, id: &str, mut reply: Reply) -> Reply {
        let (url, monitor) = self.urls(call.request, id);
        let verb = self.operations.get(id, self.now).map(|o| o.verb);
        reply = reply.with("azure-asyncoperation", url);
        if reply.status == 202 || verb != Some(Verb::Write) {
            reply = reply.with("location", monitor);
        }
        if call.kind == Kind::Set {
            reply = reply.with("azure-asyncnotification", "Enabled");
        }
        match self.retry_after(POLL_SECONDS) {
            Some(seconds) => reply.with("retry-after", seconds),
            None => reply,
        }
    }
}

/// `…/rollingUpgrades/latest` and `…/cancel`: written like resources, but parts of their set.
fn is_upgrade(target: &Target) -> bool {
    target.route() == "virtualmachinescalesets/rollingupgrades"
        && ["latest", "cancel"]
            .iter()
            .any(|name| target.name().eq_ignore_ascii_case(name))
}

/// What a path is about.
fn about(target: &Target, provider: &str, route: &str, version: &str) -> Result<About, Problem> {
    let known = match provider {
        "" if target.types.is_empty() && target.group.is_some() => {
            return Ok(About::One(Kind::Group));
        }
        "" if target.types.is_empty() => return Ok(About::Subscription),
        "" if route == "resourcegroups" => return Ok(About::Many(Kind::Group)),
        "" if route == "operationresults" => return Ok(About::Location),
        "" if route == "resources" => return Ok(About::Many(Kind::Any)),
        "microsoft.compute" | "microsoft.network" => Kind::of(provider, route),
        "" => {
            return Err(Problem::no_type(route, "Microsoft.Resources", version));
        }
        _ => {
            return Err(Problem::no_namespace(
                target.provider.as_deref().unwrap_or_default(),
            ));
        }
    };
    {
        let first = target.types.first().map(|s| s.to_ascii_lowercase());
        match first.as_deref() {
            Some("locations") => {
                // A location's machines are a list like any other.
                let inner = target.types.get(1).map(|s| s.to_ascii_lowercase());
                if target.types.len() == 2
                    && let Some(kind) = inner.and_then(|route| Kind::of(provider, &route))
                {
                    return Ok(About::Many(kind));
                }
                return Ok(About::Location);
            }
            Some("skus") if target.names.is_empty() => return Ok(About::Location),
            _ => {}
        }
    }
    match known {
        Some(kind) if !target.is_open() => Ok(About::One(kind)),
        Some(kind) => Ok(About::Many(kind)),
        None => {
            // An action: what is before it must be a resource.
            let parent = target.parent();
            let named = target.is_open() && !parent.types.is_empty();
            let pair = !target.is_open() && target.types.len() > 1;
            let subject = if named {
                Kind::of(provider, &parent.route())
            } else if pair {
                Kind::of(provider, &parent.route()).filter(|_| is_upgrade(target))
            } else {
                None
            };
            let takes = |kind: &Kind| !named || resources::has_action(*kind, target);
            match subject.filter(takes) {
                Some(kind) => Ok(About::One(kind)),
                None => Err(Problem::no_type(
                    &target.types.join("/"),
                    target.provider.as_deref().unwrap_or_default(),
                    version,
                )),
            }
        }
    }
}

/// `Microsoft.Compute/disks/write`, as roles name it.
fn action_name(target: &Target, method: Method) -> String {
    let provider = target.provider.as_deref().unwrap_or("Microsoft.Resources");
    let mut types = target.types.clone();
    let verb = match method {
        Method::Get | Method::Head => "read",
        Method::Put | Method::Patch => "write",
        Method::Delete => "delete",
        Method::Post => "action",
    };
    if types.is_empty() {
        types.push("subscriptions/resourceGroups".to_owned());
    }
    format!("{provider}/{}/{verb}", types.join("/"))
}

/// The body of `GET /subscriptions/S`, which clients ask for to see whether it is there.
fn subscription(id: &str) -> serde_json::Value {
    json!({
        "id": format!("/subscriptions/{id}"),
        "subscriptionId": id,
        "displayName": "Simulated",
        "state": "Enabled",
        "tenantId": crate::identity::TENANT,
    })
}
