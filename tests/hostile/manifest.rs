//! Manifests of `.tl` files, and what they make a reader do.

use std::cell::RefCell;

use tlkit::digest::Digest;
use tlkit::format::{BlobSource, DirBlobs, Manifest, NoBlobs, TlFile};
use tlkit::tensor::{Bytes, Dtype};
use tlkit::{Code, Result};

use super::measure::measured;
use super::{Folder, KB, MB, assert_code, on_small_stack, open, tl};

fn parse(text: &str) -> Result<Manifest> {
    Manifest::parse(text.as_bytes())
}

fn manifest(groups: &[String], method: &str, tensors: &[String]) -> String {
    let (groups, tensors) = (groups.join(","), tensors.join(","));
    format!(
        r#"{{"groups":[{groups}],"method":"{method}","requires":[],"tensors":{{{tensors}}},"tl":1}}"#
    )
}

/// A group over tensors A and B: rank and `in` 1 unless `numbers` says otherwise.
fn group(names: [&str; 2], numbers: &str, targets: &str) -> String {
    let [a, b] = names;
    format!(
        r#"{{"A":"{a}","B":"{b}","alpha":1,{numbers},"scaling":"alpha/rank","targets":[{targets}],"trained":[]}}"#
    )
}

const ONE: &str = r#""in":1,"rank":1"#;

fn target(module: &str, out: u64) -> String {
    format!(r#"{{"module":"{module}","out":{out}}}"#)
}

fn tensor(name: &str, shape: &str, key: u64) -> String {
    format!(r#""{name}":{{"dtype":"F32","sha256":"{key:064x}","shape":{shape}}}"#)
}

/// The smallest manifest, with numbers and shapes put in.
fn tiny(numbers: &str, out: u64, a: &str, b: &str) -> String {
    let groups = [group(["g0.A", "g0.B"], numbers, &target("q", out))];
    manifest(
        &groups,
        "custom",
        &[tensor("g0.A", a, 1), tensor("g0.B", b, 2)],
    )
}

#[test]
fn the_builders_here_make_valid_manifests() {
    // Else every refusal below would prove nothing.
    parse(&tiny(ONE, 1, "[1,1]", "[1,1]")).unwrap();
}

#[test]
fn absurd_numbers_cost_nothing() {
    let max = u64::MAX;
    let half = 1u64 << 62;
    let cases = [
        tiny(
            &format!(r#""in":1,"rank":{max}"#),
            1,
            &format!("[{max},1]"),
            "[1,1]",
        ),
        tiny(
            &format!(r#""in":{max},"rank":1"#),
            1,
            &format!("[1,{max}]"),
            "[1,1]",
        ),
        tiny(ONE, half, "[1,1]", &format!("[{half},1]")),
        tiny(r#""in":1,"rank":65537"#, 1, "[65537,1]", "[1,65537]"),
        tiny(ONE, 1, "[1,1073741825]", "[1,1]"),
        tiny(
            r#""in":1,"layers":[4294967295],"rank":1"#,
            1,
            "[1,1]",
            "[1,1]",
        ),
        tiny(r#""in":1,"layers":[4096],"rank":1"#, 1, "[1,1]", "[1,1]"),
        tiny(ONE, 1, &format!("[{}1]", "1,".repeat(100_000)), "[1,1]"),
    ];
    for text in cases {
        let (parsed, cost) = measured(|| parse(&text));
        assert!(parsed.is_err(), "{}", &text[..200]);
        cost.within(64 * KB + 40 * text.len());
    }
}

#[test]
fn outputs_that_overflow_their_sum_are_refused() {
    // Their sum wraps round to 1, which the B would fit.
    let targets = [target("k", 1 << 63), target("q", 1 << 63), target("v", 1)].join(",");
    let groups = [group(["g0.A", "g0.B"], ONE, &targets)];
    let tensors = [tensor("g0.A", "[1,1]", 1), tensor("g0.B", "[1,1]", 2)];
    assert_code(
        parse(&manifest(&groups, "custom", &tensors)),
        Code::ShapeDisagrees,
    );
}

#[test]
fn layers_times_targets_are_bounded() {
    // 4096 layers of 100 000 targets would be 400 million names from 3 MB.
    let layers: Vec<String> = (0..4096).map(|l| l.to_string()).collect();
    let numbers = format!(r#""in":1,"layers":[{}],"rank":1"#, layers.join(","));
    let targets: Vec<String> = (0..100_000)
        .map(|t| target(&format!("{{}}.m{t}"), 1))
        .collect();
    let groups = [group(["g0.A", "g0.B"], &numbers, &targets.join(","))];
    let tensors = [tensor("g0.A", "[1,1]", 1), tensor("g0.B", "[100000,1]", 2)];
    let text = manifest(&groups, "custom", &tensors);
    let (parsed, cost) = measured(|| parse(&text));
    assert_code(parsed, Code::ManifestLimit);
    cost.within(20 * text.len());
}

#[test]
fn layers_times_experts_are_counted_before_they_are_listed() {
    let layers: Vec<String> = (0..65).map(|l| l.to_string()).collect();
    let numbers = format!(
        r#""experts":4096,"in":1,"layers":[{}],"rank":1"#,
        layers.join(",")
    );
    let parameter = r#"{"kind":"parameter","module":"{}.m","out":1}"#;
    let groups = [group(["g0.A", "g0.B"], &numbers, parameter)];
    let tensors = [tensor("g0.A", "[1,1]", 1), tensor("g0.B", "[1,1]", 2)];
    let text = manifest(&groups, "custom", &tensors);
    let (parsed, cost) = measured(|| parse(&text));
    assert_code(parsed, Code::ManifestLimit);
    cost.within(64 * text.len());
}

#[test]
fn sixty_five_thousand_groups_are_no_quadratic_work() {
    let mut names: Vec<String> = (0..65_536).map(|i| format!("m{i}")).collect();
    names.sort();
    let groups: Vec<String> = names
        .iter()
        .map(|n| group(["g0.A", "g0.B"], ONE, &target(n, 1)))
        .collect();
    let tensors = [tensor("g0.A", "[1,1]", 1), tensor("g0.B", "[1,1]", 2)];
    let text = manifest(&groups, "custom", &tensors);
    let file = tl(&text, false, &[]);
    let (opened, cost) = measured(|| open(&file));
    assert_eq!(
        opened.unwrap().manifest().adapter().unwrap().groups.len(),
        65_536
    );
    cost.within(64 * file.len());
    let mut reversed = groups;
    reversed.reverse();
    let text = manifest(&reversed, "custom", &tensors);
    assert_code(parse(&text), Code::ManifestNotCanonical);
}

#[test]
fn one_long_group_among_many_is_no_quadratic_work() {
    // A comparison that collects all targets first would copy the long list for every neighbour.
    let long: Vec<String> = (0..100_000)
        .map(|t| target(&format!("m{t:06}"), 1))
        .collect();
    let mut groups = vec![group(["g0.A", "g0.B"], ONE, &long.join(","))];
    groups
        .extend((0..30_000).map(|i| group(["g0.A", "g0.B"], ONE, &target(&format!("n{i:05}"), 1))));
    let tensors = [tensor("g0.A", "[1,1]", 1), tensor("g0.B", "[100000,1]", 2)];
    let text = manifest(&groups, "custom", &tensors);
    let (parsed, cost) = measured(|| parse(&text));
    parsed.unwrap();
    cost.within(64 * text.len());
}

#[test]
fn tens_of_thousands_of_stored_tensors_are_no_quadratic_work() {
    // Each stored tensor is looked up in the manifest, and each of the manifest in the file.
    const N: usize = 20_000;
    let mut names: Vec<String> = (0..N).map(|i| format!("m{i}")).collect();
    names.sort();
    let values: Vec<[u8; 4]> = (0..2 * N).map(|i| (i as f32).to_le_bytes()).collect();
    let (mut groups, mut tensors, mut stored) = (Vec::new(), Vec::new(), Vec::new());
    for (i, module) in names.iter().enumerate() {
        let (a, b) = (format!("g{i}.A"), format!("g{i}.B"));
        groups.push(group([&a, &b], ONE, &target(module, 1)));
        stored.extend([(a, &values[2 * i]), (b, &values[2 * i + 1])]);
    }
    stored.sort();
    for (name, value) in &stored {
        let sum = Digest::of(&value[..]).hex();
        tensors.push(format!(
            r#""{name}":{{"dtype":"F32","sha256":"{sum}","shape":[1,1]}}"#
        ));
    }
    let stored: Vec<_> = stored
        .iter()
        .map(|(name, value)| (name.as_str(), Dtype::F32, vec![1, 1], &value[..]))
        .collect();
    let file = tl(&manifest(&groups, "custom", &tensors), false, &stored);
    let folder = Folder::new();
    let path = folder.file("x.tl", &file);
    let (loaded, cost) = measured(|| TlFile::open(&path).unwrap().load(&NoBlobs));
    assert_eq!(loaded.unwrap().groups.len(), N);
    cost.within(64 * file.len());
}

#[test]
fn seeds_do_not_order_terabytes() {
    let seeded = |name: &str, shape: &str, key: u64| {
        format!(
            r#""{name}":{{"dtype":"F32","seed":{{"generator":"chacha20-uniform/1","key":"{key:064x}","step":"34000000"}},"sha256":"{key:064x}","shape":{shape}}}"#
        )
    };
    let of = |count: usize, shape: &str, inputs: usize| {
        let mut groups = Vec::new();
        let mut tensors = Vec::new();
        for i in 0..count {
            let (a, b) = (format!("g{i}.A"), format!("g{i}.B"));
            let numbers = format!(r#""in":{inputs},"rank":1"#);
            groups.push(group([&a, &b], &numbers, &target(&format!("m{i:03}"), 1)));
            tensors.push(seeded(&a, shape, i as u64));
            tensors.push(seeded(&b, "[1,1]", i as u64));
        }
        tensors.sort();
        manifest(&groups, "custom", &tensors)
    };
    // One tensor is bounded by the format, and what all of them take by the reader.
    let beyond = (1 << 28) + 1;
    assert_code(
        open(&tl(&of(1, &format!("[1,{beyond}]"), beyond), false, &[])),
        Code::SeedInvalid,
    );
    let folder = Folder::new();
    let path = folder.file("x.tl", &tl(&of(100, "[1,268435456]", 1 << 28), false, &[]));
    let file = TlFile::open(path).unwrap();
    let (loaded, cost) = measured(|| file.load(&NoBlobs));
    assert_code(loaded, Code::ManifestLimit);
    cost.within(MB);
    let path = folder.file("y.tl", &tl(&of(3, "[1,1048576]", 1 << 20), false, &[]));
    let file = TlFile::open(path).unwrap();
    assert_code(
        file.load_within(&NoBlobs, 10 * MB as u64),
        Code::ManifestLimit,
    );
    // The digest is wrong, which shows after the first; only that one is ever held.
    let (loaded, cost) = measured(|| file.load(&NoBlobs));
    assert_code(loaded, Code::DigestMismatch);
    assert!(cost.largest <= 4 * MB, "{cost:?}");
    cost.within(5 * MB);
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    for open in ["[", "{\"a\":", "{\"groups\":[{\"targets\":"] {
        let deep = open.repeat(100_000);
        on_small_stack(|| assert_code(parse(&deep), Code::ManifestInvalid));
    }
}

#[test]
fn names_are_plain() {
    for module in [
        "../q",
        "/etc/passwd",
        "a..b",
        "a b",
        "q\\u001b[31m",
        "\u{202e}q",
        "",
        ".",
        "q/",
        "q\\\\r",
    ] {
        let good = tiny(ONE, 1, "[1,1]", "[1,1]");
        let bad = good.replace(r#""module":"q""#, &format!(r#""module":"{module}""#));
        assert_code(parse(&bad), Code::BadName);
    }
    let long = tiny(ONE, 1, "[1,1]", "[1,1]").replace("\"q\"", &format!("\"{}\"", "q".repeat(MB)));
    assert_code(parse(&long), Code::BadName);
}

struct Recorder(RefCell<Vec<String>>);

impl BlobSource for Recorder {
    fn get(&self, digest: &Digest, _: u64) -> Result<Option<Bytes>> {
        self.0.borrow_mut().push(digest.hex());
        Ok(None)
    }
}

#[test]
fn a_thin_file_names_blobs_by_digest_alone() {
    let good = tiny(ONE, 1, "[1,1]", "[1,1]");
    let hash = format!("{:064x}", 1);
    for evil in [
        format!("../../../../{}", &hash[12..]),
        "/etc/passwd".into(),
        hash.replace('0', "A"),
        format!("{hash}0"),
        format!("sha256:{hash}"),
        format!("{}%2f", &hash[3..]),
        String::new(),
    ] {
        assert_code(parse(&good.replace(&hash, &evil)), Code::ManifestInvalid);
    }
    let file = open(&tl(&good, false, &[])).unwrap();
    let asked = Recorder(RefCell::default());
    assert_code(file.load(&asked), Code::ExternalMissing);
    assert_eq!(asked.0.into_inner(), std::slice::from_ref(&hash));
    // A blob of the right name and other bytes, or far more of them, is refused.
    let folder = Folder::new();
    let blobs = DirBlobs(folder.path().to_owned());
    folder.file(&hash, &[0; 4]);
    assert_code(file.load(&blobs), Code::DigestMismatch);
    folder.file(&hash, &vec![0; 32 * MB]);
    let (loaded, cost) = measured(|| file.load(&blobs));
    assert!(loaded.is_err());
    cost.within(64 * KB);
}

#[test]
fn what_was_verified_does_not_change_afterwards() {
    // Over a memory map, reading a tensor of a file that was cut would kill the process.
    let values: Vec<u8> = (0..4096).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let one = 1f32.to_le_bytes();
    let sums = [Digest::of(&values).hex(), Digest::of(&one).hex()];
    let entry = |name, sum: &str, shape| {
        format!(r#""{name}":{{"dtype":"F32","sha256":"{sum}","shape":{shape}}}"#)
    };
    let tensors = [
        entry("g0.A", &sums[0], "[1,4096]"),
        entry("g0.B", &sums[1], "[1,1]"),
    ];
    let groups = [group(
        ["g0.A", "g0.B"],
        r#""in":4096,"rank":1"#,
        &target("q", 1),
    )];
    let stored = [
        ("g0.A", Dtype::F32, vec![1, 4096], values.as_slice()),
        ("g0.B", Dtype::F32, vec![1, 1], &one[..]),
    ];
    let folder = Folder::new();
    let path = folder.file(
        "x.tl",
        &tl(&manifest(&groups, "custom", &tensors), false, &stored),
    );
    let file = TlFile::open(&path).unwrap();
    let adapter = file.load(&NoBlobs).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(0)
        .unwrap();
    assert_eq!(**adapter.groups[0].a.tensor.data(), values);
    assert_code(file.load(&NoBlobs), Code::Io);
}
