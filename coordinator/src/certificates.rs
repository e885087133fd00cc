//! Workers' certificates: the first for a join token, the next for the one before.
//!
//! The member that is asked signs with its own issuer, then asks the ledger. What the ledger took
//! is what the worker gets, also when two members were asked at once.

use std::time::Duration;

use oast_daemon::telemetry::chain;
use oast_daemon::tls::{Certificate, Identity, IssueError, Name, Order, PublicKey, Role, request};
use oast_model::digest::Digest;
use oast_model::ledger::{Command, JoinWorker, Request};
use oast_model::names::WorkerName;
use oast_model::principal::Principal;
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::certificates_server::Certificates;
use tonic::{Code, Response, Status};
use tracing::info;

use crate::api::auth::hash;
use crate::api::status;
use crate::farm::Farm;

/// Longest join token and request id that are looked at.
const TEXT_MAX: usize = 512;

/// The service, on every member with TLS.
#[derive(Clone, Debug)]
pub struct Service {
    farm: Farm,
    identity: Identity,
    life: Duration,
}

impl Service {
    /// `life`: of the certificates that are signed here.
    pub fn new(farm: Farm, identity: Identity, life: Duration) -> Service {
        Service {
            farm,
            identity,
            life,
        }
    }

    /// Signs for a worker: its certificate, then the issuer's.
    fn sign(&self, worker: &str, key: PublicKey) -> Result<Vec<Vec<u8>>, Status> {
        let current = self.identity.current();
        let Some(issuer) = current.issuer() else {
            let message = "this member has no issuer.pem and signs nothing: ask another member, or \
                 make one with `oast operator pki issue member`";
            return Err(status::error(
                Code::FailedPrecondition,
                "NO_ISSUER",
                message,
            ));
        };
        let name = Name::new(current.name().farm(), Role::Worker, worker)
            .map_err(|err| status::invalid("worker", chain(&err).to_string()))?;
        let order = Order {
            name,
            hosts: Vec::new(),
            key,
            now: self.identity.clock().wall(),
            life: self.life,
        };
        let signed = issuer.issue(&order).map_err(|err| match err {
            IssueError::Over { .. } => status::error(
                Code::FailedPrecondition,
                "ISSUER_OVER",
                chain(&err).to_string(),
            ),
            err => status::internal(&err),
        })?;
        Ok([&signed, issuer.certificate()].map(der).to_vec())
    }
}

fn der(certificate: &Certificate) -> Vec<u8> {
    certificate.der().to_vec()
}

fn key_of(asked: &[u8]) -> Result<PublicKey, Status> {
    request::check(asked).map_err(|err| status::invalid("request", err.to_string()))
}

#[tonic::async_trait]
impl Certificates for Service {
    async fn join(
        &self,
        request: tonic::Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let asked = request.into_inner();
        for (field, text) in [("token", &asked.token), ("request_id", &asked.request_id)] {
            if text.is_empty() || text.len() > TEXT_MAX {
                let message = format!("{field} has 1 to {TEXT_MAX} characters");
                return Err(status::invalid(field, message));
            }
        }
        let worker = WorkerName::new(asked.worker)
            .map_err(|err| status::invalid("worker", err.to_string()))?;
        let token = hash(&asked.token);
        let key = key_of(&asked.request)?;
        // Strangers ask here: what the ledger would refuse anyway must cost neither a signature
        // nor a place in the log. It may have been made on another member a moment ago.
        if self.farm.view().join_token(&token).is_none()
            && self.farm.read().await?.join_token(&token).is_none()
        {
            let message = "this join token is not known here: it was revoked, is long over, or is \
                 another farm's; an administrator makes another: `oast operator worker-token create`";
            return Err(status::unauthenticated(message));
        }
        let digest = Digest::of(key.info());
        let join = JoinWorker {
            token: token.clone(),
            worker: worker.clone(),
            request_id: asked.request_id.clone(),
            key: digest,
            chain: self.sign(worker.as_str(), key)?,
        };
        // The ledger itself knows this request by its id and key, for as long as the token.
        let command = Request {
            principal: Principal::farm(),
            request_id: Some(format!("join-{}-{}", &token[..16], hash(&asked.request_id))),
            command: Command::JoinWorker(join),
        };
        self.farm.write(&command).await?;
        let view = self.farm.read().await?;
        let used = view.join_token(&token).and_then(|token| token.used.clone());
        let Some(used) = used.filter(|used| used.key == digest && used.worker == worker) else {
            let message = "this join token was used by somebody else meanwhile";
            return Err(status::error(
                Code::FailedPrecondition,
                "TOKEN_USED",
                message,
            ));
        };
        info!(worker_id = %worker, "A worker joined.");
        let current = self.identity.current();
        Ok(Response::new(wire::JoinResponse {
            chain: used.chain.into_iter().map(Into::into).collect(),
            authorities: current
                .roots()
                .iter()
                .map(|root| der(root).into())
                .collect(),
            farm: current.name().farm().to_owned(),
        }))
    }

    async fn renew(
        &self,
        request: tonic::Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let shown = request.extensions().get::<Name>().cloned();
        let Some(shown) = shown.filter(|shown| shown.role() == Role::Worker) else {
            let message = "only a worker's connection renews a worker's certificate; a new worker \
                 joins with a token: `oast operator worker-token create`";
            return Err(status::unauthenticated(message));
        };
        let key = key_of(&request.into_inner().request)?;
        let chain = self.sign(shown.name(), key)?;
        info!(
            worker_id = shown.name(),
            "A worker's certificate is renewed."
        );
        Ok(Response::new(wire::RenewResponse {
            chain: chain.into_iter().map(Into::into).collect(),
        }))
    }
}
