//! Who calls: tokens, the endpoints that give them, and what they allow.
//!
//! A token is valid for its audience until it expires on the virtual clock. With no principals
//! registered any client may have a token; what a principal may not do is a list of denials.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::dice::Dice;
use crate::http::{Method, Reply, Request};
use crate::problem::Problem;
use crate::time::Moment;

/// The directory that tokens are from when the caller names none.
pub const TENANT: &str = "72f988bf-0000-4000-8000-2d7cd011db47";

/// A token lives for an hour, less a second, as the metadata service says it.
const LIFE_SECONDS: u64 = 3599;

const AUDIENCES: [&str; 4] = [
    "https://management.azure.com",
    "https://management.core.windows.net",
    "https://monitor.azure.com",
    "https://storage.azure.com",
];

/// Somebody who may ask for a token.
#[derive(Clone, Debug)]
pub struct Principal {
    /// Of the application or identity.
    pub client_id: String,
    /// Of its object in the directory; what roles are given to.
    pub object_id: String,
    /// Absent for managed identities.
    pub secret: Option<String>,
}

#[derive(Clone, Debug)]
struct Token {
    principal: Principal,
    audience: String,
    expires: Moment,
}

/// Something that a principal may not do.
#[derive(Clone, Debug)]
pub struct Denial {
    /// Object id, or `*`.
    pub principal: String,
    /// As `Microsoft.Compute/disks/write`; a `*` at the end stands for the rest.
    pub action: String,
}

/// All tokens and principals.
#[derive(Debug, Default)]
pub struct Identity {
    tokens: BTreeMap<String, Token>,
    principals: Vec<Principal>,
    denials: Vec<Denial>,
    /// Tokens live so long instead.
    pub life_seconds: Option<u64>,
}

impl Identity {
    /// From now on only registered principals get tokens.
    pub fn register(&mut self, principal: Principal) {
        self.principals.push(principal);
    }

    /// Denies an action.
    pub fn deny(&mut self, denial: Denial) {
        self.denials.push(denial);
    }

    /// Takes all denials back.
    pub fn allow_all(&mut self) {
        self.denials.clear();
    }

    /// Makes every token that was given invalid now.
    pub fn expire_all(&mut self, now: Moment) {
        for token in self.tokens.values_mut() {
            token.expires = token.expires.min(now);
        }
    }

    /// Whether a path is one of the endpoints here.
    #[must_use]
    pub fn serves(path: &str) -> bool {
        path.ends_with("/oauth2/v2.0/token")
            || path.ends_with("/oauth2/token")
            || path == "/msi/token"
    }

    /// Answers a request for a token.
    pub fn answer(&mut self, request: &Request, now: Moment, dice: &mut Dice) -> Reply {
        if request.path.starts_with("/metadata/") || request.path == "/msi/token" {
            self.managed(request, now, dice)
        } else {
            self.client(request, now, dice)
        }
    }

    /// Of a VM (`Metadata: true`) or an App Service (`X-IDENTITY-HEADER`).
    fn managed(&mut self, request: &Request, now: Moment, dice: &mut Dice) -> Reply {
        let metadata = request
            .header("metadata")
            .is_some_and(|v| v.eq_ignore_ascii_case("true"));
        if !metadata && request.header("x-identity-header").is_none() {
            return Reply::json(
                400,
                json!({"error": "invalid_request", "error_description": "Required metadata header not specified"}),
            );
        }
        let Some(resource) = request.parameter("resource") else {
            return Reply::json(
                400,
                json!({"error": "invalid_resource", "error_description": "AADSTS50001: The application named '' was not found in the tenant."}),
            );
        };
        let wanted = ["client_id", "object_id", "msi_res_id", "mi_res_id"]
            .iter()
            .find_map(|name| request.parameter(name));
        let principal = match (
            wanted,
            self.principals.iter().find(|known| known.secret.is_none()),
        ) {
            (None, Some(system)) => system.clone(),
            (None, None) => anonymous("system"),
            (Some(id), _) => {
                let known = |known: &&Principal| known.client_id == id || known.object_id == id;
                match self.principals.iter().find(known) {
                    Some(principal) => principal.clone(),
                    None if self.principals.is_empty() => anonymous(id),
                    None => {
                        return Reply::json(
                            400,
                            json!({"error": "invalid_request", "error_description": "Identity not found"}),
                        );
                    }
                }
            }
        };
        let client_id = principal.client_id.clone();
        let (token, expires) = self.issue(principal, resource, now, dice);
        let life = expires.since(now) / 1000;
        Reply::json(
            200,
            json!({
                "access_token": token,
                "client_id": client_id,
                "refresh_token": "",
                "expires_in": life.to_string(),
                "expires_on": expires.seconds().to_string(),
                "ext_expires_in": life.to_string(),
                "not_before": now.seconds().to_string(),
                "resource": resource,
                "token_type": "Bearer",
            }),
        )
    }

    /// Of the directory: a client's secret, or an assertion of another directory.
    fn client(&mut self, request: &Request, now: Moment, dice: &mut Dice) -> Reply {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        let form = Request::at(Method::Post, &format!("/?{text}"));
        let refuse = |status: u16, error: &str, number: u64, said: &str| {
            Reply::json(
                status,
                json!({"error": error, "error_description": format!("AADSTS{number}: {said}"), "error_codes": [number], "timestamp": now.short()}),
            )
        };
        if form.parameter("grant_type") != Some("client_credentials") {
            return refuse(
                400,
                "unsupported_grant_type",
                70003,
                "The app requested an unsupported grant type.",
            );
        }
        let Some(id) = form.parameter("client_id") else {
            return refuse(
                400,
                "invalid_request",
                900_144,
                "The request body must contain the following parameter: 'client_id'.",
            );
        };
        let scope = form
            .parameter("scope")
            .or_else(|| form.parameter("resource"));
        let Some(scope) = scope else {
            return refuse(
                400,
                "invalid_request",
                900_144,
                "The request body must contain the following parameter: 'scope'.",
            );
        };
        let proof = form
            .parameter("client_secret")
            .or_else(|| form.parameter("client_assertion"))
            .unwrap_or_default();
        let known = self.principals.iter().find(|known| known.client_id == id);
        let principal = match known {
            None if self.principals.is_empty() => anonymous(id),
            None => {
                return refuse(
                    400,
                    "unauthorized_client",
                    700_016,
                    "Application was not found in the directory.",
                );
            }
            Some(known) => known.clone(),
        };
        let right = principal
            .secret
            .as_deref()
            .is_none_or(|secret| secret == proof);
        if proof.is_empty() || !right {
            return refuse(
                401,
                "invalid_client",
                7_000_215,
                "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value.",
            );
        }
        let audience = scope.trim_end_matches("/.default");
        let (token, expires) = self.issue(principal, audience, now, dice);
        let life = expires.since(now) / 1000;
        Reply::json(
            200,
            json!({"token_type": "Bearer", "expires_in": life, "ext_expires_in": life, "access_token": token}),
        )
    }

    /// Gives a token.
    pub fn issue(
        &mut self,
        principal: Principal,
        audience: &str,
        now: Moment,
        dice: &mut Dice,
    ) -> (String, Moment) {
        let life = self.life_seconds.unwrap_or(LIFE_SECONDS);
        let expires = now.after(life * 1000);
        let claims = json!({
            "aud": audience,
            "iss": format!("https://sts.windows.net/{TENANT}/"),
            "iat": now.seconds(),
            "nbf": now.seconds(),
            "exp": expires.seconds(),
            "appid": principal.client_id,
            "oid": principal.object_id,
            "tid": TENANT,
            "uti": dice.guid(),
        });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = part(json!({"typ": "JWT", "alg": "RS256", "kid": "simulated"}));
        let token = format!(
            "{head}.{}.{}",
            part(claims),
            URL_SAFE_NO_PAD.encode("simulated")
        );
        self.tokens.insert(
            token.clone(),
            Token {
                principal,
                audience: audience.trim_end_matches('/').to_owned(),
                expires,
            },
        );
        (token, expires)
    }

    /// Who a request is from.
    ///
    /// # Errors
    /// There is no token, or it is not valid here and now.
    pub fn caller(&self, request: &Request, now: Moment) -> Result<Principal, Problem> {
        let bearer = |header: &str| header.strip_prefix("Bearer ").map(str::to_owned);
        let Some(given) = request.header("authorization").and_then(bearer) else {
            return Err(challenge(
                "AuthenticationFailed",
                "Authentication failed. The 'Authorization' header is missing.",
            ));
        };
        let Some(token) = self.tokens.get(&given) else {
            return Err(challenge(
                "InvalidAuthenticationToken",
                "The access token is invalid.",
            ));
        };
        if token.expires <= now {
            return Err(challenge(
                "ExpiredAuthenticationToken",
                &format!(
                    "The access token expiry UTC time '{}' is earlier than current UTC time '{}'.",
                    token.expires.short(),
                    now.short()
                ),
            ));
        }
        let ours = request.base.trim_end_matches('/');
        if !AUDIENCES.contains(&token.audience.as_str()) && token.audience != ours {
            return Err(challenge(
                "InvalidAuthenticationTokenAudience",
                &format!(
                    "The access token has been obtained for wrong audience or resource '{}'.",
                    token.audience
                ),
            ));
        }
        Ok(token.principal.clone())
    }

    /// Whether the caller may do this.
    ///
    /// # Errors
    /// A denial says no.
    pub fn authorize(&self, who: &Principal, action: &str, scope: &str) -> Result<(), Problem> {
        let about = |denial: &&Denial| {
            let name = denial.principal == "*" || denial.principal == who.object_id;
            let pattern = denial.action.to_ascii_lowercase();
            let action = action.to_ascii_lowercase();
            let hit = match pattern.strip_suffix('*') {
                Some(start) => action.starts_with(start),
                None => action == pattern,
            };
            name && hit
        };
        match self.denials.iter().find(about) {
            None => Ok(()),
            Some(_) => Err(Problem::new(
                403,
                "AuthorizationFailed",
                format!(
                    "The client '{}' with object id '{}' does not have authorization to perform action '{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh your credentials.",
                    who.client_id, who.object_id
                ),
            )
            .with("x-ms-failure-cause", "gateway")),
        }
    }
}

fn anonymous(client_id: &str) -> Principal {
    Principal {
        client_id: client_id.to_owned(),
        object_id: format!("object-of-{client_id}"),
        secret: None,
    }
}

fn challenge(code: &str, message: &str) -> Problem {
    Problem::new(401, code, message)
        .with(
            "www-authenticate",
            format!(
                "Bearer authorization_uri=\"https://login.windows.net/{TENANT}\", error=\"invalid_token\", error_description=\"{message}\""
            ),
        )
        .with("x-ms-failure-cause", "gateway")
}
