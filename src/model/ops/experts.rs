//! A mixture of experts in the place of an MLP: each token goes through the few that a router
//! scores highest, and their outputs are summed by its probabilities.
//!
//! The choice and its gradient are made on the host in f64, the products where the weights are.

use candle_core::{D, DType, Tensor};

use super::slices::update;
use super::{Activation, Matrix, Piece, f32s, is_fused, linear, linear_backward};
use crate::error::Result;

/// How tokens choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Experts of each token.
    pub chosen: usize,
    /// Whether the probabilities of the chosen are divided by their sum.
    pub normalised: bool,
}

/// One expert.
#[derive(Debug)]
pub struct Expert {
    /// Gate and up, width × hidden each; or both as one weight.
    pub gate_up: Vec<Matrix>,
    /// hidden × width
    pub down: Matrix,
}

/// The experts of a layer.
#[derive(Debug)]
pub struct Experts {
    /// experts × hidden
    pub router: Matrix,
    /// In the order of the router's rows.
    pub experts: Vec<Expert>,
    /// How tokens choose among them.
    pub choice: Choice,
    /// Between the products of an expert.
    pub activation: Activation,
}

/// The tokens of one expert.
#[derive(Debug, Default, Clone)]
struct Share {
    rows: Vec<u32>,
    weights: Vec<f64>,
}

/// The router's probabilities, tokens × experts, and who takes which tokens.
struct Routing {
    probabilities: Vec<Vec<f64>>,
    shares: Vec<Share>,
}

impl Experts {
    /// The sum of the chosen experts' outputs, of the shape of x (tokens × hidden).
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let routing = self.route(x)?;
        let mut sum = x.zeros_like()?;
        for (expert, share) in self.experts.iter().zip(&routing.shares) {
            if share.rows.is_empty() {
                continue;
            }
            let rows = share.numbers(x)?;
            let gate_up = linear(&x.index_select(&rows, 0)?, &expert.pieces())?;
            let y = expert.down(&self.activation.forward(&gate_up)?)?;
            let y = y.broadcast_mul(&share.scales(&y)?)?;
            sum = add_rows(sum, share, &rows, &y)?;
        }
        Ok(sum)
    }

    /// The gradient with respect to x, of its shape, through the experts and the router's
    /// probabilities; the choice itself has none. What the forward made is made again.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]
    pub fn backward(&self, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        let routing = self.route(x)?;
        let mut dx = x.zeros_like()?;
        let mut slopes: Vec<Vec<f64>> = Vec::new();
        for (expert, share) in self.experts.iter().zip(&routing.shares) {
            if share.rows.is_empty() {
                slopes.push(Vec::new());
                continue;
            }
            let rows = share.numbers(x)?;
            let gate_up = linear(&x.index_select(&rows, 0)?, &expert.pieces())?;
            let y = expert.down(&self.activation.forward(&gate_up)?)?;
            let dy = dy.index_select(&rows, 0)?;
            let along = (y.to_dtype(DType::F64)? * dy.to_dtype(DType::F64)?)?;
            slopes.push(along.sum(D::Minus1)?.to_vec1::<f64>()?);
            let dy = dy.broadcast_mul(&share.scales(&dy)?)?;
            let dactive = linear_backward(&dy, &[Piece::whole(&expert.down)])?;
            let dgate_up = self.activation.backward(&dactive, &gate_up)?;
            let part = linear_backward(&dgate_up, &expert.pieces())?;
            dx = add_rows(dx, share, &rows, &part)?;
        }
        let dlogits = self.route_backward(&routing, &slopes);
        let shape = (x.dim(0)?, self.experts.len());
        let dlogits = Tensor::from_vec(dlogits, shape, x.device())?.to_dtype(x.dtype())?;
        Ok((dx + linear_backward(&dlogits, &[Piece::whole(&self.router)])?)?)
    }

    fn route(&self, x: &Tensor) -> Result<Routing> {
        let logits = linear(x, &[Piece::whole(&self.router)])?.to_dtype(DType::F64)?;
        let mut probabilities = logits.to_vec2::<f64>()?;
        let mut shares = vec![Share::default(); self.experts.len()];
        for (token, row) in probabilities.iter_mut().enumerate() {
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|p| *p = (*p - top).exp());
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|p| *p /= sum);
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            order.truncate(self.choice.chosen);
            let all: f64 = order.iter().map(|e| row[*e]).sum();
            let scale = if self.choice.normalised { all } else { 1.0 };
            for expert in order {
                shares[expert].rows.push(token as u32);
                shares[expert].weights.push(row[expert] / scale);
            }
        }
        Ok(Routing {
            probabilities,
            shares,
        })
    }

    /// The gradient of the router's logits, from those of the weights of each expert's tokens.
    fn route_backward(&self, routing: &Routing, slopes: &[Vec<f64>]) -> Vec<f64> {
        let (tokens, count) = (routing.probabilities.len(), self.experts.len());
        let mut dp = vec![0.0; tokens * count];
        // Of a token's weights w, the slopes dw: Σ dw·w, and Σ p of the chosen.
        let mut along = vec![(0.0, 0.0); tokens];
        let each = |visit: &mut dyn FnMut(usize, usize, f64, f64)| {
            for (expert, (share, slopes)) in routing.shares.iter().zip(slopes).enumerate() {
                for ((row, weight), slope) in share.rows.iter().zip(&share.weights).zip(slopes) {
                    visit(*row as usize, expert, *weight, *slope);
                }
            }
        };
        if self.choice.normalised {
            each(&mut |row, expert, weight, slope| {
                along[row].0 += weight * slope;
                along[row].1 += routing.probabilities[row][expert];
            });
        } else {
            along.fill((0.0, 1.0));
        }
        each(&mut |row, expert, _, slope| {
            dp[row * count + expert] = (slope - along[row].0) / along[row].1;
        });
        for (p, dp) in routing.probabilities.iter().zip(dp.chunks_exact_mut(count)) {
            let sum: f64 = p.iter().zip(dp.iter()).map(|(p, d)| p * d).sum();
            dp.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - sum));
        }
        dp
    }
}

impl Expert {
    fn pieces(&self) -> Vec<Piece<'_>> {
        self.gate_up.iter().map(Piece::whole).collect()
    }

    fn down(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &[Piece::whole(&self.down)])
    }
}

impl Share {
    fn numbers(&self, x: &Tensor) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.rows, self.rows.len(), x.device())?)
    }

    /// One factor for each row of `like`.
    fn scales(&self, like: &Tensor) -> Result<Tensor> {
        let scales = Tensor::from_slice(&self.weights, (self.rows.len(), 1), like.device())?;
        Ok(scales.to_dtype(like.dtype())?)
    }
}

/// `sum` (consumed) with the rows of `part` added to those of a share.
fn add_rows(sum: Tensor, share: &Share, rows: &Tensor, part: &Tensor) -> Result<Tensor> {
    if !is_fused(&sum) {
        return Ok(sum.index_add(rows, part, 0)?);
    }
    let cols = sum.dim(1)?;
    let part = f32s(part)?;
    update(&sum, |sum| {
        for (row, part) in share.rows.iter().zip(part.chunks_exact(cols)) {
            let to = &mut sum[*row as usize * cols..][..cols];
            to.iter_mut().zip(part).for_each(|(to, x)| *to += x);
        }
    })?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::slices::tests::{close, is_slope, random};
    use super::*;
    use crate::tensor::Tensor as Bytes;

    fn matrix([out, cols]: [usize; 2], seed: u32, dtype: DType) -> Matrix {
        let values = f32s(&random(out, cols, seed)).unwrap().to_vec();
        let weight = Bytes::from_f32(vec![out, cols], &values).unwrap();
        Matrix::new(weight, &Device::Cpu, dtype).unwrap()
    }

    fn experts(normalised: bool, dtype: DType) -> Experts {
        Experts {
            router: matrix([5, 12], 1, dtype),
            experts: (0..5)
                .map(|e| Expert {
                    gate_up: vec![
                        matrix([7, 12], 10 + e, dtype),
                        matrix([7, 12], 20 + e, dtype),
                    ],
                    down: matrix([12, 7], 30 + e, dtype),
                })
                .collect(),
            choice: Choice {
                chosen: 2,
                normalised,
            },
            activation: Activation::SwiGlu,
        }
    }

    /// Breaks where the gradient leaves out the router, or a token reads another's experts.
    #[test]
    fn fused_experts_equal_composed_ones_and_those_their_differences() {
        for normalised in [true, false] {
            let (narrow, wide) = (
                experts(normalised, DType::F32),
                experts(normalised, DType::F64),
            );
            let (x, dy) = (random(40, 12, 2), random(40, 12, 3));
            let [x64, dy64] = [&x, &dy].map(|t| t.to_dtype(DType::F64).unwrap());
            let right = wide.forward(&x64).unwrap();
            close(&narrow.forward(&x).unwrap(), &right, 1e-5);
            let dx = wide.backward(&dy64, &x64).unwrap();
            close(&narrow.backward(&dy, &x).unwrap(), &dx, 1e-5);
            let direction = random(40, 12, 5).to_dtype(DType::F64).unwrap();
            let loss = |step: f64| {
                let x = (&x64 + (&direction * step).unwrap()).unwrap();
                let y = (wide.forward(&x).unwrap() * &dy64).unwrap();
                y.sum_all().unwrap().to_scalar::<f64>().unwrap()
            };
            is_slope(&dx, &direction, loss, 1.0);
        }
    }
}
