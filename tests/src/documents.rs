//! What people of a scenario write, where it does not matter what: a team and a pipeline of its.

/// A team.
pub const TEAM: &str = "apiVersion: oast/v1\nkind: Team\nname: demo\nspec:\n  description: first\n";

/// A pipeline whose image is hardly more than a system.
pub const PIPELINE: &str = r#"apiVersion: oast/v1
name: web
team: demo
triggers:
  - git: { branches: [main] }
bake:
  from: debian-12
  steps:
    - run: "true"
publish: { image: web, channel: candidate }
"#;
