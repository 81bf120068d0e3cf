//! Embeddings of another number of rows than the base's, and rows of embeddings that were trained.

use serde_json::Value;

use super::plan::{Addition, Origin, RowReplacement, TensorPlan};
use super::request::MergeInput;
use crate::adapter::{Extra, ExtraRole};
use crate::base::edits::ConfigEdits;
use crate::base::read_config;
use crate::base::ties::Ties;
use crate::error::{Code, Error, Result};
use crate::safetensors::{Checkpoint, Location};
use crate::tensor::shape_text;

/// The key of a config that gives the number of rows of its embeddings.
const KEY: &str = "vocab_size";

/// What BART and its kin add to the output: a buffer with an entry for each row, which transformers fills up
/// with zeros where it resizes the embeddings. No adapter holds it.
const BUFFER: &str = "final_logits_bias";

/// Whether an adapter gives an embedding of this shape, or the bias of the output, another number of rows.
pub(super) fn resizes(extra: &Extra, base: &[usize]) -> bool {
    let whole = matches!(extra.role, ExtraRole::Replace | ExtraRole::BaseLayer);
    match (extra.tensor.shape(), base) {
        ([rows, columns], [of_base, same]) => whole && columns == same && rows != of_base,
        ([rows], [of_base]) => whole && rows != of_base,
        _ => false,
    }
}

/// Plans to replace the rows that an extra lists; their difference from the base's is an update, where the
/// merge is `by_method`.
pub(super) fn add_rows(
    base: &Checkpoint,
    inputs: &[MergeInput],
    tensor: &mut TensorPlan,
    (index, e): (usize, usize),
    by_method: bool,
) -> Result<()> {
    let extra = &inputs[index].adapter.extras[e];
    let last = extra.rows.last().map_or(0, |row| *row as usize);
    let fits = matches!(
        (extra.tensor.shape(), &tensor.shape[..]),
        ([_, columns], [rows, same]) if columns == same && last < *rows
    );
    if !fits {
        let message = format!(
            "the adapter replaces rows up to {last} by {}, the base has {}",
            shape_text(extra.tensor.shape()),
            shape_text(&tensor.shape)
        );
        return Err(Error::new(Code::BaseShape, message)
            .tensor(&tensor.name)
            .file(base.at(tensor.source).0.path())
            .hint("was the vocabulary resized for training, or is it another model?"));
    }
    let updates = tensor.additions.iter().filter_map(|a| match a {
        Addition::Rows { input, extra } if *input == index => Some((*input, *extra)),
        _ => None,
    });
    let replacing = tensor.row_replacements.iter().map(|r| (r.input, r.extra));
    for (other, earlier) in replacing.chain(updates) {
        let label = &inputs[other].label;
        let earlier = &inputs[other].adapter.extras[earlier];
        if let Some(row) = conflict(earlier, extra) {
            let message = format!("`{label}` gives row {row} other values");
            return Err(Error::new(Code::AdaptersConflict, message).tensor(&tensor.name));
        }
    }
    match by_method {
        true => tensor.additions.push(Addition::Rows {
            input: index,
            extra: e,
        }),
        false => tensor.row_replacements.push(RowReplacement {
            input: index,
            extra: e,
            part: None,
        }),
    }
    Ok(())
}

/// A row that two extras replace by unlike values.
fn conflict(one: &Extra, two: &Extra) -> Option<u32> {
    let row_of = |extra: &Extra, at: usize| extra.tensor.slice_first(at..at + 1);
    let unlike = |(at, row): (usize, &u32)| {
        let other = two.rows.binary_search(row).ok()?;
        let same = row_of(one, at)?.same_bytes(&row_of(two, other)?);
        (!same).then_some(*row)
    };
    one.rows.iter().enumerate().find_map(unlike)
}

/// Checks that input and output embedding have as many rows, where an adapter has changed their
/// number, and plans what the config says of it, and what else has an entry for each row. Gives notes on what
/// is left to the caller.
///
/// # Errors
/// [`Code::BaseShape`] where only one of two embeddings was resized.
pub(super) fn settle(
    base: &Checkpoint,
    ties: &Ties<'_>,
    tensors: &mut Vec<TensorPlan>,
    edits: &mut ConfigEdits,
) -> Result<Option<String>> {
    let rows = |shape: &[usize]| shape.first().copied().unwrap_or_default();
    // A tensor that the base lacks is no embedding, wherever it is written.
    let is_embedding = |t: &&TensorPlan| t.origin != Origin::Absent && ties.is_embedding(t.source);
    let resized = tensors.iter().filter(is_embedding).find(|t| {
        let of_base = &base.at(t.source).1.shape;
        t.shape.len() <= 2 && rows(&t.shape) != rows(of_base)
    });
    let Some(resized) = resized else {
        return Ok(None);
    };
    let vocabulary = rows(&resized.shape);
    let planned = |place: Location| tensors.iter().find(|t| t.source == place && !t.appended);
    let added = tensors.iter().filter(is_embedding).filter(|t| t.appended);
    let stored = ties.embeddings().map(|place| {
        let info = base.at(place).1;
        planned(place).map_or((&info.name, &info.shape), |t| (&t.name, &t.shape))
    });
    let all = stored.chain(added.map(|t| (&t.name, &t.shape)));
    for (name, shape) in all {
        if rows(shape) != vocabulary {
            let message = format!(
                "the adapter has an embedding of {vocabulary} rows and leaves this one at {}",
                rows(shape)
            );
            return Err(Error::new(Code::BaseShape, message)
                .tensor(name)
                .hint("save the adapter with all embeddings that were resized, as they were trained: their new rows are in no other file"));
        }
    }
    let config = read_config(base)?.unwrap_or_default();
    let has = |object: Option<&Value>| object.is_some_and(|c| c.get(KEY).is_some());
    if has(config.get("text_config")) {
        edits.set(&["text_config", KEY], vocabulary);
    }
    if has(Some(&config)) || !has(config.get("text_config")) {
        edits.set(&[KEY], vocabulary);
    }
    let before = rows(&base.at(resized.source).1.shape);
    tensors.extend(buffer(base, before, vocabulary));
    Ok(Some(format!(
        "the vocabulary has {vocabulary} entries, {before} in the base"
    )))
}

/// The plan of the output's buffer in another length.
fn buffer(base: &Checkpoint, before: usize, vocabulary: usize) -> Option<TensorPlan> {
    let all = base.tensors().iter();
    let mut found = all.filter(|(name, _)| name.rsplit('.').next() == Some(BUFFER));
    let (name, source) = found.next().filter(|_| found.next().is_none())?;
    let info = base.at(*source).1;
    (info.shape == [1, before]).then(|| TensorPlan {
        name: name.clone(),
        source: *source,
        origin: Origin::Stored,
        appended: false,
        dtype: info.dtype,
        shape: vec![1, vocabulary],
        replace: None,
        row_replacements: Vec::new(),
        additions: Vec::new(),
    })
}

/// A note on the vocabulary, where the output has the base's tokenizer; `beside` whether another one
/// lies beside an adapter.
pub(super) fn with_tokenizer(note: &str, beside: bool) -> String {
    let whose = match beside {
        true => "the one in the adapter's folder was not taken",
        false => "it has to be the one of the training run",
    };
    format!("{note}: the tokenizer is the base's, {whose}")
}
