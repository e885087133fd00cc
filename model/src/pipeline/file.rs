//! The form of a pipeline in its file: the JSON Schema for editors, and printing.
//!
//! The comments of these types are what an editor shows, so they are written for
//! the person who fills in the file. "One of" is an object with optional keys of
//! which exactly one may stand: a serde enum would become `anyOf`, for which
//! editors give false errors.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

mod step;
mod write;

pub use step::policy_schema;
pub use write::{to_value, to_yaml};

/// Whether an optional key is left out.
pub(crate) fn skip<T>(value: &Option<T>) -> bool {
    value.is_none()
}

/// The schema of a type in the draft that editors know best, under the name `KIND.v1.json`.
pub(crate) fn draft07<T: JsonSchema>(kind: &str) -> Value {
    let settings = schemars::generate::SchemaSettings::draft07();
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    if let Value::Object(map) = &mut schema {
        map.insert(
            "$id".to_owned(),
            json!(format!("urn:oast:schema:{kind}:v1")),
        );
    }
    widen(&mut schema);
    schema
}

/// An optional key is left out, never `null`: takes `null` out of the types that schemars gives an `Option`.
fn widen(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|t| t != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    map.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(choices)) = map.get_mut("anyOf") {
                choices.retain(|choice| *choice != json!({ "type": "null" }));
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    map.remove("anyOf");
                    if map.is_empty() {
                        map.extend(only);
                    } else {
                        // Beside a `$ref` draft 7 reads nothing, so the two are joined by `allOf`.
                        map.insert("allOf".to_owned(), json!([only]));
                    }
                }
            }
            if map.get("default") == Some(&Value::Null) {
                map.remove("default");
            }
            // Formats such as `uint16` are no JSON Schema formats; the range is stated beside them.
            if matches!(map.get("format"), Some(Value::String(format)) if format.starts_with("uint") || format.starts_with("int"))
            {
                map.remove("format");
            }
            map.values_mut().for_each(widen);
        }
        Value::Array(items) => items.iter_mut().for_each(widen),
        _ => {}
    }
}

/// A text, or a number or truth value that is read as the text that it is.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
struct Text(String);

impl JsonSchema for Text {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A text. Inputs may stand in it as ${{ inputs.NAME }}.",
            "type": ["string", "number", "boolean"]
        })
    }
}

macro_rules! texts {
    ($($(#[doc = $doc:literal])* $name:ident $pattern:literal;)*) => { $(
        #[derive(Debug, Serialize)]
        #[serde(transparent)]
        struct $name(String);

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "description": concat!($($doc, " "),*).trim(),
                    "type": "string",
                    "pattern": $pattern
                })
            }
        }
    )* };
}

texts! {
    /// A name: lower-case letters, digits and hyphens, a letter first.
    Name "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$";
    /// A length of time with its unit, such as 250ms, 30s, 5m or 1h30m.
    Length "^(0|([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$";
    /// A number of bytes in units of 1024, such as 512MiB or 4GiB.
    Size "^(0|[0-9]+(B|KiB|MiB|GiB|TiB))$";
}

/// A count of instances such as 2, or a share of the fleet such as 25%.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum AmountText {
    Count(u32),
    Share(String),
}

impl JsonSchema for AmountText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A count of instances such as 2, or a share of the fleet such as 25%.",
            "type": ["integer", "string"],
            "minimum": 0,
            "pattern": "^([0-9]+|([1-9][0-9]?|100)%)$"
        })
    }
}

/// How a commit becomes a machine image and the image becomes the running fleet.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Oast pipeline")]
pub struct PipelineFile {
    /// The version of this format.
    #[schemars(extend("const" = "oast/v1"))]
    api_version: String,
    /// The pipeline's name, unique in its team.
    name: Name,
    /// The team that owns the pipeline, its image and the fleets that it names.
    team: Name,
    /// Values that a run may be given: `oast run --input NAME=VALUE`. Used as `${{ inputs.NAME }}`.
    #[serde(skip_serializing_if = "skip")]
    inputs: Option<BTreeMap<String, InputFile>>,
    /// What starts a run by itself. Without triggers only `oast run` does.
    #[serde(skip_serializing_if = "skip")]
    triggers: Option<Vec<TriggerFile>>,
    /// How the image is made.
    bake: BakeFile,
    /// What the image must pass before it is published, in order.
    #[serde(skip_serializing_if = "skip")]
    test: Option<Vec<TestFile>>,
    /// The name and channel under which the image is published.
    publish: PublishFile,
    /// The fleets that get the image, in order.
    #[serde(skip_serializing_if = "skip")]
    rollout: Option<Vec<RolloutFile>>,
    /// How urgent its runs are: somebody waits, as everybody's, or whenever nothing else is to be
    /// done. Default: normal.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(extend("enum" = ["interactive", "normal", "batch"]))]
    priority: Option<String>,
    /// Which runs may go on side by side. Default: all.
    #[serde(skip_serializing_if = "skip")]
    concurrency: Option<ConcurrencyFile>,
}

/// Runs of the team that name the same group go on one after the other, the oldest first.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Concurrency")]
struct ConcurrencyFile {
    /// The group's name. Pipelines of one team may share it.
    group: Name,
    /// How many of its runs may have begun and not ended. Default: 1.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 1, max = 1000))]
    max: Option<u32>,
    /// Whether a newer run ends the older ones instead of waiting for them. Default: false.
    #[serde(skip_serializing_if = "skip")]
    cancel_in_progress: Option<bool>,
}

/// A value that a run may be given.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Input")]
struct InputFile {
    /// The type of the value. Default: string.
    #[serde(rename = "type", skip_serializing_if = "skip")]
    #[schemars(extend("enum" = ["string", "bool", "number"]))]
    kind: Option<String>,
    /// The value when a run gives none.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(extend("type" = ["string", "boolean", "integer"]))]
    default: Option<Value>,
    /// Whether a run must give a value. Default: false.
    #[serde(skip_serializing_if = "skip")]
    required: Option<bool>,
    /// What people are told about it.
    #[serde(skip_serializing_if = "skip")]
    description: Option<String>,
}

/// What starts a run by itself: one of `git` and `cron`.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Trigger", extend("minProperties" = 1, "maxProperties" = 1))]
struct TriggerFile {
    /// A push to the repository.
    #[serde(skip_serializing_if = "skip")]
    git: Option<GitFile>,
    /// A calendar.
    #[serde(skip_serializing_if = "skip")]
    cron: Option<CronFile>,
}

/// A push to the repository.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "GitTrigger")]
struct GitFile {
    /// Globs of branch names. Default: every branch.
    #[serde(skip_serializing_if = "skip")]
    branches: Option<Vec<String>>,
    /// Globs of changed files, such as `web/**`, of which one must match. Default: every file.
    #[serde(skip_serializing_if = "skip")]
    paths: Option<Vec<String>>,
}

/// A calendar.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "CronTrigger")]
struct CronFile {
    /// Five fields: minute, hour, day of the month, month, day of the week. `0 3 * * 1` is each Monday at three.
    cron: String,
    /// The IANA time zone of the fields, such as Europe/Berlin. Default: UTC.
    #[serde(skip_serializing_if = "skip")]
    timezone: Option<String>,
}

/// How the image is made.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Bake")]
struct BakeFile {
    /// The system that the first step finds: a distribution and its release, another image, or a
    /// file that other tools made.
    from: FromFile,
    /// What makes the image: `disk` works in layers on the worker, without a virtual machine. Default: disk.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(extend("enum" = ["disk"]))]
    engine: Option<String>,
    /// The machine that the image is for. Default: amd64.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(extend("enum" = ["amd64", "arm64"]))]
    arch: Option<String>,
    /// Where the base's packages are fetched from. Default: as the worker is set up.
    #[serde(skip_serializing_if = "skip")]
    mirror: Option<MirrorFile>,
    /// The image's own package sources: a line of sources.list each.
    #[serde(skip_serializing_if = "skip")]
    sources: Option<Vec<Text>>,
    /// Packages that the base is made with, perhaps as `name=version`.
    #[serde(skip_serializing_if = "skip")]
    packages: Option<Vec<Text>>,
    /// The disk that is made at the end.
    #[serde(skip_serializing_if = "skip")]
    disk: Option<DiskFile>,
    /// Environment variables of every step. They are not secret.
    #[serde(skip_serializing_if = "skip")]
    env: Option<BTreeMap<String, Text>>,
    /// What is done to the base, in order. Each step is a layer: one that did not change is not done again.
    #[serde(skip_serializing_if = "skip")]
    steps: Option<Vec<step::StepFile>>,
}

/// The system that the first step finds.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum FromFile {
    Distribution(String),
    Made(Box<MadeFile>),
}

impl JsonSchema for FromFile {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "From".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        // One schema for both forms, as for `run`.
        let mut schema = MadeFile::json_schema(generator);
        schema.insert("type".to_owned(), json!(["string", "object"]));
        let names = ["debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04"];
        schema.insert("examples".to_owned(), json!(names));
        let pattern = format!("^({})$", names.join("|").replace('.', "\\."));
        schema.insert("pattern".to_owned(), json!(pattern));
        schema
    }
}

/// The system that the first step finds: the name of a distribution's release, or one of `image`,
/// `rootfs` and `oci`.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 2))]
struct MadeFile {
    /// An image of the team; its newest version in the channel.
    #[serde(skip_serializing_if = "skip")]
    image: Option<Name>,
    /// The image's channel.
    #[serde(skip_serializing_if = "skip")]
    channel: Option<Name>,
    /// A tar archive of a root file system, perhaps compressed.
    #[serde(skip_serializing_if = "skip")]
    rootfs: Option<PlaceFile>,
    /// A tar archive of an OCI image layout, or what `docker save` writes.
    #[serde(skip_serializing_if = "skip")]
    oci: Option<PlaceFile>,
}

/// Where a base file is: `path`, or `url` with `sha256`.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "BaseFile", extend("minProperties" = 1, "maxProperties" = 2))]
struct PlaceFile {
    /// A file of the repository.
    #[serde(skip_serializing_if = "skip")]
    path: Option<Text>,
    /// An address.
    #[serde(skip_serializing_if = "skip")]
    url: Option<Text>,
    /// The SHA-256 that the file at the address must have.
    #[serde(skip_serializing_if = "skip")]
    sha256: Option<step::Sha256>,
}

/// Where the base's packages are fetched from.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Mirror")]
struct MirrorFile {
    /// The archive's address: what holds `dists/`.
    url: Text,
    /// Parts of the archive. Default: main.
    #[serde(skip_serializing_if = "skip")]
    components: Option<Vec<String>>,
    /// A file of the repository with the keys that sign the archive. Default: the worker's keyring.
    #[serde(skip_serializing_if = "skip")]
    keyring: Option<Text>,
}

/// The disk that is made at the end.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Disk")]
struct DiskFile {
    /// Its size, a whole number of MiB. Default: the smallest that fits.
    #[serde(skip_serializing_if = "skip")]
    size: Option<Size>,
}

/// What the image must pass: one of `static` and `boot`.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Test", extend("minProperties" = 1, "maxProperties" = 1))]
struct TestFile {
    /// The disk and the files in it are sound; nothing is started.
    #[serde(rename = "static", skip_serializing_if = "skip")]
    still: Option<StaticFile>,
    /// The image is started and checked.
    #[serde(skip_serializing_if = "skip")]
    boot: Option<BootFile>,
}

/// The disk and the files in it are sound. It has no settings: write `static: {}`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "StaticTest")]
struct StaticFile {}

/// The image is started and checked.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "BootTest")]
struct BootFile {
    /// All checks must have passed by then. Default: 3m.
    #[serde(skip_serializing_if = "skip")]
    timeout: Option<Length>,
    /// What is checked, in order.
    #[serde(skip_serializing_if = "skip")]
    checks: Option<Vec<CheckFile>>,
}

/// One thing that is checked: one of `http`, `tcp`, `command`, `systemdUnit` and `file`.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Check", extend("minProperties" = 1, "maxProperties" = 1))]
struct CheckFile {
    /// A page is served.
    #[serde(skip_serializing_if = "skip")]
    http: Option<HttpCheckFile>,
    /// A port accepts a connection.
    #[serde(skip_serializing_if = "skip")]
    tcp: Option<TcpFile>,
    /// A command inside the image ends with status 0.
    #[serde(skip_serializing_if = "skip")]
    command: Option<Text>,
    /// A systemd unit is active.
    #[serde(skip_serializing_if = "skip")]
    systemd_unit: Option<Text>,
    /// A file exists.
    #[serde(skip_serializing_if = "skip")]
    file: Option<FileCheckFile>,
}

/// A page is served.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "HttpCheck")]
struct HttpCheckFile {
    /// The port on the instance.
    #[schemars(range(min = 1))]
    port: u16,
    /// Path and query. Default: `/`.
    #[serde(skip_serializing_if = "skip")]
    path: Option<Text>,
    /// The status that is good. Default: 200.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 100, max = 599))]
    status: Option<u16>,
    /// A text that must be in the body.
    #[serde(skip_serializing_if = "skip")]
    contains: Option<Text>,
    /// How long one request may take. Default: 2s.
    #[serde(skip_serializing_if = "skip")]
    timeout: Option<Length>,
}

/// Each replaced instance serves this page.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "HttpGate")]
struct HttpGateFile {
    /// The port on the instance. Default: the port that the fleet serves.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 1))]
    port: Option<u16>,
    /// Path and query. Default: `/`.
    #[serde(skip_serializing_if = "skip")]
    path: Option<Text>,
    /// The status that is good. Default: 200.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 100, max = 599))]
    status: Option<u16>,
    /// A text that must be in the body.
    #[serde(skip_serializing_if = "skip")]
    contains: Option<Text>,
    /// How long one request may take. Default: 2s.
    #[serde(skip_serializing_if = "skip")]
    timeout: Option<Length>,
}

/// A port accepts a connection.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TcpCheck")]
struct TcpFile {
    /// The port on the instance.
    #[schemars(range(min = 1))]
    port: u16,
}

/// A file exists.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "FileCheck")]
struct FileCheckFile {
    /// Its absolute path in the image.
    path: Text,
    /// A text that must be in it.
    #[serde(skip_serializing_if = "skip")]
    contains: Option<Text>,
}

/// The name and channel under which the image is published.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Publish")]
struct PublishFile {
    /// The image that gets a new version.
    image: Name,
    /// The channel that then points to the new version, such as `candidate`.
    channel: Name,
    /// Regions that get a copy. Default: where it was baked.
    #[serde(skip_serializing_if = "skip")]
    regions: Option<Vec<Name>>,
}

/// A fleet that gets the image.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Rollout")]
struct RolloutFile {
    /// The fleet, made by `oast apply`.
    fleet: Name,
    /// How many instances at a time, and how long to wait.
    #[serde(skip_serializing_if = "skip")]
    strategy: Option<StrategyFile>,
    /// What must be good before the next batch.
    #[serde(skip_serializing_if = "skip")]
    gates: Option<Vec<GateFile>>,
    /// What happens when a gate shuts or an instance does not get healthy: everything goes back, or
    /// the rollout waits for a person. Default: rollback.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(extend("enum" = ["rollback", "pause"]))]
    on_failure: Option<String>,
}

/// How many instances at a time, and how long to wait.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Strategy")]
struct StrategyFile {
    /// The first batch. Default: 1.
    #[serde(skip_serializing_if = "skip")]
    canary: Option<AmountText>,
    /// Each batch after it. Default: 25%.
    #[serde(skip_serializing_if = "skip")]
    batch: Option<AmountText>,
    /// How many of the fleet's instances may be out of service at once, whatever the reason. Default: 1.
    #[serde(skip_serializing_if = "skip")]
    max_unavailable: Option<AmountText>,
    /// How long a batch must stay healthy before the next. Default: 30s.
    #[serde(skip_serializing_if = "skip")]
    soak: Option<Length>,
    /// How long a replaced instance may take to become healthy. Default: 5m.
    #[serde(skip_serializing_if = "skip")]
    healthy_deadline: Option<Length>,
    /// Extra instances during the rollout. Only 0 in this version.
    #[serde(skip_serializing_if = "skip")]
    max_surge: Option<AmountText>,
}

/// What must be good before the next batch.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Gate", extend("minProperties" = 1, "maxProperties" = 1))]
struct GateFile {
    /// Each replaced instance serves this page.
    #[serde(skip_serializing_if = "skip")]
    http: Option<HttpGateFile>,
}

/// The JSON Schema of a pipeline file.
pub fn schema() -> Value {
    draft07::<PipelineFile>("pipeline")
}
