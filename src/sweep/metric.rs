//! What adapters are compared by.

use serde::Serialize;

use super::grid::SweepConfig;

/// What the score of a cell is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// The task's name, or `validation`.
    pub task: &'static str,
    /// The score's name in `eval`, or `valid_loss`.
    pub name: &'static str,
    /// Whether the lowest score is the best.
    pub lower_is_better: bool,
}

impl Metric {
    pub(super) fn of(config: &SweepConfig) -> Self {
        match config.eval() {
            Some(eval) => Self {
                task: eval.task.name(),
                name: eval.task.main_score(),
                lower_is_better: false,
            },
            None => Self {
                task: "validation",
                name: "valid_loss",
                lower_is_better: true,
            },
        }
    }

    /// The score with its unit and direction, as on an axis.
    pub fn title(&self) -> String {
        match self.lower_is_better {
            true => "validation loss (nats per token), lower is better".to_owned(),
            false => format!("{} (%), higher is better", self.name),
        }
    }

    /// A score with as many digits as tables show: four decimals of a loss, two of a percentage.
    pub fn text(&self, score: f64) -> String {
        match self.lower_is_better {
            true => format!("{score:.4}"),
            false => format!("{score:.2}"),
        }
    }
}
