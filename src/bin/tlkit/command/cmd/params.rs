//! `params`: what each method would train on a model.

use std::path::Path;

use serde::Serialize;
use tlkit::adapter::{FactorName, Method, Shape, percent_tenths};
use tlkit::audit::model_shape;
use tlkit::fs::read_limited;
use tlkit::{Code, Error, Result};

use crate::command::args::{ModelSizes, Params};
use crate::command::output::{Outcome, Output, bytes, count, fields, table};

const MAX_CONFIG_BYTES: u64 = 4 << 20;

#[derive(Serialize)]
struct Report {
    layers: u64,
    r#in: u64,
    out: Outs,
    dtype: String,
    methods: Vec<Row>,
}

#[derive(Serialize)]
struct Outs {
    q: u64,
    k: u64,
    v: u64,
}

#[derive(Serialize)]
struct Row {
    rank: u64,
    method: &'static str,
    trains: Vec<&'static str>,
    tied: bool,
    parameters: u64,
    percent_of_lora: f64,
    lora_rank: u64,
    bytes: u64,
    #[serde(skip)]
    tenths: u64,
}

pub(crate) fn params(args: &Params, output: &Output) -> Result<Outcome> {
    let shape = shape(&args.model)?;
    let mut methods = Vec::new();
    for rank in &args.rank {
        let lora_rank = args.lora_rank.unwrap_or(*rank);
        for method in Method::PRESETS {
            methods.push(row(&shape, method, *rank, lora_rank, args.dtype.bits())?);
        }
    }
    let [q, k, v] = shape.outs;
    let report = Report {
        layers: shape.layers,
        r#in: shape.input,
        out: Outs { q, k, v },
        dtype: args.dtype.to_string(),
        methods,
    };
    output.report(&report, || text(&report, args.lora_rank))?;
    Ok(Outcome::Success)
}

/// The shape of a model that is known by name, that a folder's config.json describes, or of which
/// the sizes are given.
pub(super) fn shape(sizes: &ModelSizes) -> Result<Shape> {
    if let Some(model) = &sizes.model {
        let dir = Path::new(model);
        if !dir.is_dir() {
            return model_shape(model);
        }
        let path = dir.join("config.json");
        let config = read_limited(&path, MAX_CONFIG_BYTES)?;
        return Shape::from_config(&config).map_err(|e| e.file(&path));
    }
    let (Some(layers), Some(input)) = (sizes.layers, sizes.hidden) else {
        return Err(Error::new(Code::Usage, "neither a model nor its sizes"));
    };
    let kv = sizes.kv_dim.unwrap_or(input);
    Ok(Shape {
        layers,
        input,
        outs: [input, kv, kv],
    })
}

fn row(shape: &Shape, method: Method, rank: u64, lora_rank: u64, bits: usize) -> Result<Row> {
    let too_large = || Error::new(Code::Usage, "the bytes overflow a 64-bit count");
    let parameters = shape.parameters(method, rank)?;
    let lora = shape.parameters(Method::Lora, lora_rank)?;
    Ok(Row {
        rank,
        method: method.name(),
        trains: method
            .trains()
            .unwrap_or(&[])
            .iter()
            .map(|p: &FactorName| p.name())
            .collect(),
        tied: method.is_tied() == Some(true),
        parameters,
        percent_of_lora: 100.0 * parameters as f64 / lora as f64,
        lora_rank,
        bytes: parameters
            .checked_mul(bits as u64 / 8)
            .ok_or_else(too_large)?,
        tenths: percent_tenths(parameters, lora).ok_or_else(too_large)?,
    })
}

fn text(report: &Report, lora_rank: Option<u64>) -> String {
    let Outs { q, k, v } = report.out;
    let head = fields(&[
        ("layers", count(report.layers)),
        ("in", count(report.r#in)),
        (
            "out",
            format!("q {}, k {}, v {}", count(q), count(k), count(v)),
        ),
    ]);
    let rows = report.methods.iter().map(|row| {
        vec![
            row.rank.to_string(),
            row.method.into(),
            row.trains.join(" "),
            if row.tied { "yes" } else { "no" }.into(),
            count(row.parameters),
            format!("{}.{}", row.tenths / 10, row.tenths % 10),
            bytes(row.bytes),
        ]
    });
    let header = [
        "rank",
        "method",
        "trains",
        "tied",
        "parameters",
        "% of LoRA",
        "bytes",
    ];
    let table = table(&header, &[0, 4, 5, 6], rows);
    let dtype = &report.dtype;
    let lora = match lora_rank {
        Some(rank) => format!("the LoRA of rank {rank}"),
        None => "the LoRA of the same rank".to_owned(),
    };
    format!(
        "{head}\n{table}\n\n% of LoRA: against {lora}; q, k and v share one A, as in every method here.\n\
         bytes: the trained numbers as {dtype}, without a file's header. Frozen A and B are kept as seeds.\n"
    )
}
