//! An artefact's manifest and config, as ModelPack has them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Code, Error, Result};

/// Longest manifest; registries take no longer ones.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Most layers of an artefact that is pulled.
pub const MAX_LAYERS: usize = 4096;
/// Most bytes of an artefact's layers together.
pub const MAX_ARTIFACT_BYTES: u64 = 64 << 30;
const MAX_PATH_BYTES: usize = 512;
const MAX_PATH_PARTS: usize = 8;

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const ARTIFACT_TYPE: &str = "application/vnd.cncf.model.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.cncf.model.config.v1+json";
const FILEPATH: &str = "org.cncf.model.filepath";

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// Weights.
    Weights,
    /// What goes with the weights: a config, a tokenizer.
    Config,
    /// A document.
    Document,
}

impl LayerKind {
    const ALL: [Self; 3] = [Self::Weights, Self::Config, Self::Document];

    fn media_type(self) -> &'static str {
        match self {
            Self::Weights => "application/vnd.cncf.model.weight.v1.raw",
            Self::Config => "application/vnd.cncf.model.weight.config.v1.raw",
            Self::Document => "application/vnd.cncf.model.doc.v1.raw",
        }
    }
}

/// One file of an artefact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its path in the artefact: relative, of plain names, with `/`.
    pub path: String,
    /// What it is.
    pub kind: LayerKind,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// How many there are.
    pub bytes: u64,
}

/// An artefact: its files, and what is said about them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Artifact {
    /// The files, in a fixed order.
    pub layers: Vec<Layer>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// What kind of files the weights are (`config.format` of ModelPack).
    pub format: Option<String>,
    /// How many parameters, in ModelPack's spelling (`config.paramSize`).
    pub parameters: Option<String>,
    /// The numbers' type (`config.precision`).
    pub precision: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// ModelPack's `config.v1+json`. Without times, so that the same adapter is the same artefact.
#[derive(Serialize)]
struct Config<'a> {
    descriptor: BTreeMap<&'a str, &'a str>,
    config: BTreeMap<&'a str, &'a str>,
    modelfs: ModelFs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelFs {
    r#type: &'static str,
    diff_ids: Vec<String>,
}

impl Artifact {
    /// The bytes of the config and of the manifest that names it; the same for the same artefact.
    ///
    /// # Errors
    /// [`Code::ArtifactInvalid`] for what [`parse`](Self::parse) would refuse.
    pub fn encode(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        self.check()?;
        let no_json = |e: serde_json::Error| invalid(format!("no JSON: {e}")).cause(e);
        let fields = [
            ("format", &self.format),
            ("paramSize", &self.parameters),
            ("precision", &self.precision),
        ];
        let config = serde_json::to_vec(&Config {
            descriptor: BTreeMap::new(),
            config: fields
                .iter()
                .filter_map(|(name, value)| Some((*name, value.as_deref()?)))
                .collect(),
            modelfs: ModelFs {
                r#type: "layers",
                diff_ids: self.layers.iter().map(|l| l.digest.to_string()).collect(),
            },
        })
        .map_err(no_json)?;
        let manifest = serde_json::to_vec(&Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST_TYPE.to_owned()),
            artifact_type: Some(ARTIFACT_TYPE.to_owned()),
            config: Descriptor {
                media_type: CONFIG_TYPE.to_owned(),
                digest: Digest::of(&config).to_string(),
                size: config.len() as u64,
                annotations: BTreeMap::new(),
            },
            layers: self.layers.iter().map(Layer::descriptor).collect(),
            annotations: self.annotations.clone(),
        })
        .map_err(no_json)?;
        Ok((config, manifest))
    }

    /// An artefact by its manifest. The config is not looked at.
    ///
    /// # Errors
    /// [`Code::ArtifactInvalid`] for anything but a ModelPack manifest whose layers are files as they
    /// are, each with a path of its own that stays below a folder, in [`MAX_LAYERS`] and
    /// [`MAX_ARTIFACT_BYTES`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let manifest: Manifest = serde_json::from_slice(bytes)
            .map_err(|e| invalid(format!("not the manifest of an artefact: {e}")).cause(e))?;
        let kind = manifest.artifact_type.as_deref();
        if manifest.schema_version != 2
            || kind.unwrap_or(&manifest.config.media_type) != ARTIFACT_TYPE
                && manifest.config.media_type != CONFIG_TYPE
        {
            let kind = kind.unwrap_or(&manifest.config.media_type);
            return Err(invalid(format!("an artefact of type `{}`", shown(kind)))
                .hint("ModelPack artefacts are read: artifactType application/vnd.cncf.model.manifest.v1+json"));
        }
        let layers = manifest.layers.iter().map(Layer::parse);
        let artifact = Self {
            layers: layers.collect::<Result<_>>()?,
            annotations: manifest.annotations,
            ..Self::default()
        };
        artifact.check()?;
        Ok(artifact)
    }

    fn check(&self) -> Result<()> {
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            let count = self.layers.len();
            return Err(invalid(format!(
                "{count} layers, 1 to {MAX_LAYERS} are read"
            )));
        }
        let mut total = 0_u64;
        let mut paths = BTreeSet::new();
        for layer in &self.layers {
            total = total.saturating_add(layer.bytes);
            if !is_below(&layer.path) {
                let path = shown(&layer.path);
                return Err(invalid(format!(
                    "the layer's path `{path}` is not one below a folder"
                )));
            }
            if !paths.insert(layer.path.to_ascii_lowercase()) {
                return Err(invalid(format!("two layers are `{}`", shown(&layer.path))));
            }
        }
        if total > MAX_ARTIFACT_BYTES {
            return Err(invalid(format!(
                "{total} bytes, up to {MAX_ARTIFACT_BYTES} are read"
            )));
        }
        Ok(())
    }
}

impl Layer {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.kind.media_type().to_owned(),
            digest: self.digest.to_string(),
            size: self.bytes,
            annotations: BTreeMap::from([(FILEPATH.to_owned(), self.path.clone())]),
        }
    }

    fn parse(descriptor: &Descriptor) -> Result<Self> {
        let media_type = &descriptor.media_type;
        let mut kinds = LayerKind::ALL.into_iter();
        let kind = kinds
            .find(|k| k.media_type() == media_type)
            .ok_or_else(|| {
                invalid(format!("a layer of type `{}`", shown(media_type))).hint(
                    "push the files as they are: archives and compressed layers are not unpacked",
                )
            })?;
        let path = descriptor.annotations.get(FILEPATH).cloned();
        Ok(Self {
            path: path.ok_or_else(|| invalid(format!("a layer without `{FILEPATH}`")))?,
            kind,
            digest: sha256(&descriptor.digest)?,
            bytes: descriptor.size,
        })
    }
}

fn sha256(text: &str) -> Result<Digest> {
    let hex = text
        .strip_prefix("sha256:")
        .and_then(|hex| hex.parse().ok());
    hex.ok_or_else(|| {
        invalid(format!("a layer's digest is `{}`", shown(text))).hint("SHA-256 is read")
    })
}

/// Whether a path stays below the folder that it is taken from, everywhere.
fn is_below(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let plain = |part: &str| {
        let mut components = Path::new(part).components();
        let one = matches!(components.next(), Some(Component::Normal(_)));
        one && components.next().is_none() && !part.starts_with('.')
    };
    path.len() <= MAX_PATH_BYTES
        && parts.len() <= MAX_PATH_PARTS
        && !path.contains('\\')
        && !path.contains(|c: char| c.is_control())
        && parts.iter().all(|p| plain(p))
}

/// The beginning of a text out of a manifest, for a message.
fn shown(text: &str) -> String {
    text.chars()
        .take(80)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

pub(super) fn invalid(message: String) -> Error {
    Error::new(Code::ArtifactInvalid, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn artifact(layers: impl IntoIterator<Item = (String, u64)>) -> Artifact {
        let layers = layers.into_iter().map(|(path, bytes)| Layer {
            digest: Digest::of(path.as_bytes()),
            kind: LayerKind::Weights,
            path,
            bytes,
        });
        Artifact {
            layers: layers.collect(),
            annotations: BTreeMap::from([("a".into(), "b".into())]),
            ..Artifact::default()
        }
    }

    proptest! {
        /// Breaks where what is pushed cannot be pulled, or paths lead out of their folder.
        #[test]
        fn what_is_encoded_is_parsed(
            paths in proptest::collection::btree_map("[a-z./\\\\]{0,6}|blobs/[0-9a-f]{4}", 0_u64..1 << 30, 0..4),
        ) {
            let artifact = artifact(paths.clone());
            let below = |p: &String| {
                let stays = p.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
                stays && !p.contains('\\')
            };
            match artifact.encode() {
                Ok((_, manifest)) => prop_assert_eq!(Artifact::parse(&manifest).unwrap(), artifact),
                Err(_) => prop_assert!(paths.is_empty() || !paths.keys().all(below)),
            }
        }

        /// Breaks where a changed manifest makes the reader panic.
        #[test]
        fn changed_manifests_are_refused_or_read(at in 0_usize..600, byte: u8, cut in 0_usize..600) {
            let (_, mut manifest) = artifact([("a.tl".to_owned(), 5)]).encode().unwrap();
            let place = at % manifest.len();
            manifest[place] = byte;
            let _ = Artifact::parse(&manifest);
            manifest.truncate(cut % manifest.len());
            prop_assert!(Artifact::parse(&manifest).is_err());
        }
    }

    #[test]
    fn limits_hold_before_anything_is_fetched() {
        let many = (0..=MAX_LAYERS).map(|n| (n.to_string(), 1));
        for wrong in [
            artifact(many),
            artifact([("a".to_owned(), u64::MAX), ("b".to_owned(), 2)]),
            artifact([("a/".repeat(MAX_PATH_PARTS) + "b", 1)]),
            artifact([("a".repeat(MAX_PATH_BYTES + 1), 1)]),
        ] {
            assert_eq!(wrong.encode().unwrap_err().code(), Code::ArtifactInvalid);
        }
    }
}
