//! What the C library's allocator does with freed memory: the program has it keep what comes and goes, and give it back between steps. And what
//! the process then has in memory.

/// Tells the allocator to keep large freed blocks: activations of one size come and go at every micro-batch, and giving them back to the system
/// each time costs a page fault for every 4 kB. To be called before any thread is started.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets numbers of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        // The arenas of other threads give memory back whatever the threshold says.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives what is kept of freed memory back to the system: between two steps, with other sizes to come, it would only add up.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: only pages that hold no allocation are given back.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of the process that are in memory, mapped files included; `None` where the system does not say (no `/proc`).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes: u64 = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn resident_bytes_count_what_is_touched() {
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        let resident = resident_bytes().unwrap();
        assert!(resident >= touched.len() as u64, "{resident} bytes resident with {} of them touched here", touched.len());
    }
}
