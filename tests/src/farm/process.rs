//! The processes of a farm: their lives and logs, and what is done to them and their disks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use oast_daemon::isolate::{FarmEvent, FarmEvents};

use super::{FAULTS, Farm, KILL, START};
use crate::dice::Dice;
use crate::faults::{Disks, Fault};
use crate::power::{Forgetful, Loss};
use crate::wait::{seen, until};

/// Lines of each process's log in a dump.
const DUMP_LINES: usize = 40;

/// What is known of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// While it lives; in the numbers of the farm's own PID namespace.
    pub pid: Option<i32>,
    /// How often it was started.
    pub started: u32,
    /// How it ended last.
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

pub(super) type Lives = Arc<Mutex<BTreeMap<String, Life>>>;

pub(super) async fn listen(mut events: FarmEvents, lives: Lives) {
    while let Ok(Some(event)) = events.next().await {
        let mut lives = lives.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            FarmEvent::Started { name, pid } => {
                let life = lives.entry(name).or_default();
                life.pid = Some(pid);
                life.started += 1;
            }
            FarmEvent::Ended {
                name, code, signal, ..
            } => {
                let life = lives.entry(name).or_default();
                life.pid = None;
                (life.code, life.signal) = (code, signal);
            }
            FarmEvent::NotStarted { name, fault } => println!("{name} was not started: {fault}"),
            FarmEvent::Failed(fault) => println!("the farm could not be made: {fault}"),
            FarmEvent::Ready { .. } => {}
        }
    }
}

impl Farm {
    /// A process's log.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_path(name)).unwrap_or_default()
    }

    pub(super) fn log_path(&self, name: &str) -> PathBuf {
        self.folder().join("logs").join(format!("{name}.log"))
    }

    /// What is known of a process.
    #[must_use]
    pub fn life(&self, name: &str) -> Life {
        let lives = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        lives.get(name).copied().unwrap_or_default()
    }

    /// Starts a process that does not run.
    ///
    /// # Errors
    /// The init is gone.
    pub async fn begin(&self, name: &str) -> Result<()> {
        let before = self.life(name).started;
        self.init.spawn(self.child(name)?)?;
        let what = format!("the start of {name}");
        let started = until(&what, START, async || {
            let life = self.life(name);
            Ok(seen(
                (life.started > before).then_some(()),
                format!("{life:?}"),
            ))
        });
        started.await
    }

    /// Sends a signal to a process that lives and waits for nothing.
    ///
    /// # Errors
    /// It does not live, or the init is gone.
    pub fn signal(&self, name: &str, signal: i32) -> Result<()> {
        ensure!(self.life(name).pid.is_some(), "{name} does not run");
        self.init.kill(name, signal)?;
        Ok(())
    }

    /// Kills a process and waits until it is dead.
    ///
    /// # Errors
    /// It did not die, or the init is gone.
    pub async fn kill(&self, name: &str) -> Result<()> {
        self.end(name, KILL).await
    }

    /// Sends a signal that ends a process and waits until it is dead.
    ///
    /// # Errors
    /// It did not die, or the init is gone.
    pub async fn end(&self, name: &str, signal: i32) -> Result<()> {
        ensure!(self.life(name).pid.is_some(), "{name} does not run");
        self.init.kill(name, signal)?;
        let what = format!("the end of {name}");
        let dead = until(&what, START, async || {
            let life = self.life(name);
            Ok(seen(life.pid.is_none().then_some(()), format!("{life:?}")))
        });
        let dead = dead.await;
        self.explain(dead)
    }

    /// Makes the disk of a member fail from now on, with this error number, or not any more.
    ///
    /// # Errors
    /// The farm was not made for that.
    pub fn fault(&self, name: &str, fault: Option<(Fault, i32)>) -> Result<()> {
        self.fault_below(name, &self.folder().join(name), fault)
    }

    /// The same for a part of the member's disk.
    ///
    /// # Errors
    /// The farm was not made for that.
    pub fn fault_below(
        &self,
        name: &str,
        folder: &Path,
        fault: Option<(Fault, i32)>,
    ) -> Result<()> {
        ensure!(
            self.plan.disks == Disks::Faulty,
            "this farm's disks are healthy"
        );
        let control = self.folder().join(FAULTS).join(name);
        match fault {
            // In one step: the member reads the file whenever it uses its disk.
            Some((fault, number)) => {
                let order = fault.order(number, folder);
                let draft = control.with_extension("draft");
                fs::write(&draft, order)?;
                fs::rename(draft, control)?;
            }
            None => fs::remove_file(control)?,
        }
        Ok(())
    }

    /// Makes the data of a dead member what its disk shows after a power loss.
    ///
    /// # Errors
    /// It lives, or the farm was not made for that.
    pub fn lose_power(&self, name: &str, dice: &mut Dice) -> Result<Loss> {
        ensure!(
            self.plan.disks == Disks::Forgetful,
            "this farm's disks forget nothing"
        );
        ensure!(self.life(name).pid.is_none(), "{name} runs");
        let kept = self.folder().join(FAULTS).join(name);
        Forgetful::new(&self.folder().join(name), &kept)?.lose_power(dice)
    }

    /// Waits until a process has ended by itself.
    ///
    /// # Errors
    /// It still runs.
    pub async fn ended(&self, name: &str) -> Result<Life> {
        let what = format!("the end of {name}");
        let ended = until(&what, START, async || {
            let life = self.life(name);
            let ended = life.started > 0 && life.pid.is_none();
            Ok(seen(ended.then_some(life), format!("{life:?}")))
        });
        let ended = ended.await;
        self.explain(ended)
    }

    /// Adds the ends of all logs to an error.
    ///
    /// # Errors
    /// The one that it was given.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let mut text = format!("{error:#}");
            for name in self.names() {
                let log = self.log(&name);
                let lines: Vec<&str> = log.lines().collect();
                let end = &lines[lines.len().saturating_sub(DUMP_LINES)..];
                let _ = write!(
                    text,
                    "\n--- {name}: {:?}\n{}",
                    self.life(&name),
                    end.join("\n")
                );
            }
            anyhow::anyhow!(text)
        })
    }

    /// A process that was started runs no more.
    pub(super) fn somebody_ended(&self) -> bool {
        let lives = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        lives.values().any(|life| life.pid.is_none())
    }
}
