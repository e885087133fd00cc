//! `/runs/<id>`: the tasks with their steps and attempts, and the log.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use oast_model::time::Timestamp;
use oast_proto::v1;
use oast_proto::v1::runs_server::Runs;

use super::home::{age, commit, phase, title, took, version};
use super::page::{failed, page};
use super::{ask, log, words};
use crate::api::Api;

/// Lines of the log in the page itself, for readers without the script.
const LINES: usize = 200;

pub(super) async fn run(State(api): State<Api>, Path(id): Path<String>) -> Response {
    let asked = v1::GetRunRequest { run: id.clone() };
    let run = match api.get_run(ask(&api, asked)).await {
        Ok(run) => run.into_inner(),
        Err(status) => return failed(&api, &status),
    };
    let lines = log::last_lines(&api, &run.id, LINES).await;
    let now = api.farm.clock().wall();
    let ended = if run.ended { "yes" } else { "no" };
    let body = html! {
        section id="run" data-live data-ended=(ended) { (about(&run, now)) }
        section id="tasks" data-live {
            h2 { "Tasks" }
            ol.tasks { @for task in &run.tasks { (self::task(task, now)) } }
        }
        section {
            h2 { "Log" span.tools {
                label.follow hidden { input type="checkbox" id="follow" checked; " follow" }
                a href={ "/runs/" (run.id) "/log" } { "as text" }
            } }
            pre id="log" tabindex="0" aria-label="Log" data-log={ "/runs/" (run.id) "/log?lines" } {
                @match lines {
                    Ok(lines) => { @for line in &lines { (self::line(line)) } },
                    Err(status) => { span.err { (status.message()) } },
                }
            }
        }
    };
    let title = format!("{} {}", run.id, words::phase(&run.phase));
    page(&api, &title, &body).into_response()
}

fn about(run: &v1::Run, now: Timestamp) -> Markup {
    html! {
        p.crumb { a href="/" { "Runs" } " / " (run.id) }
        h1 { (title(run)) }
        p.facts role="status" {
            (phase(&run.phase))
            @if !run.version.is_empty() { (version(&run.version)) }
            span { (commit(run)) }
            @if !run.author.is_empty() { span { "by " (run.author) } }
            span.quiet { (run.cause) }
            span { "started " (age(run.started_at_ms, now)) }
            span { (words::span(took(run, now))) }
        }
        @if !run.reason.is_empty() { p.outcome { (run.reason) } }
        @if !run.details.is_empty() {
            pre.details { @for line in &run.details { (line) "\n" } }
        }
        @if !run.rollouts.is_empty() {
            p.quiet { "Rollouts: " (run.rollouts.join(", ")) }
        }
    }
}

fn task(task: &v1::Task, now: Timestamp) -> Markup {
    let end = if task.ended_at_ms > 0 {
        task.ended_at_ms
    } else {
        now.as_millis()
    };
    html! {
        li.task {
            div.head {
                strong { (task.kind) }
                @if !task.name.is_empty() { span { (task.name) } }
                (phase(&task.phase))
                @if !task.waiting.is_empty() { span.quiet { (task.waiting) } }
                span.number { (words::span(end.saturating_sub(task.created_at_ms))) }
            }
            @if !task.reason.is_empty() { p.outcome { (task.reason) } }
            @if !task.steps.is_empty() {
                ol.steps { @for step in &task.steps { (self::step(step, now)) } }
            }
            @if task.attempts.len() > 1 || task.attempts.iter().any(|a| a.ended_at_ms == 0) {
                ul.attempts { @for attempt in &task.attempts { (self::attempt(attempt)) } }
            }
        }
    }
}

fn step(step: &v1::Step, now: Timestamp) -> Markup {
    let (mark, class) = words::mark(&step.phase);
    html! {
        li.(class) {
            span.mark { (mark) }
            code { (step.title) }
            @if step.cached { span.cached title="the layer was there already" { "cached" } }
            span.number {
                @match step.phase.as_str() {
                    "done" => { (words::span(step.took_ms)) }
                    "running" => {
                        (words::span(now.as_millis().saturating_sub(step.since_ms)))
                    }
                    _ => {}
                }
            }
        }
    }
}

fn attempt(attempt: &v1::Attempt) -> Markup {
    html! {
        li {
            "lease " (attempt.token) " on " (attempt.worker) " "
            @if attempt.ended_at_ms == 0 { span.busy { "● now" } }
            @else { span.quiet { (attempt.ended) } }
        }
    }
}

/// One line as the script makes it too.
fn line(line: &v1::LogLine) -> Markup {
    html! {
        span.(line.stream) {
            i { (words::clock(line.at_ms)) }
            (words::plain(&line.text)) "\n"
        }
    }
}
