//! How the command ends when it does not by itself: at a signal, in a panic, without memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tlkit::fs::live;
use tlkit::{Code, Error};

use crate::command::output;

/// What work that stops between two steps looks at.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Whether scripts want JSON.
static JSON: AtomicBool = AtomicBool::new(false);
/// Whether the outcome is being told already.
static TOLD: AtomicBool = AtomicBool::new(false);
/// What to do after the work was ended in the middle, where the command knows better than this file.
static REMEDY: Mutex<Option<String>> = Mutex::new(None);
/// How long work has to stop by itself, and a run to write its checkpoint. With what follows it is
/// less than a second.
const PATIENCE: Duration = Duration::from_millis(600);
/// How long a reader of stderr has to take the last line.
const LAST_WORD: Duration = Duration::from_millis(100);
/// How long the removal of temporary files may take.
const CLEANING: Duration = Duration::from_millis(150);

/// Says what to do should the work be ended in its middle from here on.
pub(crate) fn remedy(text: String) {
    *REMEDY.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
}

/// From here on the outcome is being told, and no other one is.
pub(crate) fn outcome_is_told() {
    TOLD.store(true, Ordering::Relaxed);
}

/// Makes the first signal stop the work, by itself or after [`PATIENCE`], and the second one at once.
pub(crate) fn watch_interrupts() {
    // Without a handler (it can be set once only) a signal just kills the process, which
    // leaves no half-written output under its name either.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            interrupt();
        }
        // Not here, where the second signal would have to wait. Without a thread, at once.
        let patient = thread::Builder::new().spawn(|| {
            thread::sleep(PATIENCE);
            interrupt();
        });
        if patient.is_err() {
            interrupt();
        }
    });
}

fn interrupt() -> ! {
    let error = Error::new(
        Code::Interrupted,
        "stopped on request, before the work had come to an end",
    );
    let known = REMEDY.try_lock().ok().and_then(|mut text| text.take());
    let hint = known.unwrap_or_else(|| {
        "what can be resumed goes on when the same command runs again".to_owned()
    });
    end_process(&error.hint(hint))
}

/// Makes a panic of any thread one line with a code, and so what else ends the process early.
pub(crate) fn watch_panics(json: bool) {
    JSON.store(json, Ordering::Relaxed);
    std::panic::set_hook(Box::new(|info| {
        let error = Error::new(Code::Internal, message(info)).hint(
            "this is a bug of tlkit: please report it with the command line, and with the output \
             under RUST_BACKTRACE=1",
        );
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|v| v != "0") {
            let trace = std::backtrace::Backtrace::force_capture().to_string();
            last_word(io::stderr().as_fd(), trace.into_bytes());
        }
        end_process(&error)
    }));
}

fn message(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let what = text.unwrap_or("a panic");
    match info.location() {
        Some(at) => {
            let mut steps = at.file().rsplit('/');
            let file = steps.next().unwrap_or_default();
            let folder = steps.next().unwrap_or_default();
            format!("internal error: {what} ({folder}/{file}:{})", at.line())
        }
        None => format!("internal error: {what}"),
    }
}

/// Ends the process with an error, from whatever thread; the temporary files go.
pub(crate) fn end_process(error: &Error) -> ! {
    let code = i32::from(output::exit_code(error.kind()));
    if !TOLD.swap(true, Ordering::Relaxed) {
        last_word(io::stderr().as_fd(), output::lines(error).into_bytes());
        if JSON.load(Ordering::Relaxed) {
            last_word(io::stdout().as_fd(), output::json(error).into_bytes());
        }
    }
    clean();
    std::process::exit(code)
}

/// Removes temporary files, on a thread of its own: the one that ends may hold what this waits for.
fn clean() {
    let (done, wait) = mpsc::channel();
    let cleaner = thread::Builder::new().spawn(move || {
        live::remove_all();
        let _ = done.send(());
    });
    if cleaner.is_ok() {
        let _ = wait.recv_timeout(CLEANING);
    }
}

/// As [`end_process`] where the system refused so many bytes of memory: it takes none until all is said.
pub(crate) fn without_memory(size: usize) -> ! {
    static FAILING: AtomicBool = AtomicBool::new(false);
    const CODE: i32 = 3;
    if FAILING.swap(true, Ordering::Relaxed) {
        std::process::exit(CODE);
    }
    if !TOLD.swap(true, Ordering::Relaxed) {
        let mut text = [0; 512];
        let mut say = |stream: BorrowedFd<'_>, words: std::fmt::Arguments<'_>| {
            let mut cursor = io::Cursor::new(&mut text[..]);
            let _ = cursor.write_fmt(words);
            let len = cursor.position() as usize;
            if let Ok(stream) = stream.try_clone_to_owned() {
                let _ = File::from(stream).write_all(&text[..len]);
            }
        };
        let message = format_args!("{size} bytes of memory were refused");
        let hint = "give the command more memory, or smaller inputs";
        say(
            io::stderr().as_fd(),
            format_args!("error[TL0011]: {message}\nhint: {hint}\n"),
        );
        if JSON.load(Ordering::Relaxed) {
            say(
                io::stdout().as_fd(),
                format_args!(
                    "{{\"error\": {{\"code\": \"TL0011\", \"message\": \"{message}\", \"file\": null, \
                     \"tensor\": null, \"hint\": \"{hint}\"}}}}\n"
                ),
            );
        }
    }
    clean();
    std::process::exit(CODE)
}

/// Writes past the locks of the standard streams, which a thread that hangs may hold, and waits no
/// longer than [`LAST_WORD`] for a reader that does not read.
fn last_word(stream: BorrowedFd<'_>, text: Vec<u8>) {
    let (Ok(own), Ok(other)) = (stream.try_clone_to_owned(), stream.try_clone_to_owned()) else {
        return;
    };
    let (done, wait) = mpsc::channel();
    let copy = text.clone();
    let writer = thread::Builder::new().spawn(move || {
        let _ = File::from(other).write_all(&copy);
        let _ = done.send(());
    });
    let _ = match writer {
        Ok(_) => wait.recv_timeout(LAST_WORD).is_ok(),
        Err(_) => File::from(own).write_all(&text).is_ok(),
    };
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Not a test of its own: the process in which the next one lets a worker thread panic.
    #[test]
    #[ignore = "ends its process"]
    fn child() {
        let args: Vec<_> = std::env::args_os().collect();
        super::watch_panics(crate::command::output::wants_json(&args));
        let worker = std::thread::spawn(|| panic!("two\nlines \x1b[31m"));
        let _ = worker.join();
    }

    /// Breaks where a panic, of any thread, is not one line with a code, or has Rust's exit code.
    #[test]
    #[allow(clippy::unwrap_used)]
    fn a_panic_is_a_coded_error() {
        for json in [false, true] {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args([
                "--exact",
                "command::ending::tests::child",
                "--ignored",
                "--nocapture",
            ]);
            command.env_remove("RUST_BACKTRACE");
            if json {
                // Seen by the code under test; the test program takes it for a filter.
                command.args(["--skip", "--json"]);
            }
            let run = command.output().unwrap();
            let text = String::from_utf8(run.stderr).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!((run.status.code(), lines.len()), (Some(70), 2), "{text}");
            let message =
                "error[TL0010]: internal error: two\\u{a}lines \\u{1b}[31m (command/ending.rs:";
            assert!(lines[0].starts_with(message), "{text}");
            assert!(lines[1].starts_with("hint: "), "{text}");
            let stdout = String::from_utf8(run.stdout).unwrap();
            assert_eq!(stdout.contains("\"code\": \"TL0010\""), json, "{stdout}");
        }
    }
}
