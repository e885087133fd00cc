//! The farm itself: who one is, tokens, workers, members, the beginning.

use oast_daemon::random;
use oast_daemon::secret::Secret;
use oast_model::ledger::Command;
use oast_model::names::TeamName;
use oast_model::principal::{Principal, PrincipalKind, Role, Verb};
use oast_proto::v1;
use oast_proto::v1::operator_client::OperatorClient;
use oast_proto::v1::operator_server::Operator;
use tonic::{Code, Response, Status};

use super::auth::{self, Caller, caller};
use super::page::Page;
use super::runs::optional_name;
use super::sight::WorkerSight;
use super::{Answers, Api, group, page, status};
use crate::consensus::change::Change;
use crate::farm::Patience;

/// Workers in one answer unless asked for fewer or more.
const WORKERS_PAGE: usize = 500;
/// Most workers in one answer.
const WORKERS_PAGE_MAX: usize = 1000;
/// Longest name of a token in bytes.
const NAME_MAX: usize = 128;

#[tonic::async_trait]
impl Operator for Api {
    async fn who_am_i(
        &self,
        request: tonic::Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::Identity>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(self.identity(&caller.principal)))
    }

    async fn create_token(
        &self,
        request: tonic::Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let role = match asked.role.as_str() {
            "viewer" => Role::Viewer,
            "operator" => Role::Operator,
            "admin" => Role::Admin,
            _ => return Err(status::invalid("role", "one of viewer, operator, admin")),
        };
        let name = asked.name;
        if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
            let message = format!("a token has a name of at most {NAME_MAX} characters");
            return Err(status::invalid("name", message));
        }
        let team = optional_name::<TeamName>("team", &asked.team)?;
        caller.may(Verb::Manage, team.as_ref())?;
        let token = random::token();
        let command = Command::CreateToken {
            hash: auth::hash(token.expose()),
            name,
            role,
            team,
        };
        // An id of our own: an answer remembered for the caller's would be for another token.
        let id = Some(random::request_id());
        self.write(&caller, id, command).await?;
        Ok(Response::new(v1::CreateTokenResponse {
            token: token.expose().clone(),
        }))
    }

    async fn revoke_token(
        &self,
        request: tonic::Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let caller = caller(&request)?;
        let name = request.into_inner().name;
        let id = Some(random::request_id());
        self.write(&caller, id, Command::RevokeToken { name })
            .await?;
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }

    async fn list_workers(
        &self,
        request: tonic::Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let caller = caller(&request)?;
        caller.may(Verb::View, None)?;
        let asked = request.into_inner();
        if caller.patience == Patience::Linearizable
            && let Some(leader) = self.elsewhere(&caller)?
        {
            let mut leader = OperatorClient::new(leader);
            return leader.list_workers(self.pass_on(asked, &caller)?).await;
        }
        let size = page::size(asked.page_size, WORKERS_PAGE, WORKERS_PAGE_MAX);
        let of = ("workers", &asked.region, &asked.capability);
        let page: Page<(u64, String)> = Page::read(&of, &asked.page_token, size)?;
        let view = self.look(&caller).await?;
        let mut seen = self.sight.workers();
        seen.retain(|seen| {
            let session = &seen.session;
            (asked.region.is_empty() || session.region == asked.region)
                && (asked.capability.is_empty() || session.capabilities.contains(&asked.capability))
        });
        // Newest connection first; names tell apart those of one millisecond.
        let place = |seen: &WorkerSight| {
            let name = seen.session.worker.to_string();
            (seen.connected_at.as_millis(), name)
        };
        seen.sort_by_key(|seen| std::cmp::Reverse(place(seen)));
        if let Some(last) = &page.last {
            seen.retain(|seen| place(seen) < *last);
        }
        let more = seen.len() > size;
        seen.truncate(size);
        let next_page_token = page.next(seen.last().filter(|_| more).map(place));
        let workers = seen.into_iter().map(|seen| {
            let session = seen.session;
            let held = view.leases().iter().filter(|(_, lease)| {
                lease.worker == session.worker && lease.incarnation == session.incarnation
            });
            v1::Worker {
                name: session.worker.to_string(),
                region: session.region,
                arch: session.arch,
                version: seen.version,
                slots: session.slots,
                tasks: held.map(|(_, lease)| lease.task.to_string()).collect(),
                capabilities: session.capabilities.into_iter().collect(),
                connected_at_ms: seen.connected_at.as_millis(),
                silent_ms: u64::try_from(seen.silent.as_millis()).unwrap_or(u64::MAX),
            }
        });
        let workers = workers.collect();
        Ok(Response::new(v1::ListWorkersResponse {
            workers,
            next_page_token,
        }))
    }

    async fn list_peers(
        &self,
        request: tonic::Request<v1::ListPeersRequest>,
    ) -> Result<Response<v1::ListPeersResponse>, Status> {
        let caller = caller(&request)?;
        caller.may(Verb::View, None)?;
        let asked = request.into_inner();
        if asked.from_leader
            && let Ok(Some(leader)) = self.elsewhere(&caller)
        {
            let mut leader = OperatorClient::new(leader);
            return leader.list_peers(self.pass_on(asked, &caller)?).await;
        }
        let status = self.farm.status().borrow().clone();
        Ok(Response::new(v1::ListPeersResponse {
            peers: group::peers(&status),
            term: status.term,
            leader: status.leader.unwrap_or(0),
        }))
    }

    async fn get_raft_status(
        &self,
        request: tonic::Request<v1::GetRaftStatusRequest>,
    ) -> Result<Response<v1::RaftStatus>, Status> {
        caller(&request)?.may(Verb::View, None)?;
        let status = self.farm.status().borrow().clone();
        Ok(Response::new(group::status(&status)))
    }

    async fn add_learners(
        &self,
        request: tonic::Request<v1::AddLearnersRequest>,
    ) -> Result<Response<v1::AddLearnersResponse>, Status> {
        let caller = caller(&request)?;
        caller.may(Verb::Manage, None)?;
        let asked = request.into_inner();
        group::check_addresses(&asked.addresses)?;
        if let Some(leader) = self.elsewhere(&caller)? {
            let mut leader = OperatorClient::new(leader);
            return leader.add_learners(self.pass_on(asked, &caller)?).await;
        }
        let change = Change::AddLearners(asked.addresses);
        let members = self
            .change_group(&caller, &asked.request_id, change)
            .await?;
        Ok(Response::new(v1::AddLearnersResponse { members }))
    }

    async fn promote_member(
        &self,
        request: tonic::Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::PromoteMemberResponse>, Status> {
        let caller = caller(&request)?;
        caller.may(Verb::Manage, None)?;
        let asked = request.into_inner();
        if let Some(leader) = self.elsewhere(&caller)? {
            let mut leader = OperatorClient::new(leader);
            return leader.promote_member(self.pass_on(asked, &caller)?).await;
        }
        let change = Change::Promote {
            member: asked.member,
            replaces: Some(asked.replaces).filter(|member| *member != 0),
            disk_lost: asked.disk_lost,
        };
        self.change_group(&caller, &asked.request_id, change)
            .await?;
        Ok(Response::new(v1::PromoteMemberResponse {}))
    }

    async fn remove_member(
        &self,
        request: tonic::Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        let caller = caller(&request)?;
        caller.may(Verb::Manage, None)?;
        let asked = request.into_inner();
        if let Some(leader) = self.elsewhere(&caller)? {
            let mut leader = OperatorClient::new(leader);
            return leader.remove_member(self.pass_on(asked, &caller)?).await;
        }
        let change = Change::Remove {
            member: asked.member,
            disk_lost: asked.disk_lost,
        };
        self.change_group(&caller, &asked.request_id, change)
            .await?;
        Ok(Response::new(v1::RemoveMemberResponse {}))
    }

    async fn transfer_leadership(
        &self,
        request: tonic::Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        let caller = caller(&request)?;
        caller.may(Verb::Manage, None)?;
        let asked = request.into_inner();
        if let Some(leader) = self.elsewhere(&caller)? {
            let mut leader = OperatorClient::new(leader);
            return leader
                .transfer_leadership(self.pass_on(asked, &caller)?)
                .await;
        }
        let to = Some(asked.member).filter(|member| *member != 0);
        let leader = self.hand_over(&caller, &asked.request_id, to).await?;
        Ok(Response::new(v1::TransferLeadershipResponse { leader }))
    }

    async fn init_farm(
        &self,
        request: tonic::Request<v1::InitFarmRequest>,
    ) -> Result<Response<v1::Identity>, Status> {
        let asked = request.into_inner();
        if !self.peer_token.matches(asked.bootstrap.as_bytes()) {
            let message = "the bootstrap secret is not the one of this member's configuration";
            return Err(status::error(Code::PermissionDenied, "BOOTSTRAP", message));
        }
        for (field, hash) in [
            ("admin_hash", &asked.admin_hash),
            ("worker_hash", &asked.worker_hash),
        ] {
            let hex = hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if hash.len() != 64 || !hex {
                return Err(status::invalid(field, "64 hex digits are needed"));
            }
        }
        let command = Command::InitFarm {
            name: asked.name,
            admin: asked.admin_hash,
            worker: asked.worker_hash,
        };
        let id = Some(random::request_id());
        let farm = Caller::of(Principal::farm(), Secret::new(String::new()));
        self.write(&farm, id, command).await?;
        self.farm.read().await?;
        let admin = Principal {
            name: "admin".into(),
            kind: PrincipalKind::User,
            role: Role::Admin,
            team: None,
        };
        Ok(Response::new(self.identity(&admin)))
    }

    type SaveSnapshotStream = Answers<v1::SnapshotPart>;

    async fn save_snapshot(
        &self,
        request: tonic::Request<v1::SaveSnapshotRequest>,
    ) -> Result<Response<Answers<v1::SnapshotPart>>, Status> {
        let caller = caller(&request)?;
        self.snapshot(&caller, request.into_inner().stale).await
    }

    async fn get_version(
        &self,
        request: tonic::Request<v1::GetVersionRequest>,
    ) -> Result<Response<v1::FarmVersion>, Status> {
        self.version(&caller(&request)?).await
    }

    async fn hold_version(
        &self,
        request: tonic::Request<v1::HoldVersionRequest>,
    ) -> Result<Response<v1::FarmVersion>, Status> {
        let caller = caller(&request)?;
        self.hold(&caller, request.into_inner()).await
    }
}

impl Api {
    fn identity(&self, principal: &Principal) -> v1::Identity {
        let role = match principal.kind {
            PrincipalKind::User => principal.role.as_str(),
            PrincipalKind::Worker => "worker",
            PrincipalKind::Farm => "farm",
        };
        v1::Identity {
            name: principal.name.clone(),
            role: role.to_owned(),
            team: principal
                .team
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            farm: self.farm.view().farm().name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}
