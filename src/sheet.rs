//! Text in the cells of a CSV, which spreadsheets take for formulas where it looks like one.

use std::borrow::Cow;

/// Text for a cell: where a spreadsheet would compute it, because it begins with `=`, `+`, `-`, `@`, a
/// tab or a line break, an apostrophe goes before it, which spreadsheets take for the mark of text.
///
/// Text that begins with such a mark already gets one more, so that [`plain`] undoes it.
pub(crate) fn cell(text: &str) -> Cow<'_, str> {
    match computes(text.trim_start_matches('\'')) {
        true => format!("'{text}").into(),
        false => text.into(),
    }
}

/// What a cell says, without the mark.
pub(crate) fn plain(cell: &str) -> &str {
    match cell.strip_prefix('\'') {
        Some(text) if computes(text.trim_start_matches('\'')) => text,
        _ => cell,
    }
}

fn computes(text: &str) -> bool {
    text.starts_with([
        '=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
    ])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn formulas_become_text_and_names_stay() {
        for formula in ["=1+1", "+1", "-2+3", "@u", "\t=1", "\r=1", "＝1"] {
            assert_eq!(cell(formula), format!("'{formula}"));
        }
        for name in ["", "ann", "a=b", "'quoted'", "./-x", "3-4"] {
            assert_eq!(cell(name), name);
        }
    }

    proptest! {
        /// Breaks where a name comes back from a CSV as another.
        #[test]
        fn plain_undoes_cell(text in "['=+a-]{0,5}") {
            let cell = cell(&text);
            prop_assert_eq!(plain(&cell), text.as_str());
            prop_assert!(!computes(&cell));
        }
    }
}
