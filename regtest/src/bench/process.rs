//! What a process has used and may use: CPU time, memory and cores, by the system's own account.

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

/// The cores that a process may run on, by their numbers; none if it cannot be read.
#[must_use]
pub fn cores(pid: u32) -> Vec<usize> {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return Vec::new() };
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.map(|list| numbers(list.trim())).unwrap_or_default()
}

/// The numbers of a list such as `0-2,7`.
fn numbers(list: &str) -> Vec<usize> {
    let ends = list.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    ends.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::{cores, numbers};

    #[test]
    fn lists_of_cores() {
        assert_eq!(numbers("0-2,7"), [0, 1, 2, 7]);
        assert_eq!(numbers("5"), [5]);
        assert!(numbers("").is_empty());
    }

    #[test]
    fn this_process_may_run_somewhere() {
        assert!(!cores(std::process::id()).is_empty());
    }
}
