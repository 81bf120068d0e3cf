use std::fs;

use super::{Shell, assert_transcript};

/// Keys of nobody: of RFC 8410, section 10.3, and of P-256 in PKCS#8, SEC1 and public.
const ED25519: [&str; 2] = [
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n",
    "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n",
];
const P256: [&str; 3] = [
    "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgHmpW6ei+joCKCOWX\nLDKPpfvP9lIRd0J6GcL9nWQXbMShRANCAAS+zQucW8DImXSxXPBVaZNHs5q9s/E+\nMjPy2xdqF6btAto4tHrcoizfzn+LKUUUjZ5MQ2VV+BpPONEUDNzfscHB\n-----END PRIVATE KEY-----\n",
    "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB5qVunovo6Aigjllywyj6X7z/ZSEXdCehnC/Z1kF2zEoAoGCCqGSM49\nAwEHoUQDQgAEvs0LnFvAyJl0sVzwVWmTR7OavbPxPjIz8tsXahem7QLaOLR63KIs\n385/iylFFI2eTENlVfgaTzjRFAzc37HBwQ==\n-----END EC PRIVATE KEY-----\n",
    "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEvs0LnFvAyJl0sVzwVWmTR7OavbPx\nPjIz8tsXahem7QLaOLR63KIs385/iylFFI2eTENlVfgaTzjRFAzc37HBwQ==\n-----END PUBLIC KEY-----\n",
];
/// What `model_signing` 1.1.1 wrote for a folder of the files `a` (`x` and a line feed) and `sub/b` (`y` and one).
const THEIRS: &str = include_str!("model_signing.sig");

/// A folder with keys and the folder `two`.
fn shell() -> Shell {
    let shell = Shell::new();
    for (name, text) in [
        ("ed.pem", ED25519[0]),
        ("ed.pub", ED25519[1]),
        ("ec.pem", P256[0]),
        ("sec1.pem", P256[1]),
        ("ec.pub", P256[2]),
        ("theirs.sig", THEIRS),
    ] {
        fs::write(shell.path(name), text).unwrap();
    }
    fs::create_dir_all(shell.path("two/sub")).unwrap();
    fs::write(shell.path("two/a"), "x\n").unwrap();
    fs::write(shell.path("two/sub/b"), "y\n").unwrap();
    shell
}

/// The code that a command fails with.
fn fails(shell: &Shell, line: &str) -> String {
    let run = shell.quiet(line);
    assert_ne!(run.code, 0, "{line}");
    let code = run.stderr.split(['[', ']']).nth(1);
    code.unwrap_or_else(|| panic!("{line}: {}", run.stderr))
        .to_owned()
}

/// Breaks where a signature does not verify, or is told otherwise.
#[test]
fn files_and_folders_are_signed_and_verified() {
    let mut shell = shell();
    shell.run("sign style.tl --key ed.pem -o style.sig --name alice/style@3");
    shell.run("verify signature style.tl --signature style.sig --key ed.pub --name alice/style@3");
    shell.run("verify signature two --signature theirs.sig --key ec.pub");
    shell.run("sign two --key ec.pem -o two/own.sig");
    shell.run("verify signature two --signature two/own.sig --key ed.pub --key ec.pub");
    assert_transcript!(shell);
    // Both forms of a key, and any time, give the same signature.
    shell.ok("sign two --key sec1.pem -o again.sig");
    shell.ok("sign two --key ec.pem -o once.sig");
    let read = |name: &str| fs::read(shell.path(name)).unwrap();
    assert_eq!(read("again.sig"), read("once.sig"));
}

/// Breaks where other files, another key, another name or a broken bundle pass.
#[test]
fn what_was_not_signed_does_not_pass() {
    let shell = shell();
    let theirs = "verify signature two --signature theirs.sig --key ec.pub";
    shell.ok(theirs);
    assert_eq!(fails(&shell, &theirs.replace("ec.pub", "ed.pub")), "TL0711");
    assert_eq!(
        fails(&shell, &format!("{theirs} --name alice/style")),
        "TL0711"
    );
    assert_eq!(
        fails(&shell, &theirs.replace("ec.pub", "theirs.sig")),
        "TL0712"
    );
    shell.ok("sign two --key ec.pem -o bound.sig --name alice/style@3");
    let bound = "verify signature two --signature bound.sig --key ec.pub";
    shell.ok(&format!("{bound} --name alice/style@3"));
    for other in ["alice/style@4", "bob/style@3", "alice/style"] {
        assert_eq!(fails(&shell, &format!("{bound} --name {other}")), "TL0711");
    }

    fs::write(
        shell.path("two/.gitignore"),
        "what git has is not looked at",
    )
    .unwrap();
    shell.ok(theirs);
    fs::write(shell.path("two/more"), "").unwrap();
    assert_eq!(fails(&shell, theirs), "TL0723");
    fs::remove_file(shell.path("two/more")).unwrap();
    fs::write(shell.path("two/a"), "z\n").unwrap();
    assert_eq!(fails(&shell, theirs), "TL0723");
    fs::remove_file(shell.path("two/a")).unwrap();
    assert_eq!(fails(&shell, theirs), "TL0723");
    fs::write(shell.path("x"), "x\n").unwrap();
    std::os::unix::fs::symlink("../x", shell.path("two/a")).unwrap();
    assert_eq!(fails(&shell, theirs), "TL0723", "a link");
    assert_eq!(fails(&shell, "sign two --key ec.pem -o link.sig"), "TL0723");
    assert!(!shell.path("link.sig").exists());

    // Every single changed character of a bundle.
    fs::remove_file(shell.path("two/a")).unwrap();
    fs::write(shell.path("two/a"), "x\n").unwrap();
    let whole = THEIRS.trim_end();
    for at in (0..whole.len()).step_by(97) {
        let mut bytes = whole.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        fs::write(shell.path("theirs.sig"), bytes).unwrap();
        let run = shell.quiet(theirs);
        // Names of fields that are not known are passed over, and with them what only hints.
        let hint =
            whole[..at].contains("verificationMaterial") && !whole[..at].contains("dsseEnvelope");
        let media = !whole[..at].contains("verificationMaterial");
        assert!(
            run.code != 0 || hint || media,
            "{at}: {}",
            &whole[at..at + 20]
        );
    }
    for broken in [
        "",
        "{}",
        "[]",
        "null",
        &whole.replace("payloadType", "payloadTypo"),
    ] {
        fs::write(shell.path("theirs.sig"), broken).unwrap();
        assert_eq!(fails(&shell, theirs), "TL0722", "{broken:.20}");
    }
}
