//! How many requests an operation takes.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tlkit::convert::ToTiedOptions;
use tlkit::fleet;
use tlkit::format::NoBlobs;
use tlkit::progress::Progress;
use tlkit::store::{AdapterName, CollectOptions, Seen, Store, Watcher};

use super::server::{S3, Server};
use super::shell::fixture;

/// Breaks where an operation takes more requests over HTTP than `spec/tl-store-v1.md` §9 tells.
#[test]
fn are_counted_and_bounded() {
    let Some(server) = Server::start(&S3) else {
        return;
    };
    let slow = Slow::before(server.port, Duration::from_millis(20));
    let endpoint = format!("http://127.0.0.1:{}", slow.port);
    let mut store = Store::init_in(S3.backend(&endpoint, "counted"), 0).unwrap();
    let package = |name: &str| {
        let options = ToTiedOptions::default();
        fleet::package_any(&fixture(name), &options, &NoBlobs)
            .unwrap()
            .0
    };
    let (style, vera) = (package("style-tl6.tl"), package("vera"));
    let name = |task: u64| -> AdapterName { format!("ann/task-{task}").parse().unwrap() };
    let put = |store: &Store, task, package| {
        store.put(&name(task), package, None).unwrap();
    };
    let measure = |what: &str, most: u64, work: &dyn Fn()| {
        let before = slow.count.load(Ordering::SeqCst);
        let started = Instant::now();
        work();
        let requests = slow.count.load(Ordering::SeqCst) - before;
        eprintln!(
            "{what}: {requests} requests, {:.0} ms",
            started.elapsed().as_secs_f64() * 1e3
        );
        assert!(requests <= most, "{what}: {requests}");
    };
    measure("put, the first", 4, &|| put(&store, 0, &style));
    measure("put, another adapter", 3, &|| put(&store, 1, &style));
    measure("put, another version", 4, &|| put(&store, 1, &vera));
    measure("put, the same again", 3, &|| put(&store, 1, &vera));
    for task in 2..20 {
        put(&store, task, &style);
    }
    measure("get", 2, &|| {
        fleet::adapter(&store.get(&name(3)).unwrap()).unwrap();
    });
    measure("list of 20", 21, &|| {
        assert_eq!(store.list(&name(0).user).unwrap().len(), 20);
    });
    let packed = |task: u64| -> AdapterName { format!("bob/task-{task}").parse().unwrap() };
    let names: Vec<AdapterName> = (0..20).map(packed).collect();
    measure("put of 20 at once, a new user's", 12, &|| {
        let all: Vec<_> = names.iter().map(|name| (name, &style)).collect();
        let batch = store.batch(&names[0].user).unwrap();
        assert!(batch.put_all(&all).iter().all(Result::is_ok));
    });
    store = Store::open_in(S3.backend(&endpoint, "counted")).unwrap();
    measure("get, packed", 3, &|| {
        fleet::adapter(&store.get(&packed(3)).unwrap()).unwrap();
    });
    measure("list of 20, packed", 3, &|| {
        assert_eq!(store.list(&packed(0).user).unwrap().len(), 20);
    });
    measure("put of another version, packed", 7, &|| {
        store.put(&packed(3), &vera, None).unwrap();
    });
    let mut keep = CollectOptions::default();
    keep.keep = Some(1);
    store.collect(&keep).unwrap();
    measure("put, after a collection", 5, &|| put(&store, 30, &style));
    measure("put of a version, after a collection", 6, &|| {
        put(&store, 30, &vera)
    });
    store = Store::open_in(S3.backend(&endpoint, "counted")).unwrap();
    let mut watcher = Watcher::after(None, Seen::default());
    watcher
        .begin(&store, Progress::new(), &mut |_| Ok(()))
        .unwrap();
    let watcher = RefCell::new(watcher);
    measure("look for changes, two users", 3, &|| {
        let told = watcher
            .borrow_mut()
            .poll(&store, Progress::new(), &mut |_| Ok(()));
        told.unwrap();
    });
}

/// Passes requests on to a server, each a while later, and counts them.
struct Slow {
    port: u16,
    count: Arc<AtomicU64>,
}

impl Slow {
    fn before(server: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&count);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || relay(client, server, delay, &counter));
            }
        });
        Self { port, count }
    }
}

fn relay(client: TcpStream, server: u16, delay: Duration, count: &AtomicU64) -> Option<()> {
    let mut server = TcpStream::connect(("127.0.0.1", server)).ok()?;
    let (mut answers, mut back) = (server.try_clone().ok()?, client.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut client = BufReader::new(client);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let from = head.len();
            if client.read_line(&mut head).ok()? == 0 {
                let _ = server.shutdown(Shutdown::Both);
                return None;
            }
            let line = head[from..].to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        count.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(delay);
        server.write_all(head.as_bytes()).ok()?;
        std::io::copy(&mut (&mut client).take(length), &mut server).ok()?;
    }
}
