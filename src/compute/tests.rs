//! Every compiled path against the specification, bit for bit.

use half::{bf16, f16};
use proptest::prelude::*;

use super::cpu::{self, Product};
use super::*;
use crate::error::Code;
use crate::tensor::{Dtype, narrow_into, widen};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];
const ROUNDINGS: [Rounding; 2] = [Rounding::Peft, Rounding::PeftSafe];

/// RNE into the dtype and back, by the `half` crate.
fn rne(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32_const(x).to_f32_const(),
        Dtype::BF16 => bf16::from_f32_const(x).to_f32_const(),
        _ => x,
    }
}

/// The formulas of the module's head, one element at a time.
fn oracle_t(updates: &[Update<'_>], i: usize, j: usize, cols: usize) -> f32 {
    let mut t = None;
    for u in updates {
        let mut d = 0.0f32;
        for k in 0..u.rank {
            d = u.left[i * u.rank + k].mul_add(u.right[k * cols + j], d);
        }
        if u.scale != 1.0 {
            d *= u.scale;
        }
        t = Some(t.map_or(d, |t: f32| t + d));
    }
    t.unwrap_or(0.0)
}

fn oracle(dtype: Dtype, rounding: Rounding, t: &[f32], weights: &[u8]) -> Vec<u8> {
    let old = widen(dtype, weights).unwrap();
    let sums: Vec<f32> = old
        .iter()
        .zip(t)
        .map(|(w, &t)| {
            w + if rounding == Rounding::PeftSafe {
                rne(dtype, t)
            } else {
                t
            }
        })
        .collect();
    let mut out = vec![0; weights.len()];
    narrow_into(dtype, &sums, &mut out);
    out
}

/// Bytes alike, where any NaN is like any other.
fn alike(dtype: Dtype, a: &[u8], b: &[u8]) -> bool {
    let (x, y) = (widen(dtype, a).unwrap(), widen(dtype, b).unwrap());
    x.iter()
        .zip(&y)
        .all(|(x, y)| x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan())
}

/// Statistics by the definition, all in f64.
fn oracle_stats(dtype: Dtype, t: &[f32], before: &[u8], after: &[u8]) -> Stats {
    let size = dtype.bits() / 8;
    let mut s = Stats {
        elements: t.len() as u64,
        ..Stats::default()
    };
    let (old, new) = (widen(dtype, before).unwrap(), widen(dtype, after).unwrap());
    for (i, &t) in t.iter().enumerate() {
        let range = i * size..(i + 1) * size;
        s.changed += u64::from(before[range.clone()] != after[range]);
        s.non_finite += u64::from(!new[i].is_finite());
        let moved = f64::from(new[i]) - f64::from(old[i]);
        s.delta_sq += f64::from(t) * f64::from(t);
        s.moved_dot += moved * f64::from(t);
        s.moved_sq += moved * moved;
        s.max_abs_delta = s.max_abs_delta.max(t.abs());
    }
    s
}

fn close(a: &Stats, b: &Stats) -> bool {
    let near = |x: f64, y: f64, size: f64| (x - y).abs() <= 1e-5 * size;
    (a.elements, a.changed, a.non_finite) == (b.elements, b.changed, b.non_finite)
        && a.max_abs_delta == b.max_abs_delta
        && near(a.delta_sq, b.delta_sq, b.delta_sq)
        && near(a.moved_sq, b.moved_sq, b.moved_sq)
        && near(a.moved_dot, b.moved_dot, (b.delta_sq * b.moved_sq).sqrt())
}

/// Pseudorandom values of mixed size, so that roundings of every kind occur.
fn values(seed: u64, len: usize, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len)
        .map(|_| size * next() * (6.0 * next()).exp2())
        .collect()
}

fn stored(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0; values.len() * dtype.bits() / 8];
    narrow_into(dtype, values, &mut out);
    out
}

type Factors = Vec<(Vec<f32>, Vec<f32>, usize, f32)>;

fn factors(seed: u64, rows: usize, cols: usize, ranks: &[(usize, f32)]) -> Factors {
    let of = |(n, &(rank, scale)): (usize, &(usize, f32))| {
        let seed = seed.wrapping_add(7919 * n as u64);
        (
            values(seed, rows * rank, 0.1),
            values(seed ^ 0xabcd, rank * cols, 0.1),
            rank,
            scale,
        )
    };
    ranks.iter().enumerate().map(of).collect()
}

fn updates(factors: &Factors) -> Vec<Update<'_>> {
    factors
        .iter()
        .map(|(left, right, rank, scale)| Update {
            left,
            right,
            rank: *rank,
            scale: *scale,
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Breaks when any instruction set's loop drops, reorders or rounds anything of its own accord.
    #[test]
    fn every_path_does_what_the_specification_says(
        seed: u64,
        rows in 1usize..20,
        cols in 1usize..71,
        skip in 0usize..4,
        ranks in prop::collection::vec((0usize..71, prop_oneof![Just(1.0f32), Just(2.0), -3.0f32..3.0]), 1..4),
    ) {
        let factors = factors(seed, rows, cols, &ranks);
        let updates = updates(&factors);
        let skip = skip.min(rows - 1);
        let n = (rows - skip) * cols;
        let t: Vec<f32> = (0..n).map(|x| oracle_t(&updates, skip + x / cols, x % cols, cols)).collect();
        let product = Product::new(&updates, cols);
        for &isa in Isa::available() {
            let mut out = vec![f32::NAN; n];
            cpu::delta(isa, &product, skip..rows, &mut out);
            prop_assert!(out.iter().zip(&t).all(|(a, b)| a.to_bits() == b.to_bits()), "delta {isa:?}");
        }
        for (dtype, rounding) in DTYPES.iter().flat_map(|d| ROUNDINGS.map(|r| (*d, r))) {
            let before = stored(dtype, &values(seed ^ 1, n, 1.0));
            let want = oracle(dtype, rounding, &t, &before);
            let stats = oracle_stats(dtype, &t, &before, &want);
            let mut merged = None;
            for &isa in Isa::available() {
                let (mut got, mut added) = (before.clone(), before.clone());
                let s = cpu::merge(isa, dtype, rounding, &product, skip..rows, &mut got);
                prop_assert!(got == want, "merge {dtype} {rounding:?} {isa:?}");
                prop_assert!(close(&s, &stats), "{dtype} {rounding:?} {isa:?} {s:?} {stats:?}");
                // Bit for bit, so that a report does not depend on the processor either.
                prop_assert_eq!(*merged.get_or_insert(s), s);
                let s = cpu::add(isa, dtype, rounding, &t, &mut added);
                prop_assert!(added == want, "add {dtype} {rounding:?} {isa:?}");
                prop_assert!(close(&s, &stats), "{dtype} {rounding:?} {isa:?} {s:?} {stats:?}");
            }
        }
    }

    /// Breaks when a conversion differs from `half` anywhere in f32, by bit pattern.
    #[test]
    fn any_bits_round_as_half_does(bits in prop::collection::vec(any::<u32>(), 1..300)) {
        let t: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        for dtype in DTYPES {
            check_conversion(dtype, &t);
        }
    }
}

/// 0 + t, rounded, on every path and in both modes, is what `half` makes of t.
fn check_conversion(dtype: Dtype, t: &[f32]) {
    let before = vec![0; t.len() * dtype.bits() / 8];
    for rounding in ROUNDINGS {
        let want = oracle(dtype, rounding, t, &before);
        let non_finite = widen(dtype, &want)
            .unwrap()
            .iter()
            .filter(|x| !x.is_finite())
            .count();
        for &isa in Isa::available() {
            let mut got = before.clone();
            let s = cpu::add(isa, dtype, rounding, t, &mut got);
            assert!(alike(dtype, &got, &want), "{dtype} {rounding:?} {isa:?}");
            assert_eq!(
                s.non_finite, non_finite as u64,
                "{dtype} {rounding:?} {isa:?}"
            );
        }
    }
}

/// Breaks when a tie, a subnormal, the edge of overflow or a NaN is converted wrongly.
#[test]
fn every_boundary_of_the_16_bit_dtypes_rounds_as_half_does() {
    for dtype in [Dtype::F16, Dtype::BF16] {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let wide = widen(dtype, &all).unwrap();
        // Each stored value, the midpoint to its neighbour, and one f32 step either side of both.
        let next = |x: f32| f32::from_bits(x.to_bits().wrapping_add(1));
        let previous = |x: f32| f32::from_bits(x.to_bits().wrapping_sub(1));
        let t: Vec<f32> = wide
            .windows(2)
            .flat_map(|w| [w[0], (w[0] + w[1]) / 2.0])
            .flat_map(|x| [previous(x), x, next(x)])
            .chain([65519.996, 65520.0, f32::MAX, f32::MIN, 3.3961775e38])
            .collect();
        check_conversion(dtype, &t);
    }
}

/// Breaks when widening is inexact anywhere: W + 0 must give back W (−0 becomes +0).
#[test]
fn every_stored_value_survives_a_zero_update() {
    for dtype in [Dtype::F16, Dtype::BF16] {
        let before: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for &isa in Isa::available() {
            let mut got = before.clone();
            let s = cpu::add(isa, dtype, Rounding::Peft, &[0.0; 1 << 16], &mut got);
            let mut want = before.clone();
            want[2 * 0x8000 + 1] = 0;
            assert!(alike(dtype, &got, &want), "{dtype} {isa:?}");
            let exponents = if dtype == Dtype::F16 { 1 << 10 } else { 1 << 7 };
            assert_eq!(s.non_finite, 2 * exponents);
        }
    }
}

/// Breaks when an overflow in the last columns of an odd shape, or a NaN factor, goes unnoticed,
/// or when the padding of a tile is counted.
#[test]
fn non_finite_results_are_counted_where_they_are_stored() {
    let (rows, cols) = (5, 37);
    let (mut left, mut nan) = (vec![0.0; rows], vec![1.0; cols]);
    (left[4], nan[36]) = (60000.0, f32::NAN);
    let right = vec![1.0; cols];
    let one = |left, right| {
        [Update {
            left,
            right,
            rank: 1,
            scale: 1.0,
        }]
    };
    for &isa in Isa::available() {
        let go = |updates: &[Update<'_>]| {
            let mut w = stored(Dtype::F16, &vec![6000.0; rows * cols]);
            cpu::merge(
                isa,
                Dtype::F16,
                Rounding::Peft,
                &Product::new(updates, cols),
                0..rows,
                &mut w,
            )
        };
        assert_eq!(go(&one(&left, &right)).non_finite, cols as u64);
        assert_eq!(
            go(&one(&[0.0, f32::INFINITY, 0.0, 0.0, 0.0], &right)).non_finite,
            cols as u64
        );
        assert_eq!(go(&one(&[0.0; 5], &nan)).non_finite, rows as u64);
    }
}

/// Breaks when chunks, or the order in which their statistics are summed, follow the threads.
#[test]
fn any_number_of_threads_gives_the_same_bytes_and_statistics() {
    let (rows, cols) = (23, 70_001);
    let factors = factors(3, rows, cols, &[(5, 0.5), (3, 1.0)]);
    let updates = updates(&factors);
    let before = stored(Dtype::BF16, &values(4, (rows - 2) * cols, 1.0));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let mut w = before.clone();
        let go =
            || merge_block_parallel(Dtype::BF16, Rounding::Peft, &updates, 2..rows, cols, &mut w);
        let stats = pool.install(go).unwrap();
        (w, stats)
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
    let mut serial = before.clone();
    let stats = merge_rows(
        Dtype::BF16,
        Rounding::Peft,
        &updates,
        2..rows,
        cols,
        &mut serial,
    )
    .unwrap();
    assert!(serial == one.0 && close(&stats, &one.1));
}

/// Breaks when strips of columns, which only wide or high-rank updates need, are cut wrongly.
#[test]
fn strips_of_a_high_rank_meet_at_the_right_column() {
    let (rows, cols) = (6, 700);
    let factors = factors(9, rows, cols, &[(900, 1.5), (1, 1.0)]);
    let updates = updates(&factors);
    let mut out = vec![0.0; rows * cols];
    delta_rows(&updates, 0..rows, cols, &mut out).unwrap();
    for (x, got) in out.iter().enumerate() {
        assert_eq!(
            got.to_bits(),
            oracle_t(&updates, x / cols, x % cols, cols).to_bits()
        );
    }
}

/// Breaks when swapping the factors of a weight stored (in, out) is not the transposed merge.
#[test]
fn a_transposed_weight_merges_to_the_transposed_result() {
    let (rows, cols, rank) = (37, 50, 9);
    let (mut b, mut a) = (values(1, rows * rank, 0.1), values(2, rank * cols, 0.1));
    scale_rows(&mut b, rank, &values(5, rows, 1.0));
    scale_rows(&mut a, cols, &values(6, rank, 1.0));
    let w = values(3, rows * cols, 1.0);
    let (bt, at) = (
        transpose(&b, rows, rank).unwrap(),
        transpose(&a, rank, cols).unwrap(),
    );
    let straight = [Update {
        left: &b,
        right: &a,
        rank,
        scale: 0.7,
    }];
    let swapped = [Update {
        left: &at,
        right: &bt,
        rank,
        scale: 0.7,
    }];
    for dtype in DTYPES {
        let mut x = stored(dtype, &w);
        let mut y = stored(dtype, &transpose(&w, rows, cols).unwrap());
        merge_rows(dtype, Rounding::Peft, &straight, 0..rows, cols, &mut x).unwrap();
        merge_rows(dtype, Rounding::Peft, &swapped, 0..cols, rows, &mut y).unwrap();
        let x = widen(dtype, &x).unwrap();
        assert_eq!(
            transpose(&x, rows, cols).unwrap(),
            widen(dtype, &y).unwrap()
        );
    }
}

/// Breaks when rounding the factors is left to the caller's precision.
#[test]
fn scaling_rounds_once_for_each_element() {
    let mut m = vec![1.0 + f32::EPSILON, 3.0, 0.1, 0.2];
    scale_rows(&mut m, 2, &[1.0 + f32::EPSILON, 0.1]);
    assert_eq!(
        m,
        [
            1.0 + 2.0 * f32::EPSILON,
            3.0 * (1.0 + f32::EPSILON),
            0.1 * 0.1,
            0.2 * 0.1
        ]
    );
}

/// Breaks when sizes that do not fit reach the loops, or are reported as someone else's fault.
#[test]
fn sizes_that_do_not_fit_are_refused() {
    let (left, right) = ([1.0; 6], [1.0; 8]);
    let u = |rank, left, right| {
        [Update {
            left,
            right,
            rank,
            scale: 1.0,
        }]
    };
    let go = |dtype, updates: &[Update<'_>], rows, bytes: usize| {
        merge_rows(dtype, Rounding::Peft, updates, rows, 4, &mut vec![0; bytes])
            .map_err(|e| e.code())
    };
    let fits = u(2, &left[..], &right[..]);
    assert_eq!(go(Dtype::BF16, &fits, 0..3, 24).map(|s| s.elements), Ok(12));
    assert_eq!(go(Dtype::BF16, &fits, 0..3, 22), Err(Code::BaseShape));
    assert_eq!(go(Dtype::F64, &fits, 0..3, 96), Err(Code::BaseDtype));
    assert_eq!(go(Dtype::BF16, &fits, 1..4, 24), Err(Code::FactorShape));
    assert_eq!(
        go(Dtype::BF16, &u(1, &left[..], &right[..]), 0..3, 24),
        Err(Code::FactorShape)
    );
    assert_eq!(
        go(Dtype::BF16, &u(usize::MAX, &left[..], &right[..]), 0..3, 24),
        Err(Code::FactorShape)
    );
    assert_eq!(go(Dtype::BF16, &fits, 0..0, 0).map(|s| s.elements), Ok(0));
    assert_eq!(
        add_rows(Dtype::F16, Rounding::Peft, &left, &mut [0; 11])
            .unwrap_err()
            .code(),
        Code::BaseShape
    );
    assert_eq!(
        delta_rows(&fits, 0..3, 4, &mut [0.0; 11])
            .unwrap_err()
            .code(),
        Code::FactorShape
    );
    assert_eq!(
        transpose(&left, 2, 2).unwrap_err().code(),
        Code::FactorShape
    );
}

/// Breaks when survival is measured against the rounded update: half of one unit moves nothing.
#[test]
fn statistics_say_how_much_of_the_update_survived() {
    let mut w = stored(Dtype::BF16, &[1.0; 64]);
    let mut delta = [f32::powi(2.0, -9); 64];
    delta[..16].fill(f32::powi(2.0, -7));
    let s = add_rows(Dtype::BF16, Rounding::Peft, &delta, &mut w).unwrap();
    assert_eq!((s.changed, s.changed_share()), (16, 0.25));
    assert_eq!(
        s.delta_norm(),
        (16.0 * f64::powi(2.0, -14) + 48.0 * f64::powi(2.0, -18)).sqrt()
    );
    assert_eq!(s.moved_norm(), f64::powi(2.0, -5));
    assert_eq!(s.survived(), Some(16.0 / 19.0));
    assert_eq!(Stats::default().survived(), None);
}
