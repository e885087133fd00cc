//! Long-running operations: what is under way, and how it is asked for.
//!
//! ```text
//! PUT/PATCH 201/200  Azure-AsyncOperation                   Running -> Succeeded
//! disk PUT/PATCH 202 Azure-AsyncOperation and Location              -> Failed (error kept)
//! POST/DELETE 202    Azure-AsyncOperation and Location              -> Canceled
//! ```
//!
//! The operation's own URL answers 200 with a status also when the operation failed; the Location
//! URL answers 202 until it is over, then with the result, or with the error and its status.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::http::{Reply, Request};
use crate::problem::Problem;
use crate::resources::Work;
use crate::store::Key;
use crate::time::Moment;

/// An operation that has ended can be read for a day.
pub const KEPT_MS: u64 = 24 * 3600 * 1000;

/// Between two polls, as the service would like it, in seconds.
pub const POLL_SECONDS: u64 = 10;

/// What kind of URL an operation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// VMs, scale sets, images.
    Compute,
    /// Disks and snapshots.
    Disk,
    /// Galleries.
    Gallery,
    /// What the network's stubs do.
    Network,
}

impl Family {
    /// The part of the URL.
    #[must_use]
    pub fn segment(self) -> &'static str {
        match self {
            Family::Compute | Family::Network => "operations",
            Family::Disk => "DiskOperations",
            Family::Gallery => "capsOperations",
        }
    }
}

/// What the operation was begun by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// PUT or PATCH: the result is the resource.
    Write,
    /// DELETE: no result.
    Delete,
    /// POST: the result is the output, if any.
    Act,
}

/// How far it is.
#[derive(Clone, Debug)]
pub enum Status {
    /// Not over.
    Running,
    /// Over, with what it gave.
    Succeeded(Option<Value>),
    /// Over without success.
    Failed(Problem),
    /// Stopped on request.
    Canceled,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// A GUID.
    pub id: String,
    /// Where it is read.
    pub family: Family,
    /// What it is part of.
    pub subscription: String,
    /// Where it runs.
    pub location: String,
    /// The version of the request that began it.
    pub version: String,
    /// The resource it is at work on.
    pub key: Key,
    /// What is done when it is over.
    pub work: Work,
    /// How it was begun.
    pub verb: Verb,
    /// When it was begun.
    pub began: Moment,
    /// When it was over.
    pub ended: Option<Moment>,
    /// How far it is.
    pub status: Status,
    /// What it will fail with, decided when it was begun.
    pub doom: Option<Problem>,
}

impl Operation {
    /// Whether it is still under way.
    #[must_use]
    pub fn running(&self) -> bool {
        matches!(self.status, Status::Running)
    }

    /// The two URLs: of the operation, and of its result.
    #[must_use]
    pub fn urls(&self, base: &str, padding: usize) -> (String, String) {
        let provider = match self.family {
            Family::Network => "Microsoft.Network",
            _ => "Microsoft.Compute",
        };
        let mut url = format!(
            "{base}/subscriptions/{}/providers/{provider}/locations/{}/{}/{}?p={}",
            self.subscription,
            self.location,
            self.family.segment(),
            self.id,
            self.id
        );
        let version = format!("&api-version={}", self.version);
        if padding > 0 {
            // Azure signs its URLs with certificates; what clients see are kilobytes.
            url.extend(["&t=", &self.began.seconds().to_string(), "&c="]);
            url.extend(std::iter::repeat_n('M', padding));
        }
        let monitor = format!("{url}&monitor=true{version}");
        url.push_str(&version);
        (url, monitor)
    }

    /// The operation resource.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut body = json!({"startTime": self.began.rfc3339()});
        if let Some(ended) = self.ended {
            body["endTime"] = json!(ended.rfc3339());
        }
        body["status"] = json!(match &self.status {
            Status::Running => "InProgress",
            Status::Succeeded(_) => "Succeeded",
            Status::Failed(_) => "Failed",
            Status::Canceled => "Canceled",
        });
        match &self.status {
            Status::Succeeded(Some(output)) => body["properties"] = json!({"output": output}),
            Status::Failed(problem) => body["error"] = problem.inner(),
            _ => {}
        }
        body["name"] = json!(self.id);
        body
    }
}

/// All operations.
#[derive(Debug, Default)]
pub struct Operations {
    known: BTreeMap<String, Operation>,
}

impl Operations {
    /// Adds one.
    pub fn insert(&mut self, operation: Operation) {
        self.known.insert(operation.id.clone(), operation);
    }

    /// The one with this id; those that ended long ago are forgotten.
    #[must_use]
    pub fn get(&self, id: &str, now: Moment) -> Option<&Operation> {
        let known = self.known.get(&id.to_ascii_lowercase())?;
        let fresh = |ended: Moment| now.since(ended) < KEPT_MS;
        known.ended.is_none_or(fresh).then_some(known)
    }

    /// The same, to end it.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut Operation> {
        self.known.get_mut(id)
    }

    /// Those under way.
    pub fn running(&self) -> impl Iterator<Item = &Operation> {
        self.known.values().filter(|operation| operation.running())
    }

    /// Answers a poll of either URL.
    ///
    /// # Errors
    /// It is not known here, or not any more; or it is asked for its result and has failed.
    pub fn poll(
        &self,
        request: &Request,
        id: &str,
        now: Moment,
        resource: impl FnOnce(&Operation) -> Option<Value>,
    ) -> Result<Reply, Problem> {
        let operation = self.get(id, now).ok_or_else(Problem::no_entity)?;
        if request.parameter("monitor") != Some("true") {
            return Ok(Reply::json(200, operation.body()));
        }
        match &operation.status {
            Status::Running => Ok(Reply::empty(202)),
            Status::Failed(problem) => Err(problem.clone()),
            Status::Canceled => Err(Problem::new(409, "Canceled", "Operation was canceled.")),
            Status::Succeeded(Some(output)) => Ok(Reply::json(200, output.clone())),
            Status::Succeeded(None) => Ok(match operation.verb {
                Verb::Delete => Reply::empty(204),
                Verb::Act => Reply::empty(200),
                Verb::Write => resource(operation)
                    .map_or_else(|| Reply::empty(204), |body| Reply::json(200, body)),
            }),
        }
    }
}
