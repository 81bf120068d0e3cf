//! Values as they are written on the command line.

use tlkit::blend::{Election, Method, Rescale};
use tlkit::combine::CombineMethod;
use tlkit::compute::DeviceChoice;
use tlkit::merge::{Rounding, TiedPolicy, TokenizerFrom};
use tlkit::tensor::Dtype;

pub(super) fn positive() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..)
}

pub(super) fn float_dtype(text: &str) -> Result<Dtype, String> {
    match text.to_ascii_uppercase().parse::<Dtype>() {
        Ok(dtype) if dtype.is_float() => Ok(dtype),
        _ => Err("not one of f32, f16, bf16".into()),
    }
}

/// As [`float_dtype`], or `int8`: I8 with a scale for each row.
pub(super) fn storage_dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "int8" => Ok(Dtype::I8),
        _ => float_dtype(text).map_err(|_| "not one of f32, bf16, f16, int8".into()),
    }
}

pub(super) fn rounding(text: &str) -> Result<Rounding, String> {
    let names = Rounding::ALL.map(Rounding::as_str);
    text.parse().map_err(|_| not_one_of(&names))
}

pub(super) fn combine_method(text: &str) -> Result<CombineMethod, String> {
    let names = CombineMethod::ALL.map(CombineMethod::as_str);
    text.parse().map_err(|_| not_one_of(&names))
}

pub(super) fn device(text: &str) -> Result<DeviceChoice, String> {
    text.parse::<DeviceChoice>()
        .map_err(|_| "not one of cpu, cuda, cuda:N, auto".into())
}

pub(super) fn tied_policy(text: &str) -> Result<TiedPolicy, String> {
    let names = TiedPolicy::ALL.map(TiedPolicy::as_str);
    text.parse().map_err(|_| not_one_of(&names))
}

pub(super) fn tokenizer(text: &str) -> Result<TokenizerFrom, String> {
    let names = TokenizerFrom::ALL.map(TokenizerFrom::as_str);
    text.parse().map_err(|_| not_one_of(&names))
}

pub(super) fn merge_method(text: &str) -> Result<Method, String> {
    let names = Method::ALL.map(Method::as_str);
    text.parse().map_err(|_| not_one_of(&names))
}

pub(super) fn rescale(text: &str) -> Result<Rescale, String> {
    let names = Rescale::ALL.map(Rescale::as_str);
    text.parse().map_err(|_| not_one_of(&names))
}

pub(super) fn election(text: &str) -> Result<Election, String> {
    let names = Election::ALL.map(Election::as_str);
    text.parse().map_err(|_| not_one_of(&names))
}

fn not_one_of(names: &[&str]) -> String {
    format!("not one of {}", names.join(", "))
}

pub(super) fn rename(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("not of the form FROM=TO")?;
    Ok((from.to_owned(), to.to_owned()))
}

/// A number of bytes, with or without a unit.
pub(super) fn byte_count(text: &str) -> Result<u64, String> {
    bytes(text).ok_or_else(|| "not bytes such as 4096, 500MB or 2GB".into())
}

pub(super) fn bytes(text: &str) -> Option<u64> {
    let units = [
        ("", 1),
        ("B", 1),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    with_unit(text, &units)
}

/// A number with one of some units, each a suffix and its factor.
pub(super) fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(u, _)| *u == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}
