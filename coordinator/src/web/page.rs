//! The frame of every page.

use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use tonic::{Code, Status};

use crate::api::Api;

/// A page with its title. What is marked `data-live` is refreshed by the script.
pub(super) fn page(api: &Api, title: &str, body: &Markup) -> Html<String> {
    let status = api.farm.status().borrow().clone();
    let view = api.farm.view();
    let farm = match view.farm().name.as_str() {
        "" => "new farm",
        name => name,
    };
    let whole = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · oast" }
                link rel="icon" href="/assets/oast.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/oast.css";
                script src="/assets/oast.js" defer {}
            }
            body {
                header {
                    a.brand href="/" { img src="/assets/oast.svg" alt="" width="28" height="28"; "oast" }
                    span.farm { (farm) }
                    span.member id="member" data-live {
                        "member " (status.member) " · "
                        @match status.leader {
                            Some(leader) if leader == status.member => { "leads" }
                            Some(leader) => { "follows member " (leader) }
                            None => { strong.bad { "no leader" } }
                        }
                        " · term " (status.term)
                    }
                }
                main { (body) }
                footer {
                    "Read only. Act with the command line: " code { "oast --help" }
                    span id="offline" hidden { "This member does not answer; trying again." }
                }
            }
        }
    };
    Html(whole.into_string())
}

/// What stands instead of a page that cannot be made.
pub(super) fn failed(api: &Api, status: &Status) -> Response {
    let (code, title) = match status.code() {
        Code::NotFound | Code::InvalidArgument => (StatusCode::NOT_FOUND, "Not here"),
        Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "No answer from the farm"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "This did not work"),
    };
    let body = html! {
        section id="failure" data-live {
            h1 { (title) }
            p { (status.message()) }
            p { a href="/" { "Back to the runs" } }
        }
    };
    (code, page(api, title, &body)).into_response()
}
