//! Element types, and which of them arithmetic is done in.

use std::fmt;

use crate::error::{Code, Error, Result};

macro_rules! dtypes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $bits:literal;)+) => {
        /// Element types of safetensors 0.8. All arithmetic here uses F32, F16 and BF16, a `.tl` also
        /// I8 with scales; the rest exist so that untouched base tensors can be described and copied.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types)]
        #[non_exhaustive]
        pub enum Dtype { $($(#[doc = $doc])+ $name,)+ }

        impl Dtype {
            /// Every dtype.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$name,)+];

            /// The name that safetensors headers use.
            pub fn as_str(self) -> &'static str {
                match self { $(Dtype::$name => $text,)+ }
            }

            /// Size of one element in bits.
            pub fn bits(self) -> usize {
                match self { $(Dtype::$name => $bits,)+ }
            }
        }

        impl std::str::FromStr for Dtype {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($text => Ok(Dtype::$name),)+
                    _ => Err(Error::new(Code::UnknownDtype, format!("unknown dtype `{text}`"))),
                }
            }
        }
    };
}

dtypes! {
    /// Boolean, one byte.
    Bool = "BOOL", 8;
    /// 4-bit float (MXFP4).
    F4 = "F4", 4;
    /// 6-bit float, 2 exponent bits.
    F6_E2M3 = "F6_E2M3", 6;
    /// 6-bit float, 3 exponent bits.
    F6_E3M2 = "F6_E3M2", 6;
    /// Unsigned 8-bit integer.
    U8 = "U8", 8;
    /// Signed 8-bit integer.
    I8 = "I8", 8;
    /// 8-bit float, 5 exponent bits.
    F8_E5M2 = "F8_E5M2", 8;
    /// 8-bit float, 4 exponent bits.
    F8_E4M3 = "F8_E4M3", 8;
    /// 8-bit power-of-two scale.
    F8_E8M0 = "F8_E8M0", 8;
    /// 8-bit float, 4 exponent bits, finite, unsigned zero.
    F8_E4M3FNUZ = "F8_E4M3FNUZ", 8;
    /// 8-bit float, 5 exponent bits, finite, unsigned zero.
    F8_E5M2FNUZ = "F8_E5M2FNUZ", 8;
    /// Signed 16-bit integer.
    I16 = "I16", 16;
    /// Unsigned 16-bit integer.
    U16 = "U16", 16;
    /// IEEE 754 half precision.
    F16 = "F16", 16;
    /// bfloat16: the upper half of an F32.
    BF16 = "BF16", 16;
    /// Signed 32-bit integer.
    I32 = "I32", 32;
    /// Unsigned 32-bit integer.
    U32 = "U32", 32;
    /// IEEE 754 single precision.
    F32 = "F32", 32;
    /// Complex of two F32.
    C64 = "C64", 64;
    /// IEEE 754 double precision.
    F64 = "F64", 64;
    /// Signed 64-bit integer.
    I64 = "I64", 64;
    /// Unsigned 64-bit integer.
    U64 = "U64", 64;
}

impl Dtype {
    /// Whether this is one of F32, F16, BF16: what widens by itself, and what a merge writes.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Unit roundoff of F32, F16, BF16 (2⁻²⁴, 2⁻¹¹, 2⁻⁸); zero for the others.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::F32 => f64::powi(2.0, -24),
            Self::F16 => f64::powi(2.0, -11),
            Self::BF16 => f64::powi(2.0, -8),
            _ => 0.0,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Refuses a dtype that no arithmetic is done in.
pub(crate) fn not_float(dtype: Dtype) -> Error {
    Error::new(
        Code::DtypeNotAllowed,
        format!("{dtype} is not one of F32, F16, BF16"),
    )
}
