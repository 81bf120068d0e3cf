//! Values of settings whose text is not serde's: methods, factors, dtypes, layer lists.

use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::adapter::{FactorName, MAX_LAYERS};
use crate::compute::DeviceChoice;
use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;

/// Layer numbers, ascending and each once. As text: numbers and ranges, such as `0-7,12`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layers(Vec<u32>);

impl Layers {
    /// The layers of `numbers`, in any order.
    ///
    /// # Errors
    /// [`Code::Usage`] where there is none, one is beyond [`MAX_LAYERS`], or one stands twice.
    pub fn new(mut numbers: Vec<u32>) -> Result<Self> {
        numbers.sort_unstable();
        let Some(last) = numbers.last() else {
            return Err(Error::new(Code::Usage, "`layers` is empty"));
        };
        if *last as usize >= MAX_LAYERS {
            let message = format!("`layers` has {last}, the numbers are below {MAX_LAYERS}");
            return Err(Error::new(Code::Usage, message));
        }
        if let Some(twice) = numbers.windows(2).find(|w| w[0] == w[1]) {
            let message = format!("`layers` has {} twice", twice[0]);
            return Err(Error::new(Code::Usage, message));
        }
        Ok(Self(numbers))
    }

    /// The numbers, ascending.
    pub fn numbers(&self) -> &[u32] {
        &self.0
    }
}

impl FromStr for Layers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut numbers = Vec::new();
        for item in text.split(',') {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let range = first
                .trim()
                .parse::<u32>()
                .ok()
                .zip(last.trim().parse().ok());
            // The bound comes before the range is written out: `0-4000000000` is short to type.
            match range {
                Some((first, last)) if first <= last && (last as usize) < MAX_LAYERS => {
                    numbers.extend(first..=last);
                }
                _ => {
                    let message = format!(
                        "`layers` has `{item}`, which is no number or range below {MAX_LAYERS}"
                    );
                    return Err(Error::new(Code::Usage, message).hint("write it as 0-7,12"));
                }
            }
            // Each item adds at most MAX_LAYERS; one that repeats them is refused before the next.
            numbers = Self::new(numbers)?.0;
        }
        Self::new(numbers)
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(d)?;
        let number = |v: &toml::Value| v.as_integer().and_then(|n| u32::try_from(n).ok());
        let layers = match &value {
            toml::Value::String(text) => text.parse(),
            toml::Value::Array(list) => match list.iter().map(number).collect() {
                Some(numbers) => Self::new(numbers),
                None => return Err(D::Error::custom("`layers` has what is no layer number")),
            },
            other => match number(other) {
                Some(n) => Self::new(vec![n]),
                None => return Err(D::Error::custom("`layers` is a list, or text as 0-7,12")),
            },
        };
        layers.map_err(|e| D::Error::custom(e.message()))
    }
}

/// A device, and the words that name it: `cuda` and `cuda:0` are one device, and a record has what was
/// asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceName {
    choice: DeviceChoice,
    text: String,
}

impl DeviceName {
    /// The device.
    pub fn choice(&self) -> DeviceChoice {
        self.choice
    }

    /// Its name as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(Self {
            choice: text.parse()?,
            text: text.to_owned(),
        })
    }
}

impl Serialize for DeviceName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

fn parse<T: FromStr<Err = Error>, E: serde::de::Error>(text: &str) -> Result<T, E> {
    text.parse().map_err(|e: Error| E::custom(e.message()))
}

/// A value whose text is that of its `FromStr`.
pub(crate) fn one<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = Error>,
{
    parse(&String::deserialize(d)?)
}

/// Such a value, which may be left out.
pub(crate) fn text<'de, D, T>(d: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = Error>,
{
    one(d).map(Some)
}

/// A list of such values.
pub(crate) fn texts<'de, D, T>(d: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = Error>,
{
    let list = Vec::<String>::deserialize(d)?;
    list.iter()
        .map(|t| parse(t))
        .collect::<Result<_, _>>()
        .map(Some)
}

/// `f32`, `bf16` or `f16`; the names in safetensors headers, which are in capitals, are taken too.
pub(crate) fn dtype<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Dtype>, D::Error> {
    let text = String::deserialize(d)?;
    match text.to_ascii_uppercase().parse::<Dtype>() {
        Ok(dtype) if dtype.is_float() => Ok(Some(dtype)),
        _ => Err(D::Error::custom(format!(
            "`{text}` is not one of f32, bf16, f16"
        ))),
    }
}

// Serde asks by reference. What is not recorded leaves the records of other runs what they were.
#[allow(clippy::trivially_copy_pass_by_ref)]
pub(crate) fn is_false(value: &bool) -> bool {
    !*value
}

#[allow(clippy::trivially_copy_pass_by_ref)]
pub(crate) fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
pub(crate) fn is_one(value: &f64) -> bool {
    *value == 1.0
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(crate) fn as_text<S: Serializer>(value: &impl ToString, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&value.to_string())
}

pub(crate) fn dtype_as_text<S: Serializer>(dtype: &Dtype, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&dtype.as_str().to_ascii_lowercase())
}

pub(crate) fn optional_dtype_as_text<S: Serializer>(
    dtype: &Option<Dtype>,
    s: S,
) -> Result<S::Ok, S::Error> {
    match dtype {
        Some(dtype) => dtype_as_text(dtype, s),
        None => s.serialize_none(),
    }
}

pub(crate) fn factors_as_text<S: Serializer>(
    factors: &[FactorName],
    s: S,
) -> Result<S::Ok, S::Error> {
    s.collect_seq(factors.iter().map(|p| p.name()))
}
