//! Rotary frequencies, with every scaling in use, as Hugging Face Transformers computes them
//! (`modeling_rope_utils.py`): in f32, angles as the f32 product of frequency and position.

use std::ops::Range;

use candle_core::{DType, Device};
use serde::Deserialize;

use crate::error::{Code, Error, Result};
use crate::model::ops::Rotation;

/// `rope_scaling` or `rope_parameters` of a `config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct RopeConfig {
    #[serde(alias = "type")]
    pub(super) rope_type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) original_max_position_embeddings: Option<usize>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    /// Of the layers of either kind, where they differ.
    pub(super) full_attention: Option<Box<RopeConfig>>,
    pub(super) sliding_attention: Option<Box<RopeConfig>>,
}

/// The frequencies of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    kind: Kind,
    /// What cosines and sines are multiplied by.
    attention: f32,
    half: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Fixed(Vec<f32>),
    /// NTK: the base grows with the length beyond `trained`.
    Dynamic {
        theta: f64,
        factor: f64,
        trained: usize,
    },
    /// Other frequencies beyond the original length.
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        original: usize,
    },
}

/// 1 / θ^(2i/dim), in f32 as torch does it.
fn frequencies(theta: f64, half: usize) -> Vec<f32> {
    let dim = (2 * half) as f32;
    (0..half)
        .map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / dim))
        .collect()
}

impl Rotary {
    /// `rotated` columns of each head, of a model trained for `max_positions`.
    ///
    /// # Errors
    /// [`Code::ModelConfig`], [`Code::UnsupportedModel`]
    pub(super) fn new(
        config: &RopeConfig,
        theta: f64,
        rotated: usize,
        max_positions: usize,
    ) -> Result<Self> {
        let half = rotated / 2;
        if rotated == 0 || !rotated.is_multiple_of(2) || !(theta.is_finite() && theta > 1.0) {
            let message = format!("rotary embedding of {rotated} columns with base {theta}");
            return Err(Error::new(Code::ModelConfig, message));
        }
        let need = |name: &str, value: Option<f64>| {
            value.filter(|v| v.is_finite() && *v > 0.0).ok_or_else(|| {
                Error::new(
                    Code::ModelConfig,
                    format!("rope scaling has no usable `{name}`"),
                )
            })
        };
        let original = config
            .original_max_position_embeddings
            .unwrap_or(max_positions);
        let plain = frequencies(theta, half);
        // The first configs of Phi-3 called it so.
        let long = config.short_factor.is_some();
        let (kind, attention) = match config.rope_type.as_deref().unwrap_or("default") {
            "su" | "yarn" if long => longrope(config, &plain, max_positions, original)?,
            // On texts alone the three positions of Qwen's VL models are one.
            "default" | "mrope" => (Kind::Fixed(plain), 1.0),
            "linear" => {
                let factor = need("factor", config.factor)? as f32;
                (Kind::Fixed(plain.iter().map(|f| f / factor).collect()), 1.0)
            }
            "dynamic" => {
                let factor = need("factor", config.factor)?;
                (
                    Kind::Dynamic {
                        theta,
                        factor,
                        trained: max_positions,
                    },
                    1.0,
                )
            }
            "llama3" => {
                let factor = need("factor", config.factor)?;
                let low = need("low_freq_factor", config.low_freq_factor)?;
                let high = need("high_freq_factor", config.high_freq_factor)?;
                (
                    Kind::Fixed(llama3(&plain, factor, low, high, original)),
                    1.0,
                )
            }
            "yarn" => {
                let factor = match config.factor {
                    None => max_positions as f64 / original as f64,
                    factor => need("factor", factor)?,
                };
                let attention = config.attention_factor.unwrap_or_else(|| {
                    let scale = |m: f64| match factor <= 1.0 {
                        true => 1.0,
                        false => 0.1 * m * factor.ln() + 1.0,
                    };
                    match (config.mscale, config.mscale_all_dim) {
                        (Some(m), Some(all)) if m != 0.0 && all != 0.0 => scale(m) / scale(all),
                        _ => scale(1.0),
                    }
                });
                (
                    Kind::Fixed(yarn(config, theta, half, factor, original)),
                    attention,
                )
            }
            "longrope" => longrope(config, &plain, max_positions, original)?,
            other => {
                let message = format!("rope scaling `{other}` is not one tlkit knows");
                return Err(Error::new(Code::UnsupportedModel, message));
            }
        };
        Ok(Self {
            kind,
            attention: attention as f32,
            half,
        })
    }

    /// Half the number of rotated columns.
    pub fn half(&self) -> usize {
        self.half
    }

    /// The angles of sequences laid end to end, whose rows have the given positions.
    /// For work in `dtype` on `device`.
    ///
    /// # Errors
    /// [`Code::Backend`]
    pub fn rotation(
        &self,
        positions: &[Range<usize>],
        device: &Device,
        dtype: DType,
    ) -> Result<Rotation> {
        let tokens: usize = positions.iter().map(Range::len).sum();
        let room = || Vec::with_capacity(tokens * self.half);
        let (mut cosines, mut sines) = (room(), room());
        for range in positions {
            let frequencies = self.for_length(range.end);
            for position in range.clone() {
                for frequency in frequencies.iter() {
                    let angle = f64::from(*frequency * position as f32);
                    let (sin, cos) = angle.sin_cos();
                    cosines.push(cos as f32 * self.attention);
                    sines.push(sin as f32 * self.attention);
                }
            }
        }
        Rotation::new([cosines, sines], self.half, device, dtype)
    }

    fn for_length(&self, length: usize) -> std::borrow::Cow<'_, [f32]> {
        match &self.kind {
            Kind::Fixed(frequencies) => frequencies.into(),
            Kind::Dynamic {
                theta,
                factor,
                trained,
            } => {
                let length = length.max(*trained) as f64;
                let dim = (2 * self.half) as f64;
                let grown = factor * length / *trained as f64 - (factor - 1.0);
                frequencies(theta * grown.powf(dim / (dim - 2.0)), self.half).into()
            }
            Kind::Long {
                short,
                long,
                original,
            } => {
                if length > *original {
                    long.into()
                } else {
                    short.into()
                }
            }
        }
    }
}

/// Llama 3.1: low frequencies divided, high ones kept, those between blended.
fn llama3(plain: &[f32], factor: f64, low: f64, high: f64, original: usize) -> Vec<f32> {
    let original = original as f64;
    (plain.iter())
        .map(|f| {
            let wavelength = 2.0 * std::f64::consts::PI / f64::from(*f);
            if wavelength > original / low {
                (f64::from(*f) / factor) as f32
            } else if wavelength < original / high {
                *f
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                ((1.0 - smooth) * f64::from(*f) / factor + smooth * f64::from(*f)) as f32
            }
        })
        .collect()
}

/// YaRN: interpolated and extrapolated frequencies blended over a ramp of dimensions.
fn yarn(config: &RopeConfig, theta: f64, half: usize, factor: f64, original: usize) -> Vec<f32> {
    let dim = (2 * half) as f64;
    let given = |value: Option<f64>, default| value.filter(|v| *v != 0.0).unwrap_or(default);
    let correction = |turns: f64| {
        let ratio = original as f64 / (turns * 2.0 * std::f64::consts::PI);
        dim * ratio.ln() / (2.0 * theta.ln())
    };
    let mut low = correction(given(config.beta_fast, 32.0));
    let mut high = correction(given(config.beta_slow, 1.0));
    if config.truncate.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let low = low.max(0.0);
    let mut high = high.min(dim - 1.0);
    if low == high {
        high += 0.001;
    }
    (frequencies(theta, half).iter().enumerate())
        .map(|(i, plain)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
            plain / factor as f32 * ramp + plain * (1.0 - ramp)
        })
        .collect()
}

fn longrope(
    config: &RopeConfig,
    plain: &[f32],
    max_positions: usize,
    original: usize,
) -> Result<(Kind, f64)> {
    let factor = config
        .factor
        .unwrap_or(max_positions as f64 / original as f64);
    let attention = config.attention_factor.unwrap_or(match factor <= 1.0 {
        true => 1.0,
        false => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    });
    let scaled = |name: &str, factors: &Option<Vec<f32>>| {
        let factors = factors
            .as_ref()
            .filter(|f| f.len() == plain.len())
            .ok_or_else(|| {
                let message = format!("rope scaling needs {} values of `{name}`", plain.len());
                Error::new(Code::ModelConfig, message)
            })?;
        Ok::<_, Error>(plain.iter().zip(factors).map(|(p, f)| p / f).collect())
    };
    let short = scaled("short_factor", &config.short_factor)?;
    let long = scaled("long_factor", &config.long_factor)?;
    Ok((
        Kind::Long {
            short,
            long,
            original,
        },
        attention,
    ))
}
