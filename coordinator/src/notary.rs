//! Vouches for images: makes the statement of where one came from, and signs it with the farm's key.
//!
//! ```text
//! worker reports a bake -> what the ledger knows of it (pure, [`case`]) -> statement -> signature -> artifact store
//! ```
//!
//! A member signs and no worker does, because workers run what people bring (docs/decisions/0020). What the ledger knows
//! first-hand (run, commit, pipeline, lease, layers) is stated as such; the digests of the results are what the holder of the lease
//! reported. The same bake gives the same bytes, so a leader that signs it once more makes nothing new.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oast_artifacts::{ArtifactStore, Digest, StoreError};
use oast_attest::dsse;
use oast_attest::hash::sha256;
use oast_attest::key::{KeyError, PublicKey, SigningKey};
use oast_attest::provenance::{
    Builder, CYCLONEDX, DISK, Descriptor, Details, Metadata, SPDX, Statement,
};
use oast_daemon::random;
use oast_daemon::secret::{Secret, redact};
use oast_model::bake::{BakedImage, ENGINE_VERSION, Layer};
use oast_model::codec;
use oast_model::ids::Token;
use oast_model::ledger::Ledger;
use oast_model::names::WorkerName;
use oast_model::task::{Origin, TaskOwner};
use serde::Deserialize;
use serde_json::{Value, json};

/// The key's file in the folder of secrets. Teams' names have no dot, so it is nobody's secret.
pub const KEY_FILE: &str = "farm-signing.pem";
/// The cluster version from which on images have bills of material and provenance.
pub const SINCE: u32 = 2;
/// Algorithm of an address in the artifact store: blake3 of the list of a blob's chunks.
const ADDRESS: &str = "oastBlob";
/// Largest bill of material.
pub const BILL_MAX: u64 = 64 << 20;
/// A layer's record is a few short fields.
const RECORD_MAX: u64 = 64 << 10;

/// The farm's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NotaryError {
    /// Not read.
    #[error("read the signing key {}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        #[source]
        err: io::Error,
    },
    /// Not made.
    #[error("make the signing key {}", path.display())]
    Make {
        /// Where.
        path: PathBuf,
        #[source]
        err: io::Error,
    },
    /// Something else.
    #[error("use {} as the signing key", path.display())]
    Key {
        /// Where.
        path: PathBuf,
        #[source]
        err: KeyError,
    },
}

/// An image that cannot be vouched for.
#[derive(Debug, thiserror::Error)]
pub enum VouchError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer's record is something else.
    #[error("layer {0} of the image has no record that can be read")]
    Layer(Digest),
}

/// Holds the farm's key. Clones share it.
#[derive(Clone, Debug)]
pub struct Notary {
    key: Arc<SigningKey>,
    store: ArtifactStore,
}

impl Notary {
    /// Reads the key that the operator gave; else the one in the members' folder of secrets, which the first member
    /// makes.
    ///
    /// # Errors
    /// [`NotaryError`]. A given file is never made: members that each made one would sign as different farms.
    pub fn open(
        given: Option<&Path>,
        secrets: &Path,
        store: ArtifactStore,
    ) -> Result<Notary, NotaryError> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => {
                let path = secrets.join(KEY_FILE);
                if !path.exists() {
                    make(&path)?;
                }
                path
            }
        };
        let text = fs::read_to_string(&path).map_err(|err| NotaryError::Read {
            path: path.clone(),
            err,
        })?;
        let text = Secret::new(text);
        let key = SigningKey::read(text.expose()).map_err(|err| NotaryError::Key { path, err })?;
        Ok(Notary {
            key: Arc::new(key),
            store,
        })
    }

    /// The key that judges.
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Signs and stores the statement of an image; its address. Blocks.
    ///
    /// # Errors
    /// [`VouchError`].
    pub fn vouch(&self, case: Case, image: &BakedImage) -> Result<Digest, VouchError> {
        let mut subject = vec![Descriptor::new(DISK, "blake3", image.disk_digest)];
        if let Some(bills) = image.bills {
            for (name, blob) in [(CYCLONEDX, bills.cyclonedx), (SPDX, bills.spdx)] {
                let bytes = self.store.read_blob(blob, BILL_MAX)?;
                subject.push(Descriptor::new(name, "sha256", sha256(&bytes)));
            }
        }
        let mut dependencies = case.dependencies;
        for (place, (address, known)) in (1..).zip(case.layers) {
            dependencies.push(self.layer(place, address, known)?);
        }
        let statement = Statement::new(
            subject,
            case.external,
            case.internal,
            dependencies,
            case.details,
        );
        let envelope = dsse::sign(&self.key, &statement.to_json());
        Ok(self.store.put_bytes(&envelope.to_json())?.blob)
    }

    fn layer(
        &self,
        place: usize,
        address: Digest,
        known: Option<Layer>,
    ) -> Result<Descriptor, VouchError> {
        let bytes = self.store.read_blob(address, RECORD_MAX)?;
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|_| VouchError::Layer(address))?;
        let title = known.as_ref().map(|layer| layer.title.as_str());
        let mut layer = Descriptor::new(
            &format!("layer {place}: {}", title.unwrap_or("of unknown title")),
            ADDRESS,
            address,
        );
        layer.uri = format!("oast://layer/{}", record.key);
        if !record.inputs.is_empty() {
            layer
                .annotations
                .insert("inputs".to_owned(), json!(record.inputs));
        }
        if let Some(known) = known {
            layer
                .annotations
                .insert("worker".to_owned(), known.worker.as_str().into());
        }
        Ok(layer)
    }
}

/// What is read here of a layer's record.
#[derive(Deserialize)]
struct Record {
    key: Digest,
    #[serde(default)]
    inputs: BTreeMap<String, String>,
}

/// What the ledger knows of a bake.
#[derive(Debug)]
pub struct Case {
    external: BTreeMap<String, Value>,
    internal: BTreeMap<String, Value>,
    dependencies: Vec<Descriptor>,
    /// Addresses of the image's layers, the base first, with their records.
    layers: Vec<(Digest, Option<Layer>)>,
    details: Details,
}

/// Collects what the ledger knows of the bake under a lease; none when there is no such lease of that worker, and so nothing that
/// could be published.
pub fn case(
    ledger: &Ledger,
    token: Token,
    worker: &WorkerName,
    image: &BakedImage,
) -> Option<Case> {
    let lease = ledger
        .leases()
        .get(&token)
        .filter(|lease| lease.worker == *worker)?;
    let task = ledger.tasks().get(&lease.task)?;
    let TaskOwner::Run(id) = task.owner else {
        return None;
    };
    let run = ledger.runs().get(&id)?;
    let farm = &ledger.farm().name;

    let mut external: BTreeMap<String, Value> = BTreeMap::new();
    let mut dependencies = Vec::new();
    match &run.origin {
        Origin::Git {
            url,
            branch,
            commit,
            ..
        } => {
            let url = redact(url).into_owned();
            let mut source = Descriptor::new("source", "gitCommit", commit);
            source.uri = format!("git+{url}@refs/heads/{branch}");
            dependencies.push(source);
            external.insert("repository".to_owned(), url.into());
            external.insert("branch".to_owned(), branch.as_str().into());
            external.insert("commit".to_owned(), commit.as_str().into());
        }
        Origin::Upload { commit, dirty, .. } => {
            external.insert("upload".to_owned(), true.into());
            external.insert("commit".to_owned(), json!(commit));
            external.insert("dirty".to_owned(), (*dirty).into());
        }
    }
    external.insert("path".to_owned(), run.path.as_str().into());
    external.insert("inputs".to_owned(), json!(run.inputs));
    if let Some(tree) = run.tree {
        dependencies.push(Descriptor::new("tree", ADDRESS, tree));
    }
    if let Some(pipeline) = &run.pipeline {
        let revision = Digest::of(&codec::encode(pipeline));
        external.insert("image".to_owned(), pipeline.publish.image.as_str().into());
        external.insert("base".to_owned(), image.base.as_str().into());
        external.insert("arch".to_owned(), image.arch.as_str().into());
        dependencies.push(Descriptor::new("pipeline", "blake3", revision));
    }
    let internal = [
        ("team", json!(run.team.as_str())),
        ("worker", json!(worker.as_str())),
        ("incarnation", json!(lease.incarnation)),
        ("engine", json!(ENGINE_VERSION)),
        ("startedBy", json!(run.started_by)),
        ("cause", json!(run.cause)),
    ];
    let layers = image.layers.iter().map(|address| {
        let mut finished = task.finished_layers();
        (
            *address,
            finished.find(|layer| layer.manifest == *address).cloned(),
        )
    });
    let granted = task.attempts.iter().find(|attempt| attempt.token == token);
    Some(Case {
        external,
        internal: internal
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        dependencies,
        layers: layers.collect(),
        details: Details {
            builder: Builder {
                id: format!("oast://{farm}"),
                version: [("oast".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
            },
            metadata: Metadata {
                invocation_id: format!("oast://{farm}/{id}/{}/{token}", task.id),
                started_on: granted.map(|attempt| attempt.granted_at.to_string()),
            },
        },
    })
}

/// Makes a key, unless another member was first.
fn make(path: &Path) -> Result<(), NotaryError> {
    let text = SigningKey::generate().map_err(|err| NotaryError::Key {
        path: path.into(),
        err,
    })?;
    let text = Secret::new(text);
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let draft = folder.join(format!(".{KEY_FILE}-{:016x}", random::number()));
    let write = || {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(text.expose().as_bytes())?;
        file.sync_all()?;
        // A link never replaces: all members use the key of the one that was first.
        match fs::hard_link(&draft, path) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            _ => {}
        }
        fs::File::open(folder)?.sync_all()
    };
    let made = write();
    // Best effort: a draft is as well kept as the key.
    let _ = fs::remove_file(&draft);
    made.map_err(|err| NotaryError::Make {
        path: path.into(),
        err,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn store(folder: &Path) -> ArtifactStore {
        ArtifactStore::open(camino::Utf8Path::from_path(folder).expect("text")).expect("a store")
    }

    #[test]
    fn members_that_start_together_share_one_key_that_only_they_can_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let secrets = folder.path().join("secrets");
        let keys: Vec<String> = std::thread::scope(|scope| {
            let start = || {
                let notary = Notary::open(None, &secrets, store(folder.path()));
                notary.expect("a key").public().id()
            };
            let members: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            members
                .into_iter()
                .map(|member| member.join().expect("no panic"))
                .collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
        let left: Vec<_> = fs::read_dir(&secrets)
            .expect("a folder")
            .flatten()
            .collect();
        assert_eq!(left.len(), 1, "{left:?}");
        let mode = left[0].metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// The statement names the disk, the bills by their own hash and each layer with what entered its key; signed once more it
    /// is the same document.
    #[test]
    fn what_is_signed_names_the_results_and_every_layer() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path());
        let notary = Notary::open(None, &folder.path().join("s"), store.clone()).expect("a key");
        let put = |bytes: &[u8]| store.put_bytes(bytes).expect("stored").blob;
        let key = Digest::of(b"key");
        let record = json!({"key": key, "index": key, "inputs": {"packageIndices": "00ff"}});
        let layer = put(record.to_string().as_bytes());
        let image = BakedImage {
            base: "debian-12".into(),
            arch: oast_model::pipeline::Arch::Amd64,
            layers: vec![layer],
            disk: Digest::of(b"address"),
            disk_size: 1,
            disk_digest: Digest::of(b"disk"),
            packages: Digest::of(b"packages"),
            package_count: 1,
            bills: Some(oast_model::bake::Bills {
                cyclonedx: put(b"cyclonedx"),
                spdx: put(b"spdx"),
            }),
            provenance: None,
        };
        let case = |layers| Case {
            external: BTreeMap::new(),
            internal: BTreeMap::new(),
            dependencies: vec![Descriptor::new("source", "gitCommit", "ab")],
            layers,
            details: Details {
                builder: Builder {
                    id: "oast://acme".into(),
                    version: BTreeMap::new(),
                },
                metadata: Metadata::default(),
            },
        };
        let vouch = |layers| notary.vouch(case(layers), &image);
        let address = vouch(vec![(layer, None)]).expect("signed");
        assert_eq!(vouch(vec![(layer, None)]).expect("signed"), address);
        let envelope = store.read_blob(address, BILL_MAX).expect("stored");
        let proof = oast_attest::verify::verify(oast_attest::verify::Evidence {
            envelope: &envelope,
            key: &notary.public(),
            disk: Some(&Digest::of(b"disk").to_string()),
            bills: &[(CYCLONEDX, b"cyclonedx"), (SPDX, b"spdx")],
        });
        let statement = proof.expect("all of it holds").statement;
        let inputs = &statement.predicate.build_definition.resolved_dependencies;
        assert_eq!(inputs.len(), 2);
        assert_eq!(inputs[1].uri, format!("oast://layer/{key}"));
        assert_eq!(inputs[1].annotations["inputs"]["packageIndices"], "00ff");

        let foreign = put(b"no record");
        assert!(matches!(
            vouch(vec![(foreign, None)]),
            Err(VouchError::Layer(_))
        ));
        assert!(matches!(
            vouch(vec![(Digest::of(b"gone"), None)]),
            Err(VouchError::Store(_))
        ));
    }

    #[test]
    fn a_key_that_was_given_is_used_and_never_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let given = folder.path().join("mine.pem");
        let open = || Notary::open(Some(&given), folder.path(), store(folder.path()));
        assert!(matches!(open(), Err(NotaryError::Read { .. })));
        assert!(!given.exists());
        let text = SigningKey::generate().expect("random bytes");
        fs::write(&given, &text).expect("written");
        let key = SigningKey::read(&text).expect("a key");
        assert_eq!(open().expect("good").public(), key.public());
        fs::write(&given, "nothing").expect("written");
        assert!(matches!(open(), Err(NotaryError::Key { .. })));
    }
}
