//! Requests: answers of bounded length, sent again where a connection broke or the server was busy.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;
use url::Url;

use crate::error::{Code, Error, Result};

/// How often a request is sent again, and how long before the first time.
const RETRIES: u32 = 4;
const RETRY_AFTER: Duration = Duration::from_millis(200);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer that is read where it says what went wrong.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Longest part of a registry's own words in a message.
const MAX_SHOWN: usize = 200;

/// A request, as often as it has to be sent.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: bytes::Bytes,
}

impl Request {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: bytes::Bytes::new(),
        }
    }

    pub(super) fn with_body(mut self, media_type: &'static str, body: bytes::Bytes) -> Self {
        self.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        self.body = body;
        self
    }
}

/// The client, with TLS by ring.
///
/// # Errors
/// [`Code::RegistryFailed`] where TLS or a proxy of the environment cannot be set up.
pub(super) fn client() -> Result<Client> {
    // TLS has no cryptography of its own here. What the process has chosen already stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("tlkit/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .build()
        .map_err(failed)
}

/// Sends a request until it is answered; any status is an answer, but those of a busy server.
pub(super) async fn send(client: &Client, request: &Request) -> Result<Response> {
    let mut attempt = 0;
    loop {
        let sent = client
            .request(request.method.clone(), request.url.clone())
            .headers(request.headers.clone())
            .body(request.body.clone())
            .send()
            .await;
        let again = match &sent {
            Ok(answer) => is_busy(answer.status()),
            Err(e) => !e.is_builder() && !e.is_redirect(),
        };
        if !again || attempt == RETRIES {
            return sent.map_err(failed);
        }
        tokio::time::sleep(RETRY_AFTER * 2_u32.pow(attempt)).await;
        attempt += 1;
    }
}

fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// The whole body of an answer.
///
/// # Errors
/// [`Code::RegistryFailed`] for one of more than `limit` bytes, or where the connection breaks.
pub(super) async fn body(mut answer: Response, limit: u64) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        if (all.len() + piece.len()) as u64 > limit {
            let message = format!("an answer of more than {limit} bytes");
            return Err(Error::new(Code::RegistryFailed, message));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// The error for an answer that was not hoped for, with the registry's own words.
pub(super) async fn refused(answer: Response, what: &str) -> Error {
    let status = answer.status();
    let said = said(&body(answer, MAX_ERROR_BYTES).await.unwrap_or_default());
    let error = Error::new(
        Code::RegistryFailed,
        format!(
            "the registry answered {what} with {}{said}",
            status.as_u16()
        ),
    );
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => error.hint(
            "`docker login` or `oras login` keeps the credentials that are used: DOCKER_CONFIG/config.json",
        ),
        _ => error,
    }
}

/// What a registry says went wrong, as the distribution-spec has it; cut, and without control characters.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Said {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        code: String,
        #[serde(default)]
        message: String,
    }
    let said: Option<Said> = serde_json::from_slice(body).ok();
    let Some(first) = said.and_then(|s| s.errors.into_iter().next()) else {
        return String::new();
    };
    let text = format!("{}: {}", first.code, first.message);
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    format!(" ({})", clean.take(MAX_SHOWN).collect::<String>())
}

/// A request that had no answer. Its URL may be a signed one, so it is not told.
pub(super) fn failed(e: reqwest::Error) -> Error {
    let e = e.without_url();
    let mut message = e.to_string();
    let mut source = std::error::Error::source(&e);
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Error::new(Code::RegistryFailed, message).cause(e)
}
