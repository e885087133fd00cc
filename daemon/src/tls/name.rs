//! Who a certificate speaks for: `oast://FARM/member/NAME` in its URI name.
//!
//! Host names say where somebody answers and change with the machine; this name says who they are
//! in the farm and is what rights hang on. It is read strictly: one spelling for one identity.

use std::fmt;
use std::str::FromStr;

use oast_model::names::{self, NameError};

/// Before every identity.
const SCHEME: &str = "oast://";

/// What the holder of a certificate is in the farm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A coordinator of the group: speaks the peer protocol and answers people and workers.
    Member,
    /// Does leased work: speaks the worker protocol and nothing else.
    Worker,
    /// Signs for its member and for workers; never speaks for itself.
    Issuer,
    /// The farm's own root of trust; never speaks for itself.
    Authority,
}

impl Role {
    /// As it stands in the identity and in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Member => "member",
            Role::Worker => "worker",
            Role::Issuer => "issuer",
            Role::Authority => "authority",
        }
    }

    /// Whether a certificate of this role may be shown on a connection.
    #[must_use]
    pub const fn speaks(self) -> bool {
        matches!(self, Role::Member | Role::Worker)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One identity in one farm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    farm: String,
    role: Role,
    name: String,
}

/// A text that is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// It has another form.
    #[error("`{0}` is no identity such as oast://acme/member/m1")]
    Form(String),
    /// A part of it is no name.
    #[error("`{part}` cannot be used as {what}")]
    Part {
        /// Which part.
        what: &'static str,
        /// As written.
        part: String,
        #[source]
        err: NameError,
    },
}

impl Name {
    /// An identity of checked parts.
    ///
    /// # Errors
    /// [`BadName::Part`] when the farm's or the holder's name breaks the rule of names.
    pub fn new(farm: &str, role: Role, name: &str) -> Result<Name, BadName> {
        let part = |what, part: &str| match names::check(part) {
            Ok(()) => Ok(part.to_owned()),
            Err(err) => Err(BadName::Part {
                what,
                part: part.to_owned(),
                err,
            }),
        };
        Ok(Name {
            farm: part("the farm's name", farm)?,
            role,
            name: part("a certificate's name", name)?,
        })
    }

    /// Which farm.
    #[must_use]
    pub fn farm(&self) -> &str {
        &self.farm
    }

    /// As what.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Who.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// "worker `w1`", for messages inside one farm.
    #[must_use]
    pub fn short(&self) -> String {
        format!("{} `{}`", self.role, self.name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.farm, self.role, self.name)
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Name, BadName> {
        let form = || BadName::Form(text.chars().take(names::NAME_MAX * 4).collect());
        let parts = text.strip_prefix(SCHEME).ok_or_else(form)?;
        let mut parts = parts.split('/');
        let (Some(farm), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        let role = match role {
            "member" => Role::Member,
            "worker" => Role::Worker,
            "issuer" => Role::Issuer,
            "authority" => Role::Authority,
            _ => return Err(form()),
        };
        Name::new(farm, role, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_written_and_read_in_one_spelling() {
        let name = Name::new("acme", Role::Member, "m1").expect("good names");
        assert_eq!(name.to_string(), "oast://acme/member/m1");
        assert_eq!("oast://acme/member/m1".parse(), Ok(name));
        for text in [
            "",
            "oast://acme/member",
            "oast://acme/member/m1/",
            "oast://acme/member/m1/x",
            "oast://acme/Member/m1",
            "oast://acme/leader/m1",
            "oast://ACME/member/m1",
            "oast:///member/m1",
            "oast://acme/member/",
            "OAST://acme/member/m1",
            "spiffe://acme/member/m1",
            "oast://acme/member/m1?x",
        ] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
