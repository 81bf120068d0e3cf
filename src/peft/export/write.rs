//! The directory itself, value by value.

use std::path::Path;

use super::card::{Told, card};
use super::content::{Entry, Values, impossible};
use super::form::{ExportOptions, Exported, Form};
use super::lora::plan_lora;
use super::rows::plan_rows;
use super::vera::plan_vera;
use crate::adapter::{Adapter, LowRank, Module};
use crate::error::{Code, Error, Result};
use crate::format::encode;
use crate::fs::{AtomicFile, Existing, Output, write_dir};
use crate::peft::files::{CARD_FILE, CONFIG_FILE, WEIGHTS_FILE};
use crate::peft::parameters::by_rank;
use crate::safetensors::encode_header;
use crate::tensor::{Tensor, byte_len};

/// Writes a PEFT adapter directory with its model card, which appears under its name only when it is complete.
///
/// # Errors
/// [`Code::ExportImpossible`] where the form cannot say the adapter exactly, with the reason;
/// [`Code::NonFinite`] where a product overflows the dtype; [`Code::OutputExists`], [`Code::Io`].
pub fn export(adapter: &Adapter, dir: &Path, options: &ExportOptions<'_>) -> Result<Exported> {
    adapter.validate()?;
    let rows_alone = adapter.groups.is_empty() && options.form == Form::Faithful;
    if adapter.groups.is_empty() && !rows_alone {
        return Err(impossible(
            "the adapter has no low-rank update, and servers take no adapter without one",
        ));
    }
    let modules = adapter.modules();
    let plan = match options.form {
        Form::Faithful if rows_alone => plan_rows(adapter)?,
        Form::Faithful | Form::Portable => plan_lora(adapter, &modules, options)?,
        Form::Vera => plan_vera(adapter, &modules, options)?,
    };
    let (tensors, notes) = (plan.entries.len(), plan.notes);
    let mut bytes = plan.config.len() as u64;
    let root = encode(adapter)?.manifest.root();
    write_dir(dir, Output::Adapter, options.existing, |folder| {
        let mut config = AtomicFile::create(folder.join(CONFIG_FILE), Existing::Refuse)?;
        config.write_all(plan.config.as_bytes())?;
        config.commit(true)?;
        bytes += write_weights(
            adapter,
            &modules,
            plan.entries,
            &folder.join(WEIGHTS_FILE),
            options.form,
        )?;
        let card = card(&Told {
            adapter,
            root,
            options,
            bytes,
            notes: &notes,
        });
        let mut out = AtomicFile::create(folder.join(CARD_FILE), Existing::Refuse)?;
        out.write_all(card.as_bytes())?;
        out.commit(true)
    })?;
    Ok(Exported {
        bytes,
        tensors,
        notes,
    })
}

fn write_weights(
    adapter: &Adapter,
    modules: &[Module],
    mut entries: Vec<Entry>,
    path: &Path,
    form: Form,
) -> Result<u64> {
    entries.sort_by(|a, b| (b.dtype.bits(), &a.name).cmp(&(a.dtype.bits(), &b.name)));
    let mut sized = Vec::with_capacity(entries.len());
    for e in &entries {
        sized.push((
            e.name.as_str(),
            e.dtype,
            e.shape.as_slice(),
            byte_len(e.dtype, &e.shape)?,
        ));
    }
    let header = encode_header(&[("format", "pt")], sized, 8);
    let mut out = AtomicFile::create(path, Existing::Refuse)?;
    out.write_all(&header)?;
    let mut len = header.len() as u64;
    for entry in &entries {
        let tensor = match &entry.values {
            Values::Ready(tensor) => tensor.clone(),
            Values::Right(m) | Values::Left(m) => {
                let factors = module_factors(adapter, &modules[*m], form)?;
                let [rows, columns] = [entry.shape[0], entry.shape[1]];
                let values = match entry.values {
                    Values::Right(_) => pad_rows(factors.right, rows * columns),
                    _ => pad_columns(&factors.left, factors.rank, columns),
                };
                Tensor::narrowed(entry.dtype, entry.shape.clone(), &values)?
            }
            Values::Rights(own) => {
                let mut values = Vec::new();
                for module in &modules[own.clone()] {
                    values.extend(module_factors(adapter, module, form)?.right);
                }
                Tensor::narrowed(entry.dtype, entry.shape.clone(), &values)?
            }
            Values::Lefts(own) => {
                let lefts = own.clone().map(|m| {
                    let factors = module_factors(adapter, &modules[m], form)?;
                    Ok(factors.left)
                });
                let lefts: Vec<Vec<f32>> = lefts.collect::<Result<_>>()?;
                let values = by_rank(&lefts);
                Tensor::narrowed(entry.dtype, entry.shape.clone(), &values)?
            }
        };
        if tensor.to_f32()?.iter().any(|x| !x.is_finite()) {
            let message = format!("a value overflows {}", entry.dtype);
            return Err(Error::new(Code::NonFinite, message)
                .tensor(&entry.name)
                .hint("export in f32"));
        }
        out.write_all(tensor.data())?;
        len += tensor.data().len() as u64;
    }
    out.commit(true)?;
    Ok(len)
}

/// The scaled factors of a module; portable: with s multiplied into B, in f32.
fn module_factors(adapter: &Adapter, module: &Module, form: Form) -> Result<LowRank> {
    let mut factors = adapter.groups[module.group].low_rank(module.layer, module.target)?;
    let s = factors.scale as f32;
    if form == Form::Portable && s != 1.0 {
        factors.left.iter_mut().for_each(|x| *x *= s);
    }
    Ok(factors)
}

fn pad_rows(mut values: Vec<f32>, len: usize) -> Vec<f32> {
    values.resize(len.max(values.len()), 0.0);
    values
}

fn pad_columns(values: &[f32], have: usize, want: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len() / have.max(1) * want);
    for row in values.chunks_exact(have.max(1)) {
        out.extend_from_slice(row);
        out.resize(out.len() + want - have, 0.0);
    }
    out
}
