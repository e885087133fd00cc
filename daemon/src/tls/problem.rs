//! Why a connection did not come about: one short reason for the counter, one sentence for people.
//!
//! Each end says what it knows. Who refuses knows everything and says it; who is refused gets one
//! number from the other end (the alert) and adds what it knows of its own certificate.

use oast_model::time::Timestamp;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use super::certificate::Certificate;
use super::name::{Name, Role};

/// What is wrong with a certificate that was shown, or with the conversation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Its time is over.
    #[error(
        "{whose} expired at {at}, and it is {now} here: have it renewed (`oast operator pki issue`, or join the worker anew), or set the clock"
    )]
    Expired {
        /// Who showed it.
        whose: String,
        /// When it ended.
        at: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// Its time has not come.
    #[error(
        "{whose} is valid from {at} only, and it is {now} here: set the clock of this machine or of the one that signed it"
    )]
    NotYet {
        /// Who showed it.
        whose: String,
        /// When it begins.
        at: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// Nobody whom we trust signed it.
    #[error("{whose} is signed by `{signer}`, which this farm's ca.pem does not know: {way_out}")]
    Authority {
        /// Who showed it.
        whose: String,
        /// Who signed it, as written.
        signer: String,
        /// What to do.
        way_out: String,
    },
    /// It is another farm's.
    #[error(
        "{whose} belongs to the farm `{theirs}`, this is `{ours}`: use an address and a certificate of the same farm"
    )]
    Farm {
        /// Who showed it.
        whose: String,
        /// Their farm.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// It does not name the host that was called.
    #[error(
        "{whose} is not for the host {host}, only for {hosts}: call it by such a name, or issue it again with `--host {host}`"
    )]
    Host {
        /// Who showed it.
        whose: String,
        /// Who was called.
        host: String,
        /// What it names.
        hosts: String,
    },
    /// Its role may not do this.
    #[error("{whose} may not be used here: {why}")]
    Role {
        /// Who showed it.
        whose: String,
        /// The rule.
        why: String,
    },
    /// It is damaged, or made by somebody else's tools.
    #[error("{whose} cannot be used: {why}")]
    Certificate {
        /// Who showed it.
        whose: String,
        /// Why.
        why: String,
    },
    /// The other end refused ours.
    #[error("{0}")]
    Refused(String),
    /// The other end does not speak TLS.
    #[error("the other end does not speak TLS: {0}")]
    Plain(&'static str),
    /// It took too long.
    #[error("the TLS handshake was not over in time")]
    Slow,
    /// The connection broke off.
    #[error("the connection broke off during the TLS handshake")]
    Broken,
    /// Anything else, in the library's words.
    #[error("the TLS handshake failed: {0}")]
    Other(String),
}

impl Problem {
    /// Every label that [`Problem::label`] gives.
    pub const LABELS: [&'static str; 12] = [
        "expired",
        "not_yet_valid",
        "unknown_authority",
        "other_farm",
        "wrong_host",
        "wrong_role",
        "bad_certificate",
        "refused_by_peer",
        "no_tls",
        "timeout",
        "broken",
        "other",
    ];

    /// The reason as a metric's label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Problem::Expired { .. } => "expired",
            Problem::NotYet { .. } => "not_yet_valid",
            Problem::Authority { .. } => "unknown_authority",
            Problem::Farm { .. } => "other_farm",
            Problem::Host { .. } => "wrong_host",
            Problem::Role { .. } => "wrong_role",
            Problem::Certificate { .. } => "bad_certificate",
            Problem::Refused(_) => "refused_by_peer",
            Problem::Plain(_) => "no_tls",
            Problem::Slow => "timeout",
            Problem::Broken => "broken",
            Problem::Other(_) => "other",
        }
    }

    /// Whether one end does not believe the other, which trying again does not change.
    #[must_use]
    pub const fn is_distrust(&self) -> bool {
        matches!(
            self,
            Problem::Expired { .. }
                | Problem::NotYet { .. }
                | Problem::Authority { .. }
                | Problem::Farm { .. }
                | Problem::Host { .. }
                | Problem::Role { .. }
                | Problem::Certificate { .. }
                | Problem::Refused(_)
        )
    }

    /// From what the library says about a certificate that was shown to us.
    pub(super) fn of_certificate(
        error: &Error,
        shown: Option<&Certificate>,
        called: Option<&str>,
        ours: Option<&Name>,
        now: Timestamp,
    ) -> Problem {
        let whose = whose(shown);
        let Error::InvalidCertificate(error) = error else {
            return Problem::Certificate {
                whose,
                why: error.to_string(),
            };
        };
        let Some(shown) = shown else {
            return Problem::Certificate {
                whose,
                why: error.to_string(),
            };
        };
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Problem::Expired {
                    whose,
                    at: shown.not_after(),
                    now,
                }
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Problem::NotYet {
                    whose,
                    at: shown.not_before(),
                    now,
                }
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                match (shown.name(), ours) {
                    // What it says about itself proves nothing, but explains the refusal.
                    (Some(theirs), Some(ours)) if theirs.farm() != ours.farm() => Problem::Farm {
                        whose,
                        theirs: theirs.farm().to_owned(),
                        ours: ours.farm().to_owned(),
                    },
                    (theirs, ours) => Problem::Authority {
                        whose,
                        signer: shown.issuer_name().to_owned(),
                        way_out: way_out_of_unknown(theirs.as_ref(), ours),
                    },
                }
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Problem::Host {
                    whose,
                    host: called.unwrap_or("that was called").to_owned(),
                    hosts: match shown.hosts() {
                        [] => "none".to_owned(),
                        hosts => hosts.join(", "),
                    },
                }
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Problem::Role {
                    whose,
                    why: "it was issued for another purpose".to_owned(),
                }
            }
            other => Problem::Certificate {
                whose,
                why: other.to_string(),
            },
        }
    }

    /// From an error of the conversation; `own` is the certificate that we show, if we do.
    pub(super) fn of_error(error: &std::io::Error, own: Option<&Certificate>) -> Problem {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Error>());
        match inner {
            Some(Error::AlertReceived(alert)) => Problem::Refused(refusal(*alert, own)),
            Some(Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            )) => Problem::Plain("is the address right, and is TLS configured there?"),
            Some(other) => Problem::Other(other.to_string()),
            None => match error.kind() {
                std::io::ErrorKind::TimedOut => Problem::Slow,
                _ => Problem::Broken,
            },
        }
    }
}

fn way_out_of_unknown(theirs: Option<&Name>, ours: Option<&Name>) -> String {
    match (theirs, ours) {
        (None, None) => {
            "give the farm's authority with `--ca FILE`, or keep it: `oast context set NAME --addr ADDRESS --ca FILE`"
        }
        (Some(_), None) => {
            "it is a farm's own authority; keep it with the farm: `oast context set NAME --addr ADDRESS --ca FILE` (FILE is ca.pem of a member)"
        }
        (_, Some(_)) => {
            "issue the certificate with this farm's authority, or add the other authority to ca.pem on every member and worker"
        }
    }
    .to_owned()
}

/// Words for who showed a certificate.
pub(super) fn whose(shown: Option<&Certificate>) -> String {
    match shown.map(|shown| (shown.name(), shown.subject_name())) {
        None => "a certificate that cannot be read".to_owned(),
        Some((Some(name), _)) => format!("the certificate of {name}"),
        Some((None, "")) => "a certificate without a name".to_owned(),
        Some((None, subject)) => format!("the certificate of `{subject}`"),
    }
}

/// What the other end's alert means for us.
fn refusal(alert: AlertDescription, own: Option<&Certificate>) -> String {
    let shown = match own {
        Some(own) => format!(
            "{} (signed by `{}`, valid from {} to {})",
            whose(Some(own)),
            own.issuer_name(),
            own.not_before(),
            own.not_after()
        ),
        None => "us, who showed no certificate".to_owned(),
    };
    match alert {
        AlertDescription::CertificateExpired => format!(
            "the other end says that the time of the certificate is over or has not come; it refused {shown}: renew it, or compare both clocks"
        ),
        AlertDescription::UnknownCA => format!(
            "the other end does not know who signed the certificate; it refused {shown}: both must be of one farm, and its ca.pem must hold this authority"
        ),
        AlertDescription::AccessDenied => format!(
            "the other end does not let this certificate in; it refused {shown}: its log says why (another farm, or a role that may not do this)"
        ),
        AlertDescription::CertificateRequired => format!(
            "the other end wants a certificate; it refused {shown}: join the worker (`oast worker --join`), or issue one (`oast operator pki issue member`)"
        ),
        other => format!("the other end refused {shown}: {other:?}; its log says why"),
    }
}

/// Whether this identity may be shown on a connection of `ours` at all.
///
/// `signers`: what was sent beside it. A member's certificate counts only when the root signed it
/// or that member's own issuer, so that one member's issuer cannot make another member.
pub(super) fn judge(
    shown: &Certificate,
    signers: &[Certificate],
    ours: &Name,
) -> Result<Name, Problem> {
    let whose = whose(Some(shown));
    let Some(name) = shown.name() else {
        return Err(Problem::Certificate {
            whose,
            why: "it carries no oast:// name, so it speaks for nobody in a farm".to_owned(),
        });
    };
    if name.farm() != ours.farm() {
        return Err(Problem::Farm {
            whose,
            theirs: name.farm().to_owned(),
            ours: ours.farm().to_owned(),
        });
    }
    if !name.role().speaks() {
        return Err(Problem::Role {
            whose,
            why: "an authority signs and never speaks for itself".to_owned(),
        });
    }
    if name.role() == Role::Member {
        let foreign = signers
            .iter()
            .filter(|signer| shown.names_as_issuer(signer) && !signer.is_root())
            .any(|signer| {
                let own = Name::new(name.farm(), Role::Issuer, name.name()).ok();
                signer.name() != own
            });
        if foreign {
            return Err(Problem::Role {
                whose,
                why: format!(
                    "it was signed by `{}`, and a member's certificate is signed by the root or by the member's own issuer",
                    shown.issuer_name()
                ),
            });
        }
    }
    Ok(name)
}
