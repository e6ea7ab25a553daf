//! A disk in memory that tells what was synced from what was only written.
//!
//! It can stop at any operation, in the middle of a write, lose any subset of unsynced pages and
//! names, fill up, fail a sync and drop its pages as the kernel does, and hold syncs back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustix::io::Errno;

use super::{Disk, DiskFile, Lock};

const PAGE: usize = 4096;
const LOCK: &str = "the simulated disk does not panic";
/// A test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clones share the bytes until one is written to.
#[derive(Clone, Default)]
struct Content {
    durable: Arc<Vec<u8>>,
    cached: Arc<Vec<u8>>,
    dirty: BTreeSet<usize>,
}

#[derive(Clone)]
enum NameChange {
    Add(PathBuf, usize),
    Move(PathBuf, PathBuf, usize),
    Remove(PathBuf),
}

/// Stop at an operation, counted from 0; a write is done up to some bytes before that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) at: u64,
    pub(crate) write_bytes: usize,
}

#[derive(Clone, Default)]
struct World {
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    changes: Vec<NameChange>,
    operations: u64,
    stop: Option<Stop>,
    is_stopped: bool,
    aborted: Option<String>,
    capacity: Option<u64>,
    failing_sync: Option<(String, Errno)>,
    held_sync: Option<String>,
    waiting_syncs: u64,
    syncs: u64,
    locked: BTreeSet<PathBuf>,
}

/// The disk; clones share it.
#[derive(Clone, Default)]
pub(crate) struct SimulatedDisk {
    world: Arc<Mutex<World>>,
    changed: Arc<Condvar>,
}

struct SimulatedFile {
    disk: SimulatedDisk,
    file: usize,
    path: PathBuf,
}

struct SimulatedLock {
    disk: SimulatedDisk,
    path: PathBuf,
}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        self.disk.lock_world().locked.remove(&self.path);
    }
}

fn stopped() -> io::Error {
    Errno::IO.into()
}

impl World {
    fn operate(&mut self) -> io::Result<()> {
        self.check()?;
        if self.stop.is_some_and(|stop| stop.at == self.operations) {
            self.is_stopped = true;
            return Err(stopped());
        }
        self.operations += 1;
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        if self.is_stopped { Err(stopped()) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|file| self.files[*file].cached.len() as u64).sum()
    }

    fn grow(&mut self, file: usize, bytes: usize) -> io::Result<()> {
        let more = bytes.saturating_sub(self.files[file].cached.len());
        let is_full = self.capacity.is_some_and(|capacity| self.used() + more as u64 > capacity);
        if more > 0 && is_full {
            return Err(Errno::NOSPC.into());
        }
        if more > 0 {
            Arc::make_mut(&mut self.files[file].cached).resize(bytes, 0);
        }
        Ok(())
    }

    fn write(&mut self, file: usize, bytes: &[u8], offset: usize) -> io::Result<()> {
        self.grow(file, offset + bytes.len())?;
        let content = &mut self.files[file];
        Arc::make_mut(&mut content.cached)[offset..offset + bytes.len()].copy_from_slice(bytes);
        if !bytes.is_empty() {
            content.dirty.extend(offset / PAGE..=(offset + bytes.len() - 1) / PAGE);
        }
        Ok(())
    }

    fn apply(names: &mut BTreeMap<PathBuf, usize>, change: &NameChange) {
        match change {
            NameChange::Add(path, file) => {
                names.insert(path.clone(), *file);
            }
            NameChange::Move(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            NameChange::Remove(path) => {
                names.remove(path);
            }
        }
    }

    fn change_name(&mut self, change: NameChange) {
        World::apply(&mut self.names, &change);
        self.changes.push(change);
    }
}

impl Content {
    fn apply_page(&mut self, page: usize) {
        let start = page * PAGE;
        let end = (start + PAGE).min(self.cached.len());
        if start >= end {
            return;
        }
        let durable = Arc::make_mut(&mut self.durable);
        if durable.len() < end {
            durable.resize(end, 0);
        }
        durable[start..end].copy_from_slice(&self.cached[start..end]);
    }

    fn lose_power(&mut self, keeps: &mut impl FnMut() -> bool) {
        for page in std::mem::take(&mut self.dirty) {
            if keeps() {
                self.apply_page(page);
            }
        }
        if self.durable.len() != self.cached.len() && keeps() {
            Arc::make_mut(&mut self.durable).resize(self.cached.len(), 0);
        }
        self.cached = self.durable.clone();
    }

    fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty) {
            self.apply_page(page);
        }
        Arc::make_mut(&mut self.durable).resize(self.cached.len(), 0);
    }
}

impl SimulatedDisk {
    fn lock_world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect(LOCK)
    }

    /// How many operations were done that change the disk.
    pub(crate) fn operations(&self) -> u64 {
        self.lock_world().operations
    }

    pub(crate) fn stop_at(&self, stop: Stop) {
        self.lock_world().stop = Some(stop);
    }

    /// Nothing works any more from now on.
    pub(crate) fn stop_now(&self) {
        self.lock_world().is_stopped = true;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock_world().is_stopped
    }

    /// Why the journal ended the process, if it did.
    pub(crate) fn aborted(&self) -> Option<String> {
        self.lock_world().aborted.clone()
    }

    /// No file can grow when all together have so many bytes.
    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.lock_world().capacity = bytes;
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.lock_world().used()
    }

    /// Syncs of files whose name starts so fail, and lose their pages.
    pub(crate) fn fail_syncs(&self, prefix: Option<&str>) {
        self.lock_world().failing_sync = prefix.map(|prefix| (prefix.into(), Errno::IO));
    }

    /// The same, where room is only then found to be missing.
    pub(crate) fn fail_syncs_for_space(&self, prefix: &str) {
        self.lock_world().failing_sync = Some((prefix.into(), Errno::NOSPC));
    }

    /// Syncs of files whose name starts so wait; `None` lets them go on.
    pub(crate) fn hold_syncs(&self, prefix: Option<&str>) {
        self.lock_world().held_sync = prefix.map(String::from);
        self.changed.notify_all();
    }

    /// Waits until a sync is being held back.
    pub(crate) fn wait_for_held_sync(&self) {
        let world = self.lock_world();
        let waiting = |world: &mut World| world.waiting_syncs == 0;
        let waited = self.changed.wait_timeout_while(world, PATIENCE, waiting);
        let (world, timed_out) = waited.expect(LOCK);
        drop(world);
        assert!(!timed_out.timed_out(), "nobody syncs");
    }

    /// The disk after the process was killed: nothing written is lost.
    pub(crate) fn after_kill(&self) -> SimulatedDisk {
        let mut world = self.lock_world().clone();
        world.stop = None;
        world.is_stopped = false;
        world.aborted = None;
        world.capacity = None;
        world.failing_sync = None;
        world.held_sync = None;
        world.waiting_syncs = 0;
        world.locked.clear();
        SimulatedDisk { world: Arc::new(Mutex::new(world)), changed: Arc::default() }
    }

    /// The disk after a loss of power; `keeps` is asked for every page, length and name that was not synced.
    pub(crate) fn after_power_loss(&self, mut keeps: impl FnMut() -> bool) -> SimulatedDisk {
        let after = self.after_kill();
        let mut world = after.lock_world();
        for content in &mut world.files {
            content.lose_power(&mut keeps);
        }
        let mut names = world.durable_names.clone();
        for change in std::mem::take(&mut world.changes) {
            if keeps() {
                World::apply(&mut names, &change);
            }
        }
        world.durable_names.clone_from(&names);
        world.names = names;
        drop(world);
        after
    }

    /// Every file that is there.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.lock_world().names.keys().cloned().collect()
    }

    /// A file's bytes, as a process sees them.
    pub(crate) fn content(&self, path: &Path) -> Vec<u8> {
        let world = self.lock_world();
        world.files[world.names[path]].cached.to_vec()
    }

    /// Changes a file behind everybody's back, durably.
    pub(crate) fn alter(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.lock_world();
        let file = world.names[path];
        let content = &mut world.files[file];
        change(Arc::make_mut(&mut content.cached));
        content.durable = content.cached.clone();
        content.dirty.clear();
    }

    /// Removes a file behind everybody's back, durably.
    pub(crate) fn lose(&self, path: &Path) {
        let mut world = self.lock_world();
        world.names.remove(path);
        world.durable_names.remove(path);
    }

    fn file(&self, path: &Path, file: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimulatedFile { disk: self.clone(), file, path: path.to_path_buf() })
    }
}

impl Disk for SimulatedDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.lock_world().operate()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let mut world = self.lock_world();
        world.check()?;
        if !world.locked.insert(path.to_path_buf()) {
            return Ok(None);
        }
        Ok(Some(Box::new(SimulatedLock { disk: self.clone(), path: path.to_path_buf() })))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.lock_world();
        world.check()?;
        let in_dir = world.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(in_dir.filter_map(|path| Some(path.file_name()?.to_str()?.to_string())).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.lock_world();
        world.operate()?;
        world.files.push(Content::default());
        let file = world.files.len() - 1;
        world.change_name(NameChange::Add(path.to_path_buf(), file));
        drop(world);
        Ok(self.file(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let world = self.lock_world();
        world.check()?;
        let file = *world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        drop(world);
        Ok(self.file(path, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.lock_world();
        world.operate()?;
        let file = *world.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        world.change_name(NameChange::Move(from.to_path_buf(), to.to_path_buf(), file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.lock_world();
        world.operate()?;
        if !world.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.change_name(NameChange::Remove(path.to_path_buf()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.lock_world();
        world.operate()?;
        world.syncs += 1;
        let changes = std::mem::take(&mut world.changes);
        for change in changes {
            let path = match &change {
                NameChange::Add(path, _) | NameChange::Move(_, path, _) | NameChange::Remove(path) => path,
            };
            if path.parent() == Some(dir) {
                World::apply(&mut world.durable_names, &change);
            } else {
                world.changes.push(change);
            }
        }
        Ok(())
    }

    fn syncs(&self) -> u64 {
        self.lock_world().syncs
    }

    fn abort(&self, reason: &str) {
        let mut world = self.lock_world();
        world.is_stopped = true;
        world.aborted.get_or_insert_with(|| reason.to_string());
    }
}

impl SimulatedFile {
    fn is_named(&self, prefix: Option<&String>) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        prefix.is_some_and(|prefix| name.starts_with(prefix))
    }
}

impl DiskFile for SimulatedFile {
    fn bytes(&self) -> io::Result<u64> {
        let world = self.disk.lock_world();
        world.check()?;
        Ok(world.files[self.file].cached.len() as u64)
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let world = self.disk.lock_world();
        world.check()?;
        let start = usize::try_from(offset).expect("offsets are small");
        let bytes = world.files[self.file].cached.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut world = self.disk.lock_world();
        let start = usize::try_from(offset).expect("offsets are small");
        let was_stopped = world.is_stopped;
        let operated = world.operate();
        if operated.is_err() && !was_stopped {
            let part = world.stop.map_or(0, |stop| stop.write_bytes).min(bytes.len());
            world.write(self.file, &bytes[..part], start)?;
        }
        operated?;
        world.write(self.file, bytes, start)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.disk.lock_world();
        world.operate()?;
        world.grow(self.file, usize::try_from(bytes).expect("files are small"))
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.disk.lock_world();
        world.operate()?;
        let content = &mut world.files[self.file];
        Arc::make_mut(&mut content.cached).truncate(usize::try_from(bytes).expect("files are small"));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.disk.lock_world();
        while self.is_named(world.held_sync.as_ref()) {
            world.waiting_syncs += 1;
            self.disk.changed.notify_all();
            let (again, waited) = self.disk.changed.wait_timeout(world, PATIENCE).expect(LOCK);
            world = again;
            world.waiting_syncs -= 1;
            if waited.timed_out() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        world.operate()?;
        world.syncs += 1;
        let failing = world.failing_sync.clone();
        if let Some((prefix, error)) = failing
            && self.is_named(Some(&prefix))
        {
            world.files[self.file].dirty.clear();
            return Err(error.into());
        }
        world.files[self.file].sync();
        Ok(())
    }
}
