//! What a process has used: CPU time and memory, by the system's own account.

use std::fs;

/// CPU time of a process so far, user and system, in µs; 0 if it cannot be read.
#[must_use]
pub fn cpu_us(pid: u32) -> u64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0 };
    // The name may hold spaces; what follows its last parenthesis does not.
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0 };
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // The kernel counts in hundredths of a second towards programs, on every architecture.
    (ticks(11) + ticks(12)) * 10_000
}

/// The most memory a process has held, in MiB; 0 if it cannot be read.
#[must_use]
pub fn rss_mib_peak(pid: u32) -> u64 {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
