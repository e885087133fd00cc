//! What holds for every pipeline, and for every text that claims to be one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use oast_model::pipeline::{
    self, Action, Ansible, Arch, Bake, Base, BaseFile, BootTest, Check, Concurrency, CopyFiles,
    CopySource, CronTrigger, Disk, Engine, FileFormat, FilePlace, Gate, GitTrigger, HttpCheck,
    Input, InputKind, InputValue, Mirror, Network, OnFailure, Packages, Pipeline, Publish,
    RELEASES, Rollout, Run, SecretDelivery, SecretUse, StaticTest, Step,
    Strategy as RolloutStrategy, Systemd, Test, Trigger,
};
use oast_model::priority::Priority;
use oast_model::units::{Amount, ByteSize, TimeSpan};
use oast_model::{document, resource};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

#[path = "schema/rules.rs"]
#[expect(dead_code, reason = "only the schema's own tests read YAML with it")]
mod rules;

/// Texts that YAML tools stumble over, beside ordinary ones. Not empty, no `${{`.
fn text() -> impl Strategy<Value = String> {
    let hard = prop::sample::select(vec![
        "yes",
        "null",
        "~",
        "1",
        "1.5",
        "0x1f",
        "2026-11-23",
        "a: b",
        "- x",
        "# c",
        "'",
        "\"",
        "\\",
        "*x",
        "&x",
        "!x",
        "|",
        ">",
        "%x",
        "@x",
        "a\nb",
        "a\n",
        "\na",
        " a",
        "a ",
        "a\n\n b\n",
        "\t",
        "a\u{2028}b",
        "\u{feff}",
        "é",
        "{}",
        "[]",
        "---",
        "...",
        "?",
        ": ",
        "<<",
        "a #b",
        "a\r\nb",
        "\u{7f}",
        "\u{85}",
        "$x ${y} $(z)",
    ]);
    prop_oneof![hard.prop_map(str::to_owned), "[ -~\n]{1,40}", "\\PC{1,20}"]
        .prop_filter("a text that is something", |t| {
            !t.trim().is_empty() && !t.contains("${{")
        })
}

fn name<T: std::fmt::Debug + std::str::FromStr<Err: std::fmt::Debug>>() -> impl Strategy<Value = T>
{
    "[a-z]([a-z0-9-]{0,20}[a-z0-9])?".prop_map(|t| t.parse().expect("a name"))
}

fn span(least: u64, most: u64) -> impl Strategy<Value = TimeSpan> {
    (least..=most).prop_map(TimeSpan::from_millis)
}

fn amount(least: u32) -> impl Strategy<Value = Amount> {
    prop_oneof![
        (least..2000).prop_map(Amount::Count),
        (1u8..=100).prop_map(Amount::Percent)
    ]
}

fn source() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 _.#:-]{1,10}(/[a-z]{1,8}){0,2}".prop_filter("a path", |t| {
        !t.trim().is_empty() && t.split('/').all(|p| p != "..")
    })
}

fn target() -> impl Strategy<Value = String> {
    "(/[a-zA-Z0-9 _#:-]{1,8}){1,3}"
}

fn variables() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(
        "[A-Z_][A-Z0-9_]{0,8}",
        prop_oneof![Just(String::new()), text()],
        0..3,
    )
}

fn http(port: BoxedStrategy<Option<u16>>) -> impl Strategy<Value = HttpCheck> {
    (
        port,
        "/[a-z0-9?=&%*-]{0,12}",
        100u16..=599,
        option::of(text()),
        span(1, 60_000),
    )
        .prop_map(|(port, path, status, contains, timeout)| HttpCheck {
            port,
            path,
            status,
            contains,
            timeout,
        })
}

fn action() -> impl Strategy<Value = Action> {
    let delivery = prop_oneof![
        "[A-Z_]{1,8}".prop_map(SecretDelivery::Env),
        "[a-z][a-z.]{0,8}".prop_map(SecretDelivery::File)
    ];
    let secret = (name(), delivery)
        .prop_map(|(name, delivery)| SecretUse { name, delivery })
        .boxed();
    let network = prop::sample::select(vec![Network::None, Network::Proxy, Network::Host]);
    let shell = prop::sample::select(vec![pipeline::SHELL, "/bin/bash -eu", "/usr/bin/python3"]);
    let what = prop_oneof![
        text().prop_map(|command| (command, None, Vec::new())),
        (source(), vec(text(), 0..3)).prop_map(|(script, args)| (
            String::new(),
            Some(script),
            args
        )),
    ];
    let caches =
        prop::sample::subsequence(vec!["/root/.cache/pip", "/var/cache/apt", "/opt"], 0..3);
    let run = (
        what,
        shell,
        span(1_000, 43_200_000),
        0u32..=10,
        network.clone(),
        vec(secret.clone(), 0..3),
        caches,
        any::<bool>(),
    );
    let run = run.prop_map(
        |((command, script, args), shell, timeout, retries, network, secrets, caches, usual)| {
            let long = Run {
                command,
                shell: shell.to_owned(),
                timeout,
                retries,
                network,
                secrets,
                script,
                args,
                caches: caches.into_iter().map(str::to_owned).collect(),
            };
            if usual && long.script.is_none() {
                Run {
                    secrets: long.secrets,
                    ..Run::new(long.command)
                }
            } else {
                long
            }
        },
    );
    let owner = option::of("[a-z][a-z-]{0,8}(:[a-z]{1,8})?");
    let from = prop_oneof![
        source().prop_map(|from| (from, CopySource::Commit)),
        ("https?://[a-z]{1,8}/[a-z.]{0,8}", "[0-9a-f]{64}")
            .prop_map(|(url, sha256)| (url, CopySource::Url { sha256 })),
        (target(), name(), name())
            .prop_map(|(from, image, channel)| (from, CopySource::Image { image, channel })),
    ];
    let copy = (from, target(), option::of(0u32..=0o7777), owner);
    let package = "[a-z][a-z0-9+.-]{1,10}(=[0-9][0-9.~+-]{0,6})?";
    let packages = (prop::collection::btree_set(package, 1..4), any::<bool>());
    let unit = || vec("[a-z]{1,8}(@[a-z]{1,3})?\\.(service|timer)", 0..3);
    let systemd = (
        vec("([a-z]{1,8}/)?[a-z]{1,8}\\.(service|socket)", 1..3),
        unit(),
        unit(),
        option::of("[a-z]{1,8}\\.target"),
    );
    let ansible = (
        "([a-z]{1,8}/){0,2}[a-z]{1,8}\\.yml",
        any::<bool>(),
        variables(),
        vec("[a-z]{1,8}", 0..3),
        span(1_000, 43_200_000),
        network,
        vec(secret, 0..2),
    );
    prop_oneof![
        run.prop_map(Action::Run),
        copy.prop_map(|((from, source), to, mode, owner)| Action::Copy(CopyFiles {
            from,
            to,
            mode,
            owner,
            source,
        })),
        variables().prop_map(Action::Env),
        target().prop_map(Action::Workdir),
        "[a-z][a-z-]{0,8}(:[a-z]{1,8})?".prop_map(Action::User),
        packages.prop_map(|(install, recommends)| Action::Packages(Packages {
            install: install.into_iter().collect(),
            recommends,
        })),
        systemd.prop_map(
            |(install, disable, unmask, default)| Action::Systemd(Systemd {
                install,
                disable,
                unmask,
                default,
                ..Systemd::default()
            })
        ),
        ansible.prop_map(
            |(playbook, top, variables, tags, timeout, network, secrets)| {
                Action::Ansible(Box::new(Ansible {
                    playbook,
                    folder: top.then(|| ".".to_owned()),
                    variables,
                    tags,
                    timeout,
                    network,
                    secrets,
                }))
            }
        ),
    ]
}

fn base() -> impl Strategy<Value = Base> {
    let distribution =
        prop::sample::select(RELEASES.to_vec()).prop_map(|(distribution, release, _)| {
            Base::Distribution {
                distribution,
                release: release.to_owned(),
            }
        });
    let place = prop_oneof![
        source().prop_map(FilePlace::Path),
        ("https?://[a-z]{1,8}/[a-z.]{0,8}", "[0-9a-f]{64}")
            .prop_map(|(url, sha256)| FilePlace::Url { url, sha256 }),
    ];
    let format = prop::sample::select(vec![FileFormat::Rootfs, FileFormat::Oci]);
    prop_oneof![
        3 => distribution,
        1 => (name(), name()).prop_map(|(image, channel)| Base::Image { image, channel }),
        1 => (format, place).prop_map(|(format, place)| Base::File(BaseFile { format, place })),
    ]
}

fn bake() -> impl Strategy<Value = Bake> {
    let from = base();
    let mirror = (
        "https?://[a-z]{1,8}(:[0-9]{2,4})?/[a-z]{0,8}",
        vec("[a-z-]{1,8}", 0..3),
        option::of(source()),
    )
        .prop_map(|(url, components, keyring)| Mirror {
            url,
            components,
            keyring,
        });
    let step = (option::of(text()), action()).prop_map(|(name, action)| Step {
        name,
        ..Step::new(action)
    });
    let arch = prop::sample::select(vec![Arch::Amd64, Arch::Arm64]);
    let size = option::of((256u64..=100_000).prop_map(|mib| ByteSize::from_bytes(mib << 20)));
    let packages =
        prop::collection::btree_set("[a-z][a-z0-9+.-]{1,10}(=[0-9][0-9.~+-]{0,6})?", 0..4);
    let sources = vec("deb http://[a-z]{1,8}/debian [a-z]{3,8} main", 0..3);
    (
        from,
        arch,
        option::of(mirror),
        sources,
        packages,
        size,
        variables(),
        vec(step, 0..6),
    )
        .prop_map(
            |(from, arch, mirror, sources, packages, size, env, steps)| Bake {
                engine: Engine::Disk,
                arch,
                mirror,
                sources,
                packages: match from {
                    Base::Distribution { .. } => packages.into_iter().collect(),
                    // What is made already is made of no packages.
                    Base::Image { .. } | Base::File(_) => Vec::new(),
                },
                from,
                disk: Disk { size },
                env,
                steps,
            },
        )
}

fn input() -> impl Strategy<Value = Input> {
    let value = prop_oneof![
        prop_oneof![Just(String::new()), text()].prop_map(InputValue::String),
        any::<bool>().prop_map(InputValue::Bool),
        any::<i64>().prop_map(InputValue::Number),
    ];
    let kinds = prop::sample::select(vec![InputKind::String, InputKind::Bool, InputKind::Number]);
    (option::of(value), kinds, any::<bool>(), option::of(text())).prop_map(
        |(default, kind, required, description)| {
            let kind = default.as_ref().map_or(kind, InputValue::kind);
            Input {
                kind,
                required: required && default.is_none(),
                default,
                description,
            }
        },
    )
}

fn test() -> impl Strategy<Value = Test> {
    let check = prop_oneof![
        http((1u16..).prop_map(Some).boxed()).prop_map(Check::Http),
        (1u16..).prop_map(|port| Check::Tcp { port }),
        text().prop_map(Check::Command),
        "[a-z]{1,8}(@[a-z]{1,3})?\\.(service|timer)".prop_map(Check::SystemdUnit),
        (target(), option::of(text())).prop_map(|(path, contains)| Check::File { path, contains }),
    ];
    prop_oneof![
        Just(Test::Static(StaticTest {})),
        (span(1_000, 3_600_000), vec(check, 0..4))
            .prop_map(|(timeout, checks)| Test::Boot(BootTest { timeout, checks })),
    ]
}

fn rollout() -> impl Strategy<Value = Rollout> {
    let strategy = (
        amount(1),
        amount(1),
        amount(1),
        span(0, 604_800_000),
        span(1_000, 7_200_000),
    )
        .prop_map(
            |(canary, batch, max_unavailable, soak, healthy_deadline)| RolloutStrategy {
                canary,
                batch,
                max_unavailable,
                max_surge: Amount::Count(0),
                soak,
                healthy_deadline,
            },
        );
    let gate = http(option::of(1u16..).boxed()).prop_map(Gate::Http);
    let on_failure = prop::sample::select(vec![OnFailure::Rollback, OnFailure::Pause]);
    (name(), strategy, vec(gate, 0..3), on_failure).prop_map(
        |(fleet, strategy, gates, on_failure)| Rollout {
            fleet,
            strategy,
            gates,
            on_failure,
        },
    )
}

fn trigger() -> impl Strategy<Value = Trigger> {
    let glob = || {
        "([a-z*?#]{1,5}/){0,2}(\\*\\*|[a-z.]{1,5})".prop_filter("a glob", |g| {
            g.split('/')
                .all(|part| part == "**" || !part.contains("**"))
        })
    };
    let cron = prop::sample::select(vec![
        "0 3 * * 1",
        "*/5 * * * *",
        "15 9-17/2 1,15 jan-mar mon-fri",
    ]);
    let zone = prop::sample::select(vec!["UTC", "Europe/Berlin", "Asia/Kathmandu"]);
    prop_oneof![
        (vec(glob(), 0..3), vec(glob(), 0..3))
            .prop_map(|(branches, paths)| Trigger::Git(GitTrigger { branches, paths })),
        (cron, zone).prop_map(|(cron, timezone)| {
            Trigger::Cron(CronTrigger {
                cron: cron.to_owned(),
                timezone: timezone.to_owned(),
            })
        }),
    ]
}

fn any_pipeline() -> impl Strategy<Value = Pipeline> {
    let rollouts = btree_map("[a-z]{1,8}", rollout(), 0..3).prop_map(|rollouts| {
        // One fleet gets the image once.
        rollouts
            .into_iter()
            .map(|(fleet, rollout)| Rollout {
                fleet: fleet.parse().expect("a name"),
                ..rollout
            })
            .collect::<Vec<_>>()
    });
    let regions = prop::collection::btree_set(name(), 0..3);
    let publish = (name(), name(), regions).prop_map(|(image, channel, regions)| Publish {
        image,
        channel,
        regions: regions.into_iter().collect(),
    });
    let inputs = btree_map("[a-z_][a-zA-Z0-9_-]{0,8}", input(), 0..3);
    let priority = prop::sample::select(Priority::ALL.to_vec());
    let concurrency =
        ("[a-z][a-z0-9]{0,8}", 1u32..=1_000, any::<bool>()).prop_map(|(group, max, cancel)| {
            Concurrency {
                group,
                max,
                cancel_in_progress: cancel && max == 1,
            }
        });
    (
        name(),
        name(),
        inputs,
        vec(trigger(), 0..3),
        bake(),
        vec(test(), 0..3),
        publish,
        (rollouts, option::of(priority), option::of(concurrency)),
    )
        .prop_map(
            |(
                name,
                team,
                inputs,
                triggers,
                bake,
                test,
                publish,
                (rollout, priority, concurrency),
            )| Pipeline {
                api_version: pipeline::ApiVersion::V1,
                name,
                team,
                inputs,
                triggers,
                bake,
                test,
                publish,
                rollout,
                priority,
                concurrency,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_printed_pipeline_is_read_back_as_the_same(pipeline in any_pipeline()) {
        let yaml = pipeline::file::to_yaml(&pipeline);
        let checked = pipeline::parse("oast.yaml", &yaml);
        let errors: Vec<String> = checked
            .problems
            .iter()
            .filter(|p| p.severity == document::Severity::Error)
            .map(ToString::to_string)
            .collect();
        prop_assert!(errors.is_empty(), "{errors:#?}\n{yaml}");
        let mut read = checked.value.expect("no errors, so a value");
        for step in &mut read.bake.steps {
            // A made pipeline stands in no file.
            prop_assert!(step.line > 0);
            step.line = 0;
        }
        prop_assert_eq!(read, pipeline, "{}", yaml);
    }

    #[test]
    fn a_right_pipeline_follows_the_schema(pipeline in any_pipeline()) {
        let breaches = rules::breaches(&pipeline::file::schema(), &pipeline::file::to_value(&pipeline));
        prop_assert!(breaches.is_empty(), "{breaches:#?}");
    }

    #[test]
    fn a_stored_pipeline_is_read_back_as_the_same(pipeline in any_pipeline()) {
        let bytes = rmp_serde::to_vec_named(&pipeline).expect("written");
        prop_assert_eq!(rmp_serde::from_slice::<Pipeline>(&bytes).expect("read"), pipeline);
    }

    /// Whatever stands in a file: an answer, places that lie in the text, and no value beside an error.
    #[test]
    fn no_text_is_too_strange(text in prop_oneof![
        "\\PC{0,200}",
        "[a-z:\\[\\]{}&*!|>'\"%@#,?\n\t -]{0,200}",
        any::<Vec<u8>>().prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        (any_pipeline(), any::<prop::sample::Index>(), "\\PC{0,3}", 0usize..5).prop_map(|(pipeline, at, put, cut)| {
            // A right file with something put in and something taken out.
            let yaml: Vec<char> = pipeline::file::to_yaml(&pipeline).chars().collect();
            let at = at.index(yaml.len());
            yaml[..at].iter().copied().chain(put.chars()).chain(yaml.iter().copied().skip(at + cut)).collect()
        }),
    ]) {
        let checked = pipeline::parse("oast.yaml", &text);
        let error = checked.problems.iter().any(|p| p.severity == document::Severity::Error);
        prop_assert_eq!(checked.value.is_none(), error);
        for problem in checked.problems.iter().chain(&resource::parse("farm.yaml", &text).problems) {
            let end = problem.place.offset + problem.place.length;
            prop_assert!(text.get(problem.place.offset..end).is_some(), "{problem:?}");
            prop_assert!(problem.place.line >= 1 && problem.place.column >= 1);
            prop_assert_eq!(problem.to_string().lines().count(), 1);
        }
    }
}

#[test]
fn inputs_are_filled_in_wherever_a_text_may_hold_one() {
    let file = r#"
apiVersion: oast/v1
name: web
team: demo
inputs: { v: { default: "x1" }, n: { type: number, default: 7 } }
bake:
  from: debian-12
  mirror: { url: "http://m/${{ inputs.v }}", keyring: "k/${{inputs.v}}" }
  sources: ["deb http://m/${{ inputs.v }} bookworm main"]
  packages: ["${{ inputs.v }}"]
  env: { A: "${{ inputs.v }}" }
  steps:
    - name: "build ${{ inputs.v }}"
      run: "make -j${{ inputs.n }} '$${{ kept }}'"
    - copy: { from: "a/${{ inputs.v }}", to: "/b/${{ inputs.v }}" }
    - env: { B: "${{ inputs.v }}-${{ inputs.n }}" }
    - workdir: "/w/${{ inputs.v }}"
    - run: { script: "s/${{ inputs.v }}", args: ["${{ inputs.v }}", "-${{ inputs.n }}"] }
    - copy: { url: "https://h/${{ inputs.v }}", sha256: 0000000000000000000000000000000000000000000000000000000000000000, to: "/b/${{ inputs.v }}" }
    - copy: { image: tools, channel: stable, from: "/a/${{ inputs.v }}", to: /b }
    - packages: ["${{ inputs.v }}"]
    - systemd: { install: ["u/${{ inputs.v }}.service"], enable: ["${{ inputs.v }}.service"], disable: ["${{ inputs.v }}-a.service"], mask: ["${{ inputs.v }}-b.service"], unmask: ["${{ inputs.v }}-c.service"], default: "${{ inputs.v }}.target" }
    - ansible: { playbook: "p/${{ inputs.v }}.yml", folder: "p", variables: { V: "${{ inputs.v }}" } }
test:
  - boot:
      checks:
        - http: { port: 80, path: "/${{ inputs.v }}", contains: "${{ inputs.v }}" }
        - command: "test ${{ inputs.n }} = 7"
        - systemdUnit: "${{ inputs.v }}.service"
        - file: { path: "/${{ inputs.v }}", contains: "${{ inputs.v }}" }
publish: { image: web, channel: c }
rollout:
  - fleet: f
    gates: [{ http: { path: "/${{ inputs.v }}", contains: "${{ inputs.v }}" } }]
"#;
    let checked = pipeline::parse("oast.yaml", file);
    assert_eq!(checked.problems, []);
    let pipeline = checked.value.expect("right");
    let resolved = pipeline::resolve(&pipeline, &BTreeMap::new()).expect("defaults");
    let resolved = pipeline::file::to_yaml(&resolved);
    // Everything that was a place for an input has been filled in; only the escaped one reads `${{` now.
    assert_eq!(resolved.matches("${{").count(), 1, "{resolved}");
    assert!(resolved.contains("make -j7 '${{ kept }}'"), "{resolved}");
    assert!(resolved.contains("B: x1-7"), "{resolved}");

    let given = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let refused = |name: &str, value: &str| {
        let errors = pipeline::resolve(&pipeline, &given(name, value)).expect_err("refused");
        errors.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        refused("n", "seven"),
        [r#"the input `n` takes a number, not "seven""#]
    );
    assert_eq!(refused("w", "x"), ["the pipeline has no input `w`"]);
    // A value cannot make a good text a bad one, and each place is named.
    let escapes = refused("v", "../../etc");
    assert!(
        escapes.contains(
            &"at bake.steps[1].copy.from: `a/../../etc` leaves the repository by `..`".to_owned()
        ),
        "{escapes:#?}"
    );
    assert!(
        escapes
            .iter()
            .any(|e| e.starts_with("at bake.packages[0]: `../../etc` is not a package name"))
    );
    // A value is a value: it is not read for inputs again.
    let literal = pipeline::resolve(&pipeline, &given("n", "3")).expect("a number");
    assert_eq!(literal.bake.env["A"], "x1");
}

#[test]
fn a_required_input_must_be_given() {
    let file = "{apiVersion: oast/v1, name: a, team: b, inputs: {v: {required: true, description: the version}}, \
                bake: {from: debian-12}, publish: {image: a, channel: c}}";
    let pipeline = pipeline::parse("oast.yaml", file).value.expect("right");
    let errors = pipeline::resolve(&pipeline, &BTreeMap::new()).expect_err("missing");
    assert_eq!(
        errors[0].to_string(),
        "the input `v` is required (the version): give --input v=..."
    );
}

/// 20,000 steps is the limit. What is bounded is work, counted by size: twice the steps, about twice the time.
#[test]
fn a_file_of_20000_steps_is_read_in_bounded_time() {
    let file = |steps: usize| {
        let mut text = "apiVersion: oast/v1\nname: web\nteam: demo\npublish: { image: web, channel: c }\nbake:\n  \
                        from: debian-12\n  steps:\n"
            .to_owned();
        for step in 0..steps {
            writeln!(text, "    - run: echo {step}").expect("a String takes everything");
        }
        text
    };
    #[expect(clippy::disallowed_methods, reason = "this measures real time")]
    let now = std::time::Instant::now;
    let start = now();
    let checked = pipeline::parse("oast.yaml", &file(20_000));
    let took = start.elapsed();
    assert_eq!(checked.value.expect("right").bake.steps.len(), 20_000);
    assert!(took.as_secs() < 20, "{took:?}");
    // And as many mistakes: the list stops, the time stays.
    let start = now();
    let bad = file(20_000).replace("- run", "- rnu");
    assert!(pipeline::parse("oast.yaml", &bad).problems.len() <= document::reader::PROBLEMS_MAX);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    let one_more = pipeline::parse("oast.yaml", &file(20_001));
    assert!(one_more.value.is_none());
}

/// Each alias stands for ten of the one before: ten to the ninth values in 400 bytes.
#[test]
fn aliases_cannot_grow_without_bound() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let list = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(text, "a{level}: &a{level} [{list}]").expect("a String takes everything");
    }
    let checked = pipeline::parse("oast.yaml", &text);
    assert!(
        checked
            .problems
            .iter()
            .any(|p| p.code == document::Code::TooLarge),
        "{:?}",
        checked.problems
    );
    let deep = "[".repeat(100_000);
    assert!(pipeline::parse("oast.yaml", &deep).value.is_none());
    let deep = format!("{}x", "- ".repeat(5_000));
    assert!(pipeline::parse("oast.yaml", &deep).value.is_none());
}
