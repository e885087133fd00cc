//! The steps of a bake in their file, and printing them. Also the file of an operator's policy.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::write::{filled, length, name, text, texts, variables, words};
use super::{Length, Name, Text, draft07, skip};
use crate::pipeline::definition::{
    Action, Ansible, CopyFiles, CopySource, Run, SecretDelivery, SecretUse, Step, Systemd,
};

/// Another action beside a step's first one is refused where it stands.
fn alone() -> Value {
    let actions = [
        "run", "copy", "packages", "systemd", "ansible", "env", "workdir", "user",
    ];
    let rules = actions.iter().map(|action| {
        let others = actions.iter().filter(|other| *other != action);
        let refused: BTreeMap<&str, bool> = others.map(|other| (*other, false)).collect();
        (*action, json!({ "properties": refused }))
    });
    json!(rules.collect::<BTreeMap<_, _>>())
}

/// The SHA-256 of a file in hexadecimal digits.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Sha256(String);

impl Sha256 {
    pub(super) fn of(digits: &str) -> Self {
        Self(digits.to_owned())
    }
}

impl JsonSchema for Sha256 {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Sha256".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "The SHA-256 of a file: 64 hexadecimal digits.",
            "type": "string",
            "pattern": "^[0-9a-fA-F]{64}$"
        })
    }
}

/// One thing that is done to the image: one of `run`, `copy`, `packages`, `systemd`, `ansible`,
/// `env`, `workdir` and `user`.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Step", extend("minProperties" = 1, "maxProperties" = 3, "dependencies" = alone()))]
pub(super) struct StepFile {
    /// What people see. Default: made from the action.
    #[serde(skip_serializing_if = "skip")]
    name: Option<Text>,
    /// Runs commands inside the image: a text for the shell, or a map with more settings.
    #[serde(skip_serializing_if = "skip")]
    run: Option<RunFile>,
    /// Secrets that the `run` or `ansible` beside it gets. They are never part of a layer or a log.
    #[serde(skip_serializing_if = "skip")]
    secrets: Option<Vec<SecretFile>>,
    /// Copies files of the repository, of the web or of another image into the image.
    #[serde(skip_serializing_if = "skip")]
    copy: Option<CopyFile>,
    /// Installs packages of the image's distribution.
    #[serde(skip_serializing_if = "skip")]
    packages: Option<PackagesFile>,
    /// Installs units and says which start.
    #[serde(skip_serializing_if = "skip")]
    systemd: Option<SystemdFile>,
    /// Plays an Ansible playbook on the image. The image needs neither Ansible nor Python for it.
    #[serde(skip_serializing_if = "skip")]
    ansible: Option<AnsibleFile>,
    /// Sets environment variables for the steps after it.
    #[serde(skip_serializing_if = "skip")]
    env: Option<BTreeMap<String, Text>>,
    /// Sets the folder in which the steps after it run.
    #[serde(skip_serializing_if = "skip")]
    workdir: Option<Text>,
    /// Sets who runs the `run` steps after it: `user` or `user:group`, as the image knows them.
    #[serde(skip_serializing_if = "skip")]
    user: Option<String>,
}

/// Commands that run inside the image.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum RunFile {
    Short(String),
    Long(Box<RunLong>),
}

impl JsonSchema for RunFile {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Run".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        // One schema for both forms: `properties` judges maps only, so no `anyOf` is needed.
        let mut schema = RunLong::json_schema(generator);
        schema.insert("type".to_owned(), json!(["string", "object"]));
        schema.insert("minLength".to_owned(), json!(1));
        schema
    }
}

/// Commands that run inside the image: one of `command` and `script`.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
struct RunLong {
    /// The text that the shell reads. Text inputs may not stand in it: give them by `env`.
    #[serde(skip_serializing_if = "skip")]
    command: Option<Text>,
    /// A file of the repository that is run in place of a command. It is not part of the image.
    #[serde(skip_serializing_if = "skip")]
    script: Option<Text>,
    /// What the script is called with.
    #[serde(skip_serializing_if = "skip")]
    args: Option<Vec<Text>>,
    /// The interpreter with its absolute path. Default: the script's own `#!` line, else /bin/sh -e.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(regex(pattern = "^/"))]
    shell: Option<String>,
    /// After this the step has failed. Default: 30m.
    #[serde(skip_serializing_if = "skip")]
    timeout: Option<Length>,
    /// How often a failed command is tried again, each time from where the step began. Default: 0.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(max = 10))]
    retries: Option<u32>,
    /// What the step may reach: nothing, public addresses through the engine's proxy, or (where the
    /// operator allows it) whatever the worker reaches. Default: proxy.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(extend("enum" = ["none", "proxy", "host"]))]
    network: Option<String>,
    /// Folders of programs, such as /root/.cache/pip, that the worker keeps from one bake to the
    /// next. What is in them is not part of the image.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(length(max = 16))]
    caches: Option<Vec<String>>,
}

/// A secret that a step gets: its name, and one of `env` and `file`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "SecretUse", extend("minProperties" = 2, "maxProperties" = 2))]
struct SecretFile {
    /// The team's secret, set by `oast secret set NAME`.
    name: Name,
    /// The environment variable in which the step finds it.
    #[serde(skip_serializing_if = "skip")]
    env: Option<String>,
    /// The name of the file, under $OAST_SECRETS, in which the step finds it.
    #[serde(skip_serializing_if = "skip")]
    file: Option<String>,
}

/// Files that are copied into the image: `from` the repository, from a `url`, or `from` another
/// `image` in a `channel`.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Copy", extend("minProperties" = 2))]
struct CopyFile {
    /// A file or folder, from the top of the repository, or an absolute path in the other image.
    #[serde(skip_serializing_if = "skip")]
    from: Option<Text>,
    /// The address of one file.
    #[serde(skip_serializing_if = "skip")]
    url: Option<Text>,
    /// The SHA-256 that the file at the address must have.
    #[serde(skip_serializing_if = "skip")]
    sha256: Option<Sha256>,
    /// An image of the team, in whose newest version `from` is looked up.
    #[serde(skip_serializing_if = "skip")]
    image: Option<Name>,
    /// The image's channel.
    #[serde(skip_serializing_if = "skip")]
    channel: Option<Name>,
    /// An absolute path in the image. The content of a folder lands in it.
    to: Text,
    /// Permission bits of the copied files in octal, such as "0644". Default: as in the repository.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(extend("type" = ["string", "integer"]))]
    mode: Option<String>,
    /// `user` or `user:group`, as the image knows them. Default: root.
    #[serde(skip_serializing_if = "skip")]
    owner: Option<String>,
}

/// Packages of the image's distribution.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum PackagesFile {
    Short(Vec<Text>),
    Long(PackagesLong),
}

impl JsonSchema for PackagesFile {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Packages".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = PackagesLong::json_schema(generator);
        schema.insert("type".to_owned(), json!(["array", "object"]));
        schema.insert("items".to_owned(), Text::json_schema(generator).to_value());
        schema.insert("minItems".to_owned(), json!(1));
        schema
    }
}

/// Packages of the image's distribution: a list of names, or a map with more settings.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PackagesLong {
    /// Their names, perhaps as `name=version`.
    install: Vec<Text>,
    /// Whether packages that these recommend come with them. Default: false.
    #[serde(skip_serializing_if = "skip")]
    recommends: Option<bool>,
}

/// Units that are installed, and which start. Nothing is started while the image is made.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Systemd", extend("minProperties" = 1))]
struct SystemdFile {
    /// Unit files of the repository, which land in /etc/systemd/system.
    #[serde(skip_serializing_if = "skip")]
    install: Option<Vec<Text>>,
    /// Units that start at boot.
    #[serde(skip_serializing_if = "skip")]
    enable: Option<Vec<Text>>,
    /// Units that do not start at boot.
    #[serde(skip_serializing_if = "skip")]
    disable: Option<Vec<Text>>,
    /// Units that nothing can start.
    #[serde(skip_serializing_if = "skip")]
    mask: Option<Vec<Text>>,
    /// Units that can be started again.
    #[serde(skip_serializing_if = "skip")]
    unmask: Option<Vec<Text>>,
    /// The target that boots, such as multi-user.target.
    #[serde(skip_serializing_if = "skip")]
    default: Option<Text>,
}

/// An Ansible playbook that is played on the image.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Ansible")]
struct AnsibleFile {
    /// The playbook, a file of the repository. Its plays say `hosts: all`.
    playbook: Text,
    /// The folder of the repository that the play sees. Default: the playbook's own.
    #[serde(skip_serializing_if = "skip")]
    folder: Option<Text>,
    /// Extra variables.
    #[serde(skip_serializing_if = "skip")]
    variables: Option<BTreeMap<String, Text>>,
    /// Only tasks with one of these tags. Default: all.
    #[serde(skip_serializing_if = "skip")]
    tags: Option<Vec<String>>,
    /// After this the step has failed. Default: 30m.
    #[serde(skip_serializing_if = "skip")]
    timeout: Option<Length>,
    /// What the play may reach, as for `run`. Default: proxy.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(extend("enum" = ["none", "proxy", "host"]))]
    network: Option<String>,
}

/// Steps that an operator puts into every pipeline.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Oast policy")]
pub struct PolicyFile {
    /// The version of this format.
    #[schemars(extend("const" = "oast/v1"))]
    api_version: String,
    /// What the file is.
    #[schemars(extend("const" = "Policy"))]
    kind: String,
    /// The policy's name, which people see at its steps.
    name: Name,
    /// Teams to whose pipelines it applies. Default: all.
    teams: Option<Vec<Name>>,
    /// Steps between the base and the pipeline's own.
    before: Option<Vec<StepFile>>,
    /// Steps behind the pipeline's own.
    after: Option<Vec<StepFile>>,
}

/// The JSON Schema of a policy file.
pub fn policy_schema() -> Value {
    draft07::<PolicyFile>("policy")
}

pub(super) fn step_file(step: &Step) -> StepFile {
    let mut file = StepFile {
        name: step.name.as_deref().map(text),
        secrets: filled(step.action.secrets().iter().map(secret_file).collect()),
        ..StepFile::default()
    };
    match &step.action {
        Action::Run(run) => file.run = Some(run_file(run)),
        Action::Copy(copy) => file.copy = Some(copy_file(copy)),
        Action::Env(env) => file.env = Some(variables(env)),
        Action::Workdir(path) => file.workdir = Some(text(path)),
        Action::User(user) => file.user = Some(user.clone()),
        Action::Packages(packages) => {
            let install = packages.install.iter().map(|name| text(name)).collect();
            file.packages = Some(if packages.recommends {
                PackagesFile::Long(PackagesLong {
                    install,
                    recommends: Some(true),
                })
            } else {
                PackagesFile::Short(install)
            });
        }
        Action::Systemd(systemd) => file.systemd = Some(systemd_file(systemd)),
        Action::Ansible(play) => file.ansible = Some(ansible_file(play)),
    }
    file
}

fn run_file(run: &Run) -> RunFile {
    let usual = Run {
        secrets: run.secrets.clone(),
        ..Run::new(run.command.clone())
    };
    if *run == usual {
        return RunFile::Short(run.command.clone());
    }
    let command = run.script.is_none().then(|| text(&run.command));
    RunFile::Long(Box::new(RunLong {
        command,
        script: run.script.as_deref().map(text),
        args: texts(&run.args),
        shell: Some(run.shell.clone()).filter(|shell| *shell != usual.shell),
        timeout: length(run.timeout),
        retries: Some(run.retries).filter(|retries| *retries > 0),
        network: Some(run.network.as_str().to_owned()),
        caches: words(&run.caches),
    }))
}

fn secret_file(secret: &SecretUse) -> SecretFile {
    let (env, file) = match &secret.delivery {
        SecretDelivery::Env(variable) => (Some(variable.clone()), None),
        SecretDelivery::File(file) => (None, Some(file.clone())),
    };
    SecretFile {
        name: name(&secret.name),
        env,
        file,
    }
}

fn copy_file(copy: &CopyFiles) -> CopyFile {
    let mut file = CopyFile {
        to: text(&copy.to),
        mode: copy.mode.map(|mode| format!("{mode:04o}")),
        owner: copy.owner.clone(),
        ..CopyFile::default()
    };
    let from = Some(text(&copy.from));
    match &copy.source {
        CopySource::Commit => file.from = from,
        CopySource::Url { sha256 } => {
            file.url = from;
            file.sha256 = Some(Sha256::of(sha256));
        }
        CopySource::Image { image, channel } => {
            file.from = from;
            file.image = Some(name(image));
            file.channel = Some(name(channel));
        }
    }
    file
}

fn systemd_file(systemd: &Systemd) -> SystemdFile {
    SystemdFile {
        install: texts(&systemd.install),
        enable: texts(&systemd.enable),
        disable: texts(&systemd.disable),
        mask: texts(&systemd.mask),
        unmask: texts(&systemd.unmask),
        default: systemd.default.as_deref().map(text),
    }
}

fn ansible_file(play: &Ansible) -> AnsibleFile {
    AnsibleFile {
        playbook: text(&play.playbook),
        folder: play.folder.as_deref().map(text),
        variables: Some(variables(&play.variables)).filter(|table| !table.is_empty()),
        tags: words(&play.tags),
        timeout: length(play.timeout),
        network: Some(play.network.as_str().to_owned()),
    }
}
