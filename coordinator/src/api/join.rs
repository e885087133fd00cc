//! Tokens with which workers join.

use std::time::Duration;

use oast_daemon::random;
use oast_daemon::tls::Certificate;
use oast_model::ledger::{Command, JoinToken};
use oast_model::names::WorkerName;
use oast_model::principal::Verb;
use oast_proto::v1;
use oast_proto::v1::worker_tokens_server::WorkerTokens;
use tonic::{Code, Response, Status};

use super::auth::{self, caller};
use super::runs::optional_name;
use super::{Api, status};

/// How long a token can be used unless it is said.
const TTL: Duration = Duration::from_secs(3_600);

#[tonic::async_trait]
impl WorkerTokens for Api {
    async fn create_worker_token(
        &self,
        request: tonic::Request<v1::CreateWorkerTokenRequest>,
    ) -> Result<Response<v1::CreateWorkerTokenResponse>, Status> {
        let caller = caller(&request)?;
        caller.may(Verb::Manage, None)?;
        let Some(identity) = &self.identity else {
            let message = "this farm runs without TLS, on one machine: its workers share a token and \
                 need no certificates; `oast operator pki init` begins a farm with them";
            return Err(status::error(Code::FailedPrecondition, "NO_TLS", message));
        };
        let asked = request.into_inner();
        let worker = optional_name::<WorkerName>("worker", &asked.worker)?;
        let ttl_ms = match asked.ttl_ms {
            0 => u64::try_from(TTL.as_millis()).unwrap_or(u64::MAX),
            said => said,
        };
        let current = identity.current();
        // The root that signed us: a worker finds it among what we show.
        let signed_by = |root: &&Certificate| {
            let issuer = current
                .issuer()
                .map_or_else(|| current.certificate(), |issuer| issuer.certificate());
            issuer.names_as_issuer(root)
        };
        let root = current.roots().iter().find(signed_by);
        let Some(root) = root.or_else(|| current.roots().first()) else {
            return Err(status::error(Code::Internal, "INTERNAL", "ca.pem is empty"));
        };
        let token = random::token();
        let hash = auth::hash(token.expose());
        let command = Command::CreateJoinToken {
            hash: hash.clone(),
            worker,
            ttl_ms,
        };
        let id = Some(random::request_id());
        self.write(&caller, id, command).await?;
        let view = self.farm.read().await?;
        let made = view.join_token(&hash);
        Ok(Response::new(v1::CreateWorkerTokenResponse {
            token: token.expose().clone(),
            ca_hash: root.pin(),
            addresses: self.farm.addresses(),
            expires_at_ms: made.map_or(0, |made| made.expires_at.as_millis()),
        }))
    }

    async fn list_worker_tokens(
        &self,
        request: tonic::Request<v1::ListWorkerTokensRequest>,
    ) -> Result<Response<v1::ListWorkerTokensResponse>, Status> {
        caller(&request)?.may(Verb::Manage, None)?;
        let view = self.farm.read().await?;
        let mut tokens: Vec<v1::WorkerToken> = view
            .join_tokens()
            .iter()
            .map(|(hash, token)| shown(hash, token))
            .collect();
        tokens.sort_by(|a, b| b.created_at_ms.cmp(&a.created_at_ms).then(a.id.cmp(&b.id)));
        Ok(Response::new(v1::ListWorkerTokensResponse { tokens }))
    }

    async fn revoke_worker_token(
        &self,
        request: tonic::Request<v1::RevokeWorkerTokenRequest>,
    ) -> Result<Response<v1::RevokeWorkerTokenResponse>, Status> {
        let caller = caller(&request)?;
        let id = request.into_inner().id;
        let request_id = Some(random::request_id());
        self.write(&caller, request_id, Command::RevokeJoinToken { id })
            .await?;
        Ok(Response::new(v1::RevokeWorkerTokenResponse {}))
    }
}

fn shown(hash: &str, token: &JoinToken) -> v1::WorkerToken {
    let used = token.used.as_ref();
    v1::WorkerToken {
        id: JoinToken::id(hash).to_owned(),
        worker: token
            .worker
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        created_by: token.created_by.clone(),
        created_at_ms: token.created_at.as_millis(),
        expires_at_ms: token.expires_at.as_millis(),
        used_by: used.map(|used| used.worker.to_string()).unwrap_or_default(),
        used_at_ms: used.map_or(0, |used| used.at.as_millis()),
    }
}
