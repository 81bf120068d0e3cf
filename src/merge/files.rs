//! Bytes between files: copied inside the kernel or shared, written at their places; and what the
//! base's files are while that lasts.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{copy_file_range, ioctl_ficlone};
use rustix::io::Errno;

use super::request::Control;
use crate::error::{Code, Error, Result};
use crate::safetensors::SafetensorsFile;

/// Bytes copied between two looks at the cancel flag.
const STEP: u64 = 32 << 20;
const BUFFER: usize = 1 << 20;
/// Copies go on from a multiple of this. The kernel moves 64 KiB at a time through a pipe, and puts
/// each piece into one large folio of the page cache only if it starts on such a boundary; from
/// elsewhere a copy takes 1.4 times as long.
const ALIGN: u64 = 64 << 10;

/// Lets the empty `to` share all of `from`'s extents; false where the file system cannot.
pub(super) fn clone_whole(from: &File, to: &File) -> bool {
    ioctl_ficlone(to, from).is_ok()
}

/// Copies a range of `from` to `at` in `to`, inside the kernel where it can be.
pub(super) fn copy_range(
    (from, from_path): (&File, &Path),
    source: Range<u64>,
    (to, to_path): (&File, &Path),
    at: u64,
    control: &Control<'_>,
) -> Result<()> {
    let (mut read_at, mut write_at) = (source.start, at);
    let mut in_kernel = true;
    while read_at < source.end {
        control.check()?;
        let longest = match write_at % ALIGN {
            0 => STEP,
            past => ALIGN - past,
        };
        let step = (source.end - read_at).min(longest);
        let done = if in_kernel {
            let (mut i, mut o) = (read_at, write_at);
            match copy_file_range(from, Some(&mut i), to, Some(&mut o), step as usize) {
                // Some file systems say "end of file" instead of "not supported".
                Ok(0) => None,
                Ok(n) => Some(n as u64),
                Err(Errno::INTR) => continue,
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    None
                }
                Err(e) => return Err(Error::io(to_path, "write", e.into())),
            }
        } else {
            let part = read_at..read_at + step;
            copy_through((from, from_path), part, (to, to_path), write_at)?;
            Some(step)
        };
        let Some(done) = done else {
            in_kernel = false;
            continue;
        };
        read_at += done;
        write_at += done;
        control.advance(done);
    }
    Ok(())
}

fn copy_through(
    (from, from_path): (&File, &Path),
    source: Range<u64>,
    (to, to_path): (&File, &Path),
    at: u64,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER.min((source.end - source.start) as usize)];
    let mut done = 0;
    while source.start + done < source.end {
        let n = (source.end - source.start - done).min(BUFFER as u64) as usize;
        let part = &mut buffer[..n];
        from.read_exact_at(part, source.start + done).map_err(|e| {
            if e.kind() == std::io::ErrorKind::UnexpectedEof {
                return Error::new(Code::Truncated, "the file shrank while it was read")
                    .file(from_path);
            }
            Error::io(from_path, "read", e)
        })?;
        to.write_all_at(part, at + done)
            .map_err(|e| Error::io(to_path, "write", e))?;
        done += n as u64;
    }
    Ok(())
}

/// Fails where the file system of `folder` has less than `need` bytes for us.
pub(super) fn check_space(folder: &Path, need: u64) -> Result<()> {
    // A file system that cannot say how full it is does not stop the merge.
    let Ok(stat) = rustix::fs::statvfs(folder) else {
        return Ok(());
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Some virtual file systems report no blocks at all.
    if need <= free || stat.f_blocks == 0 {
        return Ok(());
    }
    let message = format!("the output needs {need} bytes, the disk has {free} free");
    Err(Error::new(Code::NoSpace, message).file(folder))
}

/// Writes `bytes` at `at`.
pub(super) fn write_at((file, path): (&File, &Path), bytes: &[u8], at: u64) -> Result<()> {
    file.write_all_at(bytes, at)
        .map_err(|e| Error::io(path, "write", e))
}

/// What the file system says of an open file.
pub(super) fn stat(file: &SafetensorsFile) -> Result<Metadata> {
    file.file()
        .metadata()
        .map_err(|e| Error::io(file.path(), "stat", e))
}

/// Fails where the base's shard is not as it was `before`.
pub(super) fn check_unchanged(base: &SafetensorsFile, before: &Metadata) -> Result<()> {
    let state = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec());
    if state(before) == state(&stat(base)?) {
        return Ok(());
    }
    Err(Error::new(Code::Io, "the file was changed while it was merged").file(base.path()))
}

/// The permissions that a merged file may have: those of the base's.
pub(super) fn file_mode(base: &SafetensorsFile) -> Result<u32> {
    Ok(stat(base)?.mode() & 0o666)
}

/// Whether two paths, of which the first may not exist, are one file or folder.
pub(super) fn same_path(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn both_ways_of_copying_give_the_range_at_its_place() {
        // The fallback is what other file systems get; it must not differ from the kernel's copy.
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3 * BUFFER + 17).map(|i| (i % 251) as u8).collect();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        File::create(&a).unwrap().write_all(&bytes).unwrap();
        let from = File::open(&a).unwrap();
        let source = 5..bytes.len() as u64 - 3;
        for through in [false, true] {
            let to = File::create(&b).unwrap();
            if through {
                copy_through((&from, &a), source.clone(), (&to, &b), 7).unwrap();
            } else {
                let control = Control::default();
                copy_range((&from, &a), source.clone(), (&to, &b), 7, &control).unwrap();
            }
            let got = std::fs::read(&b).unwrap();
            assert_eq!(got[..7], [0; 7]);
            assert!(got[7..] == bytes[5..bytes.len() - 3]);
        }
        let to = File::create(&b).unwrap();
        let beyond = 0..bytes.len() as u64 + 1;
        let e = copy_range((&from, &a), beyond, (&to, &b), 0, &Control::default()).unwrap_err();
        assert_eq!(e.code(), Code::Truncated);
    }

    #[test]
    fn a_full_disk_is_seen_before_writing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_space(dir.path(), 1).is_ok());
        let e = check_space(dir.path(), u64::MAX).unwrap_err();
        assert_eq!(e.code(), Code::NoSpace);
    }
}
