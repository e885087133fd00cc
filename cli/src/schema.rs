//! `oast schema`: the JSON Schemas by which editors complete and check files.

use std::io::Write;

use oast_daemon::exit::Exit;

/// Print the JSON Schema of a kind of file
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The kind of file
    #[arg(value_enum, default_value_t = Kind::Pipeline)]
    kind: Kind,
}

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// oast.yaml
    Pipeline,
    /// What `oast apply` takes.
    Resource,
    /// Steps that an operator puts into every pipeline.
    Policy,
}

impl Kind {
    /// The schema as a text that ends its last line.
    pub fn text(self) -> String {
        let schema = match self {
            Self::Pipeline => oast_model::pipeline::file::schema(),
            Self::Resource => oast_model::resource::file::schema(),
            Self::Policy => oast_model::pipeline::file::policy_schema(),
        };
        format!("{schema:#}\n")
    }
}

/// Prints the schema.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    anstream::stdout()
        .lock()
        .write_all(args.kind.text().as_bytes())?;
    Ok(Exit::Ok)
}
