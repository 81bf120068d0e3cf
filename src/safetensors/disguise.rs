//! What is under a file's name where it is not the file itself: downloads leave such things behind.

use crate::error::{Code, Error, Result};

/// How many bytes of a file's beginning tell.
pub(crate) const TELLING: usize = 64;

/// Refuses, by its first bytes, what is no weights and no JSON of a model.
///
/// # Errors
/// [`Code::OtherFile`], with what it is.
pub(crate) fn check_disguise(start: &[u8]) -> Result<()> {
    let text = start.trim_ascii_start();
    let begins = |with: &str| {
        let head = text.get(..with.len()).unwrap_or_default();
        head.eq_ignore_ascii_case(with.as_bytes())
    };
    let (what, hint) = match () {
        () if begins("version https://git-lfs") || begins("version https://hawser") => (
            "this is a Git LFS pointer, not the file itself",
            "fetch the file with git lfs pull",
        ),
        () if ["<!doctype", "<html", "<?xml", "<head"]
            .into_iter()
            .any(begins) =>
        {
            (
                "this is a web page, not the file itself",
                "download the file again: by its `resolve` address, and logged in if the model is gated",
            )
        }
        () if start.starts_with(b"PK\x03\x04") => (
            "this is a zip archive, as torch saves weights, not the file that its name says",
            "name it .bin if it is one of torch's, or save it as safetensors",
        ),
        () if start.starts_with(b"GGUF") => (
            "this is a GGUF file, not the file that its name says",
            "take the model in the safetensors format",
        ),
        () if begins("Invalid username or password")
            || begins("Entry not found")
            || begins("Access to model") =>
        {
            (
                "this is a message of the Hub, not the file itself",
                "download the file again, logged in if the model is gated",
            )
        }
        () => return Ok(()),
    };
    Err(Error::new(Code::OtherFile, what).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a pointer or a page is reported as a damaged file, or a real one as a pointer.
    #[test]
    fn what_downloads_leave_behind_is_called_by_its_name() {
        for start in [
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:00"[..],
            b"<!DOCTYPE html><html>",
            b"\n<html lang=\"en\">",
            b"PK\x03\x04\0\0",
            b"GGUF\x03\0\0\0",
            b"Entry not found",
        ] {
            let error = check_disguise(start).unwrap_err();
            assert_eq!(error.code(), Code::OtherFile);
        }
        for start in [
            &b"{\"a\":1}"[..],
            b"\x40\0\0\0\0\0\0\0{\"__metadata__\"",
            b"version 2",
            b"<",
            b"",
        ] {
            check_disguise(start).unwrap();
        }
    }
}
