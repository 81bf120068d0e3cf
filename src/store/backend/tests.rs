use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;

use object_store::aws::AmazonS3Builder;

use super::*;

/// When a connection is reset.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reset {
    /// Before the request is carried out.
    Before,
    /// After it was.
    After,
}

/// A service that keeps objects, and resets the first connection of a method.
struct Service {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    reset: Mutex<Option<(&'static str, Reset)>>,
    requests: Mutex<Vec<String>>,
}

impl Service {
    fn start(method: &'static str, reset: Reset) -> (Arc<Self>, Backend) {
        let service = Arc::new(Self {
            objects: Mutex::default(),
            reset: Mutex::new(Some((method, reset))),
            requests: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = Arc::clone(&service);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                own.serve(stream.unwrap());
            }
        });
        // As the store does where it opens a cloud.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let objects = AmazonS3Builder::new()
            .with_bucket_name("b")
            .with_endpoint(format!("http://127.0.0.1:{port}"))
            .with_allow_http(true)
            .with_access_key_id("x")
            .with_secret_access_key("x")
            .with_region("us-east-1");
        let backend = Backend::new(Arc::new(objects.build().unwrap()), "", "s3://b").unwrap();
        (service, backend)
    }

    fn serve(&self, mut stream: TcpStream) {
        // Looked at, not taken: a socket that is closed with bytes in it is reset.
        let mut buffer = vec![0; 1 << 16];
        let (head, body) = loop {
            let n = stream.peek(&mut buffer).unwrap();
            let Some(end) = buffer[..n].windows(4).position(|w| w == b"\r\n\r\n") else {
                if n == 0 {
                    return;
                }
                continue;
            };
            let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
            let length = head.split("content-length: ").nth(1);
            let length = length.and_then(|l| l.lines().next()?.trim().parse().ok());
            let length: usize = length.unwrap_or(0);
            if n >= end + 4 + length {
                let body = buffer[end + 4..end + 4 + length].to_vec();
                break (String::from_utf8_lossy(&buffer[..end]).into_owned(), body);
            }
        };
        let mut words = head.split(' ');
        let method = words.next().unwrap().to_owned();
        let key = words.next().unwrap().to_owned();
        self.requests.lock().unwrap().push(method.clone());
        let reset = {
            let mut reset = self.reset.lock().unwrap();
            let now = reset.filter(|(m, _)| *m == method).map(|(_, r)| r);
            if now.is_some() {
                *reset = None;
            }
            now
        };
        if reset == Some(Reset::Before) {
            return;
        }
        let (status, answer) = self.answer(&method, key, body, head.contains("if-none-match"));
        if reset == Some(Reset::After) {
            return;
        }
        let _ = stream.read(&mut buffer);
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"x\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nConnection: close\r\n\r\n",
            answer.len()
        );
        let _ = stream.write_all(&[head.as_bytes(), &answer].concat());
    }

    fn answer(&self, method: &str, key: String, body: Vec<u8>, new: bool) -> (&str, Vec<u8>) {
        let mut objects = self.objects.lock().unwrap();
        match (method, objects.get(&key)) {
            ("PUT", Some(_)) if new => ("412 Precondition Failed", Vec::new()),
            ("PUT", _) => {
                objects.insert(key, body);
                ("200 OK", Vec::new())
            }
            ("GET", Some(object)) => ("200 OK", object.clone()),
            _ => ("404 Not Found", Vec::new()),
        }
    }
}

/// Breaks where a connection that is reset fails a request that may be sent again, or a creation
/// that was carried out is taken for another writer's.
#[test]
fn a_reset_connection_is_no_failure() {
    for reset in [Reset::Before, Reset::After] {
        let (service, backend) = Service::start("PUT", reset);
        assert!(backend.create("k", b"mine".to_vec()).unwrap(), "{reset:?}");
        assert!(!backend.create("k", b"other".to_vec()).unwrap());
        assert_eq!(&*backend.read("k", 10).unwrap().unwrap(), b"mine");
        assert!(service.requests.lock().unwrap().len() >= 4);

        let (_, backend) = Service::start("PUT", reset);
        backend.replace("k", b"new".to_vec()).unwrap();
        let (_, backend) = Service::start("GET", reset);
        assert!(backend.create("k", b"mine".to_vec()).unwrap());
        assert_eq!(&*backend.read("k", 10).unwrap().unwrap(), b"mine");
    }
}

/// Breaks where another writer's object is taken for one's own, since the answer was lost.
#[test]
fn another_writers_object_is_not_ones_own() {
    let (service, backend) = Service::start("PUT", Reset::Before);
    let objects = [("/b/k".to_owned(), b"theirs".to_vec())];
    service.objects.lock().unwrap().extend(objects);
    assert!(!backend.create("k", b"mine".to_vec()).unwrap());
}
