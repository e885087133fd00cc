//! Requests and answers as plain values; sockets are in [`crate::serve`].

use bytes::Bytes;
use serde_json::Value;

mod path;
mod version;

pub use path::Target;
pub use version::{NETWORK, RESOURCES, check as check_version};

/// What a request wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Read the headers.
    Head,
    /// Create or replace.
    Put,
    /// Change.
    Patch,
    /// Act.
    Post,
    /// Remove.
    Delete,
}

impl Method {
    /// From the request line.
    #[must_use]
    pub fn parse(name: &str) -> Option<Method> {
        Some(match name {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "PUT" => Method::Put,
            "PATCH" => Method::Patch,
            "POST" => Method::Post,
            "DELETE" => Method::Delete,
            _ => return None,
        })
    }

    /// As in the request line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Post => "POST",
            Method::Delete => "DELETE",
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to do.
    pub method: Method,
    /// Percent-decoded, without the query.
    pub path: String,
    /// Decoded pairs in order.
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Read whole.
    pub body: Bytes,
    /// `http://host:port`, as the caller sees us: links that we hand out begin with it.
    pub base: String,
}

impl Request {
    /// A request without query, headers and body.
    #[must_use]
    pub fn new(method: Method, path: &str) -> Request {
        Request {
            method,
            path: path.to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Bytes::new(),
            base: "http://localhost".to_owned(),
        }
    }

    /// Takes a request target apart.
    #[must_use]
    pub fn at(method: Method, uri: &str) -> Request {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let mut request = Request::new(method, &decode(path, false));
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            request
                .query
                .push((decode(name, true), decode(value, true)));
        }
        request
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A query parameter; Azure does not look at the case of its name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self
            .query
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Undoes percent-encoding; broken sequences stay as they are.
fn decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .filter(|_| bytes[at] == b'%')
            .and_then(|pair| std::str::from_utf8(pair).ok())
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match hex {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                let space = plus_is_space && bytes[at] == b'+';
                out.push(if space { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The body of an answer.
#[derive(Clone, Debug)]
pub enum Content {
    /// No body.
    Empty,
    /// `application/json`.
    Json(Value),
    /// With its content type.
    Text(&'static str, String),
    /// `application/octet-stream`.
    Bytes(Bytes),
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// In order; a name may come twice.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub content: Content,
}

impl Reply {
    /// An answer without a body.
    #[must_use]
    pub fn empty(status: u16) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            content: Content::Empty,
        }
    }

    /// An answer with a JSON body.
    #[must_use]
    pub fn json(status: u16, body: Value) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            content: Content::Json(body),
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    /// The JSON body, or null.
    #[must_use]
    pub fn body(&self) -> &Value {
        match &self.content {
            Content::Json(body) => body,
            _ => &Value::Null,
        }
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What the caller gets.
#[derive(Clone, Debug)]
pub enum Answer {
    /// An answer.
    Reply(Reply),
    /// The connection is cut.
    Cut,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_decoded_once_and_names_have_no_case() {
        let request = Request::at(Method::Get, "/a%20b/c+d?API-Version=1&$expand=x%2Cy");
        assert_eq!(request.path, "/a b/c+d");
        assert_eq!(request.parameter("api-version"), Some("1"));
        assert_eq!(request.parameter("$expand"), Some("x,y"));
    }
}
