//! A process that uses a store until the power fails, again and again over the same disk.
//!
//! It is this test binary, started again for the same test; a variable tells it that it is the
//! child. It says what is acknowledged, line by line, and first of all compares what it finds with
//! what it acknowledged in its earlier lives.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use oast_tests::dice::Dice;
use oast_tests::power::Forgetful;
use oast_tests::{faults, need};

const FOLDER: &str = "OAST_POWER_CHILD";
const ACKNOWLEDGED: &str = "OAST_POWER_ACKNOWLEDGED";
const SEED: &str = "OAST_POWER_SEED";
const LOSSES: &str = "OAST_POWER_LOSSES";
const SAYS: &str = "acknowledged ";
/// The power fails within this time after an acknowledgement, in milliseconds: most of what a store
/// writes between two syncs is on its way then.
const WITHIN_MS: u64 = 60;

/// How often the power fails: `usual`, or as the environment says.
pub fn losses(usual: u64) -> Result<u64> {
    let given = std::env::var(LOSSES).ok();
    let number = given.map(|text| text.parse().context(LOSSES));
    number.unwrap_or(Ok(usual))
}

/// Chance from the seed of the environment, or a new one.
pub fn dice() -> Dice {
    Dice::from_env(SEED)
}

/// The child's side.
pub struct Child {
    pub folder: PathBuf,
    /// What its earlier lives said last, 0 at first.
    pub acknowledged: u64,
    /// The same in all lives.
    pub seed: u64,
}

impl Child {
    /// Of this process, if it is one.
    pub fn here() -> Result<Option<Child>> {
        let Some(folder) = std::env::var_os(FOLDER) else {
            return Ok(None);
        };
        Ok(Some(Child {
            folder: folder.into(),
            acknowledged: std::env::var(ACKNOWLEDGED)?.parse()?,
            seed: std::env::var(SEED)?.parse()?,
        }))
    }

    /// Tells the parent.
    pub fn acknowledge(number: u64) -> Result<()> {
        writeln!(std::io::stdout(), "\n{SAYS}{number}")?;
        Ok(())
    }
}

/// The parent's side: lives until the power has failed that often, each of at most `most`
/// acknowledgements. A start that dies of what it finds is tried once more if it is `mortal`.
pub fn run(test: &str, losses: u64, most: u64, mortal: bool) -> Result<()> {
    if !need::have(need::program("cc"), "a C compiler", test) {
        return Ok(());
    }
    let mut dice = dice();
    let seed = dice.number();
    let folder = tempfile::Builder::new().prefix("oast-test-").tempdir()?;
    let library = faults::library(folder.path(), "power")?;
    let data = folder.path().join("data");
    let disk = Forgetful::new(&data, &folder.path().join("kept"))?;
    let (mut acknowledged, mut changed, mut nameless) = (0, 0, 0);
    let (mut life, mut deaths) = (1, 0);
    while life <= losses {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", test, "--nocapture"])
            .envs(disk.environment(&library))
            .env(FOLDER, &data)
            .env(ACKNOWLEDGED, u64::to_string(&acknowledged))
            .env(SEED, seed.to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("a piped output")?;
        let mut lines = BufReader::new(output).lines();
        let enough = dice.below(most);
        let mut heard = 0;
        let mut died = false;
        while heard <= enough {
            let Some(line) = lines.next().transpose()? else {
                let ended = child.wait()?;
                died = mortal && heard == 0 && deaths == 0;
                if died {
                    break;
                }
                bail!("life {life}, after {acknowledged}: the child ended by itself, {ended}");
            };
            if let Some(number) = line.strip_prefix(SAYS) {
                acknowledged = number.parse()?;
                heard += 1;
            }
        }
        deaths = u32::from(died);
        if died {
            continue;
        }
        life += 1;
        std::thread::sleep(Duration::from_millis(dice.below(WITHIN_MS)));
        child.kill()?;
        child.wait()?;
        // What was said before the kill took effect.
        for line in lines.map_while(Result::ok) {
            if let Some(number) = line.strip_prefix(SAYS) {
                acknowledged = number.parse()?;
            }
        }
        let loss = disk.lose_power(&mut dice)?;
        changed += loss.changed;
        nameless += loss.nameless;
    }
    println!(
        "{losses} power losses, {acknowledged} acknowledged; {changed} files were set back, {nameless} had no name any more: nothing lost"
    );
    ensure!(changed > 0, "the power losses took nothing");
    Ok(())
}
