//! A registry on loopback in this process, as far as the distribution-spec's push and pull go, that asks for a
//! token, sends pulls elsewhere, and misbehaves where it is told to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use tlkit::digest::Digest;

const TOKEN: &str = "Bearer t0ken";
/// `alice` and her password, as Docker's config has them.
pub(crate) const LOGIN: &str = "YWxpY2U6aHVudGVyMg==";

/// What is kept, and what goes wrong.
#[derive(Default)]
pub(crate) struct State {
    /// By digest.
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// By tag and by digest.
    pub(crate) manifests: BTreeMap<String, Vec<u8>>,
    /// `POST`s that were answered: uploads that began.
    pub(crate) uploads: usize,
    /// How many of the next requests are answered with 503.
    pub(crate) busy: usize,
    /// Nobody's requests are refused.
    pub(crate) closed: bool,
    /// Pulled blobs have a byte more.
    pub(crate) longer: bool,
    /// Manifests have no end.
    pub(crate) endless: bool,
}

pub(crate) struct Fake {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, port, &state));
            }
        });
        Self { port, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn address(&self, rest: &str) -> String {
        format!("oci://127.0.0.1:{}/{rest}", self.port)
    }
}

/// Requests of one connection; a connection that ends in the middle of one ends this.
fn serve(stream: TcpStream, port: u16, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut out = stream;
    while let Some(request) = read(&mut reader) {
        if answer(&request, port, state, &mut out).is_err() {
            return;
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut parts = line.split_whitespace();
    let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let len = headers
        .get("content-length")
        .map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        method,
        target,
        headers,
        body,
    })
}

fn answer(
    request: &Request,
    port: u16,
    state: &Mutex<State>,
    out: &mut TcpStream,
) -> std::io::Result<()> {
    let mut state = state.lock().unwrap();
    let mut say = |status: u16, headers: &[(&str, &str)], body: &[u8]| {
        let mut head = format!("HTTP/1.1 {status} x\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if request.method != "HEAD" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        out.write_all(format!("{head}\r\n").as_bytes())?;
        match request.method.as_str() {
            "HEAD" => Ok(()),
            _ => out.write_all(body),
        }
    };
    let (path, query) = request
        .target
        .split_once('?')
        .unwrap_or((&request.target, ""));
    if state.busy > 0 {
        state.busy -= 1;
        return say(503, &[], b"");
    }
    let given = request.headers.get("authorization").map(String::as_str);
    if path == "/token" {
        return match given == Some(&format!("Basic {LOGIN}")) && query.contains("scope=repository")
        {
            true => say(200, &[], br#"{"token":"t0ken"}"#),
            false => say(
                401,
                &[],
                br#"{"errors":[{"code":"DENIED","message":"who is that?"}]}"#,
            ),
        };
    }
    if state.closed && given != Some(TOKEN) && !path.starts_with("/elsewhere/") {
        let ask = format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"fake\"");
        return say(401, &[("WWW-Authenticate", &ask)], b"{}");
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    match (request.method.as_str(), path.split('/').rev().nth(1)) {
        ("POST", Some("uploads")) => {
            state.uploads += 1;
            say(
                202,
                &[("Location", "/v2/x/blobs/uploads/1?state=a%2Fb")],
                b"",
            )
        }
        ("PUT", Some("uploads")) => {
            assert!(query.starts_with("state=a%2Fb&digest="), "{query}");
            let digest = Digest::of(&request.body).to_string();
            assert!(query.ends_with(&digest.replace(':', "%3A")), "{query}");
            state.blobs.insert(digest, request.body.clone());
            say(201, &[("Location", "/")], b"")
        }
        ("PUT", Some("manifests")) => {
            let digest = Digest::of(&request.body).to_string();
            state
                .manifests
                .insert(name.to_owned(), request.body.clone());
            state.manifests.insert(digest.clone(), request.body.clone());
            say(201, &[("Docker-Content-Digest", &digest)], b"")
        }
        ("GET", Some("manifests")) if state.endless => {
            drop(state);
            out.write_all(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            loop {
                out.write_all(b"1000\r\n")?;
                out.write_all(&[b' '; 4096])?;
                out.write_all(b"\r\n")?;
            }
        }
        ("GET", Some("manifests")) => match state.manifests.get(name) {
            Some(body) => say(200, &[], body),
            None => say(404, &[], br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
        },
        // Real registries keep blobs in a cloud, which must not get their tokens.
        ("GET", Some("blobs")) => {
            let there = format!("http://localhost:{port}/elsewhere/{name}");
            say(307, &[("Location", &there)], b"")
        }
        ("GET", Some("elsewhere")) => {
            assert!(given.is_none(), "a token went elsewhere");
            let mut body = state.blobs.get(name).cloned().unwrap_or_default();
            if state.longer {
                body.push(0);
            }
            say(200, &[], &body)
        }
        ("HEAD", Some("blobs")) if state.blobs.contains_key(name) => say(200, &[], b""),
        _ => say(404, &[], b""),
    }
}
