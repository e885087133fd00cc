//! Following a run, its log and its rollouts at once, through members that come and go.
//!
//! Each stream is taken up again on another member where it broke off: a run by its sequence
//! number, a log by its positions. Everything arrives as [`Event`]s in one place, [`Follower`],
//! which also minds Ctrl-C, `--timeout` and, where no terminal is, a sign of life now and then.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use oast_daemon::clock::{Clock, Sleep, SystemClock};
use oast_proto::v1;
use tokio::sync::mpsc;
use tonic::{Response, Status, Streaming};

use crate::client::{Client, Member};

/// Pause before a broken stream is taken up again.
const PAUSE: Duration = Duration::from_millis(200);
/// How often in a row a stream may break without having brought anything.
const BREAKS_MAX: u32 = 20;
/// Events that wait to be shown.
const QUEUE: usize = 64;
/// How long the last lines of a log may take after the end of what was followed.
const LAST_LINES: Duration = Duration::from_secs(3);
/// Silence after which a follower without a terminal gets a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// What a follower is told.
#[derive(Debug)]
pub enum Event {
    /// The run as it is now.
    Run(v1::Run),
    /// A rollout as it is now.
    Rollout(v1::Rollout),
    /// A fleet as it is now.
    Fleet(v1::Fleet),
    /// Lines of a log.
    Lines(v1::LogLines),
    /// A stream broke off and is taken up again.
    Resumed,
    /// Nothing was heard for a while.
    Silence,
}

/// Why following ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// What was followed came to its end.
    Itself,
    /// Ctrl-C.
    Interrupted,
    /// `--timeout` ran out.
    TimedOut,
}

type Work<'a> = Pin<Box<dyn Future<Output = Result<Kind, Status>> + 'a>>;

/// Which stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    State,
    Logs,
}

/// Several streams of one farm.
pub struct Follower<'a> {
    client: &'a Client,
    work: FuturesUnordered<Work<'a>>,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    rollouts: BTreeSet<String>,
    states: usize,
    logs: usize,
}

impl std::fmt::Debug for Follower<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("states", &self.states)
            .field("logs", &self.logs)
            .finish_non_exhaustive()
    }
}

impl<'a> Follower<'a> {
    /// Follows nothing yet.
    pub fn new(client: &'a Client) -> Follower<'a> {
        let (sender, events) = mpsc::channel(QUEUE);
        let rollouts = BTreeSet::new();
        Follower {
            client,
            work: FuturesUnordered::new(),
            sender,
            events,
            rollouts,
            states: 0,
            logs: 0,
        }
    }

    /// Follows a run until it ends.
    pub fn run(&mut self, id: &str) {
        let (client, sender, id) = (self.client, self.sender.clone(), id.to_owned());
        self.states += 1;
        self.work.push(Box::pin(async move {
            let seq = Cell::new(0);
            let open = |member: Member| {
                let request = v1::WatchRunRequest {
                    run: id.clone(),
                    after_seq: seq.get(),
                };
                async move { member.runs().watch_run(request).await }
            };
            pump(client, &sender, open, |run: v1::Run| {
                seq.set(run.seq);
                let ended = run.ended;
                (Event::Run(run), ended)
            })
            .await?;
            Ok(Kind::State)
        }));
    }

    /// Follows a rollout until it ends. A second call for the same one does nothing.
    pub fn rollout(&mut self, id: &str) {
        if !self.rollouts.insert(id.to_owned()) {
            return;
        }
        let (client, sender, id) = (self.client, self.sender.clone(), id.to_owned());
        self.states += 1;
        self.work.push(Box::pin(async move {
            let seq = Cell::new(0);
            let open = |member: Member| {
                let request = v1::WatchRolloutRequest {
                    rollout: id.clone(),
                    after_seq: seq.get(),
                };
                async move { member.fleets().watch_rollout(request).await }
            };
            pump(client, &sender, open, |rollout: v1::Rollout| {
                seq.set(rollout.seq);
                let ended = rollout.ended;
                (Event::Rollout(rollout), ended)
            })
            .await?;
            Ok(Kind::State)
        }));
    }

    /// Follows a fleet, which has no end.
    pub fn fleet(&mut self, name: &str) {
        let (client, sender, name) = (self.client, self.sender.clone(), name.to_owned());
        self.states += 1;
        self.work.push(Box::pin(async move {
            let open = |member: Member| {
                let request = v1::GetFleetRequest {
                    fleet: name.clone(),
                };
                async move { member.fleets().watch_fleet(request).await }
            };
            pump(client, &sender, open, |fleet: v1::Fleet| {
                (Event::Fleet(fleet), false)
            })
            .await?;
            Ok(Kind::State)
        }));
    }

    /// Follows the log of a run from these positions on.
    pub fn logs(&mut self, run: &str, follow: bool, after: Vec<v1::LogPosition>) {
        let (client, sender, run) = (self.client, self.sender.clone(), run.to_owned());
        self.logs += 1;
        self.work.push(Box::pin(async move {
            let read: BTreeMap<_, _> = after
                .into_iter()
                .map(|p| ((p.task, p.token), p.offset))
                .collect();
            let read = RefCell::new(read);
            let open = |member: Member| {
                let read = read.borrow();
                let after = read.iter().map(|((task, token), offset)| v1::LogPosition {
                    task: task.clone(),
                    token: *token,
                    offset: *offset,
                });
                let request = v1::TailLogsRequest {
                    run: run.clone(),
                    task: String::new(),
                    follow,
                    after: after.collect(),
                };
                async move { member.runs().tail_logs(request).await }
            };
            pump_to_end(client, &sender, open, |lines: v1::LogLines| {
                for position in &lines.positions {
                    read.borrow_mut()
                        .insert((position.task.clone(), position.token), position.offset);
                }
                (Event::Lines(lines), false)
            })
            .await?;
            Ok(Kind::Logs)
        }));
    }

    /// Hands every event to `show` until the end, Ctrl-C or the time limit. `show` may ask for
    /// more to be followed.
    pub async fn until_end(
        mut self,
        limit: Option<Duration>,
        mut show: impl FnMut(Event, &mut Follower<'a>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Ended> {
        let clock = SystemClock;
        let mut late = limit.map(|limit| clock.sleep(limit));
        let mut last_lines: Option<Sleep> = None;
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let states_wanted = self.states > 0;
        loop {
            let states_over = states_wanted && self.states == 0;
            if self.logs == 0 && (states_over || !states_wanted) {
                while let Ok(event) = self.events.try_recv() {
                    show(event, &mut self)?;
                }
                // A last event may have named another rollout.
                if self.states == 0 {
                    return Ok(Ended::Itself);
                }
            }
            if states_over && last_lines.is_none() {
                last_lines = Some(clock.sleep(LAST_LINES));
            }
            tokio::select! {
                biased;
                _ = &mut interrupt => return Ok(Ended::Interrupted),
                Some(event) = self.events.recv() => show(event, &mut self)?,
                Some(done) = self.work.next(), if !self.work.is_empty() => match done? {
                    Kind::State => self.states -= 1,
                    Kind::Logs => self.logs -= 1,
                },
                () = sleep(&mut late), if late.is_some() => return Ok(Ended::TimedOut),
                () = sleep(&mut last_lines), if last_lines.is_some() => return Ok(Ended::Itself),
                () = clock.sleep(HEARTBEAT) => show(Event::Silence, &mut self)?,
            }
        }
    }
}

async fn sleep(sleep: &mut Option<Sleep>) {
    match sleep {
        Some(sleep) => sleep.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Sends what a stream brings until a message says that it was the last one.
async fn pump<T, Open, Fut>(
    client: &Client,
    sender: &mpsc::Sender<Event>,
    open: Open,
    take: impl FnMut(T) -> (Event, bool),
) -> Result<(), Status>
where
    Open: Fn(Member) -> Fut,
    Fut: Future<Output = Result<Response<Streaming<T>>, Status>>,
{
    taken_up_again(client, sender, open, take, false).await
}

/// The same for a stream whose own end is the end.
async fn pump_to_end<T, Open, Fut>(
    client: &Client,
    sender: &mpsc::Sender<Event>,
    open: Open,
    take: impl FnMut(T) -> (Event, bool),
) -> Result<(), Status>
where
    Open: Fn(Member) -> Fut,
    Fut: Future<Output = Result<Response<Streaming<T>>, Status>>,
{
    taken_up_again(client, sender, open, take, true).await
}

async fn taken_up_again<T, Open, Fut>(
    client: &Client,
    sender: &mpsc::Sender<Event>,
    open: Open,
    mut take: impl FnMut(T) -> (Event, bool),
    end_is_end: bool,
) -> Result<(), Status>
where
    Open: Fn(Member) -> Fut,
    Fut: Future<Output = Result<Response<Streaming<T>>, Status>>,
{
    let mut breaks = 0;
    loop {
        let (mut stream, member) = client.open(&open).await?;
        let broken = loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    breaks = 0;
                    let (event, last) = take(message);
                    // Nobody listens any more: nothing is left to do.
                    if sender.send(event).await.is_err() || last {
                        return Ok(());
                    }
                }
                Ok(None) if end_is_end => return Ok(()),
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        breaks += 1;
        match broken {
            // What a member says itself stands; what the connection says may be over.
            Some(status) if !may_go_on(&status) || breaks >= BREAKS_MAX => return Err(status),
            _ => {}
        }
        client.turn_from(&member);
        SystemClock.sleep(PAUSE).await;
        if breaks == 1 && sender.send(Event::Resumed).await.is_err() {
            return Ok(());
        }
    }
}

fn may_go_on(status: &Status) -> bool {
    crate::client::may_be_tried_again(status) || oast_proto::fault::reason(status).is_none()
}
