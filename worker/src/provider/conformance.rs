//! What every provider must do, as a function over `impl Provider`.
//!
//! Run against the local cloud in its tests, and against any other provider in theirs. The suite
//! works on a set of its own name and removes it at the end. It waits for levels, never for
//! durations, within the patience that the caller gives for one step of that cloud.

use std::time::Duration;

use futures_util::StreamExt;

use oast_daemon::clock::{Clock, timeout};

use super::{
    ErrorKind, FleetObservation, ImageRef, InstanceObservation, Phase, Provider, ProviderError,
    SetSpec, Target,
};

/// What the suite needs from the caller.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A set that does not exist, of a fleet without others. Its name prefixes operation ids.
    pub spec: SetSpec,
    /// Two images that start and become healthy.
    pub images: [ImageRef; 2],
    /// How long one long operation may take.
    pub patience: Duration,
}

/// Which rule a provider broke.
#[derive(Debug, thiserror::Error)]
#[error("rule broken: {rule}; {found}")]
pub struct Broken {
    /// The rule.
    pub rule: &'static str,
    /// What was seen instead.
    pub found: String,
}

type Verdict = Result<(), Broken>;

/// Runs the suite.
///
/// # Errors
/// The first rule that does not hold.
pub async fn run(provider: &dyn Provider, setup: &Setup, clock: &dyn Clock) -> Verdict {
    let suite = Suite {
        clock,
        provider,
        setup,
    };
    suite.set_is_ensured_and_repeats_change_nothing().await?;
    suite.instance_is_created_once().await?;
    suite.old_etag_is_refused_and_the_new_one_told().await?;
    suite
        .drain_takes_out_of_rotation_and_undrain_puts_back()
        .await?;
    suite.reimage_changes_the_image_and_counts_once().await?;
    suite.restart_is_no_replacement().await?;
    suite.what_is_absent_is_said_to_be().await?;
    suite.deletion_is_final_and_repeatable().await
}

struct Suite<'a> {
    clock: &'a dyn Clock,
    provider: &'a dyn Provider,
    setup: &'a Setup,
}

impl Suite<'_> {
    fn target(&self, operation: &str) -> Target {
        Target {
            operation_id: format!("{}-{operation}", self.setup.spec.name),
            caller_token: "conformance".to_owned(),
            set: self.setup.spec.name.clone(),
            id: "0".to_owned(),
            if_match: None,
        }
    }

    fn ours<'f>(&self, fleet: &'f FleetObservation) -> Option<&'f InstanceObservation> {
        fleet.instance(&self.setup.spec.name, "0")
    }

    async fn observe(&self, rule: &'static str) -> Result<Option<InstanceObservation>, Broken> {
        let fleet = ok(rule, self.provider.observe(&self.setup.spec.fleet).await)?;
        Ok(self.ours(&fleet).cloned())
    }

    async fn wait(
        &self,
        rule: &'static str,
        done: impl Fn(&FleetObservation) -> bool,
    ) -> Result<FleetObservation, Broken> {
        let mut newest = String::from("no observation");
        let mut seen = self.provider.watch(&self.setup.spec.fleet);
        let waiting = async {
            while let Some(item) = seen.next().await {
                newest = format!("{item:?}");
                if let Ok(fleet) = item
                    && done(&fleet)
                {
                    return Some(fleet);
                }
            }
            None
        };
        let found = timeout(self.clock, self.setup.patience, waiting).await;
        found.ok().flatten().ok_or_else(|| Broken {
            rule,
            found: format!("in the end: {newest}"),
        })
    }

    async fn serving(&self, rule: &'static str) -> Result<FleetObservation, Broken> {
        self.wait(rule, |f| {
            self.ours(f).is_some_and(InstanceObservation::is_serving)
        })
        .await
    }

    async fn set_is_ensured_and_repeats_change_nothing(&self) -> Verdict {
        const RULE: &str = "ensure_set makes the set, and doing it again changes nothing";
        let (provider, spec) = (self.provider, &self.setup.spec);
        let first = ok(
            RULE,
            provider
                .ensure_set(&self.target("set").operation_id, spec)
                .await,
        )?;
        let again = ok(
            RULE,
            provider
                .ensure_set(&self.target("set-2").operation_id, spec)
                .await,
        )?;
        check(RULE, first.etag == again.etag, &(&first, &again))?;
        check(RULE, first.address.is_some(), &first)
    }

    async fn instance_is_created_once(&self) -> Verdict {
        const RULE: &str = "create again is the same creation, by another operation a conflict";
        let [image, _] = &self.setup.images;
        let target = self.target("create");
        let first = ok(RULE, self.provider.create(&target, image).await)?;
        let again = ok(RULE, self.provider.create(&target, image).await)?;
        check(RULE, first.etag == again.etag, &(first, again))?;
        let other = self.provider.create(&self.target("create-2"), image).await;
        let conflict = matches!(&other, Err(e) if matches!(e.kind, ErrorKind::Conflict { .. }));
        check(RULE, conflict, &other)?;
        let fleet = self
            .serving("a created instance becomes healthy and serves")
            .await?;
        let made = self.ours(&fleet);
        check(
            RULE,
            made.is_some_and(|i| i.image == *image && i.replaced == 0),
            &made,
        )
    }

    async fn old_etag_is_refused_and_the_new_one_told(&self) -> Verdict {
        const RULE: &str = "an operation on an old etag is refused and changes nothing";
        let before = self.observe(RULE).await?;
        let old = Target {
            if_match: Some("\"nothing\"".to_owned()),
            ..self.target("old")
        };
        let refused = self.provider.reimage(&old, &self.setup.images[1]).await;
        let told = match &refused {
            Err(ProviderError {
                kind: ErrorKind::Conflict { current },
                ..
            }) => current.clone(),
            _ => None,
        };
        let right = told.is_some() && told == before.as_ref().map(|i| i.etag.clone());
        check(RULE, right, &(refused, before))?;
        let now = self.observe(RULE).await?;
        check(RULE, now.as_ref().is_some_and(|i| i.replaced == 0), &now)
    }

    async fn drain_takes_out_of_rotation_and_undrain_puts_back(&self) -> Verdict {
        const RULE: &str = "drain ends in drained, undrain ends in serving";
        ok(RULE, self.provider.drain(&self.target("drain")).await)?;
        self.wait(RULE, |f| {
            self.ours(f).is_some_and(|i| i.drained && !i.is_serving())
        })
        .await?;
        ok(RULE, self.provider.undrain(&self.target("undrain")).await)?;
        self.serving(RULE).await.map(drop)
    }

    async fn reimage_changes_the_image_and_counts_once(&self) -> Verdict {
        const RULE: &str = "reimage moves to the image once, however often it is sent";
        let if_match = self.observe(RULE).await?.map(|i| i.etag);
        let target = Target {
            if_match,
            ..self.target("reimage")
        };
        let [_, image] = &self.setup.images;
        ok(RULE, self.provider.reimage(&target, image).await)?;
        ok(RULE, self.provider.reimage(&target, image).await)?;
        self.wait(RULE, |f| {
            self.ours(f)
                .is_some_and(|i| i.is_serving() && i.image == *image)
        })
        .await?;
        ok(RULE, self.provider.reimage(&target, image).await)?;
        let now = self.observe(RULE).await?;
        check(RULE, now.as_ref().is_some_and(|i| i.replaced == 1), &now)
    }

    async fn restart_is_no_replacement(&self) -> Verdict {
        const RULE: &str = "restart boots the same image again and is no replacement";
        let began = ok(RULE, self.provider.restart(&self.target("restart")).await)?;
        check(
            RULE,
            matches!(began.phase, Phase::Creating | Phase::Running),
            &began,
        )?;
        let fleet = self.serving(RULE).await?;
        let now = self.ours(&fleet);
        let same = now.is_some_and(|i| i.replaced == 1 && i.image == self.setup.images[1]);
        check(RULE, same, &now)
    }

    async fn what_is_absent_is_said_to_be(&self) -> Verdict {
        const RULE: &str = "an absent instance is NotFound for every verb but delete";
        let absent = |op: &str| Target {
            id: "999".to_owned(),
            ..self.target(op)
        };
        let answers = [
            self.provider.drain(&absent("a")).await,
            self.provider.undrain(&absent("b")).await,
            self.provider.restart(&absent("c")).await,
            self.provider
                .reimage(&absent("d"), &self.setup.images[0])
                .await,
        ];
        for answer in answers {
            let said = matches!(&answer, Err(e) if e.kind == ErrorKind::NotFound);
            check(RULE, said, &answer)?;
        }
        ok(RULE, self.provider.delete(&absent("e")).await)
    }

    async fn deletion_is_final_and_repeatable(&self) -> Verdict {
        const RULE: &str = "a deleted instance is gone; a late repeat of its creation is refused";
        let (provider, set) = (self.provider, &self.setup.spec.name);
        ok(RULE, provider.delete(&self.target("delete")).await)?;
        ok(RULE, provider.delete(&self.target("delete")).await)?;
        self.wait(RULE, |f| self.ours(f).is_none()).await?;
        let late = provider
            .create(&self.target("create"), &self.setup.images[0])
            .await;
        check(RULE, late.is_err(), &late)?;
        let operation = self.target("delete-set").operation_id;
        ok(RULE, provider.delete_set(&operation, set).await)?;
        self.wait(RULE, |f| !f.sets.iter().any(|s| s.name == *set))
            .await?;
        ok(RULE, provider.delete_set(&operation, set).await)
    }
}

fn ok<T>(rule: &'static str, answer: Result<T, ProviderError>) -> Result<T, Broken> {
    answer.map_err(|err| Broken {
        rule,
        found: err.to_string(),
    })
}

fn check(rule: &'static str, holds: bool, found: &dyn std::fmt::Debug) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(Broken {
            rule,
            found: format!("{found:?}"),
        })
    }
}
