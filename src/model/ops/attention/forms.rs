//! Attention in the form that the tensors call for.

use std::ops::Range;

use candle_core::Tensor;

use super::super::is_fused;
use super::composed::{self, Masks};
use super::fused;
use super::heads::{Heads, Past};
use crate::error::Result;

/// Attention output, tokens × q·dim, and the logarithm of each row's sum of exponentials,
/// tokens × q, which only the fused backward needs.
///
/// With `past`, one for each sequence, keys and values come from there, and the present rows are
/// its last. `masks` is to be one for all layers of a batch, on one device and in one type.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn attention(
    qkv: &Tensor,
    heads: &Heads,
    sequences: &[Range<usize>],
    past: Option<&[Past]>,
    masks: &Masks,
) -> Result<(Tensor, Vec<f32>)> {
    match is_fused(qkv) {
        true => fused::forward(qkv, heads, sequences, past),
        false => {
            let out = composed::forward(qkv, heads, sequences, past, masks)?;
            Ok((out, Vec::new()))
        }
    }
}

/// The gradient with respect to `qkv`, of its shape; `out` and `sums` are what [`attention`] gave.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn attention_backward(
    dout: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    sums: &[f32],
    heads: &Heads,
    sequences: &[Range<usize>],
    masks: &Masks,
) -> Result<Tensor> {
    match is_fused(qkv) {
        true => fused::backward([dout, qkv, out], sums, heads, sequences),
        false => composed::backward([dout, qkv, out], heads, sequences, masks),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::bf16::Kernel;
    use super::super::super::linear::Products;
    use super::super::super::slices::tests::{close, is_slope, random};
    use super::*;
    use candle_core::DType;

    fn wide(t: &Tensor) -> Tensor {
        t.to_dtype(DType::F64).unwrap()
    }

    #[test]
    fn fused_attention_equals_the_composed_one_and_that_its_differences() {
        let cases = [
            (4, None, None),
            (2, None, None),
            (1, Some(5), None),
            (2, Some(70), None),
            (2, Some(70), Some(0.8)),
        ];
        for (kv, window, cap) in cases {
            let heads = Heads {
                q: 4,
                kv,
                dim: 6,
                scale: 0.4,
                cap,
                window,
                products: Products::F32,
            };
            // The last three are of one length, and go through the composed form together.
            let sequences = [0..1, 1..140, 140..163, 163..186, 186..209];
            let qkv = (random(209, heads.width(), 1) * 2.0).unwrap();
            let dout = random(209, 24, 2);
            let masks = Masks::default();
            let (out, sums) = attention(&qkv, &heads, &sequences, None, &masks).unwrap();
            let (right, _) = attention(&wide(&qkv), &heads, &sequences, None, &masks).unwrap();
            close(&out, &right, 1e-5);
            let dqkv =
                attention_backward(&dout, &qkv, &out, &sums, &heads, &sequences, &masks).unwrap();
            let right = attention_backward(
                &wide(&dout),
                &wide(&qkv),
                &right,
                &[],
                &heads,
                &sequences,
                &masks,
            )
            .unwrap();
            close(&dqkv, &right, 1e-5);

            let direction = wide(&random(209, heads.width(), 3));
            let loss = |step: f64| {
                let moved = (wide(&qkv) + (&direction * step).unwrap()).unwrap();
                let (out, _) = attention(&moved, &heads, &sequences, None, &masks).unwrap();
                let loss = (out * wide(&dout)).unwrap().sum_all().unwrap();
                loss.to_scalar::<f64>().unwrap()
            };
            is_slope(&right, &direction, loss, 1.0);
        }
    }

    /// Breaks where a product of rounded numbers reads other rows or columns than those of its head and block.
    #[test]
    fn attention_in_bf16_is_that_in_f32_but_for_rounding() {
        let cases = [
            ([4, 4, 6], None, None),
            ([4, 2, 64], None, None),
            ([4, 1, 40], Some(5), None),
            ([2, 2, 96], Some(70), None),
            ([4, 2, 16], Some(70), Some(0.8)),
        ];
        for kernel in Kernel::available() {
            for ([q, kv, dim], window, cap) in cases {
                let exact = Heads {
                    q,
                    kv,
                    dim,
                    scale: 0.9 / (dim as f32).sqrt(),
                    cap,
                    window,
                    products: Products::F32,
                };
                let rounded = Heads {
                    products: Products::of(kernel),
                    ..exact
                };
                let sequences = [0..1, 1..140, 140..163, 163..209];
                let qkv = (random(209, exact.width(), 1) * 2.0).unwrap();
                let dout = random(209, q * dim, 2);
                let masks = Masks::default();
                let [want, got] = [exact, rounded].map(|heads| {
                    let (out, sums) = attention(&qkv, &heads, &sequences, None, &masks).unwrap();
                    let given = [&dout, &qkv, &out];
                    let dqkv = fused::backward(given, &sums, &heads, &sequences).unwrap();
                    (out, dqkv)
                });
                close(&got.0, &want.0, 1e-2);
                close(&got.1, &want.1, 1e-2);

                // A prompt that goes on: the last rows, and keys and values of all.
                let heads = rounded;
                let column = |start| qkv.narrow(1, start * dim, kv * dim).unwrap();
                let past = Past {
                    keys: column(q).narrow(0, 1, 139).unwrap().contiguous().unwrap(),
                    values: column(q + kv)
                        .narrow(0, 1, 139)
                        .unwrap()
                        .contiguous()
                        .unwrap(),
                    len: 139,
                };
                let last = qkv.narrow(0, 100, 40).unwrap().contiguous().unwrap();
                let all = std::slice::from_ref(&(0..40));
                let (rows, _) = attention(&last, &heads, all, Some(&[past]), &masks).unwrap();
                close(&rows, &want.0.narrow(0, 100, 40).unwrap(), 1e-2);
            }
        }
    }

    #[test]
    fn cached_keys_give_the_rows_of_the_whole() {
        let heads = Heads {
            q: 4,
            kv: 2,
            dim: 6,
            scale: 0.4,
            cap: Some(0.9),
            window: Some(9),
            products: Products::F32,
        };
        let qkv = random(30, heads.width(), 1);
        let (whole, _) = attention(
            &qkv,
            &heads,
            std::slice::from_ref(&(0..30)),
            None,
            &Masks::default(),
        )
        .unwrap();
        let last = qkv.narrow(0, 27, 3).unwrap().contiguous().unwrap();
        let column = |start| qkv.narrow(1, start, 12).unwrap().contiguous().unwrap();
        let past = Past {
            keys: column(24),
            values: column(36),
            len: 30,
        };
        for wide in [DType::F32, DType::F64] {
            let past = Past {
                keys: past.keys.to_dtype(wide).unwrap(),
                values: past.values.to_dtype(wide).unwrap(),
                len: 30,
            };
            let last = last.to_dtype(wide).unwrap();
            let (rows, _) = attention(
                &last,
                &heads,
                std::slice::from_ref(&(0..3)),
                Some(&[past]),
                &Masks::default(),
            )
            .unwrap();
            close(&rows, &whole.narrow(0, 27, 3).unwrap(), 1e-5);
        }
    }
}
