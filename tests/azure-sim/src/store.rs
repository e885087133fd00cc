//! Which resources exist, and what a caller can see of them.
//!
//! ```text
//! PUT accepted -> there for the service
//!                   ... visible to GET after `appear`, to lists after `list` (both 0 by default)
//! PATCH        -> GET shows the old body for `stale`
//! DELETE done  -> gone for the service, shown for `vanish` still
//! ```

use std::collections::BTreeMap;
use std::ops::Bound;

use serde_json::Value;

use crate::resources::{Kind, State};
use crate::time::Moment;

/// How a resource is called in the store: its id in lower case.
pub type Key = String;

/// The key of an id.
#[must_use]
pub fn key(id: &str) -> Key {
    id.trim_end_matches('/').to_ascii_lowercase()
}

/// One resource.
#[derive(Clone, Debug)]
pub struct Resource {
    /// As it was written when it was created.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// The last part of the id.
    pub name: String,
    /// Normalised: `westeurope`.
    pub location: String,
    /// What was asked for, without id, name and type.
    pub body: Value,
    /// What the service knows besides.
    pub state: State,
    /// `Creating`, `Updating`, `Succeeded`, `Failed`, `Canceled`, `Deleting`.
    pub provisioning: &'static str,
    /// Raised by each change.
    pub etag: u64,
    /// When it was first asked for.
    pub created: Moment,
    /// The operation that is at work on it.
    pub operation: Option<String>,
    /// Not visible to GET before.
    pub visible: Moment,
    /// Not visible in lists before.
    pub listed: Moment,
}

impl Resource {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> Key {
        key(&self.id)
    }

    /// Whether an operation is at work on it.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.operation.is_some()
    }
}

/// What can be read although it is no longer, or not yet, so.
#[derive(Debug)]
struct Echo {
    body: Value,
    kind: Kind,
    until: Moment,
}

/// All resources.
#[derive(Debug, Default)]
pub struct Store {
    resources: BTreeMap<Key, Resource>,
    echoes: BTreeMap<Key, Echo>,
}

impl Store {
    /// The resource with this key, visible or not.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Resource> {
        self.resources.get(key)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Resource> {
        self.resources.get_mut(key)
    }

    /// By an id in any case.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<&Resource> {
        self.resources.get(&key(id))
    }

    /// Adds or replaces.
    pub fn insert(&mut self, resource: Resource) {
        let key = resource.key();
        self.echoes.remove(&key);
        self.resources.insert(key, resource);
    }

    /// Takes away.
    pub fn remove(&mut self, key: &str) -> Option<Resource> {
        self.resources.remove(key)
    }

    /// Shows `body` under `key` until then.
    pub fn echo(&mut self, key: &str, kind: Kind, body: Value, until: Moment) {
        let echo = Echo { body, kind, until };
        self.echoes.insert(key.to_owned(), echo);
    }

    /// What is shown instead of the truth.
    #[must_use]
    pub fn echoed(&self, key: &str, now: Moment) -> Option<&Value> {
        let echo = self.echoes.get(key)?;
        (echo.until > now).then_some(&echo.body)
    }

    /// Bodies of deleted resources that lists still show.
    pub fn echoes<'s>(
        &'s self,
        prefix: &'s str,
        kind: Kind,
        now: Moment,
    ) -> impl Iterator<Item = &'s Value> {
        self.echoes
            .iter()
            .filter(move |(key, echo)| {
                echo.kind == kind
                    && echo.until > now
                    && key.starts_with(prefix)
                    && !self.resources.contains_key(*key)
            })
            .map(|(_, echo)| &echo.body)
    }

    /// Every resource.
    pub fn all(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// What is under a key, not the key itself: `/…/galleries/g` has `/…/galleries/g/images/i`.
    pub fn under<'s>(&'s self, key: &str) -> impl Iterator<Item = &'s Resource> + use<'s> {
        let prefix = format!("{key}/");
        let from = Bound::Included(prefix.clone());
        self.resources
            .range((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(&prefix))
            .map(|(_, resource)| resource)
    }

    /// Those of one kind directly or deeper under a key.
    pub fn of_kind<'s>(
        &'s self,
        key: &str,
        kind: Kind,
    ) -> impl Iterator<Item = &'s Resource> + use<'s> {
        self.under(key)
            .filter(move |resource| resource.kind == kind)
    }
}
