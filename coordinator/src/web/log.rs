//! A run's log over HTTP: as text, or as JSON lines that the page's script follows.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use oast_proto::v1;
use oast_proto::v1::runs_server::Runs;
use serde::Serialize;
use tokio_stream::StreamExt as _;
use tonic::Status;

use super::page::failed;
use super::{ask, words};
use crate::api::Api;

/// The query that asks for JSON lines.
const AS_LINES: &str = "lines";

#[derive(Serialize)]
struct Line<'l> {
    clock: &'l str,
    stream: &'l str,
    text: &'l str,
}

pub(super) async fn log(
    State(api): State<Api>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let lines = query.as_deref() == Some(AS_LINES);
    let asked = v1::TailLogsRequest {
        run: id,
        follow: lines,
        ..v1::TailLogsRequest::default()
    };
    let stream = match api.tail_logs(ask(&api, asked)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return failed(&api, &status),
    };
    // A failure in the middle ends the text; the script comes back.
    let text = stream
        .map_while(Result::ok)
        .map(move |found| Ok::<_, Infallible>(render(&found, lines)));
    let kind = if lines {
        "application/x-ndjson"
    } else {
        "text/plain; charset=utf-8"
    };
    let about = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")];
    (about, Body::from_stream(text)).into_response()
}

fn render(found: &v1::LogLines, lines: bool) -> Bytes {
    let mut out = String::new();
    for line in &found.lines {
        let (clock, text) = (words::clock(line.at_ms), words::plain(&line.text));
        if lines {
            let line = Line {
                clock: &clock,
                stream: &line.stream,
                text: &text,
            };
            out.push_str(&serde_json::to_string(&line).expect("three texts"));
        } else {
            out.push_str(&clock);
            out.push(' ');
            out.push_str(&text);
        }
        out.push('\n');
    }
    out.into()
}

/// The end of the log as it is now.
pub(super) async fn last_lines(
    api: &Api,
    run: &str,
    most: usize,
) -> Result<VecDeque<v1::LogLine>, Status> {
    let asked = v1::TailLogsRequest {
        run: run.to_owned(),
        ..v1::TailLogsRequest::default()
    };
    let mut stream = api.tail_logs(ask(api, asked)).await?.into_inner();
    let mut last = VecDeque::new();
    while let Some(found) = stream.next().await {
        for line in found?.lines {
            if last.len() == most {
                last.pop_front();
            }
            last.push_back(line);
        }
    }
    Ok(last)
}
