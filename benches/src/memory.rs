//! What this process takes of memory, as Linux counts it; nothing elsewhere.

use std::fs;

/// Bytes of memory in use, mapped files included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// The most there were since the start or [`forget_peak`] (`VmHWM`).
    pub peak: u64,
    /// Those that are the process's own (`RssAnon`).
    pub anonymous: u64,
    /// Those that are of mapped files (`RssFile`): the system can take them back.
    pub file: u64,
}

/// What the process takes now.
#[must_use]
pub fn memory() -> Option<Memory> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory { peak: field("VmHWM")?, anonymous: field("RssAnon")?, file: field("RssFile")? })
}

/// Begins the peak anew; whether the system allows it.
pub fn forget_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_at_least_what_there_is() {
        let touched = std::hint::black_box(vec![1_u8; 16 << 20]);
        let memory = memory().unwrap();
        assert!(memory.peak >= touched.len() as u64, "{memory:?}");
        assert!(memory.anonymous >= touched.len() as u64, "{memory:?}");
    }
}
