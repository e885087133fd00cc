//! Everybody who asks the farm for something: people, scripts, hosted repositories.
//!
//! A client does one thing after the other. It asks a member, any of them; without an answer it
//! asks another one soon, with the same request id. What was answered goes to the checkers.

mod odd;

use oast_model::ids::RunId;
use oast_model::ledger::{Answer, Command, Rejected, Request, RolloutPhase, SubmitRun};
use oast_model::names::TeamName;
use oast_model::principal::{Principal, PrincipalKind, Role};
use oast_model::priority::Priority;
use oast_model::resource::{
    ChannelRef, Drain, Fleet, Health, HealthHttp, Provider, Quota, Repository, Resource, ScaleSet,
    Serve, Team,
};
use oast_model::task::Origin;
use oast_model::units::TimeSpan;

use crate::checks::registers::{Outcome, Write};
use crate::event::Event;
use crate::network::{Fate, Place};
use crate::queue::{MS, Micros, SECOND};
use crate::recipe::{INPUT, Recipe, name};
use crate::rng::Rng;
use crate::world::World;

/// Teams that have runs and a fleet each.
pub const TEAMS: u64 = 2;
/// Teams that only serve as registers.
pub const REGISTERS: u64 = 3;
/// Time after which a client gives up, while faults happen.
const GIVE_UP: Micros = 15 * SECOND;
/// Slots of the first team while the farm heals: more than the workers have.
const GENEROUS: u32 = 16;

/// A question on its way.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Who asks.
    pub client: usize,
    /// Which attempt of it.
    pub call: u64,
    /// What.
    pub question: Question,
    /// The member that carries it to the leader, if one does.
    pub via: Option<u64>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// Something for the log.
    Write(Box<Request>),
    /// A register, as new as everything that was acknowledged.
    Read(TeamName),
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// It was applied, and the ledger said this.
    Applied(Result<Answer, Rejected>),
    /// Nothing happened; ask somebody else.
    NotTaken,
    /// It may have been applied.
    Unknown,
    /// Revision and value of a register.
    Read(Option<(u64, String)>),
}

/// What a checker wants to know about it.
#[derive(Clone, Debug)]
enum Purpose {
    Setup,
    Submit { label: String },
    Write { register: u64, op: usize },
    Read { register: u64, op: usize },
    Other,
}

#[derive(Debug)]
struct Task {
    question: Question,
    purpose: Purpose,
    call: u64,
    give_up: Micros,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    rng: Rng,
    task: Option<Task>,
    /// What is to be set up first.
    setup: Vec<Command>,
    count: u64,
    /// Newest revision of each register that it has heard of.
    known: Vec<u64>,
    /// Runs that were acknowledged to it.
    runs: Vec<RunId>,
    wake: u64,
}

impl Client {
    /// A client; the first one sets the farm up.
    pub fn new(rng: Rng, first: bool) -> Client {
        Client {
            rng,
            task: None,
            setup: match first {
                true => setup(),
                false => Vec::new(),
            },
            count: 0,
            known: vec![1; REGISTERS as usize],
            runs: Vec::new(),
            wake: 0,
        }
    }

    /// Whether it waits for nothing.
    pub fn idle(&self) -> bool {
        self.task.is_none()
    }
}

fn init() -> Command {
    Command::InitFarm {
        name: "sim".to_owned(),
        admin: "admin-hash".to_owned(),
        worker: "worker-hash".to_owned(),
    }
}

/// Commands that make the farm, last one first.
fn setup() -> Vec<Command> {
    let apply = |resource: Resource| Command::ApplyResource {
        resource: Box::new(resource),
        expected: None,
    };
    let mut commands = vec![init()];
    for number in 0..REGISTERS {
        commands.push(apply(register(number, "begun")));
    }
    for number in 0..TEAMS {
        commands.push(apply(match number {
            0 => limited(2, 1),
            _ => Resource::Team(team(&format!("team-{number}"), None)),
        }));
        commands.push(apply(fleet(number, 2 + number as u32, 1_000)));
        commands.push(apply(repository(number, "main")));
    }
    commands.reverse();
    commands
}

fn team(text: &str, description: Option<&str>) -> Team {
    Team {
        description: description.map(str::to_owned),
        ..Team::new(name(text))
    }
}

/// The first team, which may not have all workers to itself.
fn limited(slots: u32, borrow: u32) -> Resource {
    Resource::Team(Team {
        quota: Some(Quota { slots, borrow }),
        ..team("team-0", None)
    })
}

fn register(number: u64, value: &str) -> Resource {
    Resource::Team(team(&format!("register-{number}"), Some(value)))
}

fn fleet(number: u64, count: u32, drain_ms: u64) -> Resource {
    Resource::Fleet(Fleet {
        name: name(&format!("fleet-{number}")),
        team: name(&format!("team-{number}")),
        provider: Provider::Local,
        sets: vec![ScaleSet {
            name: name("a"),
            region: None,
            count,
        }],
        listen: ([127, 0, 0, 1], 8000 + number as u16).into(),
        serve: Serve { port: 80 },
        health: Health {
            http: HealthHttp {
                port: 80,
                path: "/".to_owned(),
                status: 200,
            },
            interval: TimeSpan::from_millis(100),
            timeout: TimeSpan::from_secs(1),
            healthy_after: 1,
            unhealthy_after: 2,
        },
        drain: Drain {
            timeout: TimeSpan::from_millis(drain_ms),
        },
        channel: ChannelRef {
            image: name(&format!("image-{number}")),
            channel: name("candidate"),
        },
    })
}

fn repository(number: u64, branch: &str) -> Resource {
    Resource::Repository(Repository {
        name: name(&format!("repository-{number}")),
        team: name(&format!("team-{number}")),
        url: "http://127.0.0.1/git/web.git".to_owned(),
        branches: vec![branch.to_owned()],
        path: "oast.yaml".to_owned(),
        poll: None,
        webhook_secret: None,
        credentials: None,
    })
}

fn user(client: usize, role: Role) -> Principal {
    Principal {
        name: format!("client-{client}"),
        kind: PrincipalKind::User,
        role,
        team: None,
    }
}

impl World {
    /// Lets a client go on at a time.
    pub fn wake_client_at(&mut self, client: usize, at: Micros) {
        self.clients[client].wake += 1;
        let wake = self.clients[client].wake;
        self.queue.put(at, Event::Client { client, wake });
    }

    /// A client goes on: asks again, or asks for something new.
    pub fn on_client(&mut self, client: usize, wake: u64) {
        if self.clients[client].wake != wake {
            return;
        }
        let now = self.now;
        if let Some(task) = &self.clients[client].task {
            let safe = match &task.question {
                Question::Write(request) => request.request_id.is_some(),
                Question::Read(_) => true,
            };
            if safe && now < task.give_up {
                self.coverage.fault("request repeated");
                self.ask(client);
            } else {
                self.settle(client, None);
            }
            return;
        }
        if let Some(task) = self.think(client) {
            self.clients[client].task = Some(task);
            self.ask(client);
        } else {
            self.wake_client_at(client, now + 300 * MS);
        }
    }

    fn ask(&mut self, client: usize) {
        let now = self.now;
        let call = self.number();
        let members = self.members.len() as u64;
        let c = &mut self.clients[client];
        let member = c.rng.range(1, members);
        let patience = c.rng.range(150, 900) * MS;
        let Some(task) = &mut c.task else { return };
        task.call = call;
        let ask = Ask {
            client,
            call,
            question: task.question.clone(),
            via: None,
        };
        self.wake_client_at(client, now + patience);
        self.carry(Place::Client, member, ask);
    }

    fn carry(&mut self, from: Place, member: u64, ask: Ask) {
        let now = self.now;
        let (first, second) = match self.net.fate(from, Place::Member(member)) {
            Fate::Lost => return,
            Fate::Once(first) => (first, None),
            // Only what has an id may come twice: a call over a connection does not.
            Fate::Twice(first, second) => match &ask.question {
                Question::Write(request) if request.request_id.is_none() => (first, None),
                _ => (first, Some(second)),
            },
        };
        for delay in std::iter::once(first).chain(second) {
            let ask = Box::new(ask.clone());
            self.queue.put(now + delay, Event::Ask { member, ask });
        }
    }

    /// A member carries a question to the leader.
    pub fn forward(&mut self, from: u64, leader: u64, ask: Ask) {
        self.carry(Place::Member(from), leader, ask);
    }

    /// A member answers; through another one if that carried the question.
    pub fn reply(&mut self, from: u64, ask: &Ask, reply: Reply) {
        let (to, via) = match ask.via {
            Some(via) => (Place::Member(via), true),
            None => (Place::Client, false),
        };
        let mut delay = match self.net.fate(Place::Member(from), to) {
            Fate::Lost => return,
            Fate::Once(delay) | Fate::Twice(delay, _) => delay,
        };
        if via {
            delay += match self.net.fate(to, Place::Client) {
                Fate::Lost => return,
                Fate::Once(delay) | Fate::Twice(delay, _) => delay,
            };
        }
        let event = Event::Reply {
            client: ask.client,
            call: ask.call,
            reply: Box::new(reply),
        };
        self.queue.put(self.now + delay, event);
    }

    /// An answer has reached a client. One to an earlier attempt is as good.
    pub fn on_reply(&mut self, client: usize, call: u64, reply: Reply) {
        let now = self.now;
        let Some(task) = &self.clients[client].task else {
            return;
        };
        let current = task.call == call;
        let safe = !matches!(&task.question, Question::Write(r) if r.request_id.is_none());
        match reply {
            Reply::NotTaken if current => {
                let pause = self.clients[client].rng.range(30, 120) * MS;
                match safe {
                    true => self.wake_client_at(client, now + pause),
                    // Certainly not applied: nothing happened at all.
                    false => self.settle(client, None),
                }
            }
            Reply::Unknown if current => self.wake_client_at(client, now),
            Reply::NotTaken | Reply::Unknown => {}
            Reply::Applied(_) | Reply::Read(_) if current => self.settle(client, Some(reply)),
            // An old answer belongs to this task only if the attempts have not changed tasks.
            Reply::Applied(_) | Reply::Read(_) => {}
        }
    }

    fn settle(&mut self, client: usize, reply: Option<Reply>) {
        let now = self.now;
        let Some(task) = self.clients[client].task.take() else {
            return;
        };
        if reply.is_none() {
            self.coverage.fault("request outcome unknown");
        }
        match task.purpose {
            Purpose::Setup => {
                if reply.is_none() {
                    // The rest needs it: once more, with the same id.
                    self.clients[client].task = Some(Task {
                        give_up: now + GIVE_UP,
                        ..task
                    });
                    self.ask(client);
                    return;
                }
                if let Some(Reply::Applied(Err(rejected))) = reply {
                    self.violate(format!("the farm was not set up: {rejected}"));
                }
                self.clients[client].setup.pop();
                self.ready = self.clients[client].setup.is_empty();
            }
            Purpose::Submit { label } => {
                if let Some(Reply::Applied(Ok(Answer::Run(run)))) = reply {
                    let wrong = self.checks.submissions.acknowledged(&label, run);
                    self.judge(wrong);
                    self.clients[client].runs.push(run);
                }
            }
            Purpose::Write { register, op } => {
                let outcome = match reply {
                    Some(Reply::Applied(Ok(Answer::Revision(revision)))) => {
                        self.clients[client].known[register as usize] = revision;
                        Outcome::Written(revision)
                    }
                    Some(Reply::Applied(Err(Rejected::Moved { actual, .. }))) => {
                        self.clients[client].known[register as usize] = actual;
                        Outcome::Moved(actual)
                    }
                    _ => Outcome::Unknown,
                };
                self.checks.registers.ended(register, op, now, outcome);
            }
            Purpose::Read { register, op } => {
                let outcome = match reply {
                    Some(Reply::Read(Some((revision, value)))) => {
                        self.clients[client].known[register as usize] = revision;
                        Outcome::Seen(revision, value)
                    }
                    _ => Outcome::Unknown,
                };
                self.checks.registers.ended(register, op, now, outcome);
            }
            Purpose::Other => {}
        }
        let pause = self.clients[client].rng.skewed(20 * MS, 1_200 * MS);
        self.wake_client_at(client, now + pause);
    }

    /// What the client does next, if anything.
    fn think(&mut self, client: usize) -> Option<Task> {
        let now = self.now;
        if let Some(command) = self.clients[client].setup.last().cloned() {
            let left = self.clients[client].setup.len();
            let id = Some(format!("setup-{left}"));
            let mut task = self.task(client, id, Role::Admin, command, Purpose::Setup);
            if let Question::Write(request) = &mut task.question {
                // Only the farm itself may begin a farm.
                request.principal = Principal::farm();
            }
            return Some(task);
        }
        if !self.ready {
            return None;
        }
        if self.healing {
            return self.help(client);
        }
        let dice = self.clients[client].rng.below(100);
        self.clients[client].count += 1;
        let id = format!("{client}-{}", self.clients[client].count);
        match dice {
            0..40 => Some(self.submit(client, &id)),
            40..56 => Some(self.write_register(client, &id)),
            56..70 => {
                let register = self.clients[client].rng.below(REGISTERS);
                let op = self.checks.registers.read(register, now);
                Some(Task {
                    question: Question::Read(name(&format!("register-{register}"))),
                    purpose: Purpose::Read { register, op },
                    call: 0,
                    give_up: now + GIVE_UP,
                })
            }
            70..78 => {
                let command = self.push(client);
                let mut task = self.task(client, None, Role::Admin, command, Purpose::Other);
                if let Question::Write(request) = &mut task.question {
                    request.principal = Principal::farm();
                }
                Some(task)
            }
            _ => {
                let (role, command) = self.odd_job(client);
                let id = self.clients[client].rng.chance(800).then_some(id);
                // What only the farm itself proposes; people are refused.
                let ours = matches!(
                    command,
                    Command::InitFarm { .. }
                        | Command::RaiseVersion { .. }
                        | Command::PruneHistory { .. }
                        | Command::JoinWorker(_)
                );
                let mut task = self.task(client, id, role, command, Purpose::Other);
                if let Question::Write(request) = &mut task.question
                    && ours
                    && role == Role::Admin
                {
                    request.principal = Principal::farm();
                }
                Some(task)
            }
        }
    }

    fn task(
        &mut self,
        client: usize,
        id: Option<String>,
        role: Role,
        command: Command,
        purpose: Purpose,
    ) -> Task {
        let request = Request {
            principal: user(client, role),
            request_id: id,
            command,
        };
        Task {
            question: Question::Write(Box::new(request)),
            purpose,
            call: 0,
            give_up: self.now + GIVE_UP,
        }
    }

    fn submit(&mut self, client: usize, id: &str) -> Task {
        let label = format!("run {id}");
        let rng = &mut self.clients[client].rng;
        let recipe = Recipe::random(rng, self.plan.rollouts);
        let team = match rng.chance(20) {
            true => "nobody".to_owned(),
            false => format!("team-{}", rng.below(TEAMS)),
        };
        let role = match rng.chance(20) {
            true => Role::Viewer,
            false => Role::Operator,
        };
        let priority = rng.chance(400).then(|| *rng.pick(&Priority::ALL));
        let command = Command::SubmitRun(SubmitRun {
            team: name(&team),
            repository: None,
            origin: Origin::Upload {
                tree: oast_model::digest::Digest::of(id.as_bytes()),
                commit: None,
                dirty: false,
            },
            path: "oast.yaml".to_owned(),
            cause: label.clone(),
            priority,
            inputs: [(INPUT.to_owned(), recipe.text())].into(),
        });
        let id = Some(id.to_owned());
        self.task(client, id, role, command, Purpose::Submit { label })
    }

    fn write_register(&mut self, client: usize, id: &str) -> Task {
        let now = self.now;
        let register = self.clients[client].rng.below(REGISTERS);
        let expected = self.clients[client].known[register as usize];
        let value = format!("value {id}");
        let op = self.checks.registers.write(
            register,
            now,
            Write {
                expected,
                value: value.clone(),
            },
        );
        let command = Command::ApplyResource {
            resource: Box::new(self::register(register, &value)),
            expected: Some(expected),
        };
        let purpose = Purpose::Write { register, op };
        self.task(client, Some(id.to_owned()), Role::Admin, command, purpose)
    }

    /// A branch shows a commit, new or known.
    fn push(&mut self, client: usize) -> Command {
        let rng = &mut self.clients[client].rng;
        let recipe = Recipe::random(rng, self.plan.rollouts);
        let number = match rng.chance(80) {
            true => 9,
            false => rng.below(TEAMS),
        };
        let commit = match rng.chance(300) {
            true => "00gnnnnnn".to_owned(),
            false => format!("{}-{}", recipe.text(), rng.below(1 << 20)),
        };
        Command::ObserveRefs {
            repository: name(&format!("repository-{number}")),
            refs: [("main".to_owned(), commit)].into(),
        }
    }

    /// While the farm heals a person decides what waits for one.
    fn help(&mut self, client: usize) -> Option<Task> {
        if client != 0 {
            return None;
        }
        let ledger = self.oracle.ledger();
        // With what it was left the team's work might take longer than we wait.
        let team = ledger.teams().get("team-0");
        let quota = team.and_then(|team| team.spec.quota);
        if quota.is_some_and(|quota| quota.slots < GENEROUS) {
            self.clients[client].count += 1;
            let id = Some(format!("help {}", self.clients[client].count));
            let command = Command::ApplyResource {
                resource: Box::new(limited(GENEROUS, 0)),
                expected: None,
            };
            return Some(self.task(client, id, Role::Admin, command, Purpose::Other));
        }
        let paused = ledger
            .rollouts()
            .iter()
            .find(|(_, rollout)| rollout.phase == RolloutPhase::Paused)
            .map(|(id, _)| *id)?;
        let command = Command::AbortRollout {
            rollout: paused,
            reason: "a person decided".to_owned(),
        };
        let id = Some(format!("help {paused}"));
        Some(self.task(client, id, Role::Admin, command, Purpose::Other))
    }
}
