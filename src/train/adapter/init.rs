//! The start values of A and B that can be asked for.

use std::fmt;
use std::str::FromStr;

use crate::adapter::{FactorName, Seed};
use crate::error::{Code, Error, Result};
use crate::format::seeded_tensor;
use crate::tensor::Dtype;

/// How A and B start, in the words of PEFT's `init_lora_weights`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Init {
    /// Uniform with variance 1/in; the first of v, B, A, C, u that trains is zero.
    #[default]
    Default,
    /// PEFT's default, `nn.Linear`'s: A uniform within ±1/√in, of a third of that variance.
    Kaiming,
    /// A normal with deviation 1/r.
    Gaussian,
    /// A and B random and orthogonal to one another, so that B·A is zero and neither is: A = Qₒᵀ·X / 10
    /// and B = Y·Qₑ / 10, with the odd and the even rows of an orthogonal r × r matrix and normal X and Y.
    Orthogonal,
}

const NAMES: [(&str, Init); 4] = [
    ("default", Init::Default),
    ("kaiming", Init::Kaiming),
    ("gaussian", Init::Gaussian),
    ("orthogonal", Init::Orthogonal),
];

/// Those of PEFT that are not made, and why.
const REFUSED: [(&str, &str); 8] = [
    ("pissa", CHANGES),
    ("olora", CHANGES),
    (
        "corda",
        "it needs data, and changes the weights of the base",
    ),
    ("eva", "it needs data"),
    (
        "lora_ga",
        "it needs gradients of data, and changes the weights of the base",
    ),
    ("loftq", "it quantises the base"),
    ("mica", "it needs the singular vectors of every weight"),
    (
        "false",
        "the adapter would change the model before it is trained",
    ),
];
const CHANGES: &str = "it changes the weights of the base, which stay what they are";

impl Init {
    /// Its name.
    pub fn name(self) -> &'static str {
        let own = NAMES.iter().find(|(_, init)| *init == self);
        own.map_or("default", |(name, _)| name)
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Init {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((_, init)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*init);
        }
        let kind = text.split("_niter").next().unwrap_or(text);
        let known = REFUSED.iter().find(|(name, _)| *name == kind);
        let message = match known {
            Some((_, why)) => format!("`init` is {text}: {why}"),
            None => format!("`init` is {text}, which is no start of A and B"),
        };
        let names = NAMES.map(|(name, _)| name).join(", ");
        Err(Error::new(Code::Usage, message).hint(format!("one of {names}")))
    }
}

/// Numbers of a normal distribution, by Box and Muller's method from two uniform streams.
fn normal(key: impl Fn(&str) -> [u8; 32], len: usize) -> Result<Vec<f64>> {
    let uniform = |which: &str| {
        let seed = Seed {
            key: key(which),
            step: 1.0 / (1 << 23) as f32,
        };
        seeded_tensor(&seed, Dtype::F32, &[len])?.to_f32()
    };
    let (radius, angle) = (uniform("radius")?, uniform("angle")?);
    let pairs = radius.iter().zip(&angle);
    Ok(pairs
        .map(|(r, a)| {
            // Uniform in (0, 1]: minus a number in −1 to below 1, halved and shifted.
            let u = (1.0 - f64::from(*r)) / 2.0;
            (-2.0 * u.ln()).sqrt() * (std::f64::consts::PI * f64::from(*a)).cos()
        })
        .collect())
}

/// The rows of an r × r matrix made orthonormal, by Gram and Schmidt.
fn orthonormal(mut rows: Vec<f64>, r: usize) -> Vec<f64> {
    for i in 0..r {
        // Twice: once leaves what rounding left.
        for _ in 0..2 {
            for j in 0..i {
                let along: f64 = (0..r).map(|k| rows[i * r + k] * rows[j * r + k]).sum();
                (0..r).for_each(|k| rows[i * r + k] -= along * rows[j * r + k]);
            }
        }
        let norm = (0..r).map(|k| rows[i * r + k].powi(2)).sum::<f64>().sqrt();
        (0..r).for_each(|k| rows[i * r + k] /= norm);
    }
    rows
}

/// The key of a stream of numbers for a factor.
pub(super) type Key<'a> = &'a dyn Fn(FactorName, &str) -> [u8; 32];

impl Init {
    /// Refuses a start that what trains does not allow.
    pub(super) fn check(self, trained: &[FactorName], rank: usize) -> Result<()> {
        let trains = |name| trained.contains(&name);
        let refuse = |what: &str| {
            let message = format!("`init` is {self}: {what}");
            Err(Error::new(Code::Usage, message))
        };
        match self {
            Init::Gaussian if !trains(FactorName::A) => {
                refuse("A does not train, and a frozen one is a seed of uniform numbers")
            }
            Init::Gaussian if !trains(FactorName::B) && !trains(FactorName::V) => {
                refuse("A starts at zero where neither B nor v trains")
            }
            Init::Orthogonal if !trains(FactorName::A) || !trains(FactorName::B) => {
                refuse("A and B must both train")
            }
            Init::Orthogonal if !rank.is_multiple_of(2) => {
                refuse(&format!("the rank must be even, and is {rank}"))
            }
            _ => Ok(()),
        }
    }

    /// Start values of the init's own kind for A or B of `shape`, layers first where they are not tied;
    /// `None` where it has none for that factor.
    pub(super) fn values(
        self,
        r: usize,
        part: FactorName,
        shape: &[usize],
        key: Key<'_>,
    ) -> Result<Option<Vec<f32>>> {
        let len = shape.iter().product();
        match (self, part) {
            (Init::Gaussian, FactorName::A) => {
                let x = normal(|which| key(part, which), len)?;
                Ok(Some(x.iter().map(|x| (x / r as f64) as f32).collect()))
            }
            (Init::Orthogonal, FactorName::A | FactorName::B) => {
                let [rows, cols] = match shape {
                    [.., rows, cols] => [*rows, *cols],
                    _ => [0, 0],
                };
                let each = rows * cols;
                let layers = len.checked_div(each).unwrap_or(0);
                let mut out = Vec::with_capacity(len);
                for layer in 0..layers {
                    // Q is one of A and B, and of each layer.
                    let q = |which: &str| key(FactorName::C, &format!("{which} {layer}"));
                    let q = orthonormal(normal(q, r * r)?, r);
                    let own = |which: &str| key(part, &format!("{which} {layer}"));
                    let half = r / 2;
                    let wide = if part == FactorName::A { cols } else { rows };
                    let x = normal(own, half * wide)?;
                    let first = usize::from(part == FactorName::B);
                    // Σ_h Q[2h + first][k] · X[h][i] / 10
                    let at = |k: usize, i: usize| -> f32 {
                        let sum: f64 = (0..half)
                            .map(|h| q[(2 * h + first) * r + k] * x[h * wide + i])
                            .sum();
                        (sum / 10.0) as f32
                    };
                    out.extend((0..each).map(|at_| match part {
                        FactorName::A => at(at_ / cols, at_ % cols),
                        _ => at(at_ % cols, at_ / cols),
                    }));
                }
                Ok(Some(out))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn values(init: Init, part: FactorName, shape: &[usize]) -> Option<Vec<f32>> {
        let key = |part: FactorName, which: &str| {
            *Digest::of(format!("{} {which}", part.name()).as_bytes()).as_bytes()
        };
        init.values(8, part, shape, &key).unwrap()
    }

    /// Breaks where the numbers are not of the distribution that PEFT draws from.
    #[test]
    fn gaussian_numbers_are_normal() {
        let a = values(Init::Gaussian, FactorName::A, &[2, 8, 4000]).unwrap();
        let n = a.len() as f64;
        let moment = |k: i32| a.iter().map(|x| (f64::from(*x) * 8.0).powi(k)).sum::<f64>() / n;
        assert!(moment(1).abs() < 0.02, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.03, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.3, "{}", moment(4));
        assert!(values(Init::Gaussian, FactorName::B, &[2, 40, 8]).is_none());
    }

    /// Breaks where an adapter that starts orthogonal changes the model, or starts at zero.
    #[test]
    fn orthogonal_starts_have_a_product_of_zero() {
        let a = values(Init::Orthogonal, FactorName::A, &[2, 8, 30]).unwrap();
        let b = values(Init::Orthogonal, FactorName::B, &[2, 20, 8]).unwrap();
        assert!(a.iter().chain(&b).all(|x| *x != 0.0));
        for l in 0..2 {
            for i in 0..20 {
                for j in 0..30 {
                    let terms = (0..8).map(|k| b[l * 160 + i * 8 + k] * a[l * 240 + k * 30 + j]);
                    assert!(terms.sum::<f32>().abs() < 1e-7);
                }
            }
        }
    }

    #[test]
    fn starts_that_are_not_made_say_why() {
        for (name, why) in [
            ("pissa_niter_4", "base"),
            ("eva", "data"),
            ("mica", "singular"),
        ] {
            let e = name.parse::<Init>().unwrap_err();
            assert!(e.message().contains(why), "{e}");
        }
        assert_eq!("gaussian".parse::<Init>().unwrap(), Init::Gaussian);
        let (vera, lora) = (
            [FactorName::U, FactorName::V],
            [FactorName::A, FactorName::B],
        );
        assert!(Init::Gaussian.check(&vera, 8).is_err());
        assert!(Init::Gaussian.check(&[FactorName::A], 8).is_err());
        assert!(Init::Orthogonal.check(&lora, 7).is_err());
        Init::Orthogonal.check(&lora, 8).unwrap();
    }
}
