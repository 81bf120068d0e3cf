//! Loops over slices that are compiled for each instruction set.

/// Defines a function whose body is compiled for every instruction set, the best of which is
/// chosen at run time.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) -> $ret {
            struct Call<T>(T);
            impl $crate::compute::Kernel for Call<($($ty,)*)> {
                type Out = $ret;
                #[inline(always)]
                fn run<const WIDTH: usize>(self) -> $ret {
                    let ($($arg,)*) = self.0;
                    $body
                }
            }
            $crate::compute::Isa::detect().run(Call(($($arg,)*)))
        }
    };
}
pub(super) use vectorised;

/// Independent partial sums: enough for the widest registers, and a fixed order of addition.
const LANES: usize = 32;

/// Folds `x` into [`LANES`] accumulators, then those in order.
#[inline(always)]
pub(super) fn fold(
    len: usize,
    mut step: impl FnMut(f32, usize) -> f32,
    start: f32,
    mut join: impl FnMut(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [start; LANES];
    let whole = len / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane = step(*lane, i + l);
        }
        i += LANES;
    }
    for (l, lane) in lanes.iter_mut().enumerate().take(len - whole) {
        *lane = step(*lane, whole + l);
    }
    lanes.iter().skip(1).fold(lanes[0], |a, b| join(a, *b))
}

/// Σ x·y over the shorter of the two.
#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let n = x.len().min(y.len());
    let (x, y) = (&x[..n], &y[..n]);
    fold(n, |acc, i| acc + x[i] * y[i], 0.0, |a, b| a + b)
}

/// Makes e^(x − top) of every x; their sum, as [`fold`] adds.
#[inline(always)]
pub(super) fn exp_sum(x: &mut [f32], top: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    for x in x.chunks_mut(LANES) {
        match <&mut [f32; LANES]>::try_from(&mut *x) {
            Ok(x) => {
                for (lane, x) in lanes.iter_mut().zip(x) {
                    *x = exp(*x - top);
                    *lane += *x;
                }
            }
            Err(_) => {
                for (lane, x) in lanes.iter_mut().zip(x) {
                    *x = exp(*x - top);
                    *lane += *x;
                }
            }
        }
    }
    lanes.iter().skip(1).fold(lanes[0], |a, b| a + b)
}

/// Σ e^(x − top), as [`fold`] adds.
#[inline(always)]
pub(super) fn exp_total(x: &[f32], top: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += exp(*x - top);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += exp(*x - top);
    }
    lanes.iter().skip(1).fold(lanes[0], |a, b| a + b)
}

/// The largest element, −∞ of none.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    fold(
        x.len(),
        |acc, i| if x[i] > acc { x[i] } else { acc },
        f32::NEG_INFINITY,
        |a, b| if b > a { b } else { a },
    )
}

/// e^x to two units in the last place for x ≤ 88; 0 below −87; NaN for NaN.
///
/// Range reduction by ln 2 in two parts, then the Cephes polynomial: no branch and no library
/// call, so that loops over it are vectorised.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5·2²³ rounds to an integer, whose bits are then at hand.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let scale = f32::from_bits((exponent.wrapping_add(127) as u32) << 23);
    let result = value * scale;
    if x < -87.0 { 0.0 } else { result }
}

/// tanh x to four units in the last place: Cephes' polynomial near 0, and e^2x elsewhere.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let near = x + x * z * p;
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.625 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorised! {
        fn exps(x: &[f32], out: &mut [f32]) -> () {
            for (o, x) in out.iter_mut().zip(x) {
                *o = exp(*x);
            }
        }
    }

    #[test]
    fn exp_is_that_of_the_standard_library() {
        let x: Vec<f32> = (0..200_000).map(|i| -86.9 + i as f32 * 8.7e-4).collect();
        let mut out = vec![0.0; x.len()];
        exps(&x, &mut out);
        for (x, e) in x.iter().zip(&out) {
            let right = f64::from(*x).exp();
            assert!(
                (f64::from(*e) - right).abs() <= 3e-7 * right,
                "exp({x}) = {e}, not {right}"
            );
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_that_of_the_standard_library() {
        for i in -40_000..40_000 {
            let x = i as f32 * 1e-3 + 1e-6;
            let right = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - right).abs();
            assert!(error <= 3e-7 * right.abs(), "tanh({x}) is off by {error}");
        }
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn sums_cover_every_element() {
        for n in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let ones = vec![1.0; n];
            assert_eq!(dot(&x, &ones), (0..n).sum::<usize>() as f32);
            assert_eq!(
                max(&x),
                if n == 0 {
                    f32::NEG_INFINITY
                } else {
                    (n - 1) as f32
                }
            );
        }
    }
}
