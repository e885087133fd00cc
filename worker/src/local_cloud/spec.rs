//! What callers ask of the local cloud: sets, images, health checks, and the rules for them.
//!
//! Plain values with serde, because the durable records hold them as they are. Not here: what the
//! cloud knows beside the request (`record.rs`) and what is seen at run time (`view.rs`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest name of a set.
pub const SET_NAME_MAX: usize = 63;
/// Longest id of an instance.
pub const INSTANCE_ID_MAX: usize = 32;
/// Most layers of one image; overlayfs takes 500 lower folders.
pub const LAYERS_MAX: usize = 256;
/// Most instances of one set: each has a listening socket, a task and a process tree here.
pub const INSTANCES_MAX: usize = 256;
/// Most tags of one set.
pub const TAGS_MAX: usize = 64;

const CHECK_INTERVAL: Duration = Duration::from_millis(150);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
const CHECKS_IN_A_ROW: u32 = 2;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(10);
const DRAIN_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// What an instance is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Named lineage.
    pub name: String,
    /// Version within the lineage; never interpreted here.
    pub version: String,
    /// Digests of the layer manifests, base first.
    pub layers: Vec<String>,
    /// How many leading layers are the base system, whose units are not application units.
    pub base_layers: usize,
}

impl Image {
    /// Checks the limits.
    ///
    /// # Errors
    /// [`Invalid`] names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.name.is_empty() || self.version.is_empty() {
            return Err(Invalid::new("image", "needs a name and a version"));
        }
        if self.layers.is_empty() || self.layers.len() > LAYERS_MAX {
            return Err(Invalid::new(
                "image.layers",
                format!("must have 1 to {LAYERS_MAX} entries"),
            ));
        }
        // A digest becomes a folder name in the layer cache.
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == ':';
        if let Some(bad) = self
            .layers
            .iter()
            .find(|l| l.is_empty() || !l.chars().all(plain))
        {
            return Err(Invalid::new(
                "image.layers",
                format!("{bad:?} is not a digest"),
            ));
        }
        if self.base_layers > self.layers.len() {
            return Err(Invalid::new(
                "image.base_layers",
                format!("{} of {} layers", self.base_layers, self.layers.len()),
            ));
        }
        Ok(())
    }
}

/// How an instance's health is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Path of an HTTP GET; empty means that a TCP connection is enough.
    pub path: String,
    /// Expected status.
    pub status: u16,
    /// Time between checks.
    pub interval: Duration,
    /// Time until a check without an answer has failed.
    pub timeout: Duration,
    /// Consecutive successes until healthy.
    pub healthy_after: u32,
    /// Consecutive failures until unhealthy.
    pub unhealthy_after: u32,
}

impl Default for HealthCheck {
    fn default() -> HealthCheck {
        HealthCheck {
            path: "/".to_owned(),
            status: 200,
            interval: CHECK_INTERVAL,
            timeout: CHECK_TIMEOUT,
            healthy_after: CHECKS_IN_A_ROW,
            unhealthy_after: CHECKS_IN_A_ROW,
        }
    }
}

impl HealthCheck {
    fn validate(&self) -> Result<(), Invalid> {
        if !self.path.is_empty() && !self.path.starts_with('/') {
            return Err(Invalid::new("health.path", "must start with / or be empty"));
        }
        if self.path.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err(Invalid::new(
                "health.path",
                "holds a space or a control character",
            ));
        }
        if !(100..=599).contains(&self.status) {
            return Err(Invalid::new("health.status", "must be 100 to 599"));
        }
        if self.interval < CHECK_INTERVAL_MIN {
            return Err(Invalid::new("health.interval", "must be 10 ms or more"));
        }
        if self.timeout.is_zero() || self.healthy_after == 0 || self.unhealthy_after == 0 {
            return Err(Invalid::new("health", "time-out and counts must not be 0"));
        }
        Ok(())
    }
}

/// The settings of a scale set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSpec {
    /// Its name, which is a folder name too.
    pub name: String,
    /// The fleet it belongs to; never interpreted here.
    pub fleet: String,
    /// Where the balancer listens; port 0 picks one and keeps it.
    pub listen: SocketAddr,
    /// TCP port on which an instance serves.
    pub service_port: u16,
    /// How health is asked.
    pub health: HealthCheck,
    /// Time after which a draining instance's connections are closed.
    pub drain_timeout: Duration,
    /// The image new instances get when the caller names none.
    pub model: Option<Image>,
    /// Owner tags; never interpreted here.
    pub tags: BTreeMap<String, String>,
}

impl SetSpec {
    /// A set with default health check and drain time-out.
    #[must_use]
    pub fn new(name: &str, fleet: &str, listen: SocketAddr, service_port: u16) -> SetSpec {
        SetSpec {
            name: name.to_owned(),
            fleet: fleet.to_owned(),
            listen,
            service_port,
            health: HealthCheck::default(),
            drain_timeout: DRAIN_TIMEOUT,
            model: None,
            tags: BTreeMap::new(),
        }
    }

    /// Checks names, limits and relations.
    ///
    /// # Errors
    /// [`Invalid`] names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        name("set", &self.name, SET_NAME_MAX)?;
        if !self.listen.ip().is_loopback() {
            return Err(Invalid::new(
                "listen",
                format!(
                    "{} is not a loopback address; the local cloud serves this machine only",
                    self.listen
                ),
            ));
        }
        if self.service_port == 0 {
            return Err(Invalid::new("service_port", "must be 1 to 65535"));
        }
        if self.drain_timeout > DRAIN_TIMEOUT_MAX {
            return Err(Invalid::new("drain_timeout", "must be an hour or less"));
        }
        if self.tags.len() > TAGS_MAX {
            return Err(Invalid::new("tags", format!("more than {TAGS_MAX}")));
        }
        self.health.validate()?;
        self.model.as_ref().map_or(Ok(()), Image::validate)
    }
}

/// A request that can never work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Invalid {
    /// The field at fault.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl Invalid {
    /// A problem with `field`.
    pub fn new(field: &'static str, why: impl Into<String>) -> Invalid {
        Invalid {
            field,
            why: why.into(),
        }
    }
}

/// Checks a name that becomes a folder and a host name.
///
/// # Errors
/// [`Invalid`] when it is empty, too long or has other characters.
pub fn name(field: &'static str, value: &str, max: usize) -> Result<(), Invalid> {
    let plain = value
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if value.is_empty()
        || value.len() > max
        || !plain
        || value.starts_with('-')
        || value.ends_with('-')
    {
        return Err(Invalid::new(
            field,
            format!("{value:?} must be 1 to {max} lower-case letters, digits and inner dashes"),
        ));
    }
    Ok(())
}

/// Orders ids as people count: "2" before "10", then by text.
#[must_use]
pub fn id_order(a: &str, b: &str) -> std::cmp::Ordering {
    let number = |s: &str| s.parse::<u64>().ok();
    match (number(a), number(b)) {
        (Some(x), Some(y)) => x.cmp(&y).then_with(|| a.cmp(b)),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for bad in ["", "..", "a/b", "-a", "a-", "Web", "a.b", "a b"] {
            assert!(name("set", bad, SET_NAME_MAX).is_err(), "{bad:?}");
        }
        for good in ["web", "web-prod-1", "0"] {
            assert!(name("set", good, SET_NAME_MAX).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_set_listens_on_loopback_only() {
        let mut spec = SetSpec::new("web", "web", "127.0.0.1:0".parse().unwrap(), 80);
        assert_eq!(spec.validate(), Ok(()));
        spec.listen = "0.0.0.0:80".parse().unwrap();
        assert_eq!(spec.validate().unwrap_err().field, "listen");
    }

    #[test]
    fn ids_are_ordered_as_numbers() {
        let mut ids = vec!["10", "2", "blue", "0"];
        ids.sort_by(|a, b| id_order(a, b));
        assert_eq!(ids, ["0", "2", "10", "blue"]);
    }
}
