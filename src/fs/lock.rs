//! Locks of files and folders, which end with whoever holds them.

use std::fs::{File, TryLockError};
use std::time::Duration;

/// How often a lock is tried that somebody holds, and how long between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Locks a file or folder. One that is held is tried for a second: a process that was killed holds its locks until
/// it is gone, and so does, without knowing, a child that another thread of its holder has just begun.
///
/// # Errors
/// As [`File::try_lock`].
pub(crate) fn lock(file: &File) -> Result<(), TryLockError> {
    for _ in 1..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
    file.try_lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a lock that is about to be let go is an error, or one that is held is not.
    #[test]
    fn a_lock_is_waited_for_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::open(dir.path()).unwrap();
        let held = open();
        held.try_lock().unwrap();
        assert!(matches!(lock(&open()), Err(TryLockError::WouldBlock)));
        let other = std::thread::spawn(move || {
            std::thread::sleep(PAUSE);
            drop(held);
        });
        lock(&open()).unwrap();
        other.join().unwrap();
    }
}
