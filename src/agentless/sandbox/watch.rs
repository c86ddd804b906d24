//! Waiting for a confined command, and what it is ended for: its time, and the memory of all its processes together.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use super::{Limits, Stopped};
use crate::{Error, Result};

/// How often the memory is added up.
const LOOK: Duration = Duration::from_millis(50);

/// Waits for the child to end, or ends it, and all its processes with it, when it has used up what it may.
pub(super) fn wait(child: &mut Child, limits: &Limits) -> Result<(ExitStatus, Option<Stopped>)> {
    let failed = |e| Error::io("wait for", Path::new("the confined command"), e);
    let began = Instant::now();
    let mut looked = began;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok((status, None));
        }
        let mut stopped = (began.elapsed() >= limits.time).then_some(Stopped::Time);
        if stopped.is_none() && looked.elapsed() >= LOOK {
            stopped = (memory_below(child.id(), limits.total) > limits.total).then_some(Stopped::Memory);
            looked = Instant::now();
        }
        if stopped.is_some() {
            child.kill().map_err(failed)?;
            return Ok((child.wait().map_err(failed)?, stopped));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes of memory of all processes that come from `root`. Pages that several of them share count for each until that is more than
/// `enough`; only then are they shared out, which takes the kernel longer.
fn memory_below(root: u32, enough: u64) -> u64 {
    let processes = below(root);
    let resident: u64 = processes.iter().map(|&(_, pages)| pages * PAGE).sum();
    if resident <= enough {
        return resident;
    }
    processes.iter().map(|&(pid, pages)| proportional(pid).unwrap_or(pages * PAGE)).sum()
}

/// The size of a page, in which `/proc/PID/stat` counts. Where pages are larger, less is counted than there is.
const PAGE: u64 = 4096;

/// The processes that come from `root`, with their resident pages.
fn below(root: u32) -> Vec<(u32, u64)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut children: HashMap<u32, Vec<(u32, u64)>> = HashMap::new();
    for pid in entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some((parent, pages)) = fs::read_to_string(format!("/proc/{pid}/stat")).ok().as_deref().and_then(parent_and_pages) {
            children.entry(parent).or_default().push((pid, pages));
        }
    }
    let (mut out, mut next) = (Vec::new(), vec![root]);
    while let Some(pid) = next.pop() {
        let mine = children.remove(&pid).unwrap_or_default();
        next.extend(mine.iter().map(|&(pid, _)| pid));
        out.extend(mine);
    }
    out
}

/// Of `pid (name) state ppid ...`, where a name may hold anything: the parent and the resident pages.
fn parent_and_pages(stat: &str) -> Option<(u32, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(1)?.parse().ok()?, fields.get(21)?.parse().ok()?))
}

/// A process's share of the memory that it uses, in bytes.
fn proportional(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_of_processes_do_not_mislead() {
        let stat = "7 (a) b) c) S 3 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5 1000 42 18446744073709551615";
        assert_eq!(super::parent_and_pages(stat), Some((3, 42)));
        assert_eq!(super::parent_and_pages("7 (a"), None);
    }
}
