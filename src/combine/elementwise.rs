//! The methods of PEFT's `merge_utils`, on the elements of several tensors.

use rayon::prelude::*;

use super::method::CombineMethod;
use super::options::CombineOptions;
use crate::blend::{Average, Mask, Recipe, Rescale, Rule, Sparsify, blend, sparsify};
use crate::error::Result;

/// Elements that one task works on at a time.
const STRETCH: usize = 1 << 16;

/// How the elements of several tensors become one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elementwise {
    recipe: Recipe,
    density: f64,
    seed: u64,
}

/// What one adapter has of a tensor.
pub(super) struct Update {
    /// Which adapter.
    pub(super) input: usize,
    pub(super) weight: f32,
    pub(super) values: Vec<f32>,
}

impl Elementwise {
    /// What a method does, as PEFT: signs are those of unweighted elements, and a mean is over as many as take part.
    pub(super) fn of(options: &CombineOptions<'_>) -> Self {
        use CombineMethod::{MagnitudePrune, MagnitudePruneSvd};
        let method = options.method;
        let (sparsify, rescale) = match method {
            _ if method.is_random() => (Sparsify::Random, Rescale::Density),
            MagnitudePrune | MagnitudePruneSvd => (Sparsify::Magnitude, Rescale::None),
            _ if method.elects_signs() => (Sparsify::Magnitude, Rescale::None),
            _ => (Sparsify::None, Rescale::None),
        };
        let elects = method.elects_signs();
        Self {
            recipe: Recipe {
                sparsify,
                rescale,
                election: elects.then_some(options.signs),
                elects_weighted: false,
                average: if elects { Average::Count } else { Average::Sum },
                lambda: 1.0,
            },
            density: options.density.unwrap_or(1.0),
            seed: options.seed,
        }
    }

    /// The tensor called `name`, which has rows of `cols` elements, of one update at least.
    ///
    /// # Errors
    /// Those of [`sparsify`].
    pub(super) fn apply(&self, name: &str, cols: usize, updates: Vec<Update>) -> Result<Vec<f32>> {
        let mut updates = updates;
        for update in &mut updates {
            let mask = Mask::new(self.seed, update.input as u64, name);
            sparsify(&self.recipe, self.density, mask, cols, &mut update.values)?;
        }
        let weights: Vec<f32> = updates.iter().map(|u| u.weight).collect();
        let rule = Rule::new(&self.recipe, &weights);
        let mut out = vec![0.0; updates.first().map_or(0, |u| u.values.len())];
        let stretches = out.par_chunks_mut(STRETCH).enumerate();
        stretches.for_each(|(n, out)| {
            let range = n * STRETCH..n * STRETCH + out.len();
            let parts: Vec<&[f32]> = updates.iter().map(|u| &u.values[range.clone()]).collect();
            blend(&parts, &weights, &rule, out);
        });
        Ok(out)
    }
}
