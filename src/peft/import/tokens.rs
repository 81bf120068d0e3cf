//! Trained rows of embeddings.

use std::collections::BTreeMap;

use super::importer::Importer;
use crate::adapter::{Extra, ExtraRole};
use crate::error::{Code, Error, Result};
use crate::peft::tensors::Sorted;
use crate::peft::tokens::{SUFFIX, TrainedTokens};
use crate::tensor::{Dtype, Tensor};

impl Importer<'_> {
    /// Adds the trained rows, or puts them into the embedding where the adapter holds all of it.
    pub(super) fn tokens(&mut self, tokens: &TrainedTokens, sorted: &Sorted) -> Result<()> {
        let paths: Vec<&str> = sorted.tokens.keys().map(String::as_str).collect();
        if let Some(missing) = tokens.missing(&paths) {
            let message = format!("rows of `{missing}` were trained, and the file has none");
            return Err(Error::new(Code::MissingFactor, message));
        }
        // Embeddings that are one tensor in the model are saved as often as they have names.
        let mut deltas = sorted.tokens.values();
        let first = deltas.next();
        let alike = first.is_some_and(|f| deltas.all(|d| d.same_bytes(f)));
        let embeddings = if alike { 1 } else { paths.len() };
        for (path, delta) in &sorted.tokens {
            let rows = tokens.of(path, embeddings)?;
            let (rows, delta) =
                ascending(rows, delta).map_err(|e| e.tensor(format!("{path}{SUFFIX}")))?;
            let name = format!("{path}.weight");
            let extras = &mut self.adapter.extras;
            match extras.iter_mut().find(|e| e.name == name) {
                Some(whole) => {
                    whole.tensor = overlaid(&whole.tensor, &rows, &delta)?;
                    whole.role = ExtraRole::Replace;
                }
                None => extras.push(Extra {
                    rows,
                    ..Extra::new(name, ExtraRole::Rows, delta)
                }),
            }
        }
        Ok(())
    }
}

/// The rows in the order of their numbers.
fn ascending(rows: &[u32], delta: &Tensor) -> Result<(Vec<u32>, Tensor)> {
    let places: BTreeMap<u32, usize> = rows.iter().enumerate().map(|(i, r)| (*r, i)).collect();
    let [n, columns] = *delta.shape() else {
        let message = format!("has shape {:?}, and must be a matrix", delta.shape());
        return Err(Error::new(Code::FactorShape, message));
    };
    if n != rows.len() || places.len() != rows.len() {
        let message = format!(
            "has {n} rows, the config lists {} of which {} are unlike",
            rows.len(),
            places.len()
        );
        return Err(Error::new(Code::FactorShape, message));
    }
    let mut bytes = Vec::with_capacity(delta.data().len());
    for place in places.values() {
        let row = delta.index_first(*place);
        bytes.extend_from_slice(row.as_ref().map_or(&[], |row| row.data()));
    }
    let tensor = Tensor::new(delta.dtype(), vec![n, columns], bytes)?;
    Ok((places.into_keys().collect(), tensor))
}

/// A whole embedding with some rows replaced; as F32 where the two are of unlike types.
fn overlaid(whole: &Tensor, rows: &[u32], delta: &Tensor) -> Result<Tensor> {
    let fits = match (whole.shape(), delta.shape()) {
        ([n, columns], [_, same]) => {
            columns == same && rows.last().is_none_or(|r| (*r as usize) < *n)
        }
        _ => false,
    };
    if !fits {
        let message = format!(
            "rows of shape {:?} do not go into an embedding of {:?}",
            delta.shape(),
            whole.shape()
        );
        return Err(Error::new(Code::FactorShape, message));
    }
    let wide = whole.dtype() != delta.dtype();
    let bytes = |t: &Tensor| -> Result<Vec<u8>> {
        match wide {
            true => Ok(Tensor::from_f32(t.shape().to_vec(), &t.to_f32()?)?
                .data()
                .to_vec()),
            false => Ok(t.data().to_vec()),
        }
    };
    let (mut all, new) = (bytes(whole)?, bytes(delta)?);
    let size = new.len() / rows.len().max(1);
    for (row, values) in rows.iter().zip(new.chunks_exact(size.max(1))) {
        let at = *row as usize * size;
        if let Some(place) = all.get_mut(at..at + size) {
            place.copy_from_slice(values);
        }
    }
    let dtype = if wide { Dtype::F32 } else { whole.dtype() };
    Tensor::new(dtype, whole.shape().to_vec(), all)
}
