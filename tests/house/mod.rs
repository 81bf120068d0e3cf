//! What holds for the shape of `src/`: small files, rooms of a size, `mod.rs` as a table of contents, and no two files
//! that depend on each other, directly or round a corner.

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use fancy_regex::Regex;
use tlkit::Code;

use imports::{Tree, dependencies};

/// Most lines of a file.
const MAX_LINES: usize = 600;
/// Largest share of one room in all lines, in percent.
const MAX_SHARE: usize = 15;

/// Every source file by its path below `src/`, such as `merge/plan.rs`.
fn sources() -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                found.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    walk(&root, &root, &mut found);
    found
}

fn lines(text: &str) -> usize {
    text.matches('\n').count()
}

/// Of test code, which may see everything. `store/testing` is library code.
fn is_test(path: &str) -> bool {
    let mut parts = path.trim_end_matches(".rs").split('/');
    !path.starts_with("store/testing") && parts.any(|p| p == "tests" || p == "testing")
}

/// A file's code: without comments, the content of strings, and the tests at its end.
fn code(text: &str) -> String {
    let text = Regex::new(r#""(?:\\.|[^"\\])*""#)
        .unwrap()
        .replace_all(text, "\"\"");
    let text = Regex::new("//[^\n]*").unwrap().replace_all(&text, "");
    let end = ["tests", "testing"]
        .iter()
        .find_map(|name| text.find(&format!("#[cfg(test)]\nmod {name} {{")));
    text[..end.unwrap_or(text.len())].to_owned()
}

/// The groups of files that reach each other, each with the imports that tie it.
fn circles(tree: &Tree) -> Vec<String> {
    let edges = dependencies(tree);
    let reached = |from: &str| {
        let mut seen = BTreeSet::new();
        let mut open = vec![from.to_owned()];
        while let Some(file) = open.pop() {
            for next in edges.get(&file).into_iter().flat_map(BTreeMap::keys) {
                if seen.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&str, BTreeSet<String>> = edges
        .keys()
        .map(|file| (file.as_str(), reached(file)))
        .collect();
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for (file, ahead) in &reach {
        if !ahead.contains(*file) || told.contains(*file) {
            continue;
        }
        let back = |other: &&String| reach.get(other.as_str()).is_some_and(|r| r.contains(*file));
        let group: BTreeSet<&str> = ahead.iter().filter(back).map(String::as_str).collect();
        let mut text = group.iter().copied().collect::<Vec<_>>().join(" ");
        for from in &group {
            for (to, import) in &edges[*from] {
                if group.contains(to.as_str()) {
                    text.push_str(&format!("\n    {from} -> {to} by {import}"));
                }
            }
        }
        told.extend(group);
        found.push(text);
    }
    found
}

/// Breaks where two files depend on each other, so that neither can be read, tested or moved alone.
#[test]
fn no_files_depend_on_each_other() {
    let sources = sources();
    let mut found = circles(&Tree::library(&sources));
    let command = ("bin/tlkit/command/", "command/");
    for crate_of in [
        &[("bin/tlkit/", "")][..],
        &[("python/rust/", ""), command][..],
    ] {
        found.extend(circles(&Tree::within(crate_of, &sources)));
    }
    assert!(found.is_empty(), "circles:\n{}", found.join("\n"));
}

#[test]
fn no_file_is_long() {
    let sources = sources();
    let long: Vec<String> = sources
        .iter()
        .filter(|(_, text)| lines(text) > MAX_LINES)
        .map(|(path, text)| format!("{path}: {} lines", lines(text)))
        .collect();
    assert!(long.is_empty(), "over {MAX_LINES}:\n{}", long.join("\n"));
}

/// Breaks where a `mod.rs` has more than documentation, modules and re-exports.
#[test]
fn tables_of_contents_hold_no_code() {
    let item = Regex::new(
        r"(?m)^(?:pub(?:\([^)]*\))? )?(?:fn|struct|enum|trait|const|static|impl|unsafe|macro_rules)",
    )
    .unwrap();
    let mut found = Vec::new();
    for (path, text) in sources() {
        let items = item.find_iter(&code(&text)).count();
        if path.ends_with("mod.rs") && !is_test(&path) && items > 0 {
            found.push(format!("{path}: {items} items"));
        }
    }
    assert!(found.is_empty(), "mod.rs with code:\n{}", found.join("\n"));
}

#[test]
fn no_room_is_most_of_the_house() {
    let mut rooms = BTreeMap::new();
    for (path, text) in sources() {
        let room = path.split_once('/').map_or("", |(room, _)| room);
        *rooms.entry(room.to_owned()).or_insert(0) += lines(&text);
    }
    let all: usize = rooms.values().sum();
    let large: Vec<String> = rooms
        .iter()
        .filter(|(_, n)| 100 * **n > MAX_SHARE * all)
        .map(|(room, n)| format!("{room}: {n} of {all} lines"))
        .collect();
    assert!(
        large.is_empty(),
        "over {MAX_SHARE} %:\n{}",
        large.join("\n")
    );
}

/// Breaks where the search for circles goes blind.
#[test]
fn a_circle_is_found() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let sources = BTreeMap::from([
        file("lib.rs", "mod room;\npub mod leaf;\n"),
        file(
            "room/mod.rs",
            "mod a;\nmod b;\nmod c;\npub use b::{B, Other};\n",
        ),
        file(
            "room/a.rs",
            "use super::{B, Other as O};\n// use crate::leaf::Leaf;\n",
        ),
        file(
            "room/b.rs",
            "use crate::room::c::*;\npub struct B;\npub struct Other;\n",
        ),
        file(
            "room/c.rs",
            "fn f() { super::a::g() }\n#[cfg(test)]\nmod tests { use crate::leaf::L; }\n",
        ),
        file("leaf.rs", "use crate::room::B;\n"),
    ]);
    let found = circles(&Tree::library(&sources));
    assert_eq!(
        found,
        [
            "room/a.rs room/b.rs room/c.rs\n    room/a.rs -> room/b.rs by super::Other\n    \
             room/b.rs -> room/c.rs by crate::room::c::*\n    room/c.rs -> room/a.rs by super::a::g"
        ]
    );
}

/// Codes that no test names, and why.
const WITHOUT_TEST: [(Code, &str); 1] = [(
    Code::OutOfMemory,
    "needs a machine without memory or threads",
)];

/// What tests consist of: their files, what ends a source file, and the codes beside malformed files.
fn tests() -> String {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let ends = |ends: &[&str]| {
                path.extension()
                    .is_some_and(|e| ends.iter().any(|x| e == *x))
            };
            if path.is_dir() {
                // What fuzzing builds and finds.
                let made = ["target", "corpus", "artifacts", "venv"];
                if !path
                    .file_name()
                    .is_some_and(|n| made.iter().any(|m| n == *m))
                {
                    walk(&path, found);
                }
            } else if ends(&["rs", "snap", "py", "toml", "code"]) {
                let bytes = fs::read(&path).unwrap();
                found.push(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    // This file names codes that no test does.
    for entry in fs::read_dir(root.join("tests")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("house") {
            walk(&path, &mut found);
        }
    }
    walk(&root.join("fixtures"), &mut found);
    for (path, text) in sources() {
        let start = match is_test(&path) {
            true => Some(0),
            false => text.find("#[cfg(test)]\nmod tests {"),
        };
        found.extend(start.map(|at| text[at..].to_owned()));
    }
    found.join("\n")
}

/// Breaks where an error has a code that no test provokes.
#[test]
fn every_code_is_in_a_test() {
    let tests = tests();
    let words = Regex::new(r"\bTL\d{4}\b|\bCode::\w+").unwrap();
    let named: BTreeSet<&str> = words
        .find_iter(&tests)
        .map(|found| found.unwrap().as_str())
        .collect();
    let mut wrong = Vec::new();
    for code in Code::ALL {
        let name = format!("Code::{code:?}");
        let is_named = named.contains(code.as_str()) || named.contains(name.as_str());
        let is_exempt = WITHOUT_TEST.iter().any(|(c, _)| c == code);
        if is_named == is_exempt {
            wrong.push(format!("{} ({code:?})", code.as_str()));
        }
    }
    assert!(
        wrong.is_empty(),
        "these codes need a test, or a reason here, not both: {wrong:?}"
    );
}
