//! What the kernel says about processes and the machine.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::clock;

/// The machine a run was on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// How many cores this process may use.
    pub cores: usize,
    /// What the first core calls itself.
    pub processor: String,
    /// All memory, in mebibytes.
    pub memory_mib: u64,
    /// The release of the kernel.
    pub kernel: String,
    /// The file system that holds the data: its type and device.
    pub file_system: String,
}

impl Machine {
    /// This machine, with the file system of a directory.
    pub fn here(directory: &Path) -> Result<Machine> {
        let processor = read("/proc/cpuinfo")?
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, model)| model)
            .to_owned();
        let memory_kib: u64 = read("/proc/meminfo")?
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .context("/proc/meminfo names no MemTotal")?;
        Ok(Machine {
            cores: std::thread::available_parallelism()?.get(),
            processor,
            memory_mib: memory_kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: file_system(&directory.canonicalize()?)?,
        })
    }
}

/// The type and device of the mount that holds a path: the longest that
/// matches.
fn file_system(path: &Path) -> Result<String> {
    let mounts = read("/proc/self/mounts")?;
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
            path.starts_with(at).then_some((at.len(), kind, device))
        })
        .max_by_key(|(length, _, _)| *length);
    let (_, kind, device) = mount.context("no mount holds the path")?;
    Ok(format!("{kind} on {device}"))
}

/// The processor time used so far, and when that was.
#[derive(Clone, Debug)]
pub struct Usage {
    /// When it was read.
    at: Instant,
    /// Seconds of processor time of the processes asked for, each.
    processes: Vec<f64>,
    /// Seconds of processor time of this process.
    own: f64,
    /// Seconds of processor time of the whole machine.
    machine: f64,
}

/// The processor time used in a while, in cores.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cores {
    /// Used by the processes asked for, each.
    pub processes: Vec<f64>,
    /// Used by this process, the load generator.
    pub own: f64,
    /// Used by anything else, the kernel's own work and other users included:
    /// much of it makes a figure worthless.
    pub others: f64,
}

impl Usage {
    /// The processor time used so far.
    pub fn now(ids: &[u32]) -> Result<Usage> {
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        let process = |id: &str| Ok::<_, anyhow::Error>(process_ticks(id)? / ticks_per_second);
        Ok(Usage {
            at: clock::now(),
            processes: ids
                .iter()
                .map(|id| process(&id.to_string()))
                .collect::<Result<_>>()?,
            own: process("self")?,
            machine: machine_ticks()? / ticks_per_second,
        })
    }

    /// What was used from this reading to a later one of the same processes.
    pub fn until(&self, later: &Usage) -> Cores {
        assert_eq!(
            self.processes.len(),
            later.processes.len(),
            "two readings compare only for the same processes"
        );
        let seconds = (later.at - self.at).as_secs_f64().max(1e-9);
        let processes: Vec<f64> = self
            .processes
            .iter()
            .zip(&later.processes)
            .map(|(before, after)| (after - before) / seconds)
            .collect();
        let own = (later.own - self.own) / seconds;
        let known = own + processes.iter().sum::<f64>();
        let machine = (later.machine - self.machine) / seconds;
        Cores {
            processes,
            own,
            others: (machine - known).max(0.0),
        }
    }
}

/// User and system time of a process, in ticks. The name of the program may
/// hold anything, so fields count from its closing parenthesis.
fn process_ticks(id: &str) -> Result<f64> {
    let stat = read(&format!("/proc/{id}/stat"))?;
    let (_, fields) = stat
        .rsplit_once(')')
        .context("a stat file names its program")?;
    let ticks = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<f64>);
    Ok(ticks.collect::<Result<Vec<_>, _>>()?.iter().sum())
}

/// Time that was neither idle nor waiting for a disk, in ticks: user, nice,
/// system, interrupts, soft interrupts, and steal by the hypervisor.
fn machine_ticks() -> Result<f64> {
    let stat = read("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat has a first line")?;
    let fields: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let busy = [0, 1, 2, 5, 6, 7];
    Ok(busy.iter().filter_map(|field| fields.get(*field)).sum())
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

#[cfg(test)]
mod tests {
    use super::{Machine, Usage};
    use crate::clock;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn a_busy_process_shows() {
        let own = std::process::id();
        let before = Usage::now(&[own]).expect("readable");
        let until = clock::now() + Duration::from_millis(300);
        while clock::now() < until {
            std::hint::spin_loop();
        }
        let cores = before.until(&Usage::now(&[own]).expect("readable"));
        assert!(cores.own > 0.1, "{cores:?}");
        assert!((cores.own - cores.processes[0]).abs() < 0.2, "{cores:?}");
    }

    #[test]
    fn the_machine_describes_itself() {
        let machine = Machine::here(Path::new("/")).expect("readable");
        assert!(machine.cores > 0 && machine.memory_mib > 0);
        assert!(machine.file_system.contains(" on "));
    }
}
