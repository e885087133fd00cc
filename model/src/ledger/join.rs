//! Tokens with which workers join: each for one certificate, for a short time.
//!
//! ```text
//! created -> used by one request => answers that request, and no other, until it is forgotten
//!         -> expired, revoked    => refused
//! ```
//!
//! The ledger keeps the token's hash, never the token, and the certificate that came of it, which
//! is no secret. The certificate is signed by the member that was asked, before the command: only
//! the one that the ledger took counts, so a request that was answered twice has one certificate.
//! Whether a time is over is judged by the command's `now`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Answer, Context, Ledger, Rejected};
use crate::digest::Digest;
use crate::names::WorkerName;
use crate::principal::{Principal, Verb};
use crate::time::Timestamp;

/// Most join tokens that a farm keeps, used and over ones included.
pub const JOIN_TOKENS_MAX: usize = 1_000;
/// Longest time to use one.
pub const JOIN_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How long one is kept after its end, so that a request that lost its answer still gets it, and
/// a second use is refused by name.
pub const JOIN_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);
/// Largest chain of certificates that is kept, in bytes.
pub const JOIN_CHAIN_MAX: usize = 16 << 10;
/// Digits of the hash that name a token to people.
const ID_DIGITS: usize = 12;

/// A token that lets one worker in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The one worker that may use it; absent: whoever holds it chooses a name.
    #[serde(default)]
    pub worker: Option<WorkerName>,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Until when it can be used.
    pub expires_at: Timestamp,
    /// What came of it.
    #[serde(default)]
    pub used: Option<Joined>,
}

/// The one use of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Who joined.
    pub worker: WorkerName,
    /// Their request.
    pub request_id: String,
    /// Hash of their public key.
    pub key: Digest,
    /// Their chain of certificates (DER), their own first.
    pub chain: Vec<Vec<u8>>,
    /// When.
    pub at: Timestamp,
}

/// A worker's request, with the certificate that it gets if the token is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinWorker {
    /// Hash of the token.
    pub token: String,
    /// Who asks.
    pub worker: WorkerName,
    /// Chosen by the worker, the same in each repetition.
    pub request_id: String,
    /// Hash of the worker's public key, which the request was signed with.
    pub key: Digest,
    /// Chain of certificates (DER), the worker's own first.
    pub chain: Vec<Vec<u8>>,
}

impl JoinToken {
    /// What a list calls a token by: the beginning of its hash.
    pub fn id(hash: &str) -> &str {
        hash.get(..ID_DIGITS).unwrap_or(hash)
    }
}

/// Makes a token.
pub(super) fn create(
    ledger: &mut Ledger,
    cx: &Context,
    who: &Principal,
    hash: String,
    worker: Option<WorkerName>,
    ttl: Duration,
) -> Result<Answer, Rejected> {
    ledger.allow(who, Verb::Manage, None)?;
    if ttl.is_zero() || ttl > JOIN_TTL_MAX {
        return Err(Rejected::Forbidden(format!(
            "a join token lives for at most {} hours",
            JOIN_TTL_MAX.as_secs() / 3_600
        )));
    }
    forget(ledger, cx.now);
    if ledger.joins.contains(&hash) {
        return Err(Rejected::WrongState("this token is in use already".into()));
    }
    if ledger.joins.len() >= JOIN_TOKENS_MAX {
        return Err(Rejected::Exhausted(format!(
            "a farm keeps at most {JOIN_TOKENS_MAX} join tokens: revoke some, or wait until they are over"
        )));
    }
    let token = JoinToken {
        worker,
        created_by: who.name.clone(),
        created_at: cx.now,
        expires_at: cx.now + ttl,
        used: None,
    };
    ledger.joins.insert(hash, token);
    Ok(Answer::Done)
}

/// Ends a token that nobody used. The certificate of a used one is not touched by this.
pub(super) fn revoke(ledger: &mut Ledger, who: &Principal, id: &str) -> Result<Answer, Rejected> {
    ledger.allow(who, Verb::Manage, None)?;
    let found = ledger
        .joins
        .iter()
        .find(|(hash, _)| JoinToken::id(hash) == id)
        .map(|(hash, token)| (hash.clone(), token.used.is_some()));
    match found {
        None => Err(Rejected::NotFound {
            kind: "join token".into(),
            name: id.into(),
        }),
        Some((_, true)) => Err(Rejected::WrongState(
            "this join token was used already: it opens nothing any more".into(),
        )),
        Some((hash, false)) => {
            ledger.joins.remove(&hash);
            Ok(Answer::Done)
        }
    }
}

/// Lets a worker in. The same request again changes nothing and is no error.
pub(super) fn join(
    ledger: &mut Ledger,
    cx: &Context,
    join: JoinWorker,
) -> Result<Answer, Rejected> {
    let way_out = "an administrator makes another: `oast operator worker-token create`";
    let Some(token) = ledger.joins.get(&join.token) else {
        return Err(Rejected::Forbidden(format!(
            "this join token is not known here: it was revoked, is long over, or is another farm's; {way_out}"
        )));
    };
    if let Some(used) = &token.used {
        let again = used.request_id == join.request_id
            && used.worker == join.worker
            && used.key == join.key;
        if again {
            return Ok(Answer::Unchanged);
        }
        return Err(Rejected::Forbidden(format!(
            "this join token was used by worker `{}` at {}: each lets one worker in; {way_out}",
            used.worker, used.at
        )));
    }
    if cx.now >= token.expires_at {
        return Err(Rejected::Forbidden(format!(
            "this join token was good until {}, and it is {} by the farm's clock; {way_out}",
            token.expires_at, cx.now
        )));
    }
    if let Some(worker) = &token.worker
        && *worker != join.worker
    {
        return Err(Rejected::Forbidden(format!(
            "this join token is for worker `{worker}`, not for `{}`",
            join.worker
        )));
    }
    let bytes: usize = join.chain.iter().map(Vec::len).sum();
    if join.chain.is_empty() || bytes > JOIN_CHAIN_MAX {
        return Err(Rejected::Forbidden(format!(
            "a chain of certificates has 1 to {JOIN_CHAIN_MAX} bytes"
        )));
    }
    let token = ledger
        .joins
        .get_mut(&join.token)
        .expect("it was there a moment ago");
    token.used = Some(Joined {
        worker: join.worker,
        request_id: join.request_id,
        key: join.key,
        chain: join.chain,
        at: cx.now,
    });
    Ok(Answer::Done)
}

/// Drops what is over for long. At most [`JOIN_TOKENS_MAX`] are looked at.
fn forget(ledger: &mut Ledger, now: Timestamp) {
    let over: Vec<String> = ledger
        .joins
        .iter()
        .filter(|(_, token)| now >= token.expires_at + JOIN_MEMORY)
        .map(|(hash, _)| hash.clone())
        .collect();
    for hash in over {
        ledger.joins.remove(&hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Command, Request};
    use crate::principal::Role;

    const HOUR: Duration = Duration::from_secs(3_600);

    struct World {
        ledger: Ledger,
        now: Timestamp,
    }

    impl World {
        fn new() -> World {
            let mut world = World {
                ledger: Ledger::new(),
                now: Timestamp::from_millis(1_000_000),
            };
            let init = Command::InitFarm {
                name: "acme".into(),
                admin: "a".into(),
                worker: "w".into(),
            };
            world.say(Principal::farm(), init).expect("a new farm");
            world
        }

        fn say(&mut self, principal: Principal, command: Command) -> Result<Answer, Rejected> {
            let request = Request {
                principal,
                request_id: None,
                command,
            };
            self.ledger.apply(self.now, request).result
        }

        fn create(&mut self, hash: &str, worker: Option<&str>) -> Result<Answer, Rejected> {
            let command = Command::CreateJoinToken {
                hash: hash.into(),
                worker: worker.map(|name| WorkerName::new(name).expect("a name")),
                ttl_ms: 3_600_000,
            };
            self.say(user(Role::Admin), command)
        }

        fn join(
            &mut self,
            hash: &str,
            worker: &str,
            id: &str,
            key: &[u8],
        ) -> Result<Answer, Rejected> {
            let command = Command::JoinWorker(JoinWorker {
                token: hash.into(),
                worker: WorkerName::new(worker).expect("a name"),
                request_id: id.into(),
                key: Digest::of(key),
                chain: vec![vec![1, 2, 3], id.into()],
            });
            self.say(Principal::farm(), command)
        }
    }

    fn user(role: Role) -> Principal {
        Principal {
            name: "ann".into(),
            kind: crate::principal::PrincipalKind::User,
            role,
            team: None,
        }
    }

    fn refusal(result: Result<Answer, Rejected>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn a_token_lets_one_worker_in_and_answers_its_repetitions_only() {
        let mut world = World::new();
        assert_eq!(world.create("t1", None), Ok(Answer::Done));
        assert_eq!(world.join("t1", "w1", "r1", b"k1"), Ok(Answer::Done));
        let kept = world.ledger.join_token("t1").cloned().expect("kept");
        // The same request, signed anew by another member: the first certificate stays.
        assert_eq!(world.join("t1", "w1", "r1", b"k1"), Ok(Answer::Unchanged));
        for (worker, id, key) in [("w2", "r1", "k1"), ("w1", "r2", "k1"), ("w1", "r1", "k2")] {
            let text = refusal(world.join("t1", worker, id, key.as_bytes()));
            assert!(text.contains("was used by worker `w1`"), "{text}");
        }
        assert_eq!(world.ledger.join_token("t1"), Some(&kept));
        assert_eq!(kept.used.expect("used").chain[1], b"r1");
        // A repetition is answered after the token's end too.
        world.now += HOUR * 2;
        assert_eq!(world.join("t1", "w1", "r1", b"k1"), Ok(Answer::Unchanged));
    }

    #[test]
    fn a_token_ends_by_the_commands_time() {
        let mut world = World::new();
        world.create("t1", None).expect("made");
        world.create("t2", None).expect("made");
        world.now += HOUR - Duration::from_millis(1);
        assert_eq!(world.join("t1", "w1", "r1", b"k"), Ok(Answer::Done));
        world.now += Duration::from_millis(1);
        let text = refusal(world.join("t2", "w2", "r2", b"k"));
        assert!(text.contains("was good until"), "{text}");
        assert!(text.contains("oast operator worker-token create"), "{text}");
        // Forgotten a day later, when the next one is made.
        world.now += JOIN_MEMORY;
        world.create("t3", None).expect("made");
        assert!(world.ledger.join_token("t1").is_none());
        assert!(refusal(world.join("t1", "w1", "r1", b"k")).contains("not known here"));
    }

    #[test]
    fn a_token_for_one_name_is_for_no_other() {
        let mut world = World::new();
        world.create("t1", Some("w1")).expect("made");
        let text = refusal(world.join("t1", "w2", "r1", b"k"));
        assert!(text.contains("is for worker `w1`, not for `w2`"), "{text}");
        assert_eq!(world.join("t1", "w1", "r1", b"k"), Ok(Answer::Done));
    }

    #[test]
    fn only_administrators_make_and_revoke_and_only_members_let_in() {
        let mut world = World::new();
        let make = |ttl_ms| Command::CreateJoinToken {
            hash: "0123456789abcdef".into(),
            worker: None,
            ttl_ms,
        };
        for who in [
            user(Role::Viewer),
            user(Role::Operator),
            Principal::worker("w1"),
        ] {
            assert!(matches!(
                world.say(who, make(1_000)),
                Err(Rejected::Denied(_))
            ));
        }
        for ttl in [0, 8 * 24 * 3_600_000] {
            assert!(refusal(world.say(user(Role::Admin), make(ttl))).contains("at most 168 hours"));
        }
        world.say(user(Role::Admin), make(1_000)).expect("made");
        let join = Command::JoinWorker(JoinWorker {
            token: "0123456789abcdef".into(),
            worker: WorkerName::new("w1").expect("a name"),
            request_id: "r".into(),
            key: Digest::of(b"k"),
            chain: vec![vec![1]],
        });
        let denied = world.say(user(Role::Admin), join.clone());
        assert!(matches!(denied, Err(Rejected::Denied(_))));
        let revoke = Command::RevokeJoinToken {
            id: "0123456789ab".into(),
        };
        let denied = world.say(user(Role::Operator), revoke.clone());
        assert!(matches!(denied, Err(Rejected::Denied(_))));
        assert_eq!(
            world.say(user(Role::Admin), revoke.clone()),
            Ok(Answer::Done)
        );
        assert!(refusal(world.say(Principal::farm(), join)).contains("not known here"));
        let gone = world.say(user(Role::Admin), revoke);
        assert!(matches!(gone, Err(Rejected::NotFound { .. })));
    }
}
