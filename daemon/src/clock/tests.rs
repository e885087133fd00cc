use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[tokio::test]
async fn manual_time_wakes_only_those_who_are_due() {
    let clock = ManualClock::default();
    let short = clock.sleep(Duration::from_secs(1));
    let long = clock.sleep(Duration::from_secs(5));
    tokio::pin!(long);

    clock.advance(Duration::from_secs(1));
    short.await;
    assert_eq!(clock.sleepers(), 1);
    assert!(futures_poll_once(&mut long).await.is_none());

    clock.advance(Duration::from_secs(4));
    long.await;
}

#[tokio::test]
async fn wait_for_sleepers_sees_a_sleeper_of_another_task() {
    let clock = ManualClock::default();
    let woken = Arc::new(AtomicUsize::new(0));
    let sleeper = {
        let (clock, woken) = (clock.clone(), woken.clone());
        async move {
            clock.sleep(Duration::from_secs(30)).await;
            woken.fetch_add(1, Ordering::SeqCst);
        }
    };
    let driver = async {
        clock.wait_for_sleepers(1).await;
        assert_eq!(woken.load(Ordering::SeqCst), 0);
        assert!(clock.advance_to_next());
    };
    tokio::join!(sleeper, driver);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    assert_eq!(clock.monotonic(), Duration::from_secs(30));
}

#[tokio::test]
async fn a_dropped_sleeper_is_forgotten() {
    let clock = ManualClock::default();
    drop(clock.sleep(Duration::from_secs(1)));
    assert_eq!(clock.sleepers(), 0);
    assert!(!clock.advance_to_next());
}

#[tokio::test]
async fn setting_the_calendar_leaves_monotonic_time_alone() {
    let clock = ManualClock::default();
    clock.advance(Duration::from_secs(10));
    clock.set_wall(Timestamp(5));
    assert_eq!(clock.wall(), Timestamp(5));
    assert_eq!(clock.monotonic(), Duration::from_secs(10));
}

#[tokio::test]
async fn timeout_names_its_limit_and_keeps_finished_work() {
    let clock = ManualClock::default();
    let limit = Duration::from_secs(3);
    assert_eq!(timeout(&clock, limit, async { 7 }).await, Ok(7));

    let waiting = timeout(&clock, limit, std::future::pending::<()>());
    let driver = async {
        clock.wait_for_sleepers(1).await;
        clock.advance(limit);
    };
    let (result, ()) = tokio::join!(waiting, driver);
    assert_eq!(result, Err(TimedOut { limit }));
}

#[tokio::test]
async fn system_clock_counts_up_by_at_least_what_was_slept() {
    let clock = SystemClock;
    let before = clock.monotonic();
    clock.sleep(Duration::from_millis(3)).await;
    assert!(clock.monotonic() - before >= Duration::from_millis(3));
    assert!(clock.wall() > Timestamp(1_700_000_000_000));
}

/// Polls once and says whether the future was ready.
async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    tokio::select! {
        biased;
        done = future => Some(done),
        () = std::future::ready(()) => None,
    }
}
