//! Limits: token buckets of Compute (per resource and per subscription) and of the Resource Manager.
//!
//! A call takes one token from every bucket it touches, or from none when one of them is empty.
//! Figures are Azure's published ones; the buckets named `…3Min` stood in recorded traffic, the
//! others carry the names that Compute gives its token buckets.

use std::collections::BTreeMap;

use serde_json::json;

use crate::http::Method;
use crate::problem::Problem;
use crate::resources::Kind;
use crate::time::Moment;

/// What a bucket counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// One resource.
    Resource,
    /// All of a subscription in a region.
    Subscription,
}

/// A published limit.
#[derive(Clone, Copy, Debug)]
struct Policy {
    name: &'static str,
    scope: Scope,
    per_minute: u64,
    burst: u64,
}

const fn of_resource(name: &'static str, per_minute: u64, burst: u64) -> Policy {
    Policy {
        name,
        scope: Scope::Resource,
        per_minute,
        burst,
    }
}

const fn of_subscription(name: &'static str, per_minute: u64, burst: u64) -> Policy {
    Policy {
        name,
        scope: Scope::Subscription,
        per_minute,
        burst,
    }
}

const VM_UPDATE: &[Policy] = &[
    of_subscription("UpdateVMSubscriptionMaximum", 500, 1500),
    of_resource("UpdateVMResource", 4, 12),
];
const VM_DELETE: &[Policy] = &[
    of_subscription("DeleteVMSubscriptionMaximum", 500, 1500),
    of_resource("DeleteVMResource", 4, 12),
];
const VM_GET: &[Policy] = &[of_resource("LowCostGetResource", 12, 36)];
const VM_LIST: &[Policy] = &[of_subscription("HighCostGetSubscriptionMaximum", 300, 900)];
const SET_UPDATE: &[Policy] = &[
    of_subscription("PutVMScaleSetSubscriptionMaximum", 125, 375),
    of_resource("PutVMScaleSetResource", 4, 12),
];
const SET_DELETE: &[Policy] = &[of_resource("DeleteVMScaleSetResource", 4, 12)];
const SET_GET: &[Policy] = &[of_resource("GetVMScaleSetResource", 12, 36)];
const SET_VIEW: &[Policy] = &[
    of_subscription("HighCostGetVMScaleSetSubscriptionMaximum", 360, 1080),
    of_resource("HighCostGetVMScaleSetResource", 10, 30),
];
const INSTANCE_UPDATE: &[Policy] = &[of_resource("UpdateVMScaleSetVMResource", 4, 12)];
const INSTANCE_DELETE: &[Policy] = &[of_resource("DeleteVMScaleSetVMResource", 4, 12)];
const INSTANCE_GET: &[Policy] = &[of_subscription(
    "GetVMScaleSetVMSubscriptionMaximum",
    2000,
    6000,
)];
const OPERATION_GET: &[Policy] = &[of_resource("GetOperationResource", 15, 45)];
// Windows of three minutes in the recordings: as many at once, refilled within three minutes.
const DISK_WRITE: &[Policy] = &[of_subscription("CreateUpdateDisks3Min", 333, 1000)];
const VERSION_WRITE: &[Policy] = &[of_subscription(
    "CreateUpdateGalleryImageVersion3Min",
    125,
    375,
)];

/// The Resource Manager's limits for one principal in one subscription, refilled per second.
const READS: (&str, u64, u64) = ("reads", 25, 250);
const WRITES: (&str, u64, u64) = ("writes", 10, 200);
const DELETES: (&str, u64, u64) = ("deletes", 10, 200);

/// What a call is, as far as limits go.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'c> {
    /// The method.
    pub method: Method,
    /// What it is about; absent for polls of operations.
    pub kind: Option<Kind>,
    /// A collection is read.
    pub list: bool,
    /// The instance view is read.
    pub view: bool,
    /// The resource, or the operation, in lower case.
    pub key: &'c str,
    /// Of the subscription.
    pub subscription: &'c str,
    /// Who calls.
    pub principal: &'c str,
}

fn policies(charge: &Charge<'_>) -> &'static [Policy] {
    use Method::{Delete, Get, Patch, Post, Put};
    let Some(kind) = charge.kind else {
        return OPERATION_GET;
    };
    match (kind, charge.method) {
        (Kind::Machine, Get) if charge.list || charge.view => VM_LIST,
        (Kind::Machine, Get) => VM_GET,
        (Kind::Machine, Put | Patch | Post) => VM_UPDATE,
        (Kind::Machine, Delete) => VM_DELETE,
        (Kind::Set, Get) if charge.list || charge.view => SET_VIEW,
        (Kind::Set, Get) => SET_GET,
        (Kind::Set, Put | Patch | Post) => SET_UPDATE,
        (Kind::Set, Delete) => SET_DELETE,
        (Kind::Instance, Get) if charge.list || charge.view => SET_VIEW,
        (Kind::Instance, Get) => INSTANCE_GET,
        (Kind::Instance, Put | Patch | Post) => INSTANCE_UPDATE,
        (Kind::Instance, Delete) => INSTANCE_DELETE,
        (Kind::Version, Put | Patch) => VERSION_WRITE,
        (Kind::Disk, Put | Patch) => DISK_WRITE,
        _ => &[],
    }
}

/// Thousandths of a token, so that a refill needs no fractions.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    milli: u64,
    at: Moment,
}

/// All buckets.
#[derive(Debug, Default)]
pub struct Throttle {
    buckets: BTreeMap<String, Bucket>,
    /// Of a policy's refill, so many per minute are taken by others.
    foreign: BTreeMap<String, u64>,
    /// No limits at all.
    pub off: bool,
    refused: u64,
}

/// The headers that tell what is left.
pub type Remaining = Vec<(&'static str, String)>;

impl Throttle {
    /// Others use up `per_minute` of the refill of every bucket of a policy.
    pub fn set_foreign(&mut self, policy: &str, per_minute: u64) {
        self.foreign.insert(policy.to_owned(), per_minute);
    }

    /// Empties a policy's buckets.
    pub fn drain(&mut self, policy: &str, now: Moment) {
        let of_policy = format!("{policy}@");
        for (_, bucket) in self
            .buckets
            .iter_mut()
            .filter(|(name, _)| name.starts_with(&of_policy))
        {
            *bucket = Bucket { milli: 0, at: now };
        }
    }

    /// How many calls were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Takes a token from the Resource Manager's bucket and from each of Compute's.
    ///
    /// # Errors
    /// A bucket is empty: 429, with the virtual seconds until it has a token again.
    pub fn admit(&mut self, charge: &Charge<'_>, now: Moment) -> Result<Remaining, Refused> {
        if self.off {
            return Ok(Vec::new());
        }
        let (verb, per_second, burst) = match charge.method {
            Method::Get | Method::Head => READS,
            Method::Delete => DELETES,
            _ => WRITES,
        };
        let manager = format!("{verb}@{}/{}", charge.subscription, charge.principal);
        let policies = policies(charge);
        let mut wanted = vec![(manager, per_second * 60, burst)];
        for policy in policies {
            let owner = match policy.scope {
                Scope::Resource => charge.key,
                Scope::Subscription => charge.subscription,
            };
            let foreign = self.foreign.get(policy.name).copied().unwrap_or_default();
            let refill = policy.per_minute.saturating_sub(foreign).max(1);
            wanted.push((format!("{}@{owner}", policy.name), refill, policy.burst));
        }
        for (nth, (name, per_minute, burst)) in wanted.iter().enumerate() {
            let have = self.refill(name, *per_minute, *burst, now);
            if have < 1000 {
                self.refused += 1;
                // Milli-tokens per millisecond are per_minute / 60.
                let wait_ms = ((1000 - have) * 60).div_ceil(*per_minute);
                let policy = nth.checked_sub(1).map(|n| policies[n].name);
                return Err(Refused {
                    policy: policy.unwrap_or(verb),
                    manager: policy.is_none(),
                    wait_ms,
                    burst: *burst,
                });
            }
        }
        let mut left = Vec::new();
        for (name, _, _) in &wanted {
            let bucket = self.buckets.get_mut(name).expect("it was refilled above");
            bucket.milli -= 1000;
            left.push(bucket.milli / 1000);
        }
        Ok(remaining(verb, policies, &left))
    }

    fn refill(&mut self, name: &str, per_minute: u64, burst: u64, now: Moment) -> u64 {
        let full = Bucket {
            milli: burst * 1000,
            at: now,
        };
        let bucket = self.buckets.entry(name.to_owned()).or_insert(full);
        let gained = now.since(bucket.at) * per_minute / 60;
        if gained > 0 {
            bucket.milli = (bucket.milli + gained).min(burst * 1000);
            bucket.at = now;
        }
        bucket.milli
    }
}

fn remaining(verb: &str, policies: &[Policy], left: &[u64]) -> Remaining {
    let manager = match verb {
        "reads" => "x-ms-ratelimit-remaining-subscription-reads",
        "deletes" => "x-ms-ratelimit-remaining-subscription-deletes",
        _ => "x-ms-ratelimit-remaining-subscription-writes",
    };
    let mut headers = vec![(manager, left[0].to_string())];
    let compute: Vec<String> = policies
        .iter()
        .zip(&left[1..])
        .map(|(policy, left)| format!("Microsoft.Compute/{};{left}", policy.name))
        .collect();
    if !compute.is_empty() {
        headers.push(("x-ms-ratelimit-remaining-resource", compute.join(",")));
    }
    headers
}

/// A call that found a bucket empty.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    policy: &'static str,
    manager: bool,
    /// Virtual milliseconds until there is a token again.
    pub wait_ms: u64,
    burst: u64,
}

impl Refused {
    /// The answer, without its Retry-After. Compute leaves the envelope out, or does not.
    #[must_use]
    pub fn problem(&self, charge: &Charge<'_>, bare: bool) -> Problem {
        let seconds = self.wait_ms.div_ceil(1000);
        if self.manager {
            return Problem::new(
                429,
                "SubscriptionRequestsThrottled",
                format!(
                    "Number of '{}' requests for subscription '{}' actor '{}' exceeded. Please try \
                     again after '{seconds}' seconds after additional tokens are available. Refer to \
                     https://aka.ms/arm-throttling for additional information.",
                    self.policy, charge.subscription, charge.principal
                ),
            );
        }
        let measured = json!({
            "operationGroup": self.policy,
            "startTime": "",
            "endTime": "",
            "allowedRequestCount": self.burst,
            "measuredRequestCount": self.burst + 1,
        });
        let mut problem = Problem::new(
            429,
            "OperationNotAllowed",
            "The server rejected the request because too many requests have been received for this subscription.",
        )
        .because(json!({
            "code": "TooManyRequests",
            "target": self.policy,
            "message": measured.to_string(),
        }))
        .with(
            "x-ms-ratelimit-remaining-resource",
            format!("Microsoft.Compute/{};0", self.policy),
        );
        problem.bare = bare;
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::BEGINNING;

    fn poll(key: &str) -> Charge<'_> {
        Charge {
            method: Method::Get,
            kind: None,
            list: false,
            view: false,
            key,
            subscription: "s",
            principal: "p",
        }
    }

    #[test]
    fn an_operation_is_polled_forty_five_times_at_once_and_fifteen_a_minute() {
        let mut throttle = Throttle::default();
        for nth in 0..45 {
            let left = throttle.admit(&poll("a"), BEGINNING).expect("a token");
            let compute = format!("Microsoft.Compute/GetOperationResource;{}", 44 - nth);
            assert_eq!(left[1].1, compute);
        }
        let refused = throttle.admit(&poll("a"), BEGINNING).expect_err("empty");
        assert_eq!(refused.wait_ms, 4000);
        throttle
            .admit(&poll("b"), BEGINNING)
            .expect("another operation");
        let later = BEGINNING.after(refused.wait_ms);
        throttle.admit(&poll("a"), later).expect("refilled");
        throttle.admit(&poll("a"), later).expect_err("one only");
    }

    #[test]
    fn what_others_take_is_not_refilled_for_us() {
        let mut throttle = Throttle::default();
        throttle.set_foreign("GetOperationResource", 5);
        for _ in 0..45 {
            throttle.admit(&poll("a"), BEGINNING).expect("a token");
        }
        let refused = throttle.admit(&poll("a"), BEGINNING).expect_err("empty");
        assert_eq!(refused.wait_ms, 6000);
    }
}
