//! A sync that fails ends the process, and is not tried again (D10).

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;
use crate::disk::{DiskFile, LocalDisk, Lock};

#[test]
fn flush_fails() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    driver.step().unwrap();
    disk.fail_syncs(Some("segment"));
    let syncs = disk.syncs();
    assert!(driver.step().is_none());
    assert_eq!(disk.syncs(), syncs + 1);
    let reason = disk.aborted().unwrap();
    assert!(reason.contains("frame 2") && reason.contains("sync"), "{reason}");
    assert_eq!(driver.journal.durable_up_to(), Ticket(1));
    assert_eq!(driver.journal.submit(vec![1], None), Err(SubmitError::Closed));
}

#[test]
fn write_of_a_frame_fails() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    disk.stop_now();
    assert!(driver.step().is_none());
    assert!(disk.aborted().unwrap().contains("write"));
}

#[test]
fn checkpoints_sync_fails() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    driver.step().unwrap();
    disk.fail_syncs(Some("checkpoint"));
    assert!(driver.checkpoint().is_none());
    assert!(disk.aborted().unwrap().contains("checkpoint.new"));
}

#[test]
fn historys_sync_fails() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    driver.step().unwrap();
    disk.fail_syncs(Some("from-"));
    assert!(driver.archive().is_none());
    assert!(disk.aborted().unwrap().contains("history"));
}

#[test]
fn sync_of_the_next_segments_zeros_fails() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    disk.fail_syncs(Some("segment-0000000000000003.new"));
    while driver.step().is_some() {}
    let reason = disk.aborted().unwrap();
    assert!(reason.contains("segment-0000000000000003.new"), "{reason}");
    let told = Told { submitted: driver.submitted, acknowledged: driver.acknowledged };
    drop(driver);
    check_and_go_on(&disk.after_power_loss(|| false), told);
}

struct Panics;

impl Wake for Panics {
    fn durable(&self, _: &Flush) {
        panic!("a handle of the test");
    }
}

#[test]
fn handle_panics() {
    let disk = SimulatedDisk::default();
    let (journal, _) = open(&disk).unwrap();
    journal.submit(vec![1], Some(Arc::new(Panics))).unwrap();
    assert_eq!(journal.flush_barrier(), Err(SubmitError::Closed));
    assert!(disk.aborted().unwrap().contains("panicked"));
}

/// The simulated disk, where the end of the process is real.
struct Deadly(SimulatedDisk);

impl Disk for Deadly {
    fn create_dir(&self, dir: &Path) -> std::io::Result<()> {
        self.0.create_dir(dir)
    }
    fn lock(&self, path: &Path) -> std::io::Result<Option<Lock>> {
        self.0.lock(path)
    }
    fn list(&self, dir: &Path) -> std::io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn create(&self, path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
        self.0.create(path)
    }
    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
        self.0.open(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> std::io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn syncs(&self) -> u64 {
        self.0.syncs()
    }
    fn abort(&self, reason: &str) {
        LocalDisk::default().abort(reason);
    }
}

const CHILD: &str = "MILLRACE_JOURNAL_CHILD";

#[test]
fn process_of_a_failed_flush_ends_by_abort() {
    if std::env::var_os(CHILD).is_some() {
        let disk = SimulatedDisk::default();
        let (journal, _) = Journal::open_on(Arc::new(Deadly(disk.clone())), dir(), small()).unwrap();
        journal.submit_and_wait(vec![1]).unwrap();
        disk.fail_syncs(Some("segment"));
        let outcome = journal.submit_and_wait(vec![2]);
        panic!("the process lives on: {outcome:?}");
    }
    let child = process_of("process_of_a_failed_flush_ends_by_abort").output().unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert_eq!(child.status.signal(), Some(6), "{said}");
    assert!(said.contains("the journal aborts the process: frame 2: cannot sync"), "{said}");
}

#[test]
fn process_whose_last_words_nobody_hears_ends_by_abort() {
    if std::env::var_os(CHILD).is_some() {
        // Its standard error is a device that is always full.
        LocalDisk::default().abort("unheard");
        panic!("the process lives on");
    }
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = process_of("process_whose_last_words_nobody_hears_ends_by_abort");
    let ended = child.stdout(Stdio::null()).stderr(full).status().unwrap();
    assert_eq!(ended.signal(), Some(6));
}

/// This process again, with one test of this file.
fn process_of(test: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    let name = format!("tests::failure::{test}");
    child.args(["--exact", &name, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    child
}
