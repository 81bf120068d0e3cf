//! How likely an integer is: a table of frequencies for each pair of a scale and a shape, in integers.

use std::sync::OnceLock;

use crate::error::{Code, Error, Result};

/// Bits of a frequency: those of a table add up to 2^12.
pub(super) const PRECISION: usize = 12;
/// What the frequencies of a table add up to.
const TOTAL: u32 = 1 << PRECISION;
/// Symbols of a table: the upper bits of a magnitude, the last of them standing for all larger ones.
pub const SYMBOLS: usize = 32;
/// Number of scales: an eighth of an octave each, from a quarter of a step up.
pub const SCALES: u8 = 128;
/// Number of shapes.
pub const SHAPES: u8 = 16;

/// A shape: −log2 of the density in 64ths of a bit is `linear`·t + `square`·t² + `fourth`·t⁴ at t scales from zero,
/// and zero is `zero` sixteenths as likely as that says, where it is a multiple among even ones.
struct Shape {
    linear: u64,
    square: u64,
    fourth: u64,
    zero: u64,
}

const fn shape(linear: u64, square: u64, fourth: u64, zero: u64) -> Shape {
    Shape {
        linear,
        square,
        fourth,
        zero,
    }
}

/// From Gaussian to Laplacian, then to flatter ones; then with more zeros, as coarse steps leave them.
const SHAPE: [Shape; SHAPES as usize] = [
    shape(0, 46, 0, 14),
    shape(32, 32, 0, 14),
    shape(64, 16, 0, 14),
    shape(92, 0, 0, 14),
    shape(0, 26, 6, 14),
    shape(0, 6, 13, 14),
    shape(0, 0, 19, 14),
    shape(0, 46, 0, 24),
    shape(0, 46, 0, 40),
    shape(32, 32, 0, 24),
    shape(64, 16, 0, 24),
    shape(0, 26, 6, 24),
    shape(0, 26, 6, 40),
    shape(0, 6, 13, 24),
    shape(0, 6, 13, 40),
    shape(64, 16, 0, 40),
];

/// 2^(30 − f/64), rounded.
const POWER: [u32; 64] = [
    1_073_741_824,
    1_062_175_491,
    1_050_733_751,
    1_039_415_261,
    1_028_218_693,
    1_017_142_735,
    1_006_186_087,
    995_347_464,
    984_625_594,
    974_019_220,
    963_527_098,
    953_147_997,
    942_880_699,
    932_724_001,
    922_676_710,
    912_737_649,
    902_905_651,
    893_179_563,
    883_558_244,
    874_040_567,
    864_625_413,
    855_311_680,
    846_098_274,
    836_984_114,
    827_968_132,
    819_049_271,
    810_226_483,
    801_498_734,
    792_865_000,
    784_324_269,
    775_875_538,
    767_517_817,
    759_250_125,
    751_071_493,
    742_980_960,
    734_977_579,
    727_060_411,
    719_228_525,
    711_481_005,
    703_816_941,
    696_235_434,
    688_735_596,
    681_316_545,
    673_977_412,
    666_717_336,
    659_535_466,
    652_430_958,
    645_402_981,
    638_450_708,
    631_573_326,
    624_770_026,
    618_040_012,
    611_382_493,
    604_796_689,
    598_281_827,
    591_837_143,
    585_461_881,
    579_155_293,
    572_916_640,
    566_745_190,
    560_640_218,
    554_601_009,
    548_626_854,
    542_717_053,
];
/// 2^(16 − f/8), rounded.
const OCTAVE: [u64; 8] = [65536, 60097, 55109, 50535, 46341, 42495, 38968, 35734];
/// Scales up to this one need no lower bits beside the symbol.
const UNSHIFTED: u8 = 38;

/// What numbers of a line are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Model {
    /// Below [`SCALES`]: a standard deviation of about 2^(scale/8) / 4 steps.
    pub scale: u8,
    /// Below [`SHAPES`].
    pub shape: u8,
}

impl Model {
    /// # Errors
    /// [`Code::CodingInvalid`] for a scale or a shape out of range.
    pub fn new(scale: u8, shape: u8) -> Result<Self> {
        match scale < SCALES && shape < SHAPES {
            true => Ok(Self { scale, shape }),
            false => {
                let message = format!("scale {scale} or shape {shape} is out of range");
                Err(Error::new(Code::CodingInvalid, message))
            }
        }
    }

    /// How many of a magnitude's lower bits are coded as they are.
    pub fn shift(self) -> u32 {
        u32::from(self.scale.saturating_sub(UNSHIFTED) / 8)
    }

    /// The frequencies of the symbols in a set of the trellis; each is at least 1, their sum 2^12.
    pub fn frequencies(self, set: usize) -> [u16; SYMBOLS] {
        let mut weights = [0u64; SYMBOLS];
        for (symbol, weight) in weights.iter_mut().enumerate() {
            *weight = self.weight(set, symbol as u64);
        }
        let sum: u64 = weights.iter().sum();
        let free = u64::from(TOTAL) - SYMBOLS as u64;
        let share = |w: u64| 1 + (w * free).checked_div(sum).unwrap_or(0) as u16;
        let mut frequencies = weights.map(share);
        let left = TOTAL as u16 - frequencies.iter().sum::<u16>();
        let first = |best: usize, s: usize| if weights[s] > weights[best] { s } else { best };
        frequencies[(0..SYMBOLS).fold(0, first)] += left;
        frequencies
    }

    fn weight(self, set: usize, symbol: u64) -> u64 {
        let (shape, shift) = (&SHAPE[usize::from(self.shape % SHAPES)], self.shift());
        // The multiple in the middle of those that share the symbol.
        let middle = (symbol << (shift + 1)) + (1 << shift) - 1;
        let middle = middle.saturating_sub(set as u64);
        // In scales, with eight bits behind the point.
        let octave = OCTAVE[usize::from(self.scale % 8)];
        let t = ((4 * middle * octave) >> (8 + self.scale / 8)).min(64 << 8);
        let square = t * t;
        let exponent = ((shape.linear * t) >> 8)
            + ((shape.square * square) >> 16)
            + ((shape.fourth * square.saturating_mul(square).min(1 << 56)) >> 32);
        let density = match exponent >> 6 {
            whole @ 0..32 => u64::from(POWER[(exponent & 63) as usize] >> whole),
            _ => 0,
        };
        let sixteenths = match (shift, set, symbol) {
            (0, 0, 0) => shape.zero,
            (0, 1, 0) => 6,
            (0, 1, 1) => 28,
            _ => 32,
        };
        density * sixteenths
    }
}

/// A table ready for use.
pub(super) struct Table {
    /// Of each symbol: what the frequencies before it add up to, and its own.
    pub(super) place: [(u16, u16); SYMBOLS],
    /// The symbol of every quantile.
    pub(super) symbol: Vec<u8>,
}

impl Table {
    pub(super) fn new(model: Model, set: usize) -> Self {
        let mut left = 0;
        let mut symbol = vec![0; TOTAL as usize];
        let frequencies = model.frequencies(set);
        let mut place = [(0, 0); SYMBOLS];
        for (s, frequency) in frequencies.into_iter().enumerate() {
            place[s] = (left, frequency);
            symbol[usize::from(left)..usize::from(left + frequency)].fill(s as u8);
            left += frequency;
        }
        Self { place, symbol }
    }
}

/// Bits that a symbol costs, in each set of the trellis.
pub type Prices = [[f32; SYMBOLS]; 2];

/// The prices under every model; made once.
pub fn prices(model: Model) -> &'static Prices {
    static ALL: OnceLock<Vec<Prices>> = OnceLock::new();
    let of = |at: usize| {
        let shapes = usize::from(SHAPES);
        let (scale, shape) = ((at / shapes) as u8, (at % shapes) as u8);
        let bits = |f: u16| PRECISION as f32 - f32::from(f).log2();
        [0, 1].map(|set| Model { scale, shape }.frequencies(set).map(bits))
    };
    let count = usize::from(SCALES) * usize::from(SHAPES);
    let all = ALL.get_or_init(|| (0..count).map(of).collect());
    &all[(usize::from(model.scale) * usize::from(SHAPES) + usize::from(model.shape)) % count]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    /// Breaks where a table of any model is not one that a decoder can use, or differs from what
    /// it was when files were written.
    #[test]
    fn tables_are_complete_and_pinned() {
        let mut all = Vec::new();
        for (scale, shape) in (0..SCALES).flat_map(|s| (0..SHAPES).map(move |h| (s, h))) {
            for set in 0..2 {
                let f = Model::new(scale, shape).unwrap().frequencies(set);
                assert!(f.iter().all(|f| *f > 0));
                assert_eq!(f.iter().map(|f| u32::from(*f)).sum::<u32>(), TOTAL);
                all.extend(f.iter().flat_map(|f| f.to_le_bytes()));
            }
        }
        assert_eq!(
            Digest::of(&all).hex(),
            "0bc4547cbe853b74ded7374e2e5d406e20e92016e2c27818c847ded1d98621c5"
        );
        assert!(Model::new(SCALES, 0).is_err() && Model::new(0, SHAPES).is_err());
    }
}
