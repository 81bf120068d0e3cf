//! Who asks: credentials as Docker keeps them, and the tokens that a registry gives for them.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use http_auth::ChallengeParser;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Method};
use serde::Deserialize;
use url::Url;

use super::address::{Address, DOCKER_HUB};
use super::http::{Request, body, refused, send};
use crate::error::{Code, Error, Result};
use crate::fs::read_limited;

const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// A user's name and password, or nobody's.
#[derive(Clone, Default)]
pub(super) struct Credentials(Option<(String, String)>);

impl Credentials {
    /// Those that `docker login` and its like left for a host, in `DOCKER_CONFIG` or `~/.docker`; nobody's
    /// where there are none.
    ///
    /// # Errors
    /// [`Code::RegistryFailed`] where the config or its helper is broken.
    pub(super) fn of(host: &str) -> Result<Self> {
        use CredentialRetrievalError as E;
        let Some(path) = config() else {
            return Ok(Self::default());
        };
        let unusable = |why: String| {
            let message = format!("no usable credentials for {host}: {why}");
            Error::new(Code::RegistryFailed, message).file(&path)
        };
        let config = match read_limited(&path, MAX_CONFIG_BYTES) {
            Err(e) if e.code() == Code::NotFound => return Ok(Self::default()),
            read => read.map_err(|e| unusable(e.message().to_owned()))?,
        };
        match docker_credential::get_credential_from_reader(&config[..], login_name(host)) {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                Ok(Self(Some((user, password))))
            }
            Ok(DockerCredential::IdentityToken(_)) => {
                let why = "an identity token, which is not supported".to_owned();
                Err(unusable(why).hint("log in with a name and an access token"))
            }
            Err(E::ConfigNotFound | E::NoCredentialConfigured) => Ok(Self::default()),
            Err(e) => Err(unusable(e.to_string())),
        }
    }

    fn header(&self) -> Option<HeaderValue> {
        let (user, password) = self.0.as_ref()?;
        secret(&format!(
            "Basic {}",
            STANDARD.encode(format!("{user}:{password}"))
        ))
    }
}

/// Where Docker keeps credentials, or which program does.
fn config() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let folder = set("DOCKER_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| Some(Path::new(&set("HOME")?).join(".docker")));
    folder.map(|f| f.join("config.json"))
}

/// What a host's credentials are kept under.
fn login_name(host: &str) -> &str {
    match host {
        DOCKER_HUB => "https://index.docker.io/v1/",
        _ => host,
    }
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The header that answers a registry's challenge: of a token for the scope that it asks for, or the
/// credentials themselves. `None` where it asks for what there is not.
///
/// # Errors
/// [`Code::RegistryFailed`] where no token is given, or it would be asked for without TLS by a registry
/// that is not on this machine.
pub(super) async fn answer(
    client: &Client,
    address: &Address,
    credentials: &Credentials,
    challenge: &HeaderMap,
    push: bool,
) -> Result<Option<HeaderValue>> {
    for value in challenge.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        for challenge in ChallengeParser::new(text).map_while(|c| c.ok()) {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                return Ok(credentials.header());
            }
            if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                continue;
            }
            let param = |name: &str| {
                let found = challenge
                    .params
                    .iter()
                    .find(|p| p.0.eq_ignore_ascii_case(name));
                found.map(|p| p.1.to_unescaped())
            };
            let realm = param("realm").and_then(|r| Url::parse(&r).ok());
            let realm = realm.ok_or_else(|| wrong("its realm is no URL"))?;
            let url = token_url(realm, address, param("service"), push)?;
            return token(client, url, credentials).await.map(Some);
        }
    }
    Ok(None)
}

fn wrong(why: &str) -> Error {
    Error::new(
        Code::RegistryFailed,
        format!("the registry asks for a token, but {why}"),
    )
}

fn token_url(
    mut realm: Url,
    address: &Address,
    service: Option<String>,
    push: bool,
) -> Result<Url> {
    if realm.scheme() != "https" && !(realm.scheme() == "http" && address.is_loopback()) {
        return Err(wrong("from an address without TLS"));
    }
    let actions = if push { "pull,push" } else { "pull" };
    let scope = format!("repository:{}:{actions}", address.repository());
    realm.query_pairs_mut().append_pair("scope", &scope);
    if let Some(service) = service {
        realm.query_pairs_mut().append_pair("service", &service);
    }
    Ok(realm)
}

async fn token(client: &Client, url: Url, credentials: &Credentials) -> Result<HeaderValue> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
    }
    let mut request = Request::new(Method::GET, url);
    if let Some(header) = credentials.header() {
        request.headers.insert(AUTHORIZATION, header);
    }
    let given = send(client, &request).await?;
    if !given.status().is_success() {
        return Err(refused(given, "the request for a token").await);
    }
    let given: Option<Token> = serde_json::from_slice(&body(given, MAX_TOKEN_BYTES).await?).ok();
    given
        .and_then(|t| t.token.or(t.access_token))
        .and_then(|t| secret(&format!("Bearer {t}")))
        .ok_or_else(|| wrong("gives none"))
}
