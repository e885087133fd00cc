//! `/`: the fleets with a square for every instance, then the runs.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use oast_model::time::Timestamp;
use oast_proto::v1;
use oast_proto::v1::fleets_server::Fleets;
use oast_proto::v1::runs_server::Runs;

use super::page::{failed, page};
use super::{ask, words};
use crate::api::Api;

/// Runs on the page.
const RUNS: u32 = 50;

pub(super) async fn home(State(api): State<Api>) -> Response {
    let asked = v1::ListRunsRequest {
        page_size: RUNS,
        ..v1::ListRunsRequest::default()
    };
    let runs = match api.list_runs(ask(&api, asked)).await {
        Ok(runs) => runs.into_inner().runs,
        Err(status) => return failed(&api, &status),
    };
    // Without a leader the fleets are shown as declared, their instances as not seen.
    let fleets = match api
        .list_fleets(ask(&api, v1::ListFleetsRequest::default()))
        .await
    {
        Ok(fleets) => fleets.into_inner().fleets,
        Err(_) => {
            let view = api.farm.view();
            view.fleets()
                .iter()
                .map(|(_, fleet)| api.fleet(fleet))
                .collect()
        }
    };
    let now = api.farm.clock().wall();
    let body = html! {
        section id="fleets" data-live {
            h2 { "Fleets" }
            @if fleets.is_empty() {
                p.empty { "No fleet yet. " code { "oast apply -f fleet.yaml" } " makes one." }
            }
            div.fleets { @for fleet in &fleets { (self::fleet(fleet)) } }
        }
        section id="runs" data-live {
            h2 { "Runs" }
            @if runs.is_empty() {
                p.empty { "No run yet. Push to a repository, or type " code { "oast run" } "." }
            } @else { (table(&runs, now)) }
        }
    };
    page(&api, "Runs", &body).into_response()
}

fn fleet(fleet: &v1::Fleet) -> Markup {
    let serving = |i: &&v1::Instance| i.state == "running" && i.healthy && i.in_rotation;
    let up = fleet.instances.iter().filter(serving).count();
    html! {
        article.fleet {
            div.title {
                h3 { (fleet.name) }
                span.quiet { (fleet.team) }
                @if fleet.observed { span.count { (up) " of " (fleet.total) " serving" } }
            }
            @if fleet.observed {
                ul.grid aria-label={ "Instances of " (fleet.name) } {
                    @for instance in &fleet.instances { (square(instance)) }
                }
            } @else {
                p.empty { (fleet.total) " instances, not observed at the moment" }
            }
            dl {
                @if !fleet.target.is_empty() { dt { "target" } dd { (version(&fleet.target)) } }
                @if !fleet.good.is_empty() && fleet.good != fleet.target {
                    dt { "last good" } dd { (version(&fleet.good)) }
                }
                @if !fleet.barred.is_empty() {
                    dt { "barred" }
                    dd { @for barred in &fleet.barred { (version(barred)) " " } }
                }
                @if !fleet.active_rollout.is_empty() {
                    dt { "rollout" } dd { span.busy { "● " (fleet.active_rollout) } }
                } @else if !fleet.last_rollout.is_empty() {
                    dt { "last rollout" }
                    dd { (fleet.last_rollout) " " (phase(&fleet.last_phase)) }
                }
                dt { "address" } dd { code { (fleet.listen) } }
            }
            @if !fleet.note.is_empty() { p.note { (fleet.note) } }
        }
    }
}

fn square(instance: &v1::Instance) -> Markup {
    let serving = instance.healthy && instance.in_rotation;
    let (mark, state) = match instance.state.as_str() {
        "running" if serving => ("", "serving"),
        "running" if instance.healthy => ("⇣", "out of rotation"),
        "running" => ("!", "unhealthy"),
        "creating" => ("…", "creating"),
        "missing" => ("·", "missing"),
        "stopped" => ("□", "stopped"),
        _ => ("✖", "failed"),
    };
    let class = if state == "serving" {
        "serving"
    } else {
        instance.state.as_str()
    };
    let number = instance.version.rsplit(':').next().unwrap_or_default();
    let about = format!(
        "{}: {}, {}",
        instance.name,
        or_none(&instance.version),
        state
    );
    html! {
        li.square.(class).(words::colour(&instance.version)) title=(about) aria-label=(about) {
            b { (number) }
            span { (mark) }
        }
    }
}

fn or_none(version: &str) -> &str {
    match version {
        "" => "no version",
        version => version,
    }
}

pub(super) fn version(version: &str) -> Markup {
    html! { span.version.(words::colour(version)) { (version) } }
}

pub(super) fn phase(phase: &str) -> Markup {
    let (mark, class) = words::mark(phase);
    html! { span.phase.(class) { (mark) " " (words::phase(phase)) } }
}

fn table(runs: &[v1::Run], now: Timestamp) -> Markup {
    html! {
        table {
            thead { tr {
                th { "phase" } th { "run" } th { "what" } th { "commit" } th { "version" }
                th { "started" } th.number { "took" }
            } }
            tbody { @for run in runs {
                tr {
                    td { (phase(&run.phase)) }
                    td { a href={ "/runs/" (run.id) } { (run.id) } }
                    td.subject {
                        a href={ "/runs/" (run.id) } { (title(run)) }
                        @if !run.reason.is_empty() && run.phase != "succeeded" {
                            span.reason { (run.reason) }
                        }
                    }
                    td { (commit(run)) }
                    td { @if !run.version.is_empty() { (version(&run.version)) } }
                    td { (age(run.started_at_ms, now)) }
                    td.number { (words::span(took(run, now))) }
                }
            } }
        }
    }
}

/// The subject of the commit, or what is known so far.
pub(super) fn title(run: &v1::Run) -> String {
    match (run.subject.as_str(), run.repository.as_str()) {
        ("", "") => run.cause.clone(),
        ("", repository) => format!("{repository}, {}", run.cause),
        (subject, _) => subject.to_owned(),
    }
}

pub(super) fn commit(run: &v1::Run) -> Markup {
    html! {
        @if !run.commit.is_empty() { code title=(run.commit) { (words::short(&run.commit)) } }
        @if run.dirty { " " span.quiet title="with changes beyond the commit" { "dirty" } }
        @if !run.branch.is_empty() { " " span.quiet { (run.branch) } }
    }
}

pub(super) fn age(at_ms: u64, now: Timestamp) -> Markup {
    let at = Timestamp::from_millis(at_ms);
    html! { time datetime=(at) title=(at) { (words::ago(at_ms, now)) } }
}

pub(super) fn took(run: &v1::Run, now: Timestamp) -> u64 {
    let end = if run.ended {
        run.ended_at_ms
    } else {
        now.as_millis()
    };
    end.saturating_sub(run.started_at_ms)
}
