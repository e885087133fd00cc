//! Trying again: which member, how long, and what is told in the end.

use std::sync::Mutex;

use oast_daemon::clock::{Clock, Sleep};
use oast_daemon::retry::SeededJitter;
use oast_model::time::Timestamp;

use super::*;

/// Time that passes exactly when somebody sleeps.
#[derive(Clone, Debug, Default)]
struct Leap(Arc<Mutex<Duration>>);

impl Clock for Leap {
    fn wall(&self) -> Timestamp {
        Timestamp::EPOCH
    }

    fn monotonic(&self) -> Duration {
        *self.0.lock().expect("nobody panicked")
    }

    fn sleep(&self, d: Duration) -> Sleep {
        let hands = Arc::clone(&self.0);
        Box::pin(async move {
            *hands.lock().expect("nobody panicked") += d;
        })
    }
}

fn client(members: usize) -> (Client, Leap) {
    let addresses: Vec<String> = (0..members).map(|n| format!("127.0.0.1:{n}")).collect();
    let clock = Leap::default();
    let client = Client::new(&addresses, None).expect("addresses");
    let client = Client {
        clock: Arc::new(clock.clone()),
        jitter: Arc::new(SeededJitter::new(7)),
        ..client
    };
    (client, clock)
}

fn said(code: Code, reason: &str, after: Option<u64>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, []);
    details.set_retry_info(after.map(Duration::from_secs));
    Status::with_error_details(code, "said so", details)
}

/// What one scripted call came to, whom it asked, and how long it took.
async fn script(
    members: usize,
    mut answer: impl FnMut(usize, usize) -> Result<u32, Status>,
) -> (Result<u32, Status>, Vec<usize>, Duration) {
    let (client, clock) = client(members);
    let mut asked = Vec::new();
    let result = client
        .call(|member| {
            let answer = answer(asked.len(), member.place).map(tonic::Response::new);
            asked.push(member.place);
            std::future::ready(answer)
        })
        .await;
    (result, asked, clock.monotonic())
}

#[tokio::test]
async fn every_member_is_asked_before_anybody_waits() {
    let (result, asked, took) = script(3, |_, place| match place {
        2 => Ok(5),
        _ => Err(Status::unavailable("refused")),
    })
    .await;
    assert_eq!(result.expect("the last one answers"), 5);
    assert_eq!((asked, took), (vec![0, 1, 2], Duration::ZERO));
}

#[tokio::test]
async fn when_nobody_answers_each_address_is_told_with_its_reason_and_soon() {
    let (result, asked, took) = script(2, |_, place| {
        Err(Status::unavailable(["refused", "no route"][place]))
    })
    .await;
    let status = result.expect_err("nobody answers");
    assert_eq!(fault::reason(&status).as_deref(), Some(NO_MEMBER));
    assert_eq!(
        status.message(),
        "no member of the farm answers\n  127.0.0.1:0: refused\n  127.0.0.1:1: no route"
    );
    assert!(took >= SILENCE && took < RETRY.within, "{took:?}");
    assert!(asked.len() < 40, "{}", asked.len());
}

#[tokio::test]
async fn a_farm_that_elects_a_leader_is_waited_for_as_long_as_it_asks() {
    let no_leader = || said(Code::Unavailable, "NO_LEADER", Some(1));
    let (result, asked, took) = script(3, |turn, _| match turn {
        6.. => Ok(1),
        _ => Err(no_leader()),
    })
    .await;
    assert_eq!(result.expect("in the third round"), 1);
    assert_eq!(asked, [0, 1, 2, 0, 1, 2, 0]);
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(3),
        "{took:?}"
    );

    let (result, _, took) = script(3, |_, _| Err(no_leader())).await;
    let status = result.expect_err("nobody leads");
    assert_eq!(fault::reason(&status).as_deref(), Some("NO_LEADER"));
    assert!(
        status.message().contains("127.0.0.1:2: said so"),
        "{status:?}"
    );
    assert!(took > SILENCE && took <= RETRY.within, "{took:?}");
}

#[tokio::test]
async fn a_full_farm_is_asked_again_when_it_said_and_not_through_others() {
    let full = |after| said(Code::ResourceExhausted, "OVERLOADED", after);
    let (result, asked, took) = script(3, |turn, _| match turn {
        0 => Err(full(Some(2))),
        _ => Ok(1),
    })
    .await;
    assert_eq!((result.expect("then"), asked), (1, vec![0, 0]));
    assert!(took >= Duration::from_secs(2), "{took:?}");
    // Longer than the call may take: told at once.
    let (result, asked, took) = script(3, |_, _| Err(full(Some(60)))).await;
    assert_eq!(result.expect_err("full").code(), Code::ResourceExhausted);
    assert_eq!((asked.len(), took), (1, Duration::ZERO));
}

#[tokio::test]
async fn a_refusal_is_told_at_once() {
    let (result, asked, _) = script(3, |_, _| Err(said(Code::NotFound, "NOT_FOUND", None))).await;
    assert_eq!(result.expect_err("refused").message(), "said so");
    assert_eq!(asked, [0]);
}

#[tokio::test]
async fn streams_that_broke_together_turn_once() {
    let (client, _) = client(3);
    let member = client.member().clone();
    client.turn_from(&member);
    client.turn_from(&member);
    assert_eq!(client.member().place, 1);
    client.turn();
    client.turn();
    assert_eq!(client.member().place, 0);
}
