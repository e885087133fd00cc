//! The names people give to things: teams, pipelines, images, channels, fleets.
//!
//! Each kind has its own type, so that a fleet's name cannot be handed where an
//! image's is wanted. All follow one rule, [`check`], which is also the rule of
//! host names and of most cloud resources, so that a name travels everywhere
//! unchanged. Numbers that the farm issues (runs, leases) are not names.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// The longest name; a DNS label holds 63 octets.
pub const NAME_MAX: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was written.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than [`NAME_MAX`].
    #[error("a name has at most {NAME_MAX} characters, this has {0}")]
    TooLong(usize),
    /// A character outside `a-z 0-9 -`.
    #[error("a name is made of a-z, 0-9 and '-', not {0:?}")]
    Character(char),
    /// Starts with a digit or hyphen, or ends with a hyphen.
    #[error("a name starts with a letter and ends with a letter or digit")]
    Edge,
}

/// Checks the one rule of names: a letter, then letters, digits and hyphens, no hyphen at the end.
pub fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(wrong) = text
        .chars()
        .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-'))
    {
        return Err(NameError::Character(wrong));
    }
    if text.len() > NAME_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    if !text.starts_with(|c: char| c.is_ascii_lowercase()) || text.ends_with('-') {
        return Err(NameError::Edge);
    }
    Ok(())
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        // Shared: names are the keys of persistent maps, which copy keys with every change.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes a text that follows the rule of names.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                check(&text)?;
                Ok(Self(text.into()))
            }

            /// The name as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.as_str().to_owned()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    )* };
}

names! {
    /// The tenant boundary: owner of pipelines, images and fleets.
    TeamName;
    /// A recipe, unique in its team.
    PipelineName;
    /// A lineage of image versions.
    ImageName;
    /// A pointer from an image to one of its versions, such as `candidate`.
    ChannelName;
    /// A group of scale sets that follows one channel.
    FleetName;
    /// A scale set of a fleet.
    SetName;
    /// A cloud region, as its provider writes it, such as `westeurope`.
    RegionName;
    /// A Git repository that the farm watches.
    RepositoryName;
    /// A secret in a team's keeping. Its value is never part of the model.
    SecretName;
    /// One machine of a fleet, unique in it: `<set>-<number>`.
    InstanceName;
    /// A process that runs tasks, unique in the farm.
    WorkerName;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule_of_dns_labels() {
        for good in ["a", "web", "web-prod-2", &"a".repeat(63)] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert_eq!(check(""), Err(NameError::Empty));
        assert_eq!(check("Web"), Err(NameError::Character('W')));
        assert_eq!(check("web_1"), Err(NameError::Character('_')));
        assert_eq!(check("-web"), Err(NameError::Edge));
        assert_eq!(check("web-"), Err(NameError::Edge));
        assert_eq!(check("1web"), Err(NameError::Edge));
        assert_eq!(check(&"a".repeat(64)), Err(NameError::TooLong(64)));
    }

    #[test]
    fn a_stored_name_is_checked_when_it_is_read() {
        assert!(serde_json::from_str::<TeamName>("\"pay ments\"").is_err());
        let name: TeamName = serde_json::from_str("\"payments\"").expect("a good name");
        assert_eq!(serde_json::to_string(&name).expect("text"), "\"payments\"");
    }
}
