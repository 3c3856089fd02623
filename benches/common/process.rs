//! A measured run: how long it took, the processor time of everybody concerned, and the peak of memory of a command.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use scheduler_bridge::embedded::Servers;

use super::common::{folder, median};

/// The scheduler's database in MongoDB.
pub const DATABASE: &str = "bench";

/// One measured run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub taken: Duration,
    /// The largest resident size of the process, in bytes; of a part inside this process, nothing.
    pub memory: Option<u64>,
    /// Processor time of the contender itself, of MongoDB and of PostgreSQL.
    pub processor: [Duration; 3],
}

/// The processor time a document of the contender and of both servers, and the contender's peak of memory.
pub fn load(runs: &[Run], documents: u64) -> String {
    let micros = |part: usize| {
        let each = runs.iter().map(|run| run.processor[part].as_secs_f64() * 1e6 / rate(documents, SECOND));
        median(each.collect())
    };
    let processor = format!("µs {:.1} + {:.1} + {:.1}", micros(0), micros(1), micros(2));
    peak(runs).map_or(processor.clone(), |peak| format!("{processor}, peak {:.0} MB", megabytes(peak)))
}

/// The largest resident size of all runs.
pub fn peak(runs: &[Run]) -> Option<u64> {
    runs.iter().filter_map(|run| run.memory).max()
}

const SECOND: Duration = Duration::from_secs(1);

/// Runs `command` over both stores to its end.
pub fn run(mut command: Command, servers: &Servers) -> Run {
    command.env("BRIDGE_MONGO_URL", servers.mongo.url()).env("BRIDGE_MONGO_DATABASE", DATABASE);
    command.env("BRIDGE_POSTGRES_URL", servers.postgres.url());
    let clock = Clock::start(servers);
    let mut child = command.spawn().expect("start the process");
    let mut memory = None;
    loop {
        memory = resident_peak(child.id()).or(memory);
        if let Some(status) = child.try_wait().expect("wait for the process") {
            assert!(status.success(), "{command:?} ended with {status}");
            return clock.stop(memory);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An interpreter with the drivers that the plain scripts use.
pub fn python() -> PathBuf {
    let folder = folder().join("python");
    let python = folder.join("bin/python");
    if !python.exists() {
        let run = |command: &mut Command| assert!(command.status().expect("run python3").success(), "{command:?}");
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        run(Command::new(&python).args(["-m", "pip", "install", "-q", "pymongo==4.20.0", "psycopg[binary]==3.3.9"]));
    }
    python
}

/// The largest resident size a process has had, in bytes (`VmHWM`, Linux).
fn resident_peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Measures one run.
pub struct Clock {
    pids: [u32; 3],
    processor: [Duration; 3],
    started: Instant,
}

impl Clock {
    pub fn start(servers: &Servers) -> Self {
        let pids = [std::process::id(), servers.mongo.pid(), servers.postgres.pid()];
        Self { pids, processor: pids.map(processor_time), started: Instant::now() }
    }

    pub fn stop(self, memory: Option<u64>) -> Run {
        let taken = self.started.elapsed();
        let mut processor = self.pids.map(processor_time);
        processor.iter_mut().zip(self.processor).for_each(|(after, before)| *after -= before);
        Run { taken, memory, processor }
    }
}

/// The processor time of a process and its children, the ended ones included, in the 100ths of a second that Linux
/// shows: `utime`, `stime`, `cutime` and `cstime`.
fn processor_time(pid: u32) -> Duration {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let of_children: u64 = children.split_whitespace().filter_map(|child| ticks(child, 2)).sum();
    Duration::from_millis((ticks(&pid.to_string(), 4).unwrap_or_default() + of_children) * 10)
}

fn ticks(pid: &str, fields: usize) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let counts = stat.rsplit_once(") ")?.1.split(' ').skip(11).take(fields);
    Some(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
}

pub fn rate(documents: u64, taken: Duration) -> f64 {
    f64::from(u32::try_from(documents).expect("documents")) / taken.as_secs_f64()
}

pub fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).expect("size")) / 1024.0
}
