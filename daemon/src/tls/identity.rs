//! The certificates of one process: read from a folder, used by every connection, read again when
//! the files change.
//!
//! ```text
//! ca.pem        whom we believe: the farm's root, during a change of roots both
//! identity.pem  who we are: key, certificate, and the issuer's certificate if one signed it
//! issuer.pem    members only: what the next certificates are signed with
//! people.pem    members only, optional: another key and certificate for the port that people
//!               use, such as one that browsers know
//! ```
//!
//! A reload makes new TLS configurations and with them new session caches, so no session that an
//! old certificate began is resumed under a new one. Open connections go on as they are.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use oast_model::time::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ServerConfig;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};

use super::authority::{Authority, IssueError};
use super::certificate::Certificate;
use super::key::{Key, KeyError};
use super::name::{Name, Role};
use super::pem::{Bundle, FileError, Stamp, stamp};
use super::verify::{Callers, Members};
use crate::clock::SharedClock;
use crate::metrics::{Gauges, Metric, Metrics};

/// File of the roots.
pub const CA_FILE: &str = "ca.pem";
/// File of our own key and chain.
pub const IDENTITY_FILE: &str = "identity.pem";
/// File of a member's issuer.
pub const ISSUER_FILE: &str = "issuer.pem";
/// File of the key and chain that people see.
pub const PEOPLE_FILE: &str = "people.pem";

const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// Whose certificates these must be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the files are.
    pub folder: PathBuf,
    /// The farm that they must belong to, where it is known.
    pub farm: Option<String>,
    /// What we are.
    pub role: Role,
    /// Who we are, where it is known.
    pub name: Option<String>,
    /// For validity.
    pub clock: SharedClock,
    /// Where expiry and handshakes are counted.
    pub metrics: Metrics,
}

/// The certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that must be there is not.
    #[error("{} is missing: {way_out}", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
        /// How it is made.
        way_out: &'static str,
    },
    /// A file's contents do not fit.
    #[error("{} {what}", path.display())]
    Unfit {
        /// Which.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// A key.
    #[error("use the key in {}", path.display())]
    Key {
        /// In which file.
        path: PathBuf,
        #[source]
        err: KeyError,
    },
    /// The issuer.
    #[error("use the issuer in {}", path.display())]
    Issuer {
        /// In which file.
        path: PathBuf,
        #[source]
        err: IssueError,
    },
    /// The library refused.
    #[error("set TLS up with the files in {}", folder.display())]
    Setup {
        /// Where.
        folder: PathBuf,
        #[source]
        err: rustls::Error,
    },
}

/// What is in use now.
pub struct Loaded {
    name: Name,
    chain: Vec<Certificate>,
    roots: Vec<Certificate>,
    issuer: Option<Authority>,
    people_certificate: Option<Certificate>,
    pub(super) callers: Arc<Callers>,
    pub(super) farm: Arc<ServerConfig>,
    pub(super) people: Arc<ServerConfig>,
    pub(super) calls: Arc<ClientConfig>,
    stamps: Stamps,
}

type Stamps = [Option<Stamp>; 4];

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Loaded {
    /// Who we are.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Our certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.chain[0]
    }

    /// Whom we believe.
    #[must_use]
    pub fn roots(&self) -> &[Certificate] {
        &self.roots
    }

    /// What signs certificates here, on a member.
    #[must_use]
    pub fn issuer(&self) -> Option<&Authority> {
        self.issuer.as_ref()
    }
}

/// The certificates of this process. Clones are the same.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    current: ArcSwap<Loaded>,
    expiry: Gauges,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", self.current().name())
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the folder.
    ///
    /// # Errors
    /// [`IdentityError`], each naming the file and what to do. A certificate whose time is over
    /// is none: it may still be renewed.
    pub fn open(options: Options) -> Result<Identity, IdentityError> {
        let loaded = load(&options)?;
        let expiry = options.metrics.gauges(Metric::TlsCertificateExpiry);
        let identity = Identity {
            inner: Arc::new(Inner {
                current: ArcSwap::from_pointee(loaded),
                options,
                expiry,
            }),
        };
        identity.show();
        Ok(identity)
    }

    /// What is in use now.
    #[must_use]
    pub fn current(&self) -> Arc<Loaded> {
        self.inner.current.load_full()
    }

    /// For validity and waiting.
    #[must_use]
    pub fn clock(&self) -> &SharedClock {
        &self.inner.options.clock
    }

    /// Where handshakes are counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.options.metrics
    }

    /// Where the files are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.inner.options.folder
    }

    /// Whether a file is another one than what is in use.
    #[must_use]
    pub fn changed(&self) -> bool {
        stamps(&self.inner.options.folder) != self.current().stamps
    }

    /// Reads the folder again. On an error everything stays as it was.
    ///
    /// # Errors
    /// As [`Identity::open`].
    pub fn reload(&self) -> Result<(), IdentityError> {
        let loaded = load(&self.inner.options)?;
        self.inner.current.store(Arc::new(loaded));
        self.show();
        Ok(())
    }

    /// Puts a new certificate in the place of the old one, on disk first.
    ///
    /// # Errors
    /// As [`Identity::open`]; then the old one is still in use.
    pub fn install(&self, key: Key, chain: Vec<Certificate>) -> Result<(), IdentityError> {
        let path = self.folder().join(IDENTITY_FILE);
        self.check_next(&path, &key, &chain)?;
        let bundle = Bundle {
            chain,
            key: Some(key),
        };
        bundle.replace(&path)?;
        self.reload()
    }

    /// What would not work must not replace what does.
    fn check_next(
        &self,
        path: &Path,
        key: &Key,
        chain: &[Certificate],
    ) -> Result<(), IdentityError> {
        let unfit = |what: &str| IdentityError::Unfit {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let public = key.public().map_err(|err| IdentityError::Key {
            path: path.to_owned(),
            err,
        })?;
        let current = self.current();
        match chain.first() {
            Some(first) if first.public_key() == public => {
                if first.name().as_ref() != Some(current.name()) {
                    return Err(unfit("would get a certificate of another name"));
                }
            }
            _ => return Err(unfit("would get a certificate of another key")),
        }
        believe(path, &current.callers, chain, self.clock())
    }

    /// Brings the gauges up to date.
    fn show(&self) {
        let current = self.current();
        let seconds = |at: Timestamp| at.as_millis() / 1_000;
        let set = |kind: &str, certificate: Option<&Certificate>| {
            if let Some(certificate) = certificate {
                let gauge = self.inner.expiry.with(&[kind]);
                gauge.set(seconds(certificate.not_after()));
            }
        };
        set("identity", current.chain.first());
        set(
            "issuer",
            current.issuer.as_ref().map(Authority::certificate),
        );
        let first_to_go = current.roots.iter().min_by_key(|root| root.not_after());
        set("authority", first_to_go);
        set("people", current.people_certificate.as_ref());
    }
}

fn stamps(folder: &Path) -> Stamps {
    [CA_FILE, IDENTITY_FILE, ISSUER_FILE, PEOPLE_FILE].map(|file| stamp(&folder.join(file)))
}

/// Reads certificates of authorities for [`RootCertStore`].
pub(super) fn root_store<'a>(
    roots: impl IntoIterator<Item = &'a Certificate>,
) -> Result<RootCertStore, rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.der().clone())?;
    }
    Ok(store)
}

fn load(options: &Options) -> Result<Loaded, IdentityError> {
    let folder = &options.folder;
    // First, so that a change while we read is seen at the next look.
    let stamps = stamps(folder);
    let roots = read_roots(&folder.join(CA_FILE), options.role)?;
    let path = folder.join(IDENTITY_FILE);
    if stamps[1].is_none() {
        return Err(IdentityError::Missing {
            path,
            way_out: way_out(options.role),
        });
    }
    let (key, chain) = read_pair(&path)?;
    let name = check_name(&path, &chain[0], options)?;
    let issuer_path = folder.join(ISSUER_FILE);
    let issuer = match stamps[2] {
        None => None,
        Some(_) => Some(read_issuer(&issuer_path, &name)?),
    };
    let people_path = folder.join(PEOPLE_FILE);
    let people = match stamps[3] {
        None => None,
        Some(_) => Some(read_pair(&people_path)?),
    };
    let setup = |err: rustls::Error| IdentityError::Setup {
        folder: folder.clone(),
        err,
    };
    let general = |err: &dyn std::error::Error| setup(rustls::Error::General(err.to_string()));
    let provider = Arc::new(ring::default_provider());
    let store = Arc::new(root_store(&roots).map_err(setup)?);
    let callers = Callers::new(store.clone(), provider.clone(), name.clone());
    let callers = Arc::new(callers.map_err(|err| general(&err))?);
    let members = WebPkiServerVerifier::builder_with_provider(store, provider.clone()).build();
    let members = Members {
        inner: members.map_err(|err| general(&err))?,
        ours: name.clone(),
    };
    let clock = options.clock.clone();
    believe(&path, &callers, &chain, &clock)?;

    // Servers show the root too: who joins knows nothing of it but the hash of its key.
    let mut shown = ders(&chain);
    shown.extend(signing_root(&chain, &roots).map(|root| root.der().clone()));
    let mut farm = server(&provider, &clock, true)
        .map_err(setup)?
        .with_client_cert_verifier(callers.clone())
        .with_single_cert(shown.clone(), key.for_tls())
        .map_err(setup)?;
    farm.alpn_protocols = vec![HTTP_2.to_vec()];
    farm.ticketer = ring::Ticketer::new().map_err(setup)?;
    let people_certificate = people.as_ref().map(|(_, chain)| chain[0].clone());
    let (people_chain, people_key) = match &people {
        Some((key, chain)) => (ders(chain), key.for_tls()),
        None => (shown, key.for_tls()),
    };
    let mut people = server(&provider, &clock, false)
        .map_err(setup)?
        .with_no_client_auth()
        .with_single_cert(people_chain, people_key)
        .map_err(setup)?;
    people.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
    people.ticketer = ring::Ticketer::new().map_err(setup)?;
    let mut calls = ClientConfig::builder_with_details(provider, Arc::new(Watch(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(members))
        .with_client_auth_cert(ders(&chain), key.for_tls())
        .map_err(setup)?;
    calls.alpn_protocols = vec![HTTP_2.to_vec()];
    Ok(Loaded {
        name,
        chain,
        roots,
        issuer,
        people_certificate,
        callers,
        farm: Arc::new(farm),
        people: Arc::new(people),
        calls: Arc::new(calls),
        stamps,
    })
}

fn server(
    provider: &Arc<CryptoProvider>,
    clock: &SharedClock,
    newest_only: bool,
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, rustls::Error> {
    let watch = Arc::new(Watch(clock.clone()));
    let builder = ServerConfig::builder_with_details(provider.clone(), watch);
    if newest_only {
        builder.with_protocol_versions(&[&rustls::version::TLS13])
    } else {
        builder.with_safe_default_protocol_versions()
    }
}

fn way_out(role: Role) -> &'static str {
    match role {
        Role::Worker => {
            "`oast worker --join TOKEN` makes it; `oast operator worker-token create` makes the token"
        }
        _ => {
            "`oast operator pki issue member NAME --host HOST` makes it beside the farm's authority"
        }
    }
}

fn read_roots(path: &Path, role: Role) -> Result<Vec<Certificate>, IdentityError> {
    if stamp(path).is_none() {
        return Err(IdentityError::Missing {
            path: path.to_owned(),
            way_out: way_out(role),
        });
    }
    let bundle = Bundle::read(path)?;
    let unfit = |what: &str| IdentityError::Unfit {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    if bundle.key.is_some() {
        return Err(unfit(
            "holds a private key: only the authority's certificate belongs here, its key stays with the operator",
        ));
    }
    if !bundle.chain.iter().all(Certificate::is_authority) {
        return Err(unfit("holds a certificate that is no authority's"));
    }
    Ok(bundle.chain)
}

fn read_pair(path: &Path) -> Result<(Key, Vec<Certificate>), IdentityError> {
    let unfit = |what: &str| IdentityError::Unfit {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let bundle = Bundle::read(path)?;
    let (Some(key), Some(first)) = (bundle.key, bundle.chain.first()) else {
        return Err(unfit("must hold a private key and its certificate"));
    };
    let public = key.public().map_err(|err| IdentityError::Key {
        path: path.to_owned(),
        err,
    })?;
    if public != first.public_key() {
        return Err(unfit(
            "holds a private key that is not the one of its first certificate",
        ));
    }
    Ok((key, bundle.chain))
}

fn check_name(path: &Path, shown: &Certificate, options: &Options) -> Result<Name, IdentityError> {
    let unfit = |what: String| IdentityError::Unfit {
        path: path.to_owned(),
        what,
    };
    let Some(name) = shown.name() else {
        return Err(unfit(
            "speaks for nobody in a farm: `oast operator pki show` shows what is in it".to_owned(),
        ));
    };
    if name.role() != options.role {
        return Err(unfit(format!(
            "is a {}'s, and this process is a {}",
            name.role(),
            options.role
        )));
    }
    if let Some(farm) = &options.farm
        && farm != name.farm()
    {
        return Err(unfit(format!(
            "belongs to the farm `{}`, and this process is configured for `{farm}`",
            name.farm()
        )));
    }
    if let Some(wanted) = &options.name
        && wanted != name.name()
    {
        return Err(unfit(format!(
            "is {}'s, and this process is configured as `{wanted}`",
            name.short()
        )));
    }
    Ok(name)
}

fn read_issuer(path: &Path, member: &Name) -> Result<Authority, IdentityError> {
    let bundle = Bundle::read(path)?;
    let issuer = Authority::from_bundle(&bundle).map_err(|err| IdentityError::Issuer {
        path: path.to_owned(),
        err,
    })?;
    let own = Name::new(member.farm(), Role::Issuer, member.name()).ok();
    if own.as_ref() != Some(issuer.name()) {
        return Err(IdentityError::Unfit {
            path: path.to_owned(),
            what: format!(
                "is {}, and this member is {member}: an issuer belongs to one member",
                issuer.name()
            ),
        });
    }
    Ok(issuer)
}

/// What we show must pass our own judgement, or nobody else's either; but its time may be over.
fn believe(
    path: &Path,
    callers: &Callers,
    chain: &[Certificate],
    clock: &SharedClock,
) -> Result<(), IdentityError> {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let now = unix(clock.wall());
    match callers.admit(&ders(chain), now) {
        Ok(_)
        | Err(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        )) => Ok(()),
        Err(err) => Err(IdentityError::Unfit {
            path: path.to_owned(),
            what: format!(
                "would be refused by the farm ({err}): it must be signed by the authority in {CA_FILE}, or by the member's own issuer"
            ),
        }),
    }
}

fn signing_root<'a>(chain: &[Certificate], roots: &'a [Certificate]) -> Option<&'a Certificate> {
    let top = chain.last()?;
    roots.iter().find(|root| top.names_as_issuer(root))
}

fn ders(chain: &[Certificate]) -> Vec<CertificateDer<'static>> {
    chain
        .iter()
        .map(|certificate| certificate.der().clone())
        .collect()
}

/// As webpki counts.
pub(super) fn unix(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_millis(at.as_millis()))
}

/// The injected clock for rustls.
#[derive(Debug)]
pub(super) struct Watch(pub(super) SharedClock);

impl TimeProvider for Watch {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix(self.0.wall()))
    }
}
