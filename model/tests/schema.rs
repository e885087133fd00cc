//! The committed JSON Schemas are those of the program, and agree with its own checks.
//!
//! `OAST_UPDATE_GOLDEN=1 cargo test -p oast-model --test schema` writes them anew.

use std::path::{Path, PathBuf};

use serde_json::Value;

#[path = "schema/rules.rs"]
mod rules;

fn committed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/schema")
        .join(name)
}

#[track_caller]
fn same_as_committed(name: &str, schema: &Value) {
    let text = format!("{schema:#}\n");
    if updating() {
        std::fs::write(committed(name), &text).expect("write the schema");
    }
    let stored = std::fs::read_to_string(committed(name)).unwrap_or_default();
    assert!(
        stored == text,
        "docs/schema/{name} is not what the program prints: set OAST_UPDATE_GOLDEN=1"
    );
}

#[test]
fn the_committed_schemas_are_those_of_the_program() {
    same_as_committed("pipeline.v1.json", &oast_model::pipeline::file::schema());
    same_as_committed(
        "policy.v1.json",
        &oast_model::pipeline::file::policy_schema(),
    );
    same_as_committed("resource.v1.json", &oast_model::resource::file::schema());
}

#[test]
fn the_examples_follow_the_schemas() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples/web")
            .join(name);
        std::fs::read_to_string(path).expect(name)
    };
    let schema = oast_model::pipeline::file::schema();
    for document in rules::documents(&read("oast.yaml")) {
        assert_eq!(rules::breaches(&schema, &document), Vec::<String>::new());
    }
    let schema = oast_model::resource::file::schema();
    for document in rules::documents(&read("farm.yaml")) {
        assert_eq!(rules::breaches(&schema, &document), Vec::<String>::new());
    }
}

#[test]
fn the_schema_refuses_what_an_editor_should_underline() {
    let schema = oast_model::pipeline::file::schema();
    let good = "{apiVersion: oast/v1, name: a, team: b, bake: {from: debian-12}, publish: {image: a, channel: c}}";
    let documents = rules::documents(good);
    assert_eq!(
        rules::breaches(&schema, &documents[0]),
        Vec::<String>::new()
    );
    for (from, to) in [
        ("name: a", "nmae: a"),
        ("name: a", "name: A"),
        ("oast/v1", "oast/v2"),
        ("debian-12", "debian-11"),
        (
            "{from: debian-12}",
            "{from: debian-12, steps: [{run: a, copy: {from: b, to: /c}}]}",
        ),
        ("{from: debian-12}", "{from: debian-12, steps: [{}]}"),
        ("{from: debian-12}", "{from: debian-12, disk: {size: 4GB}}"),
        ("team: b", "team: b, triggers: [{git: {}, cron: {cron: x}}]"),
        ("team: b", "team: b, triggers: [{}]"),
        (
            "team: b",
            "team: b, rollout: [{fleet: f, strategy: {canary: 0%}}]",
        ),
        (
            "team: b",
            "team: b, rollout: [{fleet: f, strategy: {soak: 30}}]",
        ),
    ] {
        let bad = good.replace(from, to);
        let documents = rules::documents(&bad);
        assert!(!rules::breaches(&schema, &documents[0]).is_empty(), "{bad}");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a switch for whoever runs the test"
)]
fn updating() -> bool {
    std::env::var_os("OAST_UPDATE_GOLDEN").is_some()
}
