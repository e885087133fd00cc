//! A checked pipeline back into the form of its file.
//!
//! Every default is written out, so that what is printed says what holds. Text of
//! the form `${{ inputs.x }}` stays as it is: it is the file that is printed.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::document::print;
use crate::pipeline::definition::{
    Bake, Base, Check, FileFormat, FilePlace, Gate, HttpCheck, Input, InputValue, Pipeline,
    Rollout, Test, Trigger,
};
use crate::units::Amount;

/// The pipeline in the form of its file, every default written out.
pub fn to_value(pipeline: &Pipeline) -> Value {
    serde_json::to_value(pipeline_file(pipeline)).expect("texts, numbers and lists are always JSON")
}

/// The pipeline as a YAML file.
pub fn to_yaml(pipeline: &Pipeline) -> String {
    print::yaml(&to_value(pipeline))
}

pub(super) fn filled<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

pub(super) fn words(texts: &[String]) -> Option<Vec<String>> {
    filled(texts.to_vec())
}

pub(super) fn texts(texts: &[String]) -> Option<Vec<Text>> {
    filled(texts.iter().cloned().map(Text).collect())
}

pub(super) fn name(name: impl AsRef<str>) -> Name {
    Name(name.as_ref().to_owned())
}

pub(super) fn text(text: &str) -> Text {
    Text(text.to_owned())
}

fn amount(amount: Amount) -> AmountText {
    match amount {
        Amount::Count(count) => AmountText::Count(count),
        Amount::Percent(_) => AmountText::Share(amount.to_string()),
    }
}

pub(super) fn length(span: crate::units::TimeSpan) -> Option<Length> {
    Some(Length(span.to_string()))
}

pub(super) fn variables(env: &BTreeMap<String, String>) -> BTreeMap<String, Text> {
    env.iter()
        .map(|(name, value)| (name.clone(), text(value)))
        .collect()
}

fn pipeline_file(pipeline: &Pipeline) -> PipelineFile {
    let inputs: BTreeMap<String, InputFile> = pipeline
        .inputs
        .iter()
        .map(|(name, input)| (name.clone(), input_file(input)))
        .collect();
    PipelineFile {
        api_version: pipeline.api_version.as_str().to_owned(),
        name: name(&pipeline.name),
        team: name(&pipeline.team),
        inputs: Some(inputs).filter(|inputs| !inputs.is_empty()),
        triggers: filled(pipeline.triggers.iter().map(trigger_file).collect()),
        bake: bake_file(&pipeline.bake),
        test: filled(pipeline.test.iter().map(test_file).collect()),
        publish: PublishFile {
            image: name(&pipeline.publish.image),
            channel: name(&pipeline.publish.channel),
            regions: filled(pipeline.publish.regions.iter().map(name).collect()),
        },
        rollout: filled(pipeline.rollout.iter().map(rollout_file).collect()),
        priority: pipeline
            .priority
            .map(|priority| priority.as_str().to_owned()),
        concurrency: pipeline
            .concurrency
            .as_ref()
            .map(|concurrency| ConcurrencyFile {
                group: name(&concurrency.group),
                max: Some(concurrency.max),
                cancel_in_progress: Some(concurrency.cancel_in_progress),
            }),
    }
}

fn input_file(input: &Input) -> InputFile {
    InputFile {
        kind: Some(input.kind.as_str().to_owned()),
        default: input.default.as_ref().map(|default| match default {
            InputValue::String(text) => json!(text),
            InputValue::Bool(yes) => json!(yes),
            InputValue::Number(number) => json!(number),
        }),
        required: input.required.then_some(true),
        description: input.description.clone(),
    }
}

fn trigger_file(trigger: &Trigger) -> TriggerFile {
    match trigger {
        Trigger::Git(git) => {
            let git = GitFile {
                branches: words(&git.branches),
                paths: words(&git.paths),
            };
            TriggerFile {
                git: Some(git),
                ..TriggerFile::default()
            }
        }
        Trigger::Cron(cron) => {
            let cron = CronFile {
                cron: cron.cron.clone(),
                timezone: Some(cron.timezone.clone()),
            };
            TriggerFile {
                cron: Some(cron),
                ..TriggerFile::default()
            }
        }
    }
}

fn bake_file(bake: &Bake) -> BakeFile {
    BakeFile {
        from: from_file(&bake.from),
        engine: None,
        arch: Some(bake.arch.as_str().to_owned()),
        mirror: bake.mirror.as_ref().map(|mirror| MirrorFile {
            url: text(&mirror.url),
            components: words(&mirror.components),
            keyring: mirror.keyring.as_deref().map(text),
        }),
        sources: texts(&bake.sources),
        packages: texts(&bake.packages),
        disk: bake.disk.size.map(|size| DiskFile {
            size: Some(Size(size.to_string())),
        }),
        env: Some(variables(&bake.env)).filter(|env| !env.is_empty()),
        steps: filled(bake.steps.iter().map(step::step_file).collect()),
    }
}

fn from_file(base: &Base) -> FromFile {
    let made = match base {
        Base::Distribution { .. } => return FromFile::Distribution(base.to_string()),
        Base::Image { image, channel } => MadeFile {
            image: Some(name(image)),
            channel: Some(name(channel)),
            ..MadeFile::default()
        },
        Base::File(file) => {
            let place = Some(match &file.place {
                FilePlace::Path(path) => PlaceFile {
                    path: Some(text(path)),
                    ..PlaceFile::default()
                },
                FilePlace::Url { url, sha256 } => PlaceFile {
                    url: Some(text(url)),
                    sha256: Some(step::Sha256::of(sha256)),
                    ..PlaceFile::default()
                },
            });
            match file.format {
                FileFormat::Rootfs => MadeFile {
                    rootfs: place,
                    ..MadeFile::default()
                },
                FileFormat::Oci => MadeFile {
                    oci: place,
                    ..MadeFile::default()
                },
            }
        }
    };
    FromFile::Made(Box::new(made))
}

fn test_file(test: &Test) -> TestFile {
    match test {
        Test::Static(_) => TestFile {
            still: Some(StaticFile {}),
            ..TestFile::default()
        },
        Test::Boot(boot) => {
            let checks = filled(boot.checks.iter().map(check_file).collect());
            TestFile {
                boot: Some(BootFile {
                    timeout: length(boot.timeout),
                    checks,
                }),
                ..TestFile::default()
            }
        }
    }
}

fn check_file(check: &Check) -> CheckFile {
    let none = CheckFile::default();
    match check {
        Check::Http(http) => {
            let http = HttpCheckFile {
                // A check always has one; its checker says so.
                port: http.port.unwrap_or(80),
                path: Some(text(&http.path)),
                status: Some(http.status),
                contains: http.contains.as_deref().map(text),
                timeout: length(http.timeout),
            };
            CheckFile {
                http: Some(http),
                ..none
            }
        }
        Check::Tcp { port } => CheckFile {
            tcp: Some(TcpFile { port: *port }),
            ..none
        },
        Check::Command(command) => CheckFile {
            command: Some(text(command)),
            ..none
        },
        Check::SystemdUnit(unit) => CheckFile {
            systemd_unit: Some(text(unit)),
            ..none
        },
        Check::File { path, contains } => {
            let file = FileCheckFile {
                path: text(path),
                contains: contains.as_deref().map(text),
            };
            CheckFile {
                file: Some(file),
                ..none
            }
        }
    }
}

fn rollout_file(rollout: &Rollout) -> RolloutFile {
    let strategy = &rollout.strategy;
    RolloutFile {
        fleet: name(&rollout.fleet),
        strategy: Some(StrategyFile {
            canary: Some(amount(strategy.canary)),
            batch: Some(amount(strategy.batch)),
            max_unavailable: Some(amount(strategy.max_unavailable)),
            soak: length(strategy.soak),
            healthy_deadline: length(strategy.healthy_deadline),
            max_surge: Some(strategy.max_surge)
                .filter(|surge| !surge.is_zero())
                .map(amount),
        }),
        gates: filled(rollout.gates.iter().filter_map(gate_file).collect()),
        on_failure: Some(rollout.on_failure.as_str().to_owned()),
    }
}

/// None for a gate that this version's files do not have.
fn gate_file(gate: &Gate) -> Option<GateFile> {
    match gate {
        Gate::Http(http) => Some(GateFile {
            http: Some(http_gate(http)),
        }),
        Gate::Prometheus(_) => None,
    }
}

fn http_gate(http: &HttpCheck) -> HttpGateFile {
    HttpGateFile {
        port: http.port,
        path: Some(text(&http.path)),
        status: Some(http.status),
        contains: http.contains.as_deref().map(text),
        timeout: length(http.timeout),
    }
}
