//! Judges every answer: the status by what Microsoft's own client accepts, the body by its type.

use serde_json::Value;

use crate::http::{Method, Reply, Request, Target};
use crate::schema::Schema;

const OPERATIONS: &str = include_str!("../contract/operations.tsv");

/// One row of `contract/operations.tsv`.
#[derive(Debug)]
struct Row {
    method: Method,
    parts: Vec<String>,
    accepted: Vec<u16>,
}

/// The rows and the types.
#[derive(Debug)]
pub struct Contract {
    rows: Vec<Row>,
    /// The types of bodies.
    pub schema: Schema,
}

impl Default for Contract {
    fn default() -> Contract {
        Contract {
            rows: OPERATIONS.lines().filter_map(row).collect(),
            schema: Schema::default(),
        }
    }
}

fn row(line: &str) -> Option<Row> {
    let mut cells = line.split('\t');
    let method = Method::parse(cells.next()?)?;
    let parts = parts(cells.next()?);
    let accepted = cells.next()?.split(',');
    Some(Row {
        method,
        parts,
        accepted: accepted.filter_map(|status| status.parse().ok()).collect(),
    })
}

fn parts(path: &str) -> Vec<String> {
    let parts = path.split('/').filter(|part| !part.is_empty());
    parts.map(str::to_ascii_lowercase).collect()
}

impl Contract {
    /// What is wrong with an answer; nothing for what is not Compute's.
    #[must_use]
    pub fn faults(&self, request: &Request, reply: &Reply) -> Vec<String> {
        let compute = |target: &Target| {
            let provider = target.provider.as_deref().unwrap_or_default();
            provider.eq_ignore_ascii_case("Microsoft.Compute")
        };
        let Some(target) = Target::parse(&request.path).filter(compute) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        if reply.status >= 400 {
            let inner = reply.body().get("error").unwrap_or_else(|| reply.body());
            if inner["code"].as_str().is_none() || inner["message"].as_str().is_none() {
                found.push(format!(
                    "an error without code or message: {}",
                    reply.body()
                ));
            }
        } else if !is_poll(&target) {
            self.status(request, reply.status, &mut found);
            self.body(&target, request.method, reply, &mut found);
        }
        let place = format!(
            "{} {} -> {}",
            request.method.name(),
            request.path,
            reply.status
        );
        found
            .iter()
            .map(|what| format!("{place}: {what}"))
            .collect()
    }

    fn status(&self, request: &Request, status: u16, found: &mut Vec<String>) {
        let path = parts(&request.path);
        let fits = |row: &&Row| {
            row.method == request.method
                && row.parts.len() == path.len()
                && row
                    .parts
                    .iter()
                    .zip(&path)
                    .all(|(want, have)| want == "{}" || want == have)
        };
        match self.rows.iter().find(fits) {
            None => found.push("no such operation in the contract".to_owned()),
            Some(row) if !row.accepted.contains(&status) => {
                found.push(format!("the contract has {:?}", row.accepted));
            }
            Some(_) => {}
        }
    }

    fn body(&self, target: &Target, method: Method, reply: &Reply, found: &mut Vec<String>) {
        let route = target.route();
        let route = route
            .strip_prefix("locations/")
            .unwrap_or(&route)
            .to_owned();
        if reply.status == 202 && method != Method::Put && method != Method::Patch {
            if !reply.body().is_null() {
                found.push("an accepted action has no body".to_owned());
            }
            return;
        }
        if reply.status == 202 {
            // A disk's first answer is a stub without an id.
            return;
        }
        let mut elements = Vec::new();
        match reply.body() {
            Value::Null => {}
            body => match body["value"].as_array() {
                Some(listed) if method == Method::Get => elements.extend(listed),
                _ => elements.push(body),
            },
        }
        for one in elements {
            found.extend(self.schema.faults(&route, one));
            let envelope = ["id", "name", "type"]
                .iter()
                .all(|key| one[*key].is_string());
            if method != Method::Post && self.schema.knows(&route) && !view(&route) && !envelope {
                found.push("a resource has an id, a name and a type".to_owned());
            }
        }
    }
}

fn view(route: &str) -> bool {
    route.ends_with("instanceview")
}

/// Polls of operations are not in the contract: the client's poller knows them.
fn is_poll(target: &Target) -> bool {
    let route = target.route();
    route.starts_with("locations/") && route.ends_with("operations")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_outside_of_the_contract_is_found() {
        let contract = Contract::default();
        let disks = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks";
        let put = Request::new(Method::Put, &format!("{disks}/d"));
        let get = Request::new(Method::Get, &format!("{disks}/d"));
        let post = Request::new(Method::Post, &format!("{disks}/d/polish"));
        let good =
            json!({"id": "i", "name": "d", "type": "Microsoft.Compute/disks", "location": "l"});
        let cases = [
            (&get, Reply::json(200, good), None),
            (
                &put,
                Reply::json(201, json!({})),
                Some("the contract has [200, 202]"),
            ),
            (
                &get,
                Reply::json(200, json!({"name": "d"})),
                Some("location is required"),
            ),
            (&post, Reply::empty(200), Some("no such operation")),
            (
                &get,
                Reply::json(404, json!({"oops": 1})),
                Some("an error without code"),
            ),
        ];
        for (request, reply, said) in cases {
            let found = contract.faults(request, &reply).join("; ");
            match said {
                None => assert_eq!(found, ""),
                Some(said) => assert!(found.contains(said), "{found:?} has not {said:?}"),
            }
        }
    }
}
