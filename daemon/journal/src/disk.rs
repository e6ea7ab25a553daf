//! Every file operation of the journal, and so the only fsync of the product.
//!
//! Two disks stand behind it: the local one, and in tests a simulated one that loses power, tears
//! writes, fills up and fails. No policy lives here: who syncs what, and when, is the callers'.

#[cfg(test)]
pub(crate) mod simulated;

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On which file or folder.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn is_out_of_space(&self) -> bool {
        is_out_of_space(&self.source)
    }
}

/// Makes the closure for `map_err` that says what was being done to which file.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_path_buf();
    move |source| FileError { action, path, source }
}

/// Whether an error says that the disk, or the owner's share of it, is full.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT].iter().any(|full| error.raw_os_error() == Some(full.raw_os_error()))
}

/// Whatever keeps a lock held for as long as it lives.
pub(crate) type Lock = Box<dyn Send + Sync>;

/// A file system.
pub(crate) trait Disk: Send + Sync {
    /// Makes a folder, for the owner only, unless it is there; its name is then durable.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the lock on a file, or `None` when somebody has it.
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>>;
    /// The names in a folder, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes an empty file, for the owner only, in place of any that is there.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file that is there.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file over any that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// How many syncs of any kind were issued.
    fn syncs(&self) -> u64;
    /// D10: ends the process. Only the simulated disk returns.
    fn abort(&self, reason: &str);
}

/// An open file.
pub(crate) trait DiskFile: Send + Sync {
    /// The file's length.
    fn bytes(&self) -> io::Result<u64>;
    /// Fills `out` from `offset`, or fails.
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`, or fails.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Asks for room up to `bytes`, where the file system can promise it.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Cuts the file to `bytes`.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    /// fdatasync.
    fn sync_data(&self) -> io::Result<()>;
}

/// The machine's own file system.
#[derive(Default)]
pub(crate) struct LocalDisk {
    syncs: Arc<AtomicU64>,
}

struct LocalFile {
    file: File,
    syncs: Arc<AtomicU64>,
}

impl LocalDisk {
    fn wrap(&self, file: File) -> Arc<dyn DiskFile> {
        Arc::new(LocalFile { file, syncs: self.syncs.clone() })
    }
}

impl Disk for LocalDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        match dir.parent() {
            Some(parent) if parent.as_os_str().is_empty() => self.sync_dir(Path::new(".")),
            Some(parent) => self.sync_dir(parent),
            None => Ok(()),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(self.wrap(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(self.wrap(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        File::open(dir)?.sync_all()
    }

    fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    fn abort(&self, reason: &str) {
        // Whatever becomes of the last words: a log that panics must not keep the process alive.
        let _end = AbortOnDrop;
        tracing::error!(reason, "the journal aborts the process");
        // Also where no log is set up; `eprintln` would panic where nobody listens.
        let _unheard = writeln!(io::stderr(), "the journal aborts the process: {reason}");
    }
}

struct AbortOnDrop;

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        std::process::abort()
    }
}

impl DiskFile for LocalFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            // The zeros that are written next then take the room.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn create_gives_files_and_folders_to_their_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("journal");
        let disk = LocalDisk::default();
        disk.create_dir(&dir).unwrap();
        disk.create(&dir.join("file")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join("file")), 0o600);
    }

    #[test]
    fn lock_held_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let disk = LocalDisk::default();
        let path = dir.path().join("lock");
        let first = disk.lock(&path).unwrap().unwrap();
        assert!(disk.lock(&path).unwrap().is_none());
        drop(first);
        assert!(disk.lock(&path).unwrap().is_some());
    }
}
