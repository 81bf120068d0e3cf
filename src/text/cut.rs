//! Where a text can be cut: between two characters.

/// The most bytes, at most `most`, that end between two characters.
pub(super) fn floor(text: &str, most: usize) -> usize {
    let most = most.min(text.len());
    let mut places = (0..=most).rev();
    places.find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// As [`floor`], of the text's last bytes.
pub(super) fn floor_from_end(text: &str, most: usize) -> usize {
    let len = text.len();
    let mut places = (0..=most.min(len)).rev();
    let whole = |n: &usize| text.is_char_boundary(len - n);
    places.find(whole).unwrap_or(0)
}
