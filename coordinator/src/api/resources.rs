//! Resources and secrets.

use oast_model::ledger::{Answer, Command, Ledger};
use oast_model::names::{SecretName, TeamName};
use oast_model::principal::Verb;
use oast_model::resource::{self, Resource, ResourceKind, diff, file};
use oast_proto::v1;
use oast_proto::v1::resources_server::Resources;
use serde_json::Value;
use tonic::{Response, Status};
use tonic_types::FieldViolation;

use super::auth::caller;
use super::runs::{other_answer, parse, request_id};
use super::{Api, status};

/// Name of the document in diagnostics.
const DOCUMENT: &str = "resource";

#[tonic::async_trait]
impl Resources for Api {
    async fn apply_resource(
        &self,
        request: tonic::Request<v1::ApplyResourceRequest>,
    ) -> Result<Response<v1::ApplyResourceResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let id = request_id(&asked.request_id)?;
        let wanted = read(&asked.document)?;
        let farm_wide = matches!(wanted, Resource::Team(_));
        caller.may(Verb::Manage, (!farm_wide).then(|| wanted.team()))?;
        // Negative: any.
        let expected = u64::try_from(asked.expected_revision).ok();
        let view = self.farm.read().await?;
        let (kind, name) = (wanted.kind(), wanted.name().to_owned());
        let before = stored(&view, kind, &name);
        // The difference would show what belongs to somebody else.
        if let Some((before, _)) = before.as_ref().filter(|_| !farm_wide)
            && !caller.sees(before.team())
        {
            let message = format!("{} `{name}` belongs to another team", kind.as_str());
            return Err(status::error(
                tonic::Code::PermissionDenied,
                "DENIED",
                message,
            ));
        }
        let (old, revision) = match &before {
            Some((old, revision)) => (Some(old), *revision),
            None => (None, 0),
        };
        let changes = diff(old, &wanted).into_iter().map(change).collect();
        let mut response = v1::ApplyResourceResponse {
            kind: kind.as_str().to_owned(),
            name: name.clone(),
            revision,
            created: before.is_none(),
            changes,
        };
        if asked.validate_only {
            return Ok(Response::new(response));
        }
        let command = Command::ApplyResource {
            resource: Box::new(wanted),
            expected,
        };
        let written = self.write(&caller, id, command).await?;
        match written.answer {
            Answer::Revision(revision) => response.revision = revision,
            Answer::Unchanged => {}
            _ => return Err(other_answer()),
        }
        Ok(Response::new(response))
    }

    async fn list_resources(
        &self,
        request: tonic::Request<v1::ListResourcesRequest>,
    ) -> Result<Response<v1::ListResourcesResponse>, Status> {
        let caller = caller(&request)?;
        let kind = match request.get_ref().kind.as_str() {
            "" => None,
            text => Some(read_kind(text)?),
        };
        let view = self.look(&caller).await?;
        let all = every(&view);
        let resources = all
            .into_iter()
            .filter(|(resource, _)| kind.is_none_or(|kind| resource.kind() == kind))
            .filter(|(resource, _)| caller.sees(resource.team()))
            .map(|(resource, revision)| v1::Resource {
                kind: resource.kind().as_str().to_owned(),
                name: resource.name().to_owned(),
                team: resource.team().to_string(),
                revision,
                document: file::to_yaml(&resource),
            });
        Ok(Response::new(v1::ListResourcesResponse {
            resources: resources.collect(),
        }))
    }

    async fn delete_resource(
        &self,
        request: tonic::Request<v1::DeleteResourceRequest>,
    ) -> Result<Response<v1::DeleteResourceResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let id = request_id(&asked.request_id)?;
        let kind = read_kind(&asked.kind)?;
        let name = asked.name;
        let command = Command::DeleteResource { kind, name };
        self.write(&caller, id, command).await?;
        Ok(Response::new(v1::DeleteResourceResponse {}))
    }

    async fn set_secret(
        &self,
        request: tonic::Request<v1::SetSecretRequest>,
    ) -> Result<Response<v1::Secret>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let id = request_id(&asked.request_id)?;
        let team: TeamName = parse("team", &asked.team)?;
        let name: SecretName = parse("name", &asked.name)?;
        caller.may(Verb::Manage, Some(&team))?;
        if !self.farm.read().await?.teams().contains(&team) {
            return Err(status::not_found("team", team));
        }
        // The value first: a secret that the ledger knows can then always be read.
        let (secrets, value) = (self.secrets.clone(), asked.value);
        let (of, called) = (team.clone(), name.clone());
        self.blocking("keep-secret", move || secrets.set(&of, &called, &value))
            .await??;
        let command = Command::SetSecret {
            team: team.clone(),
            name: name.clone(),
        };
        self.write(&caller, id, command).await?;
        let view = self.farm.read().await?;
        secret(&view, &team, &name)
            .map(Response::new)
            .ok_or_else(|| status::not_found("secret", name))
    }

    async fn list_secrets(
        &self,
        request: tonic::Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        let caller = caller(&request)?;
        let team: TeamName = parse("team", &request.get_ref().team)?;
        caller.may(Verb::View, Some(&team))?;
        let view = self.look(&caller).await?;
        let names = view.secrets().keys().filter(|(of, _)| *of == team);
        let secrets = names.filter_map(|(team, name)| secret(&view, team, name));
        Ok(Response::new(v1::ListSecretsResponse {
            secrets: secrets.collect(),
        }))
    }
}

/// Exactly one resource, or every problem of the document.
fn read(document: &str) -> Result<Resource, Status> {
    let checked = resource::parse(DOCUMENT, document).into_result();
    let resources = checked.map_err(|problems| {
        let violations = problems.iter().map(|problem| {
            let mut text = problem.to_string();
            if let Some(hint) = &problem.hint {
                text.push_str("; ");
                text.push_str(hint);
            }
            FieldViolation::new(problem.path.clone(), text)
        });
        let violations: Vec<_> = violations.collect();
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        status::invalid_fields(lines.join("\n"), violations)
    })?;
    match <[Resource; 1]>::try_from(resources) {
        Ok([resource]) => Ok(resource),
        Err(several) => {
            let message = format!("one resource at a time, this has {}", several.len());
            Err(status::invalid("document", message))
        }
    }
}

fn read_kind(text: &str) -> Result<ResourceKind, Status> {
    let kinds = [
        ResourceKind::Fleet,
        ResourceKind::Repository,
        ResourceKind::Team,
    ];
    let found = kinds
        .into_iter()
        .find(|kind| kind.as_str().eq_ignore_ascii_case(text));
    found.ok_or_else(|| status::invalid("kind", "one of Fleet, Repository, Team"))
}

fn stored(ledger: &Ledger, kind: ResourceKind, name: &str) -> Option<(Resource, u64)> {
    match kind {
        ResourceKind::Team => {
            let team = ledger.teams().get(name)?;
            Some((Resource::Team(team.spec.clone()), team.revision))
        }
        ResourceKind::Repository => {
            let repository = ledger.repositories().get(name)?;
            let resource = Resource::Repository(repository.spec.clone());
            Some((resource, repository.revision))
        }
        ResourceKind::Fleet => {
            let fleet = ledger.fleets().get(name)?;
            Some((Resource::Fleet(fleet.spec.clone()), fleet.revision))
        }
    }
}

/// Teams first, in the order in which they can be applied.
fn every(ledger: &Ledger) -> Vec<(Resource, u64)> {
    let teams = ledger.teams().iter();
    let teams = teams.map(|(_, team)| (Resource::Team(team.spec.clone()), team.revision));
    let repositories = ledger.repositories().iter().map(|(_, repository)| {
        let resource = Resource::Repository(repository.spec.clone());
        (resource, repository.revision)
    });
    let fleets = ledger.fleets().iter();
    let fleets = fleets.map(|(_, fleet)| (Resource::Fleet(fleet.spec.clone()), fleet.revision));
    teams.chain(repositories).chain(fleets).collect()
}

fn change(change: resource::FieldChange) -> v1::FieldChange {
    v1::FieldChange {
        path: change.path,
        before: text(change.before),
        after: text(change.after),
    }
}

fn text(value: Option<Value>) -> String {
    match value {
        None => String::new(),
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
    }
}

fn secret(ledger: &Ledger, team: &TeamName, name: &SecretName) -> Option<v1::Secret> {
    let record = ledger.secrets().get(&(team.clone(), name.clone()))?;
    Some(v1::Secret {
        team: team.to_string(),
        name: name.to_string(),
        version: record.version,
        set_at_ms: record.set_at.as_millis(),
        set_by: record.set_by.clone(),
    })
}
