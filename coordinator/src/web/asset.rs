//! The style sheet and the script, out of the binary.

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use oast_model::digest::Digest;

const STYLE: &str = include_str!("assets/oast.css");
const SCRIPT: &str = include_str!("assets/oast.js");
const ICON: &str = include_str!("assets/oast.svg");

pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let (kind, content) = match name.as_str() {
        "oast.css" => ("text/css; charset=utf-8", STYLE),
        "oast.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "oast.svg" => ("image/svg+xml", ICON),
        _ => return (StatusCode::NOT_FOUND, "no such file\n").into_response(),
    };
    // Another version of the binary may answer next time, so browsers ask whether it changed.
    let tag = format!("\"{}\"", Digest::of(content.as_bytes()).short());
    let known = headers.get(IF_NONE_MATCH);
    let known = known.is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let about = [(ETAG, tag), (CACHE_CONTROL, "no-cache".to_owned())];
    if known {
        return (StatusCode::NOT_MODIFIED, about).into_response();
    }
    (about, [(CONTENT_TYPE, kind)], content).into_response()
}
