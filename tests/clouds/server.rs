//! Servers of clouds, and how they are reached.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use tlkit::store::Backend;

const BUCKET: &str = "fleet";
/// Those of every emulator of Azure's storage.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A kind of cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cloud {
    pub(super) scheme: &'static str,
}

pub(super) const S3: Cloud = Cloud { scheme: "s3" };
pub(super) const GOOGLE: Cloud = Cloud { scheme: "gs" };
pub(super) const AZURE: Cloud = Cloud { scheme: "az" };

impl Cloud {
    /// The address of a prefix in the bucket of the tests.
    pub(super) fn url(&self, prefix: &str) -> String {
        format!("{}://{BUCKET}/{prefix}", self.scheme)
    }

    /// The server's command; `None`, and a word why, where it is not installed.
    fn server(&self) -> Option<Command> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (program, installed) = match *self {
            AZURE => {
                let installed = root.join("target/azure-server");
                ("node".into(), installed.join("stamp"))
            }
            _ => {
                let python = std::env::var_os("TLKIT_S3_SERVER").map(PathBuf::from);
                let python = python.unwrap_or(root.join("target/s3-server/bin/python"));
                (python.clone(), python)
            }
        };
        if !installed.is_file() {
            eprintln!(
                "skipped: there is no server at {}; tests/clouds/setup.sh installs one",
                installed.display()
            );
            return None;
        }
        let mut command = Command::new(program);
        match *self {
            AZURE => command
                .arg(root.join("tests/clouds/azure/server.js"))
                .arg(root.join("target/azure-server")),
            _ => command.arg(root.join("tests/clouds/s3/server.py")),
        };
        Some(command)
    }

    /// The backend under a prefix of a server, for the library in this process.
    pub(super) fn backend(&self, endpoint: &str, prefix: &str) -> Backend {
        // As the store itself does where it opens an address.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let objects: Arc<dyn ObjectStore> = match *self {
            S3 => {
                let objects = AmazonS3Builder::new()
                    .with_bucket_name(BUCKET)
                    .with_endpoint(endpoint)
                    .with_allow_http(true)
                    .with_access_key_id("x")
                    .with_secret_access_key("x")
                    .with_region("us-east-1");
                Arc::new(objects.build().unwrap())
            }
            AZURE => {
                let objects = MicrosoftAzureBuilder::new()
                    .with_container_name(BUCKET)
                    .with_account(ACCOUNT)
                    .with_access_key(ACCOUNT_KEY)
                    .with_endpoint(format!("{endpoint}/{ACCOUNT}"))
                    .with_allow_http(true);
                Arc::new(objects.build().unwrap())
            }
            _ => {
                let objects = GoogleCloudStorageBuilder::new()
                    .with_bucket_name(BUCKET)
                    .with_service_account_key(google_key(endpoint))
                    .with_client_options(object_store::ClientOptions::new().with_allow_http(true));
                Arc::new(objects.build().unwrap())
            }
        };
        Backend::new(objects, prefix, &self.url(prefix)).unwrap()
    }
}

/// A service account that needs no token.
fn google_key(endpoint: &str) -> String {
    format!(
        r#"{{"gcs_base_url":"{endpoint}","disable_oauth":true,"client_email":"","private_key":"","private_key_id":""}}"#
    )
}

/// A running server. It ends with this value, and with this process, since it reads its input.
pub(super) struct Server {
    process: Child,
    pub(super) cloud: Cloud,
    pub(super) port: u16,
}

impl Server {
    /// `None`, and a word why, where no server is installed.
    pub(super) fn start(cloud: &Cloud) -> Option<Self> {
        let mut process = cloud
            .server()?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let port = line.trim().parse().expect("the server prints its port");
        let server = Self {
            process,
            cloud: *cloud,
            port,
        };
        if *cloud != AZURE {
            server.make_bucket();
        }
        Some(server)
    }

    fn make_bucket(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = format!(
            "PUT /{BUCKET} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.port
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1);
        assert_eq!(status, Some("200"), "{answer}");
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The backend under a prefix, for the library in this process.
    pub(super) fn backend(&self, prefix: &str) -> Backend {
        self.cloud.backend(&self.endpoint(), prefix)
    }

    /// What the command has to be told by its environment.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        match self.cloud {
            AZURE => vec![
                ("AZURE_STORAGE_USE_EMULATOR", "true".to_owned()),
                ("AZURITE_BLOB_STORAGE_URL", self.endpoint()),
            ],
            GOOGLE => vec![
                ("GOOGLE_ALLOW_HTTP", "true".to_owned()),
                ("GOOGLE_SERVICE_ACCOUNT_KEY", google_key(&self.endpoint())),
            ],
            _ => vec![
                ("AWS_ENDPOINT", self.endpoint()),
                ("AWS_ALLOW_HTTP", "true".to_owned()),
                ("AWS_ACCESS_KEY_ID", "x".to_owned()),
                ("AWS_SECRET_ACCESS_KEY", "x".to_owned()),
                ("AWS_REGION", "us-east-1".to_owned()),
            ],
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
