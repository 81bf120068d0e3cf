//! Names of modules and tensors, and the place of a layer's number in them.

use super::limits::MAX_LAYERS;
use crate::error::{Code, Error, Result};

/// Longest module path or tensor name in bytes.
pub const MAX_NAME_BYTES: usize = 512;

/// The place of the layer number in a module template: `model.layers.{}.self_attn.q_proj`.
pub const LAYER_PLACE: &str = "{}";

/// The name of `template` in the layer of this number: the first [`LAYER_PLACE`] becomes the number.
pub fn in_layer(template: &str, number: u32) -> String {
    template.replacen(LAYER_PLACE, &number.to_string(), 1)
}

/// The template and the layer number of a module's path: the first segment that is a number, as PEFT's
/// `layers_to_transform` counts. [`in_layer`] gives the path back.
pub(crate) fn split_layer(path: &str) -> (String, Option<u32>) {
    let mut segments: Vec<&str> = path.split('.').collect();
    for segment in &mut segments {
        // Numbers with leading zeros or beyond the limit would not survive the round trip.
        if let Ok(number) = segment.parse::<u32>()
            && number.to_string() == *segment
            && (number as usize) < MAX_LAYERS
        {
            *segment = LAYER_PLACE;
            return (segments.join("."), Some(number));
        }
    }
    (path.to_owned(), None)
}

/// As [`split_layer`], for names that nobody has checked: the first segment of digits, however many.
pub(crate) fn split_digits(path: &str) -> (String, Option<&str>) {
    let mut segments: Vec<&str> = path.split('.').collect();
    let first = segments.iter_mut().find(|s| is_number(s));
    let digits = first.map(|segment| std::mem::replace(segment, LAYER_PLACE));
    (segments.join("."), digits)
}

/// A name with [`LAYER_PLACE`] for each segment that is a number: the same for what repeats over
/// layers, experts and the like.
pub fn without_numbers(name: &str) -> String {
    let place = |s| if is_number(s) { LAYER_PLACE } else { s };
    name.split('.').map(place).collect::<Vec<_>>().join(".")
}

fn is_number(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit())
}

/// Checks a module template (`layered`: with exactly one `{}`) or a plain name.
///
/// # Errors
/// [`Code::BadName`].
pub fn check_name(name: &str, layered: bool) -> Result<()> {
    let plain = name.replacen(LAYER_PLACE, "0", usize::from(layered));
    let segments_ok = plain.split('.').all(|s| {
        !s.is_empty()
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    });
    let place_ok = !layered || name.split('.').filter(|s| *s == LAYER_PLACE).count() == 1;
    if name.len() > MAX_NAME_BYTES || !segments_ok || !place_ok {
        let kind = if layered {
            "module template with one `{}` segment"
        } else {
            "dotted name"
        };
        return Err(Error::new(
            Code::BadName,
            format!("`{name}` is not a {kind}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a path does not come back from its template, or a number that would not
    /// (leading zeros, beyond the limit) is taken for a layer's.
    #[test]
    fn the_first_number_is_the_layer() {
        for (path, template, layer) in [
            ("h.7.attn.0", "h.{}.attn.0", Some(7)),
            ("h.07.attn.1", "h.07.attn.{}", Some(1)),
            ("h.4096.attn", "h.4096.attn", None),
            ("lm_head", "lm_head", None),
        ] {
            assert_eq!(split_layer(path), (template.to_owned(), layer));
            let back = layer.map_or(template.to_owned(), |l| in_layer(template, l));
            assert_eq!(back, path);
        }
        assert_eq!(split_digits("h.07.1"), ("h.{}.1".to_owned(), Some("07")));
        assert_eq!(split_digits("a..b"), ("a..b".to_owned(), None));
        assert_eq!(without_numbers("h.07.experts.1.w1"), "h.{}.experts.{}.w1");
    }
}
