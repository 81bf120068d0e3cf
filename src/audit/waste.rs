//! What of each row's bytes could go, looked for across all rows.

use std::collections::{HashMap, HashSet};

use super::facts::Recipe;
use super::row::Row;
use super::sum::add;
use crate::digest::Digest;
use crate::peft::projection::{Fma, regenerate};
use crate::tensor::{Dtype, Tensor};

/// Fills in the waste of every row. Of equal tensors the first row's is the one that stays.
pub(super) fn settle(rows: &mut [Row]) {
    let mut digests: HashSet<Digest> = HashSet::new();
    let mut recipes: HashSet<Recipe> = HashSet::new();
    let mut made: HashMap<Recipe, Vec<Digest>> = HashMap::new();
    for row in rows {
        let (facts, waste) = (&row.facts, &mut row.waste);
        waste.full_weights = facts.full_weights;
        waste.optimizer = facts.optimizer;
        waste.dtype = facts.wide;
        for projection in &facts.projections {
            let vera = matches!(projection.recipe, Recipe::Vera { .. });
            if let Some(digest) = projection.digest.filter(|_| vera) {
                let recipe = &projection.recipe;
                let made = made.entry(recipe.clone()).or_insert_with(|| make(recipe));
                if !made.contains(&digest) {
                    // Not what the seed makes: a tensor like any other.
                    if digests.insert(digest) {
                        add(&mut waste.dtype, projection.wide);
                    } else {
                        add(&mut waste.duplicates, projection.bytes);
                    }
                    continue;
                }
            } else if vera {
                add(&mut waste.presumed, projection.bytes);
            }
            add(&mut waste.projections, projection.bytes);
            if !recipes.insert(projection.recipe.clone()) {
                add(&mut waste.projection_copies, projection.bytes);
            }
        }
        for tensor in &facts.hashed {
            if !digests.insert(tensor.digest) {
                add(&mut waste.duplicates, tensor.bytes);
                waste.dtype = waste.dtype.saturating_sub(tensor.wide);
            }
        }
    }
}

/// Digests of what a VeRA recipe makes: with either rounding that torch may have used, and with the
/// values rounded to the type of a half-precision base, as PEFT trains on one and stores F32.
fn make(recipe: &Recipe) -> Vec<Digest> {
    let Recipe::Vera {
        key,
        rank,
        input,
        out,
        dtype,
        is_b,
    } = recipe
    else {
        return Vec::new();
    };
    if !dtype.is_float() {
        return Vec::new();
    }
    let mut digests = Vec::new();
    for fma in [Fma::Fused, Fma::Separate] {
        let Ok((a, b)) = regenerate(*key, *rank, *input, *out, fma) else {
            return digests;
        };
        let (shape, values) = match is_b {
            true => (vec![*out, *rank], b),
            false => (vec![*rank, *input], a),
        };
        let rounded = |base: Dtype| {
            let values = Tensor::narrowed(base, shape.clone(), &values)?.to_f32()?;
            Tensor::narrowed(*dtype, shape.clone(), &values)
        };
        for base in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            digests.extend(rounded(base).ok().map(|t| Digest::of(t.data())));
        }
    }
    digests
}
