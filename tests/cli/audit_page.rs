use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fancy_regex::Regex;
use serde_json::Value;

use super::{Shell, copy_dir};

/// Two users, a task whose name is markup, leftovers of training and a broken adapter.
fn fleet() -> Shell {
    let shell = Shell::new();
    for (from, to) in [
        ("lora", "fleet/ann/<script>alert(1)<"),
        ("vera", "fleet/ann/qa"),
        ("style", "fleet/bob/sum"),
        ("vera", "fleet/bob/qa"),
        ("lora", "fleet/eve/cut"),
    ] {
        copy_dir(&shell.path(from), &shell.path(to));
    }
    let at = |name: &str| shell.path("fleet").join(name);
    fs::write(at("bob/sum/optimizer.pt"), [0; 5000]).unwrap();
    fs::write(at("eve/cut/adapter_model.safetensors"), [1; 20]).unwrap();
    fs::write(at("README.md"), "ours").unwrap();
    shell
}

const AUDIT: &str = "audit fleet --template {user}/{task} --json";

/// The report, and the page that the same run wrote.
fn audited(shell: &Shell) -> (Value, String) {
    let run = shell.quiet(&format!("{AUDIT} --html page.html --parquet rows.parquet"));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let page = fs::read_to_string(shell.path("page.html")).unwrap();
    (serde_json::from_str(&run.stdout).unwrap(), page)
}

/// The page's numbers, by their place in the JSON report.
fn numbers(page: &str) -> BTreeMap<String, Value> {
    let field = Regex::new(r#"data-field="([^"]+)" data-value="([^"]*)""#).unwrap();
    let plain = |text: &str| text.replace("&#x2f;", "/").replace("&quot;", "\"");
    let mut numbers = BTreeMap::new();
    for found in field.captures_iter(page) {
        let found = found.unwrap();
        let value = serde_json::from_str(&plain(&found[2])).unwrap();
        numbers.insert(plain(&found[1]), value);
    }
    numbers
}

fn assert_equal_to_json(page: &str, json: &Value) {
    let numbers = numbers(page);
    assert!(numbers.len() > 100, "{numbers:?}");
    for (place, value) in &numbers {
        assert_eq!(json.pointer(place), Some(value), "{place}");
    }
    for part in ["scenarios", "by_user", "by_task", "by_kind"] {
        for at in 0..json[part].as_array().unwrap().len() {
            let place = format!("/{part}/{at}/");
            let told = numbers.keys().any(|key| key.starts_with(&place));
            assert!(told, "{place} is not on the page");
        }
    }
}

/// Breaks where the files differ from the report of the same run or from run to run, or replace
/// others unasked.
#[test]
fn page_and_parquet_are_the_report() {
    let shell = fleet();
    let (json, page) = audited(&shell);
    assert_equal_to_json(&page, &json);
    assert!(page.contains("&lt;script&gt;alert(1)&lt;") && !page.contains("<script"));
    let parquet = fs::read(shell.path("rows.parquet")).unwrap();
    assert_eq!(
        (&parquet[..4], &parquet[parquet.len() - 4..]),
        (&b"PAR1"[..], &b"PAR1"[..])
    );
    for file in ["html page.html", "parquet rows.parquet"] {
        let run = shell.quiet(&format!("{AUDIT} --{file}"));
        assert_eq!(run.code, 3);
        assert!(run.stderr.contains("TL0003"), "{}", run.stderr);
    }
    shell.ok(&format!(
        "{AUDIT} --threads 1 --force --html page.html --parquet rows.parquet"
    ));
    assert_eq!(page.as_bytes(), fs::read(shell.path("page.html")).unwrap());
    assert_eq!(parquet, fs::read(shell.path("rows.parquet")).unwrap());
}

fn chromium() -> Option<PathBuf> {
    if let Some(named) = env::var_os("TLKIT_CHROMIUM") {
        return Some(named.into());
    }
    let path = env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .find(|file| file.is_file())
}

/// What a browser prints, run in `dir` for two minutes at most.
fn browse(browser: &Path, dir: &Path, args: &[&str]) -> String {
    let said = dir.join("said");
    let mut child = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .arg("--disable-dev-shm-usage")
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .args(args)
        .arg(format!("file://{}", dir.join("page.html").display()))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&said).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("the browser did not end");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(status.success(), "{status}");
    fs::read_to_string(said).unwrap()
}

/// Breaks where a browser does not show the page, or shows other numbers than the JSON report's.
#[test]
fn a_browser_shows_the_page() {
    let Some(browser) = chromium() else {
        let why = "skipped: no chromium in PATH, and TLKIT_CHROMIUM is not set";
        writeln!(std::io::stderr(), "{why}").unwrap();
        return;
    };
    let shell = fleet();
    let (json, _) = audited(&shell);
    let dir = shell.dir.path();
    let dom = browse(&browser, dir, &["--dump-dom"]);
    assert_equal_to_json(&dom, &json);
    assert!(dom.contains("&lt;script&gt;alert(1)&lt;") && !dom.contains("<script"));
    let shot = ["--screenshot=shot.png", "--window-size=1200,3000"];
    for theme in ["1", "0"] {
        let theme = format!("--blink-settings=preferredColorScheme={theme}");
        browse(&browser, dir, &[shot[0], shot[1], &theme]);
        let png = fs::read(shell.path("shot.png")).unwrap();
        assert_eq!(&png[1..4], b"PNG");
        let width = u32::from_be_bytes(png[16..20].try_into().unwrap());
        assert!(
            width >= 1200 && png.len() > 50_000,
            "{width}, {}",
            png.len()
        );
    }
}
