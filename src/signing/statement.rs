//! The in-toto statement: which files there are, and their digests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::files::Resource;
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://model_signing/signature/v1.0";
/// What is not part of a model that lies in a repository.
pub(super) const GIT: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

#[derive(Serialize, Deserialize)]
struct Statement {
    _type: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Described>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tlkit: Option<Own>,
}

#[derive(Serialize, Deserialize)]
struct Serialization {
    method: String,
    #[serde(default)]
    hash_type: String,
    #[serde(default)]
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Described {
    name: String,
    algorithm: String,
    digest: String,
}

/// What is ours.
#[derive(Serialize, Deserialize)]
struct Own {
    name: String,
}

/// What a statement says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// Of the file or folder; no part of what is compared.
    pub(super) model: String,
    /// The files.
    pub(super) resources: Vec<Resource>,
    /// Paths in the folder that are not looked at.
    pub(super) ignored: Vec<String>,
    /// Under which name of a store an adapter goes.
    pub(super) name: Option<String>,
}

/// One digest of all: of the digests one after the other.
fn total(resources: &[Resource]) -> Digest {
    let mut hasher = Hasher::default();
    for resource in resources {
        hasher.update(resource.digest.as_bytes());
    }
    hasher.finish()
}

impl Said {
    /// The statement as JSON.
    ///
    /// # Errors
    /// [`Code::BundleInvalid`] where there is no JSON of it.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let statement = Statement {
            _type: STATEMENT.to_owned(),
            subject: vec![Subject {
                name: self.model.clone(),
                digest: BTreeMap::from([("sha256".to_owned(), total(&self.resources).hex())]),
            }],
            predicate_type: PREDICATE.to_owned(),
            predicate: Predicate {
                serialization: Serialization {
                    method: "files".to_owned(),
                    hash_type: "sha256".to_owned(),
                    allow_symlinks: false,
                    ignore_paths: self.ignored.clone(),
                },
                resources: self.resources.iter().map(described).collect(),
                tlkit: self.name.clone().map(|name| Own { name }),
            },
        };
        serde_json::to_vec(&statement).map_err(|e| invalid(format!("no JSON: {e}")).cause(e))
    }

    /// What a statement says.
    ///
    /// # Errors
    /// [`Code::BundleInvalid`].
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let s: Statement = serde_json::from_slice(json)
            .map_err(|e| invalid(format!("not a statement: {e}")).cause(e))?;
        if s._type != STATEMENT || s.predicate_type != PREDICATE {
            return Err(invalid(format!(
                "a statement of type `{}`",
                s.predicate_type
            )));
        }
        let how = &s.predicate.serialization;
        if how.method != "files" || !matches!(how.hash_type.as_str(), "" | "sha256") {
            let what = format!("files by `{}` and `{}`", how.method, how.hash_type);
            return Err(invalid(what).hint("sign whole files, with SHA-256"));
        }
        let resources = s.predicate.resources.iter().map(|r| {
            let digest = r.digest.parse().ok().filter(|_| r.algorithm == "sha256");
            let digest = digest.ok_or_else(|| invalid(format!("`{}` has no SHA-256", r.name)))?;
            let name = r.name.clone();
            Ok(Resource { name, digest })
        });
        let resources: Vec<Resource> = resources.collect::<Result<_>>()?;
        let [subject] = s.subject.as_slice() else {
            return Err(invalid(format!("{} subjects", s.subject.len())));
        };
        if subject.digest.get("sha256") != Some(&total(&resources).hex()) {
            return Err(invalid("its digest is not that of its files".to_owned()));
        }
        Ok(Self {
            model: subject.name.clone(),
            resources,
            ignored: how.ignore_paths.clone(),
            name: s.predicate.tlkit.map(|own| own.name),
        })
    }
}

fn described(resource: &Resource) -> Described {
    Described {
        name: resource.name.clone(),
        algorithm: "sha256".to_owned(),
        digest: resource.digest.hex(),
    }
}

pub(super) fn invalid(message: String) -> Error {
    Error::new(Code::BundleInvalid, message)
}
