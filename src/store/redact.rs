//! Keeping secrets out of messages.
//!
//! What an object store or the libraries below it say may quote an address with its password, a
//! signed request, or whatever a server saw fit to send back. [`Redact::text`] is the one way from there
//! into an [`Error`](crate::Error).

use std::borrow::Cow;

/// Stands for what is left out.
const HIDDEN: &str = "***";
/// What precedes the body of a server's answer in messages of the library below.
const BODIES: [&str; 2] = ["non-2xx status code: ", "Server returned error response: "];
/// A secret shorter than this is only looked for as a word: `x` is in every message.
const MIN_ANYWHERE: usize = 6;
/// Names of headers and parameters, lower-case, whose values are secret.
const NAMES: [&str; 14] = [
    "authorization",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-credential",
    "x-goog-signature",
    "x-goog-credential",
    "x-ms-copy-source-authorization",
    "customer-key",
    "cookie",
    "signature",
    "sig",
    "access_token",
    "password",
    "secret",
];
/// Parts of the names of settings that are secret.
const SECRET: [&str; 8] = [
    "key",
    "secret",
    "token",
    "password",
    "sas",
    "credential",
    "authorization",
    "signature",
];

/// What may never be printed.
#[derive(Debug, Clone, Default)]
pub(super) struct Redact {
    secrets: Vec<String>,
}

impl Redact {
    /// Of some settings: those whose names say that they are secret, and what stands before the
    /// host, or in the query, of those that are URLs.
    pub(super) fn new(settings: &[(String, String)]) -> Self {
        let mut secrets = Vec::new();
        for (name, value) in settings {
            let file = ["_file", "_path", "_uri"]
                .iter()
                .any(|end| name.ends_with(end));
            if SECRET.iter().any(|part| name.contains(part)) && !file {
                secrets.push(value.clone());
                // A document, or a query string, that is quoted in part.
                let parts =
                    value.split(|c: char| !c.is_ascii_alphanumeric() && !"/+_-.%".contains(c));
                secrets.extend(parts.filter(|p| p.len() >= 12).map(str::to_owned));
            }
            let Some((_, rest)) = value.split_once("://") else {
                continue;
            };
            if let Some((user, _)) = rest.rsplit_once('@') {
                let mut parts = user.splitn(2, ':');
                let (name, password) = (parts.next(), parts.next());
                secrets.push(user.to_owned());
                secrets.extend(password.or(name).map(str::to_owned));
            }
            if let Some((_, query)) = rest.split_once(['?', '#']) {
                secrets.extend(
                    query
                        .split(['&', '='])
                        .filter(|p| p.len() >= 4)
                        .map(str::to_owned),
                );
                secrets.push(query.to_owned());
            }
        }
        Self::of(secrets)
    }

    /// Of these secrets, in every way in which messages spell them.
    fn of(secrets: Vec<String>) -> Self {
        let mut all = Vec::new();
        for secret in secrets.into_iter().filter(|s| !s.trim().is_empty()) {
            let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            let decoded = url::form_urlencoded::parse(format!("x={secret}").as_bytes())
                .next()
                .map(|(_, v)| v.into_owned());
            all.push(encoded.replace('+', "%20"));
            all.push(encoded);
            all.extend(decoded);
            all.push(secret.escape_debug().to_string());
            all.push(secret.escape_default().to_string());
            let xml = [
                ("&", "&amp;"),
                ("<", "&lt;"),
                (">", "&gt;"),
                ("\"", "&quot;"),
                ("'", "&apos;"),
            ];
            let escaped = |s: String, (from, to): &(&str, &str)| s.replace(from, to);
            all.push(xml.iter().fold(secret.clone(), escaped));
            all.push(xml[..3].iter().fold(secret.clone(), escaped));
            // What becomes of it where a message is brought onto one line.
            all.push(secret.split_whitespace().collect::<Vec<_>>().join(" "));
            all.push(secret);
        }
        all.retain(|s| !s.is_empty());
        // The longest first: one may be part of another.
        all.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        all.dedup();
        Self { secrets: all }
    }

    /// A message on one line without bodies of servers, passwords and queries of URLs, values of
    /// secret headers, and secrets.
    pub(super) fn text(&self, message: &str) -> String {
        let message = without_body(message);
        // Before anything is cut out of it: a secret may hold what ends a URL.
        let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut text = line;
        for secret in &self.secrets {
            text = hide(&text, secret);
        }
        without_headers(&without_credentials(&text))
    }
}

/// An address as messages may show it: nothing before an `@`, and no query.
pub(super) fn shown_address(address: &str) -> String {
    let start = match address.split_once(':') {
        Some((scheme, rest))
            if scheme
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'+') =>
        {
            scheme.len() + 1 + (rest.len() - rest.trim_start_matches('/').len())
        }
        // A path, in which an `@` is nothing special.
        _ => return address.to_owned(),
    };
    let (scheme, rest) = address.split_at(start);
    let rest = match rest.rsplit_once('@') {
        Some((_, host)) => Cow::Owned(format!("{HIDDEN}@{host}")),
        None => Cow::Borrowed(rest),
    };
    match rest.split_once(['?', '#']) {
        Some((path, _)) => format!("{scheme}{path}?{HIDDEN}"),
        None => format!("{scheme}{rest}"),
    }
}

fn hide(text: &str, secret: &str) -> String {
    if secret.len() >= MIN_ANYWHERE {
        return text.replace(secret, HIDDEN);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(secret) {
        let (before, from) = rest.split_at(at);
        let after = &from[secret.len()..];
        let joins = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let last = before
            .chars()
            .next_back()
            .or_else(|| out.chars().next_back());
        let word = !joins(last) && !joins(after.chars().next());
        out.push_str(before);
        out.push_str(if word { HIDDEN } else { secret });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Of a server's answer only its status, and the code and message that S3 and its like give.
fn without_body(message: &str) -> String {
    for marker in BODIES {
        let Some(at) = message.find(marker) else {
            continue;
        };
        let (head, answer) = message.split_at(at + marker.len());
        let status_end = match marker == BODIES[0] {
            true => answer.find(": ").unwrap_or(answer.len()),
            false => 0,
        };
        let (status, body) = answer.split_at(status_end);
        let plain = |s: &str| {
            s.chars()
                .all(|c| c.is_ascii_alphanumeric() || " -.".contains(c))
        };
        let code = element(body, "Code").filter(|c| plain(c) && c.len() <= 64);
        let said = element(body, "Message").map(|m| m.chars().take(200).collect::<String>());
        let said: Vec<String> = code.map(str::to_owned).into_iter().chain(said).collect();
        let status = if plain(status) { status } else { "" };
        let said = match (status.is_empty(), said.is_empty()) {
            (_, true) => String::new(),
            (true, false) => said.join(": "),
            (false, false) => format!(": {}", said.join(": ")),
        };
        return format!("{head}{status}{said}");
    }
    message.to_owned()
}

fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0.trim())
}

/// Every URL without what stands before its host, and without its query.
fn without_credentials(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let end = url.find(|c: char| c.is_whitespace() || "\"'<>`)".contains(c));
        let (url, after) = url.split_at(end.unwrap_or(url.len()));
        let host_end = url.find(['/', '?', '#']).unwrap_or(url.len());
        let (host, path) = url.split_at(host_end);
        match host.rsplit_once('@') {
            Some((_, host)) => out.extend([HIDDEN, "@", host]),
            None => out.push_str(host),
        }
        match path.split_once(['?', '#']) {
            Some((path, _)) => out.extend([path, "?", HIDDEN]),
            None => out.push_str(path),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// A text up to the first value of a secret header or parameter: where it ends is not known.
fn without_headers(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut end = text.len();
    for name in NAMES {
        for (at, _) in lower.match_indices(name) {
            let after = lower[at + name.len()..].trim_start_matches(['"', '\'', ' ']);
            let value = at + name.len() + (lower.len() - at - name.len() - after.len()) + 1;
            if after.starts_with([':', '=']) && value < end {
                end = value;
            }
        }
    }
    match end < text.len() {
        true => format!("{} {HIDDEN}", &text[..end]),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redact(settings: &[(&str, &str)]) -> Redact {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        Redact::new(&settings.iter().map(own).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_no_secret_stays() {
        let r = redact(&[("aws_secret_access_key", "s"), ("aws_region", "us-east-1")]);
        for text in [
            "Generic S3 error: Error performing GET http://127.0.0.1:9/fleet/a/store.json in 3.1s, after 2 retries",
            "no bucket in us-east-1",
            "secrets are not set",
        ] {
            assert_eq!(r.text(text), text);
        }
        let answer = "Server returned non-2xx status code: 403 Forbidden: <Error><Code>AccessDenied</Code><Message>No.</Message><HostId>x</HostId></Error>";
        let said = "Server returned non-2xx status code: 403 Forbidden: AccessDenied: No.";
        assert_eq!(r.text(answer), said);
        for address in ["store", "./a@b", "s3://fleet/a", "C", "/tmp/x:y@z"] {
            assert_eq!(shown_address(address), address);
        }
        assert_eq!(shown_address("s3://a:b@c/d?e=f"), "s3://***@c/d?***");
        assert_eq!(shown_address("s3:/a:b@c"), "s3:/***@c");
    }

    proptest! {
        /// Breaks where a secret gets through in a URL, a header, a body or a quotation.
        #[test]
        fn no_secret_gets_through(
            secret in "[A-Za-z0-9/+=!$&'()*,;:@%?#\"<>~-]{8,40}",
            place in 0usize..12,
        ) {
            prop_assume!(secret.bytes().filter(u8::is_ascii_alphanumeric).count() >= 6);
            let endpoint = format!("http://admin:{secret}@host:9000");
            let r = redact(&[
                ("aws_endpoint", &endpoint),
                ("aws_session_token", &secret),
                ("azure_storage_sas_token", &format!("sv=1&sig={secret}")),
            ]);
            let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            let text = match place {
                0 => format!("Error performing GET {endpoint}/fleet/a in 3s"),
                1 => format!("Unable parse source url. Url: {endpoint}, Error: x"),
                2 => format!("GET https://host/x?sv=1&sig={encoded} in 3s"),
                3 => format!("status code: 403 Forbidden: x-amz-security-token: {secret}"),
                4 => format!("Server returned non-2xx status code: 403 Forbidden: <Error><Code>X</Code><CanonicalRequest>{secret}</CanonicalRequest></Error>"),
                5 => format!("Server returned non-2xx status code: 400 Bad Request: <Error><Message>token {secret} is old</Message></Error>"),
                6 => format!("Server returned error response: {{\"token\":\"{secret}\"}}"),
                7 => format!("invalid type: string {secret:?}, expected a map"),
                8 => format!("Authorization: Bearer {secret} is wrong"),
                9 => format!("proxy http://u:{encoded}@proxy:1/ refused"),
                10 => format!("header\n\n{secret}\n"),
                _ => format!("Server returned non-2xx status code: {secret}: x"),
            };
            let said = r.text(&text);
            prop_assert!(!said.contains(&secret), "{}", said);
            prop_assert!(!said.contains(&encoded), "{}", said);
            let shown = shown_address(&format!("s3://AKIA:{secret}@bucket/x"));
            prop_assert!(!shown.contains(&secret), "{}", shown);
        }
    }
}
