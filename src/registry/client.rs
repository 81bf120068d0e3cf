//! Pushing and pulling, by the distribution-spec.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::{Client, Method, Response, StatusCode};
use tokio::runtime::Runtime;
use url::Url;

use super::address::{Address, Which};
use super::artifact::{Artifact, MANIFEST_TYPE, MAX_MANIFEST_BYTES};
use super::auth::{self, Credentials};
use super::http::{Request, body, client, failed, refused, send};
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::tensor::Bytes;

/// Blobs under way at once.
const PARALLEL: usize = 8;
const BLOB_TYPE: &str = "application/octet-stream";

/// A repository of a registry.
pub struct Registry {
    address: Address,
    client: Client,
    credentials: Credentials,
    runtime: Runtime,
    /// What the registry was last answered to its challenge with.
    authorization: Mutex<Option<HeaderValue>>,
}

/// What a push sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pushed {
    /// SHA-256 of the manifest.
    pub digest: Digest,
    /// Blobs that were sent, the config among them.
    pub sent: usize,
    /// Blobs that the repository had.
    pub known: usize,
    /// Bytes of what was sent, without the manifest.
    pub bytes: u64,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({})", self.address)
    }
}

/// The bytes of a blob, for a request.
struct Body(Bytes);

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Registry {
    /// The repository of an address. Nothing is sent yet. A registry on this machine is spoken to
    /// without TLS. Credentials are those of Docker's config, its helpers included.
    ///
    /// # Errors
    /// [`Code::RegistryFailed`] where the config or TLS cannot be used, [`Code::Io`] without threads.
    pub fn open(address: &Address) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        Ok(Self {
            address: address.clone(),
            client: client()?,
            credentials: Credentials::of(address.host())?,
            runtime: runtime.map_err(|e| Error::io(address.to_string(), "start", e))?,
            authorization: Mutex::new(None),
        })
    }

    /// The address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Pushes an artefact: the blobs that the repository lacks, then the manifest, under the tag or digest
    /// of the address. `data` gives the bytes of each layer, in order.
    ///
    /// # Errors
    /// [`Code::RegistryFailed`]; those of [`Artifact::encode`].
    pub fn push(&self, artifact: &Artifact, data: &[Bytes]) -> Result<Pushed> {
        let (config, manifest) = artifact.encode()?;
        let digest = Digest::of(&manifest);
        if matches!(self.address.which(), Which::Digest(asked) if *asked != digest) {
            let message = format!("the artefact has {digest}, the address names another digest");
            return Err(Error::new(Code::RegistryAddress, message).hint("push to a tag"));
        }
        let mut blobs: Vec<(Digest, Bytes)> = vec![(Digest::of(&config), config.into())];
        for (layer, bytes) in artifact.layers.iter().zip(data) {
            if blobs.iter().all(|(known, _)| *known != layer.digest) {
                blobs.push((layer.digest, bytes.clone()));
            }
        }
        self.run(async {
            let sent: Vec<Option<u64>> = stream::iter(blobs)
                .map(|(digest, bytes)| self.push_blob(digest, bytes))
                .buffer_unordered(PARALLEL)
                .try_collect()
                .await?;
            self.push_manifest(manifest.into(), digest).await?;
            Ok(Pushed {
                digest,
                sent: sent.iter().flatten().count(),
                known: sent.iter().filter(|s| s.is_none()).count(),
                bytes: sent.iter().flatten().sum(),
            })
        })
    }

    /// The artefact, and the digest of its manifest.
    ///
    /// # Errors
    /// [`Code::NotInStore`] where there is none; [`Code::RegistryFailed`], [`Code::ArtifactDamaged`]; those of
    /// [`Artifact::parse`].
    pub fn manifest(&self) -> Result<(Artifact, Digest)> {
        self.run(async {
            let mut request = Request::new(Method::GET, self.url(&self.manifest_path())?);
            request
                .headers
                .insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPE));
            let answer = self.request(request, false).await?;
            if answer.status() == StatusCode::NOT_FOUND {
                return Err(Error::new(
                    Code::NotInStore,
                    "the registry has no such artefact",
                ));
            }
            if !answer.status().is_success() {
                return Err(refused(answer, "the request for the manifest").await);
            }
            let bytes = body(answer, MAX_MANIFEST_BYTES).await?;
            let digest = Digest::of(&bytes);
            match self.address.which() {
                Which::Digest(asked) if *asked != digest => {
                    Err(damaged("manifest", &digest, asked))
                }
                _ => Ok((Artifact::parse(&bytes)?, digest)),
            }
        })
    }

    /// Writes the bytes of a blob, `len` of them, as they come. What was written counts only where this
    /// succeeds: the digest is known at the end.
    ///
    /// # Errors
    /// [`Code::ArtifactDamaged`] for other bytes, or another number of them; [`Code::RegistryFailed`];
    /// [`Code::Io`], [`Code::NoSpace`] where they cannot be written.
    pub fn pull_blob(&self, digest: &Digest, len: u64, out: &mut dyn Write) -> Result<()> {
        self.run(async {
            let url = self.url(&format!("blobs/{digest}"))?;
            let mut answer = self.request(Request::new(Method::GET, url), false).await?;
            if !answer.status().is_success() {
                return Err(refused(answer, &format!("the request for the blob {digest}")).await);
            }
            let (mut hash, mut left) = (Hasher::default(), len);
            while let Some(piece) = answer.chunk().await.map_err(failed)? {
                left = left.checked_sub(piece.len() as u64).ok_or_else(|| {
                    let message = format!("the blob {digest} has more than its {len} bytes");
                    Error::new(Code::ArtifactDamaged, message)
                })?;
                hash.update(&piece);
                out.write_all(&piece)
                    .map_err(|e| Error::io(self.address.to_string(), "keep a blob of", e))?;
            }
            let actual = hash.finish();
            match actual == *digest && left == 0 {
                true => Ok(()),
                false => Err(damaged("blob", &actual, digest)),
            }
        })
    }

    fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let done = self.runtime.block_on(work);
        done.map_err(|e| match e.path().is_some() {
            true => e,
            false => e.file(self.address.to_string()),
        })
    }

    /// `None` where the repository has it already.
    async fn push_blob(&self, digest: Digest, bytes: Bytes) -> Result<Option<u64>> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let there = self.request(Request::new(Method::HEAD, url), true).await?;
        match there.status() {
            status if status.is_success() => return Ok(None),
            StatusCode::NOT_FOUND => {}
            _ => return Err(refused(there, "the question for a blob").await),
        }
        let begin = Request::new(Method::POST, self.url("blobs/uploads/")?);
        let begun = self.request(begin, true).await?;
        let location = begun.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        let location = location.and_then(|l| begun.url().join(l).ok());
        let (StatusCode::ACCEPTED, Some(mut url)) = (begun.status(), location) else {
            return Err(refused(begun, "the beginning of an upload").await);
        };
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let len = bytes.len() as u64;
        let body = bytes::Bytes::from_owner(Body(bytes));
        let put = Request::new(Method::PUT, url).with_body(BLOB_TYPE, body);
        let done = self.request(put, true).await?;
        match done.status() {
            StatusCode::CREATED => Ok(Some(len)),
            _ => Err(refused(done, "an upload").await),
        }
    }

    async fn push_manifest(&self, manifest: bytes::Bytes, digest: Digest) -> Result<()> {
        let put = Request::new(Method::PUT, self.url(&self.manifest_path())?);
        let done = self
            .request(put.with_body(MANIFEST_TYPE, manifest), true)
            .await?;
        let said = done.headers().get("docker-content-digest").cloned();
        if done.status() != StatusCode::CREATED {
            return Err(refused(done, "the manifest").await);
        }
        match said.as_ref().and_then(|s| s.to_str().ok()) {
            Some(said) if said != digest.to_string() => {
                let message = format!("the registry kept the manifest of {digest} as {said}");
                Err(Error::new(Code::ArtifactDamaged, message))
            }
            _ => Ok(()),
        }
    }

    fn manifest_path(&self) -> String {
        match self.address.which() {
            Which::Tag(tag) => format!("manifests/{tag}"),
            Which::Digest(digest) => format!("manifests/{digest}"),
        }
    }

    fn url(&self, path: &str) -> Result<Url> {
        let scheme = match self.address.is_loopback() {
            true => "http",
            false => "https",
        };
        let (host, repository) = (self.address.server(), self.address.repository());
        let url = Url::parse(&format!("{scheme}://{host}/v2/{repository}/{path}"));
        url.map_err(|e| Error::new(Code::RegistryAddress, e.to_string()).cause(e))
    }

    /// Sends a request, and once more where the registry asks who is there. Where an upload's address is
    /// on another host, that host is told nothing.
    async fn request(&self, mut request: Request, push: bool) -> Result<Response> {
        let known = || {
            self.authorization
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let own = self.url("")?;
        let same = (own.scheme(), own.host_str(), own.port_or_known_default())
            == (
                request.url.scheme(),
                request.url.host_str(),
                request.url.port_or_known_default(),
            );
        if same && let Some(header) = known().clone() {
            request.headers.insert(AUTHORIZATION, header);
        }
        let answered = send(&self.client, &request).await?;
        if !same || answered.status() != StatusCode::UNAUTHORIZED {
            return Ok(answered);
        }
        let (client, credentials) = (&self.client, &self.credentials);
        let challenge = answered.headers();
        let Some(header) =
            auth::answer(client, &self.address, credentials, challenge, push).await?
        else {
            return Ok(answered);
        };
        *known() = Some(header.clone());
        request.headers.insert(AUTHORIZATION, header);
        send(&self.client, &request).await
    }
}

fn damaged(what: &str, actual: &Digest, asked: &Digest) -> Error {
    let message = format!("the registry gave a {what} of {actual} for {asked}");
    Error::new(Code::ArtifactDamaged, message)
}
