//! Progress bars, on a terminal only, and the interrupt flag that long work looks at.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tlkit::merge::Control;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes the first Ctrl-C or SIGTERM stop long work cleanly, and the second one at once.
pub(crate) fn watch_interrupts() {
    // Without a handler (it can be set once only) an interrupt just kills the process, which
    // leaves no half-written output under its name either.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
}

/// Whether the user wants long work to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Runs `work` under a bar over `total` bytes.
pub(crate) fn with_bar<T>(label: &str, total: u64, work: impl FnOnce(Control<'_>) -> T) -> T {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target).with_message(label.to_owned());
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
    ) {
        bar.set_style(style);
    }
    let advance = |n: u64| bar.inc(n);
    let result = work(Control {
        cancel: Some(&INTERRUPTED),
        progress: Some(&advance),
    });
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
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target).with_message(label.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    let result = work(&mut |n| {
        bar.inc(n as u64);
        check_interrupt()
    });
    bar.finish_and_clear();
    result
}

/// Runs `work` under a count of bytes, where nobody knows how many there will be.
pub(crate) fn with_bytes<T>(label: &str, work: impl FnOnce(&mut dyn FnMut(u64)) -> T) -> T {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(None, target).with_message(label.to_owned());
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {decimal_bytes} {decimal_bytes_per_sec} {elapsed}")
    {
        bar.set_style(style);
    }
    let result = work(&mut |n| bar.inc(n));
    bar.finish_and_clear();
    result
}

/// An error once the user asked to stop.
pub(crate) fn check_interrupt() -> tlkit::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(tlkit::Error::new(
            tlkit::Code::Interrupted,
            "stopped on request",
        ));
    }
    Ok(())
}
