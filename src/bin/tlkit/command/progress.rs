//! Progress bars, on a terminal only, whose work stops once the user asked for it.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tlkit::error::sanitize;
use tlkit::merge::Control;
use tlkit::progress::Progress;
use tlkit::train::{Event, Observer};

use crate::command::watch::{Stop, watches};

/// How much there is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// So many bytes.
    Bytes(u64),
    /// So many things.
    Items(u64),
    /// Bytes, nobody knows how many.
    SomeBytes,
    /// Things, nobody knows how many.
    SomeItems,
}

impl Work {
    fn total(self) -> Option<u64> {
        match self {
            Work::Bytes(n) | Work::Items(n) => Some(n),
            Work::SomeBytes | Work::SomeItems => None,
        }
    }

    fn style(self) -> &'static str {
        match self {
            Work::Bytes(_) => {
                "{prefix} {wide_bar} {decimal_bytes}/{decimal_total_bytes} \
                 {decimal_bytes_per_sec} {eta}"
            }
            Work::Items(_) => "{prefix} {wide_bar} {pos}/{len} {eta}",
            Work::SomeBytes => "{prefix} {decimal_bytes} {decimal_bytes_per_sec} {elapsed}",
            Work::SomeItems => "{prefix} {human_pos} {elapsed}",
        }
    }
}

/// A bar that is seen on a terminal only.
fn bar(label: &str, total: Option<u64>, style: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
    let bar = bar.with_prefix(sanitize(label));
    if !watches(&bar) && std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

/// Runs `work` under a bar that shows what its progress counts; the work stops once the user asked
/// for it.
pub(crate) fn with_progress<T>(
    label: &str,
    amount: Work,
    work: impl FnOnce(Progress<'_>) -> T,
) -> T {
    let bar = bar(label, amount.total(), amount.style());
    let count = |n| bar.inc(n);
    let stop = Stop::here();
    let result = work(stop.progress().counted_by(&count));
    bar.finish_and_clear();
    result
}

/// Runs `work` under a bar over `total` bytes.
pub(crate) fn with_bar<T>(label: &str, total: u64, work: impl FnOnce(Control<'_>) -> T) -> T {
    with_progress(label, Work::Bytes(total), |progress| work(progress.into()))
}

/// A bar over the steps of a training run.
pub(crate) struct TrainBar(ProgressBar);

impl TrainBar {
    /// Runs `work` under a bar.
    pub(crate) fn during<T>(label: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        const STYLE: &str = "{prefix} {wide_bar} {pos}/{len} {msg} {eta}";
        let mut bar = Self(bar(label, Some(0), STYLE));
        let result = work(&mut bar);
        bar.0.finish_and_clear();
        result
    }

    /// Counts other things from here on.
    pub(crate) fn restart(&self, label: String, total: u64) {
        self.0.reset();
        self.0.set_prefix(sanitize(&label));
        self.0.set_message("");
        self.0.set_length(total);
    }

    /// What counts on this bar, beside the steps that it observes.
    pub(crate) fn counter(&self) -> impl Fn(u64) + Sync + use<> {
        let bar = self.0.clone();
        move |n| bar.inc(n)
    }

    /// Writes a line above the bar.
    pub(crate) fn line(&self, text: String) {
        self.0.println(sanitize(&text));
    }
}

impl Observer for TrainBar {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Started { step, total } => {
                self.0.set_length(*total);
                self.0.set_position(*step);
            }
            Event::Step(line) => {
                self.0.set_position(line.step);
                let message = format!("loss {:.3} {:.0} tokens/s", line.loss, line.tokens_per_s);
                self.0.set_message(message);
            }
            Event::Validation(line) => {
                let best = if line.best { ", best" } else { "" };
                self.line(format!(
                    "step {}: validation loss {:.4}{best}",
                    line.step, line.valid_loss
                ));
            }
            _ => {}
        }
    }
}
