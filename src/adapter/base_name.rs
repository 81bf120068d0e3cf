//! What the name of a base model says of how it is quantised.

/// Parts of names, and what they say, the more particular first.
const MARKS: [(&str, &str); 15] = [
    ("-unsloth-bnb-4bit", "bitsandbytes 4 bit"),
    ("-bnb-4bit", "bitsandbytes 4 bit"),
    ("-bnb-8bit", "bitsandbytes int8"),
    ("-gptq-int4", "GPTQ 4 bit"),
    ("-gptq-int8", "GPTQ 8 bit"),
    ("-gptq", "GPTQ"),
    ("-awq", "AWQ"),
    ("4bit", "4 bit"),
    ("8bit", "8 bit"),
    ("int4", "int4"),
    ("int8", "int8"),
    ("-fp8-dynamic", "FP8"),
    ("-fp8", "FP8"),
    ("-nvfp4", "NVFP4"),
    ("-mxfp4", "MXFP4"),
];

fn last_part(name: &str) -> String {
    let name = name.trim_end_matches('/');
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    last.to_ascii_lowercase()
}

/// How the weights of a base are quantised, as far as its name, or the last part of its path, says so:
/// `bitsandbytes 4 bit`, `GPTQ`, `AWQ`, … `None` where it does not.
pub fn quantisation_of_name(name: &str) -> Option<&'static str> {
    let name = last_part(name);
    let found = MARKS.iter().find(|(mark, _)| name.contains(mark));
    found.map(|(_, kind)| *kind)
}

/// The last part of a base's name without what it ends with of how it is quantised, in lower case.
pub(crate) fn unquantised_name(name: &str) -> String {
    let name = last_part(name);
    let plain = MARKS.iter().find_map(|(mark, _)| name.strip_suffix(mark));
    plain.map(str::to_owned).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where the name of a quantised base says nothing of it, or a dense one is called quantised.
    #[test]
    fn names_say_how_a_base_is_quantised() {
        for (name, plain, kind) in [
            (
                "unsloth/Qwen3-0.6B-unsloth-bnb-4bit",
                "qwen3-0.6b",
                Some("bitsandbytes 4 bit"),
            ),
            (
                "Qwen/Qwen2-7B-Instruct-GPTQ-Int4",
                "qwen2-7b-instruct",
                Some("GPTQ 4 bit"),
            ),
            ("/data/Llama-3-8B-FP8-dynamic/", "llama-3-8b", Some("FP8")),
            (
                "me/tiny-bnb-4bit-v2",
                "tiny-bnb-4bit-v2",
                Some("bitsandbytes 4 bit"),
            ),
            ("meta-llama/Llama-2-7b-hf", "llama-2-7b-hf", None),
            ("org-4bit/awq-tools", "awq-tools", None),
            ("", "", None),
        ] {
            assert_eq!(quantisation_of_name(name), kind, "{name}");
            assert_eq!(unquantised_name(name), plain);
        }
    }
}
