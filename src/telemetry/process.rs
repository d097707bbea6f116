//! Metrics of the process itself, under Prometheus' standard names; read from `/proc` when asked, so on Linux only.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, IntGauge};

/// What Linux counts processor time in, whatever the machine (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Process {
    resident: IntGauge,
    open_files: IntGauge,
    threads: IntGauge,
    cpu: Counter,
}

impl Process {
    pub(super) fn new() -> Result<Process, prometheus::Error> {
        Ok(Process {
            resident: IntGauge::new("process_resident_memory_bytes", "Resident memory")?,
            open_files: IntGauge::new("process_open_fds", "Open file descriptors")?,
            threads: IntGauge::new("process_threads", "Threads")?,
            cpu: Counter::new("process_cpu_seconds_total", "User and system processor time")?,
        })
    }

    fn read(&self) {
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            self.open_files.set(i64::try_from(entries.count()).unwrap_or(i64::MAX));
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<i64>().ok()
        };
        if let Some(kib) = field("VmRSS") {
            self.resident.set(kib.saturating_mul(1024));
        }
        if let Some(threads) = field("Threads") {
            self.threads.set(threads);
        }
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The second field is the program's name in parentheses and may hold spaces; user and system time are the
        // 14th and 15th of all, the 12th and 13th after it.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u32 =
            after_name.split_whitespace().skip(11).take(2).filter_map(|time| time.parse::<u32>().ok()).sum();
        let more = f64::from(ticks) / TICKS_PER_SECOND - self.cpu.get();
        if more > 0.0 {
            self.cpu.inc_by(more);
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        [self.resident.desc(), self.open_files.desc(), self.threads.desc(), self.cpu.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        [self.resident.collect(), self.open_files.collect(), self.threads.collect(), self.cpu.collect()].concat()
    }
}
