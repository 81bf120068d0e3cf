//! Who watches a command that runs inside another program, and may stop it.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::ProgressBar;
use rustix::fs::Mode;
use rustix::process::umask;
use tlkit::progress::Progress;

use super::ending::INTERRUPTED;

thread_local! {
    static HERE: RefCell<Option<Arc<Watch>>> = const { RefCell::new(None) };
}

/// How many calls write with fewer permissions than the process has, and those that it has.
static NARROWED: Mutex<(usize, Option<Mode>)> = Mutex::new((0, None));

/// What the program outside sees of a command, and says to it.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    stop: AtomicBool,
    narrowed: AtomicBool,
    bar: Mutex<Option<ProgressBar>>,
}

/// How far the work is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// What is done, in bytes or things.
    pub(crate) done: u64,
    /// Of how much, where that is known.
    pub(crate) total: Option<u64>,
    /// What the work is.
    pub(crate) what: String,
}

impl Watch {
    /// Asks the work to end at its next step.
    pub(crate) fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// How far the work is; `None` where nothing has been counted so far.
    pub(crate) fn state(&self) -> Option<State> {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bar.as_ref()?;
        Some(State {
            done: bar.position(),
            total: bar.length(),
            what: bar.prefix(),
        })
    }

    /// Does work on this thread under the watch.
    pub(crate) fn over<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        struct Left(Arc<Watch>);
        impl Drop for Left {
            fn drop(&mut self) {
                HERE.set(None);
                self.0.widen();
            }
        }
        HERE.set(Some(Arc::clone(self)));
        let left = Left(Arc::clone(self));
        let done = work();
        drop(left);
        done
    }

    /// Gives the process the permissions back that it had, once no call writes with fewer.
    fn widen(&self) {
        if !self.narrowed.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut narrowed = NARROWED.lock().unwrap_or_else(PoisonError::into_inner);
        narrowed.0 = narrowed.0.saturating_sub(1);
        if narrowed.0 == 0
            && let Some(before) = narrowed.1.take()
        {
            umask(before);
        }
    }
}

/// The watch over this thread.
fn here() -> Option<Arc<Watch>> {
    HERE.with_borrow(Clone::clone)
}

/// Whether a bar is seen by nobody but the program outside, which is given it.
pub(crate) fn watches(bar: &ProgressBar) -> bool {
    let Some(watch) = here() else {
        return false;
    };
    *watch.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
    true
}

/// Takes permissions from all that this process writes: to the end of a call where one is watched, else for good.
pub(crate) fn narrow(closed: Mode) {
    let mut narrowed = NARROWED.lock().unwrap_or_else(PoisonError::into_inner);
    let before = umask(closed);
    umask(before | closed);
    if let Some(watch) = here()
        && !watch.narrowed.swap(true, Ordering::Relaxed)
    {
        narrowed.0 += 1;
        narrowed.1.get_or_insert(before);
    }
}

/// What says that the work is to end: the user, or the program outside.
pub(crate) struct Stop(Option<Arc<Watch>>);

impl Stop {
    /// Of the work on this thread.
    pub(crate) fn here() -> Self {
        Self(here())
    }

    /// Progress that nobody sees, and that ends once this says so.
    pub(crate) fn progress(&self) -> Progress<'_> {
        Progress::new().stopped_by(match &self.0 {
            Some(watch) => &watch.stop,
            None => &INTERRUPTED,
        })
    }
}
