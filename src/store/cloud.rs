//! The settings of the clouds: which variables of the environment an object store is set up by,
//! and how their secrets are kept out of what is printed.

use std::ffi::OsString;
use std::sync::Arc;

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

use super::redact::{Redact, shown_address};
use crate::error::{Code, Error, Result};

/// The object store at a URL, the prefix in it, and what may never be printed.
pub(super) fn open(
    url: &Url,
    address: &str,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(Arc<dyn ObjectStore>, Path, Redact)> {
    // TLS has no cryptography of its own here. What the process has chosen already stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = settings(url, environment)?;
    let redact = Redact::new(&settings);
    let opened = object_store::parse_url_opts(url, settings);
    let (objects, prefix) = opened.map_err(|e| {
        Error::new(Code::StoreBackend, redact.text(&e.to_string())).file(shown_address(address))
    })?;
    Ok((objects.into(), prefix, redact))
}

/// The variables that a cloud's settings are taken from. The library below takes names without a
/// cloud's prefix too (`TOKEN`, `ENDPOINT`), which mean other things in an environment.
///
/// # Errors
/// [`Code::StoreSetting`] for a value that could not be sent: dependencies panic over some of them.
fn settings(
    url: &Url,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>> {
    let scheme = ObjectStoreScheme::parse(url).map(|(scheme, _)| scheme).ok();
    let mut found = Vec::new();
    for (name, value) in environment {
        let Some(key) = name.to_str().map(str::to_ascii_lowercase) else {
            continue;
        };
        let clouds = ["aws_", "google_", "azure_"];
        if !clouds.iter().any(|c| key.starts_with(c)) || !is_used(scheme.as_ref(), &key) {
            continue;
        }
        let wrong = |why: &str| {
            let name = name.to_string_lossy();
            Error::new(Code::StoreSetting, format!("the variable {name} {why}")).hint(
                "look for a line feed or a pasted character at its end; `printf %s` writes none",
            )
        };
        let Some(value) = value.to_str() else {
            return Err(wrong("is no text"));
        };
        // JSON, which may be written on several lines.
        let document = key.ends_with("service_account_key");
        let control = |c: char| c.is_control() && !(document && c.is_ascii_whitespace());
        if value.chars().any(control) {
            return Err(wrong("has a line feed or another control character"));
        }
        let path = ["_file", "_path", "_credentials", "service_account"];
        if !document && !value.is_ascii() && !path.iter().any(|end| key.ends_with(end)) {
            return Err(wrong("has a character that no header can carry"));
        }
        if is_address(&key) && !is_web(value) {
            return Err(wrong("is not a URL such as https://host:9000"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if key.ends_with("_region") && !value.chars().all(plain) {
            return Err(wrong("is not the name of a region"));
        }
        found.push((key, value.to_owned()));
    }
    Ok(found)
}

/// Whether a setting is one that the object store behind a scheme knows.
fn is_used(scheme: Option<&ObjectStoreScheme>, key: &str) -> bool {
    match scheme {
        Some(ObjectStoreScheme::AmazonS3) => key.parse::<AmazonS3ConfigKey>().is_ok(),
        Some(ObjectStoreScheme::GoogleCloudStorage) => key.parse::<GoogleConfigKey>().is_ok(),
        Some(ObjectStoreScheme::MicrosoftAzure) => key.parse::<AzureConfigKey>().is_ok(),
        _ => true,
    }
}

/// Whether a setting is a URL.
fn is_address(key: &str) -> bool {
    key.contains("endpoint") && !key.contains("use_fabric") || key.ends_with("_full_uri")
}

fn is_web(value: &str) -> bool {
    let url = Url::parse(value).ok();
    url.is_some_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, value: &str) -> Result<Vec<(String, String)>> {
        let url = Url::parse(match &name[..2] {
            "AW" => "s3://bucket/x",
            "GO" => "gs://bucket/x",
            _ => "az://container/x",
        });
        settings(&url.unwrap(), [(name.into(), value.into())].into_iter())
    }

    /// Breaks where a value that panics in a dependency reaches it, or is told.
    #[test]
    fn values_that_no_request_can_carry_are_refused_by_name() {
        for name in [
            "AWS_SESSION_TOKEN",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
            "AWS_ENDPOINT",
            "AWS_ENDPOINT_URL",
            "AWS_BUCKET",
            "AWS_PROXY_URL",
            "AWS_USER_AGENT",
            "AWS_SSE_KMS_KEY_ID",
            "AWS_ROLE_ARN",
            "GOOGLE_SERVICE_ACCOUNT",
            "AZURE_STORAGE_ACCOUNT_NAME",
            "AZURE_STORAGE_SAS_TOKEN",
        ] {
            for tail in ["\n", "\r", "\0x", "\x1b[0m", "\x7f", "\t"] {
                let e = check(name, &format!("hunter2{tail}")).unwrap_err();
                assert_eq!(e.code(), Code::StoreSetting, "{name}");
                assert!(e.message().contains(name), "{e}");
                assert!(!e.to_string().contains("hunter2"), "{e}");
            }
        }
        let code = |name, value| check(name, value).unwrap_err().code();
        assert_eq!(code("AWS_SESSION_TOKEN", "tökén"), Code::StoreSetting);
        assert_eq!(code("AWS_REGION", "us east"), Code::StoreSetting);
        for endpoint in [
            "localhost",
            "localhost:9000",
            "",
            "http://",
            "http://a b",
            "//host",
        ] {
            assert_eq!(
                code("AWS_ENDPOINT", endpoint),
                Code::StoreSetting,
                "{endpoint}"
            );
        }
    }

    #[test]
    fn other_values_pass_and_other_variables_are_left_alone() {
        for (name, value) in [
            ("AWS_SESSION_TOKEN", "plain/+="),
            ("AWS_ENDPOINT", "http://127.0.0.1:9000"),
            ("GOOGLE_SERVICE_ACCOUNT_KEY", "{\n \"a\": 1\n}\n"),
            ("GOOGLE_SERVICE_ACCOUNT", "/home/jürgen/key.json"),
        ] {
            assert_eq!(check(name, value).unwrap().len(), 1, "{name}");
        }
        assert_eq!(check("AWS_PAGER", "a\nb").unwrap(), []);
        assert_eq!(check("AWSX", "a\nb").unwrap(), []);
    }
}
