//! Whom we believe on a connection inside the farm.
//!
//! webpki checks chain, times, purpose and host; [`judge`] checks who it is. Both run in rustls'
//! handshake, whose errors carry one code: the sentence for people travels beside it in
//! [`noted`], a value of the task that shakes hands.

use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;

use oast_model::time::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::certificate::Certificate;
use super::name::{Name, Role};
use super::problem::{Problem, judge};

tokio::task_local! {
    static NOTE: RefCell<Option<Problem>>;
}

/// Runs a handshake; beside its result what a verifier of this module found wrong.
pub(super) async fn noted<T>(handshake: impl Future<Output = T>) -> (T, Option<Problem>) {
    NOTE.scope(RefCell::new(None), async {
        let done = handshake.await;
        (done, NOTE.with(RefCell::take))
    })
    .await
}

fn note(problem: Problem) {
    // Outside of `noted` nobody wants to know.
    let _ = NOTE.try_with(|note| note.replace(Some(problem)));
}

fn at(now: UnixTime) -> Timestamp {
    Timestamp::from_millis(now.as_secs().saturating_mul(1_000))
}

/// Looks at who is shown, after webpki has found the chain good.
fn admit(
    checked: Result<(), Error>,
    end: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    called: Option<&str>,
    ours: &Name,
    now: UnixTime,
) -> Result<Name, Error> {
    let shown = Certificate::read(end).ok();
    if let Err(error) = checked {
        let problem = Problem::of_certificate(&error, shown.as_ref(), called, Some(ours), at(now));
        note(problem);
        return Err(match error {
            // A root of the same name with another key. The other end is told that the authority
            // is unknown, not that it cannot encrypt.
            Error::InvalidCertificate(CertificateError::BadSignature) => {
                CertificateError::UnknownIssuer.into()
            }
            error => error,
        });
    }
    let signers: Vec<Certificate> = intermediates
        .iter()
        .filter_map(|der| Certificate::read(der).ok())
        .collect();
    let judged = match &shown {
        // One that cannot be read might be the one that signed.
        Some(shown) if signers.len() == intermediates.len() => judge(shown, &signers, ours),
        _ => Err(Problem::Certificate {
            whose: super::problem::whose(shown.as_ref()),
            why: "its chain holds a certificate that cannot be read".to_owned(),
        }),
    };
    judged.map_err(|problem| {
        note(problem);
        Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
    })
}

/// Signatures are webpki's affair on both sides: the methods that the two verifier traits share.
macro_rules! signatures_by_inner {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.inner.verify_tls12_signature(message, cert, dss)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.inner.verify_tls13_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.inner.supported_verify_schemes()
        }
    };
}

/// On the calling side: the other end must be a member of our farm and the host that we called.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) inner: Arc<WebPkiServerVerifier>,
    pub(super) ours: Name,
}

impl ServerCertVerifier for Members {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let checked = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let called = server_name.to_str();
        let name = admit(
            checked.map(drop),
            end_entity,
            intermediates,
            Some(&called),
            &self.ours,
            now,
        )?;
        if name.role() != Role::Member {
            note(Problem::Role {
                whose: format!("the certificate of {name}"),
                why: "only a member answers calls".to_owned(),
            });
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures_by_inner!();
}

/// On the answering side: members and workers of our farm. Who shows nothing is let in as nobody,
/// because a worker that joins has nothing to show yet; what nobody may do is the router's affair.
#[derive(Debug)]
pub(super) struct Callers {
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    pub(super) ours: Name,
}

impl Callers {
    pub(super) fn new(
        roots: Arc<rustls::RootCertStore>,
        provider: Arc<rustls::crypto::CryptoProvider>,
        ours: Name,
    ) -> Result<Callers, rustls::server::VerifierBuilderError> {
        let inner = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .allow_unauthenticated()
            .build()?;
        Ok(Callers { inner, ours })
    }

    /// Who it is that showed this chain, looked at anew.
    pub(super) fn admit(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Name, Error> {
        let Some((end, intermediates)) = chain.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        let checked = self.inner.verify_client_cert(end, intermediates, now);
        admit(checked.map(drop), end, intermediates, None, &self.ours, now)
    }
}

impl ClientCertVerifier for Callers {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A foreign certificate shall be shown and refused with its name, not kept back.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let checked = self
            .inner
            .verify_client_cert(end_entity, intermediates, now);
        admit(
            checked.map(drop),
            end_entity,
            intermediates,
            None,
            &self.ours,
            now,
        )?;
        Ok(ClientCertVerified::assertion())
    }

    signatures_by_inner!();
}

/// For who has no authority's file: people with the roots that they chose, and the first contact
/// of a worker, which knows the pin of the root.
#[derive(Debug)]
pub(super) struct Strangers {
    pub(super) trust: Trust,
    pub(super) provider: Arc<rustls::crypto::CryptoProvider>,
}

/// What a stranger to the farm trusts.
#[derive(Debug)]
pub(super) enum Trust {
    /// These roots.
    Roots(Arc<WebPkiServerVerifier>),
    /// A root among those shown, by the hash of its key.
    Pin(String),
}

impl Strangers {
    fn check(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        match &self.trust {
            Trust::Roots(inner) => inner
                .verify_server_cert(end, intermediates, server_name, &[], now)
                .map(drop),
            Trust::Pin(pin) => {
                let mut roots = rustls::RootCertStore::empty();
                for der in intermediates {
                    let read = Certificate::read(der);
                    if read.is_ok_and(|read| read.is_root() && read.pin() == *pin) {
                        roots.add(der.clone().into_owned())?;
                    }
                }
                if roots.is_empty() {
                    return Err(CertificateError::UnknownIssuer.into());
                }
                let inner = WebPkiServerVerifier::builder_with_provider(
                    roots.into(),
                    self.provider.clone(),
                );
                let inner = inner
                    .build()
                    .map_err(|err| Error::General(err.to_string()))?;
                inner
                    .verify_server_cert(end, intermediates, server_name, &[], now)
                    .map(drop)
            }
        }
    }
}

impl ServerCertVerifier for Strangers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let checked = self.check(end_entity, intermediates, server_name, now);
        if let Err(error) = checked {
            let shown = Certificate::read(end_entity).ok();
            let called = server_name.to_str();
            let problem = match (&self.trust, &error) {
                (Trust::Pin(pin), Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                    Problem::Authority {
                        whose: super::problem::whose(shown.as_ref()),
                        signer: shown
                            .as_ref()
                            .map_or("?", Certificate::issuer_name)
                            .to_owned(),
                        way_out: format!(
                            "no root with the pin {pin} was shown; compare it with `oast operator pki show ca.pem` on a member, and the address with the farm's own port"
                        ),
                    }
                }
                _ => Problem::of_certificate(&error, shown.as_ref(), Some(&called), None, at(now)),
            };
            note(problem);
            return Err(error);
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
