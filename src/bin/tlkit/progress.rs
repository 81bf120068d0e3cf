//! Progress bars, on a terminal only, whose work stops once the user asked for it.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tlkit::error::sanitize;
use tlkit::merge::Control;
use tlkit::progress::Progress;
use tlkit::train::run::{Event, Observer};

use crate::ending::{INTERRUPTED, interrupted};

/// A bar that is seen on a terminal only.
fn bar(label: &str, total: u64, style: &str) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target).with_prefix(sanitize(label));
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

/// Runs `work` under a bar over `total` bytes.
pub(crate) fn with_bar<T>(label: &str, total: u64, work: impl FnOnce(Control<'_>) -> T) -> T {
    const STYLE: &str =
        "{prefix} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
    let bar = bar(label, total, STYLE);
    let advance = |n: u64| bar.inc(n);
    let progress = Progress::new();
    let progress = progress.stopped_by(&INTERRUPTED).counted_by(&advance);
    let result = work(progress.into());
    bar.finish_and_clear();
    result
}

/// Runs `work` under a bar over `total` things; what it is given counts them, and is an error
/// once the user asked to stop.
pub(crate) fn with_counter<T>(
    label: &str,
    total: u64,
    work: impl FnOnce(&mut dyn FnMut(usize) -> tlkit::Result<()>) -> T,
) -> T {
    let bar = bar(label, total, "{prefix} {wide_bar} {pos}/{len} {eta}");
    let result = work(&mut |n| {
        bar.inc(n as u64);
        check_interrupt()
    });
    bar.finish_and_clear();
    result
}

/// Runs `work` under a count of things, where nobody knows how many there will be; what it is given
/// counts one, from any thread, and is an error once the user asked to stop.
pub(crate) fn with_ticks<T>(
    label: &str,
    work: impl FnOnce(&(dyn Fn() -> tlkit::Result<()> + Sync)) -> T,
) -> T {
    let bar = endless(label, "{msg} {human_pos} {elapsed}");
    let result = work(&|| {
        bar.inc(1);
        check_interrupt()
    });
    bar.finish_and_clear();
    result
}

/// Runs `work` under a count of bytes, where nobody knows how many there will be.
pub(crate) fn with_bytes<T>(label: &str, work: impl FnOnce(&mut dyn FnMut(u64)) -> T) -> T {
    let bar = endless(
        label,
        "{msg} {decimal_bytes} {decimal_bytes_per_sec} {elapsed}",
    );
    let result = work(&mut |n| bar.inc(n));
    bar.finish_and_clear();
    result
}

fn endless(label: &str, template: &str) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(None, target).with_message(sanitize(label));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// An error once the user asked to stop.
pub(crate) fn check_interrupt() -> tlkit::Result<()> {
    if interrupted() {
        return Err(tlkit::Error::new(
            tlkit::Code::Interrupted,
            "stopped on request",
        ));
    }
    Ok(())
}

/// A bar over the steps of a training run.
pub(crate) struct TrainBar(ProgressBar);

impl TrainBar {
    /// Runs `work` under a bar.
    pub(crate) fn during<T>(label: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        const STYLE: &str = "{prefix} {wide_bar} {pos}/{len} {msg} {eta}";
        let mut bar = Self(bar(label, 0, STYLE));
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

    /// Counts so many more.
    pub(crate) fn advance(&self, n: u64) {
        self.0.inc(n);
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
            Event::Saved { .. } => {}
        }
    }

    fn cancelled(&self) -> bool {
        interrupted()
    }
}
