//! The registry of error codes says what the code says.

use std::fs;

use tlkit::Code;

use super::root;

#[test]
fn the_registry_lists_every_code_and_no_other() {
    // Users look codes up; one that is missing or means something else there is worse than none.
    let text = fs::read_to_string(root().join("spec/errors.md")).unwrap();
    let listed: Vec<&str> = text.lines().filter(|l| l.starts_with("| TL")).collect();
    let expected: Vec<String> = Code::ALL
        .iter()
        .map(|c| format!("| {} | {:?} | {} |", c.as_str(), c.kind(), c.summary()))
        .collect();
    for line in &expected {
        assert!(
            listed.contains(&&**line),
            "spec/errors.md lacks this line:\n{line}"
        );
    }
    assert_eq!(
        listed, expected,
        "spec/errors.md has lines of codes that do not exist, or another order"
    );
}
