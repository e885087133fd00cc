use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::clock::ManualClock;

fn tasks() -> (Tasks, ManualClock) {
    let clock = ManualClock::default();
    (
        Tasks::new(Arc::new(clock.clone()), CancellationToken::new()),
        clock,
    )
}

const DEADLINE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_critical_error_cancels_everything_and_is_the_reason() {
    let (tasks, _clock) = tasks();
    let idle = tasks.spawn("idle", TaskKind::BACKGROUND, std::future::pending::<()>());
    tasks.spawn("raft", TaskKind::SERVICE, async {
        Err(io::Error::other("log is gone"))
    });

    let ended = tasks.finish(DEADLINE).await;
    let failure = Failure {
        task: "raft",
        how: "failed",
        reason: "log is gone".to_owned(),
    };
    assert_eq!(ended, Err(Unclean::Failure(failure)));
    assert_eq!(idle.join().await, Outcome::Cancelled);
}

#[tokio::test]
async fn a_critical_panic_is_reported_with_its_message() {
    let (tasks, _clock) = tasks();
    tasks.spawn("applier", TaskKind::SERVICE, async {
        let gap: u64 = "7".parse().expect("a number");
        assert!(gap == 0, "gap at {gap}");
    });
    let ended = tasks
        .finish(DEADLINE)
        .await
        .expect_err("the panic ends the process");
    assert_eq!(ended.to_string(), "task applier panicked: gap at 7");
}

#[tokio::test]
async fn the_first_failure_stays_the_reason() {
    let (tasks, _clock) = tasks();
    let first = tasks.spawn("first", TaskKind::SERVICE, async {
        Err(io::Error::other("a"))
    });
    first.join().await;
    let second = tasks.spawn("second", TaskKind::SERVICE, async {
        Err(io::Error::other("b"))
    });
    second.join().await;
    let ended = tasks
        .finish(DEADLINE)
        .await
        .expect_err("two critical failures");
    assert_eq!(ended.to_string(), "task first failed: a");
}

#[tokio::test]
async fn an_error_of_a_request_leaves_the_process_alone() {
    let (tasks, _clock) = tasks();
    let task = tasks.spawn("request", TaskKind::REQUEST, async {
        Err(io::Error::other("no"))
    });
    assert_eq!(task.join().await, Outcome::Failed("no".to_owned()));
    assert!(!tasks.cancelled().is_cancelled());
    assert_eq!(tasks.live(), Vec::<&str>::new());
}

#[tokio::test]
async fn shutdown_waits_for_draining_tasks_only() {
    let (tasks, _clock) = tasks();
    let drained = Arc::new(AtomicBool::new(false));
    let (token, flag) = (tasks.cancelled(), drained.clone());
    tasks.spawn("server", TaskKind::SERVICE, async move {
        token.cancelled().await;
        tokio::task::yield_now().await;
        flag.store(true, Ordering::SeqCst);
    });
    tasks.spawn("watcher", TaskKind::WATCHER, std::future::pending::<()>());
    tasks.cancelled().cancel();
    assert_eq!(tasks.finish(DEADLINE).await, Ok(()));
    assert!(drained.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_task_that_ignores_shutdown_is_named() {
    let (tasks, clock) = tasks();
    tasks.spawn("deaf", TaskKind::SERVICE, std::future::pending::<()>());
    tasks.cancelled().cancel();
    let waiting = tasks.finish(DEADLINE);
    let driver = async {
        clock.wait_for_sleepers(1).await;
        clock.advance(DEADLINE);
    };
    let (ended, ()) = tokio::join!(waiting, driver);
    assert_eq!(
        ended,
        Err(Unclean::Stuck(Stuck {
            tasks: vec!["deaf"],
            after: DEADLINE
        }))
    );
}

#[tokio::test]
async fn a_dropped_job_drops_its_work_and_a_kept_one_gives_its_value() {
    struct Tell(Option<oneshot::Sender<()>>);
    impl Drop for Tell {
        fn drop(&mut self) {
            let _ = self.0.take().map(|tell| tell.send(()));
        }
    }
    let (tasks, _clock) = tasks();
    assert_eq!(tasks.job("sum", async { 3 + 4 }).value().await, Ok(7));

    let (tell, dropped) = oneshot::channel();
    let guard = Tell(Some(tell));
    let job = tasks.job("forever", async move {
        let _guard = guard;
        std::future::pending::<()>().await;
    });
    drop(job);
    dropped.await.expect("the guard was dropped with the work");
}

#[tokio::test]
async fn a_panic_in_a_job_or_in_blocking_work_is_lost_with_its_message() {
    let (tasks, _clock) = tasks();
    let lost = tasks.job("sum", async { panic!("overflow") }).value().await;
    let outcome = Outcome::Panicked("overflow".to_owned());
    assert_eq!(
        lost,
        Err::<(), _>(Lost {
            task: "sum",
            outcome: outcome.clone()
        })
    );

    assert_eq!(tasks.blocking("disk", || 5).await, Ok(5));
    let lost = tasks.blocking("disk", || panic!("overflow")).await;
    assert_eq!(
        lost,
        Err::<(), _>(Lost {
            task: "disk",
            outcome
        })
    );
    assert!(!tasks.cancelled().is_cancelled());
}

#[tokio::test]
async fn a_critical_thread_ends_the_process_like_a_task() {
    let (tasks, _clock) = tasks();
    let work = || Err(io::Error::other("fsync failed"));
    let handle = tasks
        .thread("log", TaskKind::SERVICE, work)
        .expect("a thread");
    assert_eq!(
        handle.join().await,
        Outcome::Failed("fsync failed".to_owned())
    );
    let ended = tasks.finish(DEADLINE).await.expect_err("the thread failed");
    assert_eq!(ended.to_string(), "task log failed: fsync failed");
}
