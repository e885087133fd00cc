//! Faults: rules that say which calls go wrong, and how. Chances come from the seeded dice.

use serde_json::{Value, json};

use crate::dice::Dice;
use crate::http::{Method, Reply, Request};
use crate::json;
use crate::problem::Problem;

/// What a rule does to a call that it matches.
#[derive(Clone, Debug)]
pub enum Effect {
    /// It is answered with this instead of being done.
    Answer(Box<Reply>),
    /// The connection is cut before anything is done.
    Cut,
    /// It is done, and the connection is cut before the answer.
    CutAfter,
    /// The operation that it begins fails at its end.
    Fail(Box<Problem>),
    /// The operation that it begins takes so much longer, in virtual milliseconds.
    Slow(u64),
    /// A gallery version: a region fails, or is usable only so long after the others.
    Region {
        /// Normalised.
        name: String,
        /// It fails for good.
        failed: bool,
        /// It is later.
        later_ms: u64,
    },
    /// A scale set: so many of the instances that the call makes fail.
    Instances {
        /// How many.
        count: u64,
        /// With this.
        problem: Box<Problem>,
    },
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// To name it.
    pub id: u64,
    method: Option<Method>,
    /// In lower case; matches when the path has it.
    path: String,
    /// Matching calls that are let through first.
    skip: u64,
    /// How often it still strikes.
    times: u64,
    per_million: u64,
    /// What it does.
    pub effect: Effect,
    /// How often it struck.
    pub struck: u64,
}

/// All rules, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Vec<Rule>,
    made: u64,
}

impl Faults {
    /// Makes a rule from JSON; see README.md for its members.
    ///
    /// # Errors
    /// It says nothing that we know, in words for who wrote it.
    pub fn add(&mut self, rule: &Value) -> Result<u64, String> {
        let method = match json::text(rule, "method") {
            None => None,
            Some(name) => Some(Method::parse(name).ok_or_else(|| format!("no method {name:?}"))?),
        };
        self.made += 1;
        self.rules.push(Rule {
            id: self.made,
            method,
            path: json::text(rule, "path").unwrap_or("/").to_ascii_lowercase(),
            skip: json::number(rule, "skip").unwrap_or(0),
            times: json::number(rule, "times").unwrap_or(1),
            per_million: json::number(rule, "perMillion").unwrap_or(1_000_000),
            effect: effect(rule)?,
            struck: 0,
        });
        Ok(self.made)
    }

    /// Takes every rule away.
    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// The rules with how often they struck.
    #[must_use]
    pub fn listed(&self) -> Value {
        let one = |rule: &Rule| json!({"id": rule.id, "path": rule.path, "left": rule.times, "struck": rule.struck});
        self.rules.iter().map(one).collect()
    }

    /// The effects on one call that are `wanted` now; each strikes once.
    pub fn strike(
        &mut self,
        request: &Request,
        dice: &mut Dice,
        wanted: impl Fn(&Effect) -> bool,
    ) -> Vec<Effect> {
        let path = request.path.to_ascii_lowercase();
        let mut struck = Vec::new();
        for rule in &mut self.rules {
            let matches = rule.times > 0
                && rule.method.is_none_or(|method| method == request.method)
                && path.contains(&rule.path)
                && wanted(&rule.effect);
            if !matches {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.per_million >= 1_000_000 || dice.chance(rule.per_million) {
                rule.times -= 1;
                rule.struck += 1;
                struck.push(rule.effect.clone());
            }
        }
        struck
    }
}

fn effect(rule: &Value) -> Result<Effect, String> {
    if let Some(answer) = json::at(rule, "answer") {
        let status = json::number(answer, "status").unwrap_or(500);
        let status = u16::try_from(status).map_err(|_| format!("no status {status}"))?;
        let mut reply = match json::at(answer, "body") {
            Some(body) => Reply::json(status, body.clone()),
            None if status >= 400 => problem(answer, status).reply(),
            None => Reply::empty(status),
        };
        if let Some(seconds) = json::number(answer, "retryAfter") {
            reply = reply.with("retry-after", seconds.to_string());
        }
        return Ok(Effect::Answer(Box::new(reply)));
    }
    match json::text(rule, "connection") {
        Some("cut") => return Ok(Effect::Cut),
        Some("cutAfter") => return Ok(Effect::CutAfter),
        Some(other) => return Err(format!("a connection is cut or cutAfter, not {other:?}")),
        None => {}
    }
    if let Some(failure) = json::at(rule, "fail") {
        return Ok(Effect::Fail(Box::new(problem(failure, 409))));
    }
    if let Some(ms) = json::number(rule, "slowMs") {
        return Ok(Effect::Slow(ms));
    }
    if let Some(region) = json::at(rule, "region") {
        return Ok(Effect::Region {
            name: crate::resources::region(json::text(region, "name").unwrap_or_default()),
            failed: json::at(region, "failed") == Some(&Value::Bool(true)),
            later_ms: json::number(region, "laterMs").unwrap_or(0),
        });
    }
    if let Some(instances) = json::at(rule, "instances") {
        return Ok(Effect::Instances {
            count: json::number(instances, "count").unwrap_or(1),
            problem: Box::new(problem(instances, 409)),
        });
    }
    Err("a fault has one of answer, connection, fail, slowMs, region, instances".to_owned())
}

fn problem(value: &Value, status: u16) -> Problem {
    let code = json::text(value, "code").unwrap_or("InternalServerError");
    let message = json::text(value, "message").unwrap_or(
        "Encountered internal server error. Diagnostic information: injected by a fault rule.",
    );
    let mut problem = Problem::new(status, code, message);
    problem.target = json::text(value, "target").map(Box::from);
    problem
}
