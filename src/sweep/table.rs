//! The results of a sweep in the shape of the paper's Table 2.

use serde::Serialize;

use super::grid::Cell;
use super::metric::Metric;
use super::result::CellResult;
use super::summary::{Summary, best, summaries};
use crate::adapter::{Method, percent_tenths};
use crate::error::{Code, Error, Result};
use crate::sheet;
use crate::train::settings::as_text;

/// The two sections of the paper's Table 2, for one task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// The rank that `same_rank` is of and P% is against: LoRA's best, or the smallest of the
    /// grid where no LoRA of the sweep has a score.
    pub lora_rank: usize,
    /// Numbers that LoRA trains at that rank.
    pub lora_parameters: u64,
    /// Whether the sweep has a LoRA with a score.
    pub lora_has_score: bool,
    /// All methods at LoRA's best rank, then all but LoRA at their own best.
    pub rows: Vec<Row>,
}

/// One method in one section.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// `same_rank` or `best_rank`.
    pub section: &'static str,
    /// As [`Metric::task`].
    pub task: &'static str,
    /// The method.
    #[serde(serialize_with = "as_text")]
    pub method: Method,
    /// Its rank.
    pub rank: usize,
    /// The learning rate that did best.
    pub lr: Option<f64>,
    /// Its score, the mean of the seeds' where the grid has seeds; none where every learning rate diverged, with a seed or more.
    pub score: Option<f64>,
    /// The sample standard deviation of the seeds' scores, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
    /// How many seeds, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seeds: Option<usize>,
    /// Its parameters as a share of LoRA's at [`Table::lora_rank`], to a tenth of a percent.
    pub percent: Option<f64>,
}

/// The table of `cells`, of which there is at least one. The learning rate counts that is best in the mean of its seeds; of
/// equal scores, that with the lower rank, and then the first.
///
/// `lora_unit` is what LoRA trains at rank 1; it trains r times that at rank r.
pub(super) fn table(cells: &[CellResult], metric: &Metric, lora_unit: u64) -> Table {
    let mut methods: Vec<Method> = Vec::new();
    let cells = &summaries(cells);
    for cell in cells {
        if !methods.contains(&cell.method) {
            methods.push(cell.method);
        }
    }
    let lora = best(cells, metric, |c| c.method == Method::Lora);
    let smallest = cells.iter().map(|c| c.rank).min().unwrap_or(0);
    let lora_rank = lora.map_or(smallest, |c| c.rank);
    let lora_parameters = lora_unit.saturating_mul(lora_rank as u64);
    let row = |section, cell: &Summary| Row {
        section,
        task: metric.task,
        method: cell.method,
        rank: cell.rank,
        lr: cell.score.map(|_| cell.lr),
        score: cell.score,
        spread: cell.spread,
        seeds: (cell.seeds > 1).then_some(cell.seeds),
        percent: percent(cell.parameters, lora_parameters),
    };
    let same = methods.iter().filter_map(|method| {
        let here = |c: &Summary| c.method == *method && c.rank == lora_rank;
        let cell = best(cells, metric, here).or(cells.iter().find(|c| here(c)))?;
        Some(row("same_rank", cell))
    });
    let others = methods.iter().filter(|m| **m != Method::Lora);
    let own = others.filter_map(|method| {
        best(cells, metric, |c| c.method == *method).map(|cell| row("best_rank", cell))
    });
    Table {
        lora_rank,
        lora_parameters,
        lora_has_score: lora.is_some(),
        rows: same.chain(own).collect(),
    }
}

fn percent(part: u64, whole: u64) -> Option<f64> {
    percent_tenths(part, whole).map(|tenths| tenths as f64 / 10.0)
}

/// `section,task,method,rank,score,percent` for each row; a score that is missing is empty. With several seeds, `spread` and
/// `seeds` besides.
///
/// # Errors
/// [`Code::Io`], which no input is known to bring about.
pub(super) fn table_csv(table: &Table, metric: &Metric) -> Result<Vec<u8>> {
    let seeds = table.rows.iter().any(|row| row.seeds.is_some());
    let mut header = vec!["section", "task", "method", "rank", "score", "percent"];
    if seeds {
        header.extend(["spread", "seeds"]);
    }
    let rows = table.rows.iter().map(|row| {
        let mut cells = vec![
            row.section.to_owned(),
            row.task.to_owned(),
            sheet::cell(&row.method.to_string()).into_owned(),
            row.rank.to_string(),
            row.score.map(|s| metric.text(s)).unwrap_or_default(),
            row.percent.map(|p| format!("{p:.1}")).unwrap_or_default(),
        ];
        if seeds {
            cells.push(row.spread.map(|s| metric.text(s)).unwrap_or_default());
            cells.push(row.seeds.map(|n| n.to_string()).unwrap_or_default());
        }
        cells
    });
    csv(&header, rows)
}

/// Where a grid with seeds has their column, behind the learning rate.
const SEED: usize = 3;

/// One line for each of `cells`; those without a result have no more than their place in the
/// grid. `percent` is against the LoRA of the same rank.
///
/// # Errors
/// [`Code::Io`], which no input is known to bring about.
pub(super) fn cells_csv(
    cells: &[Cell],
    results: &[Option<CellResult>],
    lora_unit: u64,
) -> Result<Vec<u8>> {
    fn text(value: Option<impl ToString>) -> String {
        value.map(|v| v.to_string()).unwrap_or_default()
    }
    let seeds = cells.iter().any(|cell| cell.seed.is_some());
    let mut header = vec![
        "method",
        "rank",
        "lr",
        "score",
        "valid_loss",
        "parameters",
        "percent",
        "bytes",
        "steps",
        "error",
    ];
    if seeds {
        header.insert(SEED, "seed");
    }
    let rows = cells.iter().zip(results).map(|(cell, result)| {
        let r = result.as_ref();
        let lora = lora_unit.saturating_mul(cell.rank as u64);
        let share = r.and_then(|r| percent(r.parameters, lora));
        let mut values = vec![
            cell.method.to_string(),
            cell.rank.to_string(),
            format!("{:e}", cell.lr),
            text(r.and_then(|r| r.score)),
            text(r.and_then(|r| r.valid_loss)),
            text(r.map(|r| r.parameters)),
            text(share.map(|p| format!("{p:.1}"))),
            text(r.and_then(|r| r.bytes)),
            text(r.and_then(|r| r.steps)),
            text(r.and_then(|r| r.error.as_deref()).map(sheet::cell)),
        ];
        if seeds {
            values.insert(SEED, text(cell.seed));
        }
        values
    });
    csv(&header, rows)
}

fn csv(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Result<Vec<u8>> {
    let failed = |e: String| Error::new(Code::Io, format!("CSV: {e}"));
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(header)
        .map_err(|e| failed(e.to_string()))?;
    for row in rows {
        out.write_record(row).map_err(|e| failed(e.to_string()))?;
    }
    out.into_inner().map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ACCURACY, LOSS, result};
    use super::*;
    use crate::adapter::Shape;

    /// Breaks where a share is of the wrong LoRA, a section has the wrong rank, or another than
    /// the best learning rate counts. The ranks and shares are those that the paper prints for
    /// DialogSum on LLaMA2-7B, the scores made up to have them chosen.
    #[test]
    fn the_papers_shares() {
        let shape = Shape {
            layers: 32,
            input: 4096,
            outs: [4096; 3],
        };
        let cell = |method, rank: usize, lr, score| {
            let mut cell = result(method, rank, lr, score);
            cell.parameters = shape.parameters(method, rank as u64).unwrap();
            cell
        };
        let cells = [
            cell(Method::Lora, 8, 1e-4, Some(40.0)),
            cell(Method::Lora, 8, 1e-3, Some(40.76)),
            cell(Method::Lora, 16, 1e-4, Some(40.5)),
            cell(Method::Tl6, 8, 1e-4, Some(39.24)),
            cell(Method::Tl6, 8, 1e-3, Some(30.0)),
            cell(Method::Tl6, 16, 1e-4, Some(39.71)),
            cell(Method::Tl2, 8, 1e-4, Some(38.69)),
            cell(Method::Tl2, 64, 1e-4, Some(39.81)),
            cell(Method::Tl3, 8, 1e-4, None),
            cell(Method::Tl3, 16, 1e-4, None),
        ];
        let unit = shape.parameters(Method::Lora, 1).unwrap();
        let table = table(&cells, &ACCURACY, unit);
        assert_eq!((table.lora_rank, table.lora_parameters), (8, 4_194_304));
        let csv = String::from_utf8(table_csv(&table, &ACCURACY).unwrap()).unwrap();
        assert_eq!(
            csv,
            "section,task,method,rank,score,percent\n\
             same_rank,choice,lora,8,40.76,100.0\n\
             same_rank,choice,tl6,8,39.24,12.5\n\
             same_rank,choice,tl2,8,38.69,10.2\n\
             same_rank,choice,tl3,8,,2.3\n\
             best_rank,choice,tl6,16,39.71,15.6\n\
             best_rank,choice,tl2,64,39.81,15.7\n"
        );
    }

    /// Breaks where a loss counts as better for being higher, or a sweep without LoRA has no shares.
    #[test]
    fn losses_and_a_sweep_without_lora() {
        let cells = [
            result(Method::Tl5, 4, 1e-3, Some(2.0)),
            result(Method::Tl5, 2, 1e-3, Some(2.0)),
            result(Method::Tl5, 2, 1e-4, Some(2.5)),
        ];
        let table = table(&cells, &LOSS, 400);
        assert_eq!((table.lora_rank, table.lora_has_score), (2, false));
        let rows: Vec<_> = table
            .rows
            .iter()
            .map(|r| (r.section, r.rank, r.lr))
            .collect();
        let lr = Some(1e-3);
        assert_eq!(rows, [("same_rank", 2, lr), ("best_rank", 2, lr)]);
        assert_eq!(table.rows[0].percent, Some(12.5));
    }

    /// Breaks where a cell that is to come, or diverged, moves the others' columns.
    #[test]
    fn every_cell_has_its_line() {
        let mut diverged = result(Method::Tl6, 2, 0.5, None);
        diverged.error = Some("TL0608: the loss ran away, \"far\"".to_owned());
        let done = result(Method::Lora, 2, 1e-4, Some(1.5));
        let cells = [(Method::Lora, 1e-4), (Method::Tl6, 0.5), (Method::Tl6, 1.0)];
        let cells = cells.map(|(method, lr)| Cell {
            method,
            rank: 2,
            lr,
            seed: None,
        });
        let csv = cells_csv(&cells, &[Some(done), Some(diverged), None], 50).unwrap();
        assert_eq!(
            String::from_utf8(csv).unwrap(),
            "method,rank,lr,score,valid_loss,parameters,percent,bytes,steps,error\n\
             lora,2,1e-4,1.5,,100,100.0,,,\n\
             tl6,2,5e-1,,,100,100.0,,,\"TL0608: the loss ran away, \"\"far\"\"\"\n\
             tl6,2,1e0,,,,,,,\n"
        );
        let seeds = cells.map(|cell| Cell {
            seed: Some(7),
            ..cell
        });
        let csv = cells_csv(&seeds, &[None, None, None], 50).unwrap();
        let csv = String::from_utf8(csv).unwrap();
        assert!(csv.starts_with("method,rank,lr,seed,score,"), "{csv}");
        assert!(csv.ends_with("tl6,2,1e0,7,,,,,,,\n"), "{csv}");
    }

    /// Breaks where a table does not say how far seeds lie apart.
    #[test]
    fn seeds_have_a_spread() {
        let of = |seed, score| CellResult {
            seed: Some(seed),
            ..result(Method::Lora, 2, 1e-3, Some(score))
        };
        let table = table(&[of(0, 1.0), of(1, 2.0)], &LOSS, 50);
        let csv = String::from_utf8(table_csv(&table, &LOSS).unwrap()).unwrap();
        assert_eq!(
            csv,
            "section,task,method,rank,score,percent,spread,seeds\n\
             same_rank,validation,lora,2,1.5000,100.0,0.7071,2\n"
        );
    }
}
