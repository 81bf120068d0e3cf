//! JSON as Python writes it.

use std::borrow::Cow;

/// Numbers that Python's `json` writes and JSON does not have.
const NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// JSON with null in the place of `NaN`, `Infinity` and `-Infinity`, which Python writes and reads.
/// The same bytes where there is none. No key that matters here has such a value to a purpose.
pub(crate) fn strict_json(bytes: &[u8]) -> Cow<'_, [u8]> {
    let (mut out, mut done, mut at, mut quoted) = (Vec::new(), 0, 0, false);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b'-' | b'I' | b'N' if !quoted => {
                let word = NUMBERS
                    .iter()
                    .find(|n| bytes[at..].starts_with(n.as_bytes()));
                if let Some(word) = word {
                    out.extend_from_slice(&bytes[done..at]);
                    out.extend_from_slice(b"null");
                    at += word.len();
                    done = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if done == 0 {
        return Cow::Borrowed(bytes);
    }
    out.extend_from_slice(&bytes[done..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a config that Python reads is refused, or text within a string is changed.
    #[test]
    fn pythons_numbers_become_null_outside_of_strings() {
        for (text, want) in [
            (
                r#"{"a":NaN,"b":[-Infinity, Infinity]}"#,
                r#"{"a":null,"b":[null, null]}"#,
            ),
            (r#"{"NaN":"\"NaN","x":-1}"#, r#"{"NaN":"\"NaN","x":-1}"#),
            (r#"{"a":"\\","b":NaN}"#, r#"{"a":"\\","b":null}"#),
            ("NaN", "null"),
            ("\"NaN", "\"NaN"),
            ("\\", "\\"),
            ("\"\\", "\"\\"),
            ("", ""),
        ] {
            assert_eq!(strict_json(text.as_bytes()), want.as_bytes(), "{text}");
        }
    }
}
