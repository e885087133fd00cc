//! What stands in `examples/` must be right: people start from it.

use std::path::Path;

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_web_pipeline_is_right() {
    let checked = oast_model::pipeline::parse("oast.yaml", &example("web/oast.yaml"));
    assert_eq!(checked.problems, []);
    let pipeline = checked.value.expect("a pipeline without problems");
    let copied = pipeline
        .bake
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            oast_model::pipeline::Action::Copy(copy) => Some(copy.from.clone()),
            _ => None,
        });
    for from in copied {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples/web")
            .join(&from);
        assert!(path.exists(), "{from} is copied and must be there");
    }
}

#[test]
fn the_golden_image_is_right() {
    let checked = oast_model::pipeline::parse("oast.yaml", &example("golden/oast.yaml"));
    assert_eq!(checked.problems, []);
    let pipeline = checked.value.expect("a pipeline without problems");
    for step in &pipeline.bake.steps {
        for source in step.action.sources() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../examples/golden")
                .join(source);
            assert!(path.exists(), "{source} is needed and must be there");
        }
    }
    let checked =
        oast_model::pipeline::parse_policies("policies.yaml", &example("golden/policies.yaml"));
    assert_eq!(checked.problems, []);
    let policies = checked.value.expect("policies without problems");
    let own = pipeline.bake.steps.len();
    let mut sealed = pipeline;
    oast_model::pipeline::policy::inject(&mut sealed, &policies);
    assert_eq!(sealed.bake.steps.len(), own + 1);
    assert_eq!(
        sealed.bake.steps[own].title(),
        "policy no-root-password: no password for root"
    );
}

#[test]
fn the_web_farm_is_right() {
    let checked = oast_model::resource::parse("farm.yaml", &example("web/farm.yaml"));
    assert_eq!(checked.problems, []);
    assert_eq!(checked.value.map(|resources| resources.len()), Some(2));
}
