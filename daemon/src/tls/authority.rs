//! Who signs certificates.
//!
//! ```text
//! authority (root, ten years; its key stays with the operator, offline)
//!   |- member certificate            oast://FARM/member/m1    made by `oast operator pki issue`
//!   '- issuer of one member          oast://FARM/issuer/m1    its key lies with the member
//!        |- that member's next certificates, and no other member's (verify.rs)
//!        '- workers' certificates
//! ```
//!
//! An issuer's certificates end with it at the latest. Why members hold issuers, and what a stolen
//! one is worth: docs/decisions/0011.

use std::net::IpAddr;
use std::time::Duration;

use oast_model::time::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType, SerialNumber,
};

use super::certificate::Certificate;
use super::der::Malformed;
use super::key::{Key, KeyError, PublicKey, Signer};
use super::name::{BadName, Name, Role};
use super::pem::Bundle;
use crate::random;

/// Life of a farm's root.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Life of a member's issuer.
pub const ISSUER_LIFE: Duration = Duration::from_secs(2 * 365 * 86_400);
/// Life of a member's or a worker's certificate.
pub const LEAF_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// The root's own name.
const ROOT_NAME: &str = "root";
/// Clocks that are behind by this much take a new certificate at once, if it lives long enough
/// that a tenth of its life is more.
const BACKDATE_MAX: Duration = Duration::from_secs(300);
/// Hosts in one certificate.
const HOSTS_MAX: usize = 64;

/// Something cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A name in it.
    #[error(transparent)]
    Name(#[from] BadName),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A host that no certificate can hold.
    #[error("`{0}` is no host name and no IP address")]
    Host(String),
    /// Too many of them.
    #[error("a certificate names at most {HOSTS_MAX} hosts")]
    Hosts,
    /// It is no authority, or one that we did not make.
    #[error("{0}")]
    NoAuthority(&'static str),
    /// The authority's own time.
    #[error("the authority `{authority}` is valid from {from} to {until} only: {way_out}")]
    Over {
        /// Its subject.
        authority: String,
        /// From.
        from: Timestamp,
        /// Until.
        until: Timestamp,
        /// What to do.
        way_out: &'static str,
    },
    /// The library refused.
    #[error("sign a certificate")]
    Sign(#[source] rcgen::Error),
    /// What was signed cannot be read back.
    #[error("read the certificate that was just signed")]
    ReadBack(#[source] Malformed),
}

/// A certificate that is wanted.
#[derive(Clone, Debug)]
pub struct Order {
    /// For whom.
    pub name: Name,
    /// Where they answer; none for who only asks.
    pub hosts: Vec<String>,
    /// Whose key.
    pub key: PublicKey,
    /// From now on...
    pub now: Timestamp,
    /// ...for this long.
    pub life: Duration,
}

/// A root or a member's issuer, with its key.
#[derive(Clone, Debug)]
pub struct Authority {
    certificate: Certificate,
    name: Name,
    key: Key,
}

impl Authority {
    /// Founds a farm's root of trust.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn found(farm: &str, now: Timestamp, life: Duration) -> Result<Authority, IssueError> {
        let name = Name::new(farm, Role::Authority, ROOT_NAME)?;
        let key = Key::generate()?;
        let mut params = params(&name, now, now + life)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let made = params
            .self_signed(&key.signer()?)
            .map_err(IssueError::Sign)?;
        let certificate = Certificate::read(made.der()).map_err(IssueError::ReadBack)?;
        Authority::open(certificate, key)
    }

    /// An authority from its file.
    ///
    /// # Errors
    /// [`IssueError::NoAuthority`] when it was not made by `oast operator pki`.
    pub fn from_bundle(bundle: &Bundle) -> Result<Authority, IssueError> {
        match (bundle.chain.first(), &bundle.key) {
            (Some(certificate), Some(key)) => Authority::open(certificate.clone(), key.clone()),
            _ => Err(IssueError::NoAuthority(
                "an authority's file holds its key and its certificate",
            )),
        }
    }

    /// An authority with its key.
    ///
    /// # Errors
    /// [`IssueError::NoAuthority`] when it was not made by `oast operator pki`, or when the key
    /// is another's.
    pub fn open(certificate: Certificate, key: Key) -> Result<Authority, IssueError> {
        let ours = IssueError::NoAuthority(
            "this is no authority of a farm: `oast operator pki init` makes one",
        );
        let Some(name) = certificate.name() else {
            return Err(ours);
        };
        let signs = matches!(name.role(), Role::Authority | Role::Issuer);
        // What is signed carries the subject as it is written here.
        if !signs || !certificate.is_authority() || certificate.subject_name() != subject(&name) {
            return Err(ours);
        }
        if key.public()? != certificate.public_key() {
            return Err(IssueError::NoAuthority(
                "the private key is not the one of the authority's certificate",
            ));
        }
        Ok(Authority {
            certificate,
            name,
            key,
        })
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Who it is.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Certificate and key, to be written to a file that is its owner's alone.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        Bundle {
            chain: vec![self.certificate.clone()],
            key: Some(self.key.clone()),
        }
    }

    /// Signs a certificate for a member or a worker; it ends with this authority at the latest.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn issue(&self, order: &Order) -> Result<Certificate, IssueError> {
        if order.hosts.len() > HOSTS_MAX {
            return Err(IssueError::Hosts);
        }
        let (from, until) = self.span(order.now, order.life)?;
        let mut params = params(&order.name, from, until)?;
        for host in &order.hosts {
            params.subject_alt_names.push(host_name(host)?);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match order.name.role() {
            // Members call each other.
            Role::Member => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            _ => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        self.sign(&params, &order.key)
    }

    /// Makes the issuer that one member holds.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn delegate(
        &self,
        member: &str,
        now: Timestamp,
        life: Duration,
    ) -> Result<Authority, IssueError> {
        let name = Name::new(self.name.farm(), Role::Issuer, member)?;
        let key = Key::generate()?;
        let (from, until) = self.span(now, life)?;
        let mut params = params(&name, from, until)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let public = PublicKey::read(&key.public()?).map_err(IssueError::ReadBack)?;
        Authority::open(self.sign(&params, &public)?, key)
    }

    /// The time of what is signed now.
    fn span(&self, now: Timestamp, life: Duration) -> Result<(Timestamp, Timestamp), IssueError> {
        let (first, last) = (self.certificate.not_before(), self.certificate.not_after());
        if now < first || now >= last {
            return Err(IssueError::Over {
                authority: self.certificate.subject_name().to_owned(),
                from: first,
                until: last,
                way_out: if now < first {
                    "is the clock of this machine right?"
                } else {
                    "`oast operator pki issue member` makes a new one"
                },
            });
        }
        let from = now - BACKDATE_MAX.min(life / 10);
        Ok((from.max(first), (now + life).min(last)))
    }

    fn sign(&self, params: &CertificateParams, key: &PublicKey) -> Result<Certificate, IssueError> {
        let own = self::params(
            &self.name,
            self.certificate.not_before(),
            self.certificate.not_after(),
        )?;
        let issuer: Issuer<'_, Signer> = Issuer::new(own, self.key.signer()?);
        let made = params.signed_by(key, &issuer).map_err(IssueError::Sign)?;
        Certificate::read(made.der()).map_err(IssueError::ReadBack)
    }
}

/// The common name: for people who look at it with other tools, and what chains are built by.
fn subject(name: &Name) -> String {
    format!("oast {} {} {}", name.farm(), name.role(), name.name())
}

fn params(name: &Name, from: Timestamp, until: Timestamp) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, subject(name));
    params.distinguished_name = distinguished;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // Whole seconds are all that a certificate holds; a part of one is given, never taken.
    params.not_before = epoch + Duration::from_secs(from.as_millis() / 1000);
    params.not_after = epoch + Duration::from_secs(until.as_millis().div_ceil(1000));
    params.serial_number = Some(serial());
    let uri = name.to_string();
    let uri = uri.clone().try_into().map_err(|_| IssueError::Host(uri))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 127 random bits, positive.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = random::bytes();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn host_name(host: &str) -> Result<SanType, IssueError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let bad = || IssueError::Host(host.to_owned());
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.len() > 253 || !host.split('.').all(label) {
        return Err(bad());
    }
    Ok(SanType::DnsName(
        host.to_owned().try_into().map_err(|_| bad())?,
    ))
}
