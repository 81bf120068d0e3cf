//! JSON lines, one at a time, none longer than the limit.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::error::{Code, Error, Result};

/// Longest line that is read, in bytes.
pub(super) const MAX_LINE_BYTES: u64 = 16 << 20;

/// The lines of a file that are not blank, with their numbers from 1.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: usize,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(file),
            number: 0,
        })
    }

    fn read(&mut self) -> Result<Option<String>> {
        let mut bytes = Vec::new();
        let mut limited = (&mut self.reader).take(MAX_LINE_BYTES + 1);
        limited
            .read_until(b'\n', &mut bytes)
            .map_err(|e| Error::io(&self.path, "read", e))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        if bytes.len() as u64 > MAX_LINE_BYTES {
            return Err(self.bad(&format!("longer than {MAX_LINE_BYTES} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|_| self.bad("not UTF-8"))?;
        Ok(Some(text))
    }

    fn bad(&self, what: &str) -> Error {
        bad_line(self.number, what).file(&self.path)
    }
}

impl Iterator for Lines {
    type Item = Result<(usize, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let text = match self.read() {
                Ok(text) => text?,
                Err(e) => return Some(Err(e)),
            };
            // Editors of one system in particular put a mark before the first line.
            let text = text.trim_start_matches('\u{feff}').trim();
            if !text.is_empty() {
                return Some(Ok((self.number, text.to_owned())));
            }
        }
    }
}

/// The error of a line that is not what it should be.
pub(super) fn bad_line(number: usize, what: &str) -> Error {
    Error::new(Code::BadExample, format!("line {number}: {what}"))
}

/// Parses one line; `expected` says what a good one looks like.
pub(super) fn parse<T: DeserializeOwned>(number: usize, line: &str, expected: &str) -> Result<T> {
    // Serde would take an array for a record, field by field.
    if !line.starts_with('{') {
        let what = format!("not a JSON object; expected {expected}");
        return Err(bad_line(number, &what));
    }
    serde_json::from_str(line).map_err(|e| {
        let text = e.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text);
        let what = format!("{reason} (column {}); expected {expected}", e.column());
        bad_line(number, &what).cause(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<Result<(usize, String)>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Lines::open(file.path()).unwrap().collect()
    }

    #[test]
    fn blank_lines_count_but_are_not_given() {
        // A number that skips blank lines would send the user to the wrong place.
        let got: Vec<_> = lines(b"\xef\xbb\xbf{}\r\n\n  \n[1]")
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(got, [(1, "{}".to_owned()), (4, "[1]".to_owned())]);
    }

    #[test]
    fn long_and_broken_lines_are_named() {
        let error = lines(b"{}\n\xff\xfe\n").remove(1).unwrap_err();
        assert_eq!(error.message(), "line 2: not UTF-8");
        let long = vec![b'x'; MAX_LINE_BYTES as usize + 5];
        let error = lines(&long).remove(0).unwrap_err();
        assert_eq!(error.code(), Code::BadExample);
        assert!(error.message().starts_with("line 1: longer than"));
    }
}
