//! Three real members with clients, whose machines lose power one by one and all at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oast_tests::dice::Dice;
use oast_tests::farm::{Farm, Plan};
use oast_tests::load::{Client, judge};
use oast_tests::need;

use crate::lives::{dice, losses};

const TEAM: &str = "apiVersion: oast/v1\nkind: Team\nname: crowd\nspec: {}\n";
/// Power losses unless asked for more.
const LOSSES: u64 = 12;
const MEMBERS: [&str; 3] = ["member-1", "member-2", "member-3"];

#[tokio::test(flavor = "multi_thread")]
async fn what_the_members_acknowledged_survives_power_losses() -> Result<()> {
    let test = "what_the_members_acknowledged_survives_power_losses";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    if !need::have(need::program("cc"), "a C compiler", test) {
        return Ok(());
    }
    let mut dice = dice();
    let losses = losses(LOSSES)?;
    let farm = Plan::new(&oast).forgetful_disks().start().await?;
    farm.apply(TEAM).await?;
    let tree = farm.api(1)?.upload(&[("oast.yaml", "name: [")]).await?;
    let client = |name: &str| Client {
        name: name.to_owned(),
        team: "crowd",
        tree: tree.clone(),
        marks: 0,
        pace: Duration::ZERO,
    };
    let (a, b, c) = (client("a"), client("b"), client("c"));
    let over = AtomicBool::new(false);
    let load = async {
        let (a, b, c) = tokio::join!(
            a.submit_until(&farm, &over),
            b.submit_until(&farm, &over),
            c.submit_until(&farm, &over),
        );
        anyhow::Ok([a?, b?, c?].concat())
    };
    let faults = async {
        let done = lose(&farm, &mut dice, losses).await;
        over.store(true, Ordering::Relaxed);
        done
    };
    let (load, lost) = tokio::join!(load, faults);
    let changed = farm.explain(lost)?;
    let acknowledged = farm.explain(load)?;
    farm.explain(judge(&farm, "crowd", &acknowledged).await)?;
    println!(
        "{losses} power losses, {} submissions; {changed} files were set back: nothing lost, nothing twice",
        acknowledged.len()
    );
    ensure!(changed > 0, "the power losses took nothing");
    farm.finish().await
}

async fn lose(farm: &Farm, dice: &mut Dice, losses: u64) -> Result<u32> {
    let mut changed = 0;
    for number in 1..=losses {
        // Something is on its way when the power fails.
        tokio::time::sleep(Duration::from_millis(200 + dice.below(600))).await;
        let names = match dice.below(3) {
            0 => MEMBERS.to_vec(),
            _ => vec![dice.one(&MEMBERS)],
        };
        for name in &names {
            farm.kill(name).await?;
        }
        for name in &names {
            let loss = farm.lose_power(name, dice)?;
            println!("loss {number}: {name}: {loss:?}");
            changed += loss.changed;
            farm.begin(name).await?;
        }
        for name in &names {
            let lives = farm.life(name).pid.is_some();
            ensure!(lives, "{name} does not start after a power loss");
        }
        let answers = farm.everybody_answers().await;
        answers.with_context(|| format!("after power loss {number} of {names:?}"))?;
    }
    Ok(changed)
}
