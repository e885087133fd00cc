//! The leader looks at watched remotes, each at its own interval.
//!
//! Repositories that the farm serves are looked at too: a push whose member died between the
//! receiving and the telling is found here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oast_daemon::clock::timeout;
use oast_daemon::secret::Secret;
use oast_model::names::RepositoryName;
use oast_model::resource::Repository;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::process::{GitError, git, output, parse_heads};
use super::{host, hosted_name, observe};
use crate::farm::Farm;
use crate::secrets::Secrets;

/// How long one look may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(60);
/// Time between two looks at a repository that the farm serves.
const HOSTED_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest time between two looks at anything.
const TURN: Duration = Duration::from_millis(500);
/// User name that token-only credentials go with; hosts that take tokens ignore it.
const TOKEN_USER: &str = "x-access-token";

/// Looks until shutdown; only while this member leads.
pub async fn run(farm: Farm, secrets: Secrets, git_dir: PathBuf, shutdown: CancellationToken) {
    let clock = farm.clock().clone();
    let mut looked: BTreeMap<RepositoryName, Duration> = BTreeMap::new();
    while !shutdown.is_cancelled() {
        if farm.leading().is_none() {
            looked.clear();
        } else {
            let view = farm.view();
            for (name, record) in view.repositories().iter() {
                let interval = match (hosted_name(&record.spec), record.spec.poll) {
                    (Some(_), _) => HOSTED_INTERVAL,
                    (None, Some(poll)) => poll.duration(),
                    (None, None) => continue,
                };
                let now = clock.monotonic();
                if looked
                    .get(name)
                    .is_some_and(|last| now.saturating_sub(*last) < interval)
                {
                    continue;
                }
                looked.insert(name.clone(), now);
                look_and_tell(&farm, &secrets, &git_dir, name, &record.spec).await;
            }
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = clock.sleep(TURN) => {}
        }
    }
}

async fn look_and_tell(
    farm: &Farm,
    secrets: &Secrets,
    git_dir: &Path,
    name: &RepositoryName,
    repository: &Repository,
) {
    let seen = match hosted_name(repository) {
        Some(hosted) => host::heads(git_dir, hosted).await,
        None => {
            let credential = match &repository.credentials {
                Some(reference) => match secrets.get(&repository.team, &reference.secret) {
                    Ok(value) => value,
                    Err(error) => {
                        warn!(repository = %name, %error, "A repository's credential is not readable.");
                        return;
                    }
                },
                None => None,
            };
            let looking = look(git_dir, &repository.url, credential.as_ref());
            match timeout(&**farm.clock(), LOOK_DEADLINE, looking).await {
                Ok(seen) => seen,
                Err(_) => Err(GitError::Slow("ls-remote".into())),
            }
        }
    };
    match seen {
        Ok(refs) => match observe(farm, name, repository, refs).await {
            Ok(runs) => {
                for run in runs {
                    info!(repository = %name, run_id = %run, "A branch moved.");
                }
            }
            Err(error) => warn!(repository = %name, %error, "What was seen could not be told."),
        },
        Err(error) => warn!(repository = %name, %error, "A repository could not be looked at."),
    }
}

/// The branches of a remote.
///
/// # Errors
/// [`GitError`].
pub async fn look(
    home: &Path,
    url: &str,
    credential: Option<&Secret<Vec<u8>>>,
) -> Result<BTreeMap<String, String>, GitError> {
    let mut command = git(home);
    command.env("GIT_ALLOW_PROTOCOL", "http:https:ssh");
    if let Some(credential) = credential {
        // In the child's environment only: an argument could be read by everybody.
        let text = String::from_utf8_lossy(credential.expose());
        let (user, password) = text
            .trim()
            .split_once(':')
            .unwrap_or_else(|| (TOKEN_USER, text.trim()));
        command
            .env("OAST_GIT_USER", user)
            .env("OAST_GIT_PASSWORD", password)
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "credential.helper")
            .env(
                "GIT_CONFIG_VALUE_0",
                "!f() { test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' \"$OAST_GIT_USER\" \"$OAST_GIT_PASSWORD\"; }; f",
            );
    }
    let lines = output(command, ["ls-remote", "--heads", "--", url]).await?;
    Ok(parse_heads(&lines))
}
