//! Where an image came from: SLSA provenance v1 in an in-toto statement v1.
//!
//! The field names are the specifications'. What `buildType` means here stands in docs/provenance.md.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// The kind of build that [`Statement::new`] describes.
pub const BUILD_TYPE: &str = "oast://build/disk/v1";
/// Name of the subject that is the raw disk.
pub const DISK: &str = "disk.raw";
/// Names of the subjects that are the bills of material.
pub const CYCLONEDX: &str = "sbom.cdx.json";
/// See [`CYCLONEDX`].
pub const SPDX: &str = "sbom.spdx.json";

/// Digests by algorithm, in hexadecimal.
pub type Digests = BTreeMap<String, String>;

/// One thing with its digests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What people call it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where it is from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uri: String,
    /// What its bytes are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digest: Digests,
    /// What else is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, Value>,
}

impl Descriptor {
    /// Something with one digest.
    pub fn new(name: &str, algorithm: &str, digest: impl ToString) -> Descriptor {
        Descriptor {
            name: name.to_owned(),
            digest: [(algorithm.to_owned(), digest.to_string())].into(),
            ..Descriptor::default()
        }
    }
}

/// What is claimed of the subjects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    /// What came out: the disk and its bills of material.
    pub subject: Vec<Descriptor>,
    predicate_type: String,
    /// How.
    pub predicate: Predicate,
}

/// SLSA's provenance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Predicate {
    /// What went in.
    pub build_definition: Definition,
    /// What happened.
    pub run_details: Details,
}

/// What went in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Definition {
    build_type: String,
    /// What whoever asked for the bake decided: repository, commit, pipeline, inputs.
    pub external_parameters: BTreeMap<String, Value>,
    /// What the farm decided: worker, engine, trust.
    #[serde(default)]
    pub internal_parameters: BTreeMap<String, Value>,
    /// Every input with its digest, the layers among them.
    #[serde(default)]
    pub resolved_dependencies: Vec<Descriptor>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// Who vouches for it.
    pub builder: Builder,
    /// Which run it was.
    #[serde(default)]
    pub metadata: Metadata,
}

/// Who vouches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    /// `oast://FARM`.
    pub id: String,
    /// Versions of its parts.
    #[serde(default)]
    pub version: BTreeMap<String, String>,
}

/// Which run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Run, task and lease.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub invocation_id: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_on: Option<String>,
}

/// A payload says something else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// No statement.
    #[error("what was signed is no in-toto statement: {0}")]
    Form(String),
    /// A statement of another kind.
    #[error("what was signed is {0}, not SLSA provenance v1 of a disk")]
    Kind(String),
}

impl Statement {
    /// States that `subject` came of such a build.
    pub fn new(
        subject: Vec<Descriptor>,
        external_parameters: BTreeMap<String, Value>,
        internal_parameters: BTreeMap<String, Value>,
        resolved_dependencies: Vec<Descriptor>,
        run_details: Details,
    ) -> Statement {
        Statement {
            kind: STATEMENT.to_owned(),
            subject,
            predicate_type: PREDICATE.to_owned(),
            predicate: Predicate {
                build_definition: Definition {
                    build_type: BUILD_TYPE.to_owned(),
                    external_parameters,
                    internal_parameters,
                    resolved_dependencies,
                },
                run_details,
            },
        }
    }

    /// The bytes that are signed.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a statement has text keys only")
    }

    /// Reads what was signed.
    ///
    /// # Errors
    /// [`StatementError`].
    pub fn read(payload: &[u8]) -> Result<Statement, StatementError> {
        let statement: Statement =
            serde_json::from_slice(payload).map_err(|err| StatementError::Form(err.to_string()))?;
        let build = &statement.predicate.build_definition.build_type;
        for (is, wanted) in [
            (&statement.kind, STATEMENT),
            (&statement.predicate_type, PREDICATE),
            (build, BUILD_TYPE),
        ] {
            if is != wanted {
                return Err(StatementError::Kind(is.clone()));
            }
        }
        Ok(statement)
    }

    /// A digest of a subject.
    pub fn digest(&self, name: &str, algorithm: &str) -> Option<&str> {
        let subject = self.subject.iter().find(|subject| subject.name == name)?;
        subject.digest.get(algorithm).map(String::as_str)
    }
}
