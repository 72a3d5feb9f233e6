//! What a model takes of the machine's memory, and how much of it there is.
//!
//! A plan counts what is there at load: weights by the type that each matrix has, the KV cache, scratch. What a backend uses where the
//! checkpoint's memory map has it can be dropped by the system and read again, so that it is planned, and not asked for.
//!
//! How much there is, is known on Linux alone, and read where the kernel says it: the crates that know other systems bring many times this
//! file, and none is needed for that. Where it is not known nothing is refused.

use std::fs;
use std::path::Path;

use llama_backend::{Backend, BackendError, DType, LoadParams, MemoryPlan, ModelConfig, ModelSource};

/// The memory that a model may take beside the files that it maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum MemoryLimit {
    /// What can be had without swapping when the model is built: on Linux, what the kernel calls available, or what the process's control
    /// group leaves, if that is less. Elsewhere, on other devices than the processor and for a custom backend it is not known, and nothing is refused.
    #[default]
    Available,
    /// So many bytes, on any system, device and backend.
    Bytes(u64),
    /// Nothing is refused before it is tried.
    Unlimited,
}

/// The plan of a model whose matrices may be of several types, some of them shared with the source and some not.
///
/// A graph's weights are counted as f32, used in place: how an engine maps its own file is not known here.
pub(crate) fn plan(
    backend: &dyn Backend,
    config: &ModelConfig,
    source: &ModelSource,
    params: &LoadParams,
) -> Result<MemoryPlan, BackendError> {
    let ModelSource::Weights(weights) = source else {
        let plan = backend.plan(config, DType::F32, params);
        return Ok(MemoryPlan { in_place: plan.weights, ..plan });
    };
    // Elements of the matrices by type: all of them, and those that the source shares.
    let mut types: Vec<(DType, [u64; 2])> = Vec::new();
    for (name, shape) in config.tensors().filter(|(_, shape)| shape.len() > 1) {
        let dtype = weights.info(&name)?.dtype;
        let elements = shape.iter().fold(1_u64, |n, &size| n.saturating_mul(size as u64));
        let at = types.iter().position(|&(known, _)| known == dtype).unwrap_or_else(|| {
            types.push((dtype, [0, 0]));
            types.len() - 1
        });
        let [all, shared] = &mut types[at].1;
        *all = all.saturating_add(elements);
        *shared = shared.saturating_add(if weights.shares(&name) { elements } else { 0 });
    }
    let total = types.iter().fold(0_u64, |sum, (_, [all, _])| sum.saturating_add(*all));
    let mut plan = MemoryPlan { weights: 0, in_place: 0, kv_cache: 0, scratch: 0 };
    for (dtype, [all, shared]) in types {
        let whole = backend.plan(config, dtype, params);
        plan.weights = plan.weights.saturating_add(share(whole.weights, all, total));
        plan.in_place = plan.in_place.saturating_add(share(whole.in_place, shared, total));
        plan.kv_cache = plan.kv_cache.max(whole.kv_cache);
        plan.scratch = plan.scratch.max(whole.scratch);
    }
    Ok(plan)
}

/// `bytes * part / all`, for a part of all.
fn share(bytes: u64, part: u64, all: u64) -> u64 {
    let share = u128::from(bytes) * u128::from(part) / u128::from(all.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// The bytes that this process can have; `None` where that is not known.
pub(crate) fn available() -> Option<u64> {
    if cfg!(target_os = "linux") { available_under(Path::new("/")) } else { None }
}

/// The same of the system whose `proc` and `sys` lie in a folder.
fn available_under(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kilobytes = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.strip_suffix("kB"));
    let system = kilobytes?.trim().parse::<u64>().ok()?.saturating_mul(1024);
    Some(left_by_groups(root).map_or(system, |left| left.min(system)))
}

/// The least that any control group of this process leaves it. Groups limit those within them, so that every one on the way up counts.
fn left_by_groups(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let left = groups.lines().filter_map(|line| {
        // `hierarchy:controllers:/path`; version 2 names no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (mount, files) = match controllers {
            "" => ("sys/fs/cgroup", &V2),
            _ if controllers.split(',').any(|name| name == "memory") => ("sys/fs/cgroup/memory", &V1),
            _ => return None,
        };
        let mount = root.join(mount);
        // In a container the path may be the host's, and not be there: the mount is the container's group then.
        let group = mount.join(path.trim_start_matches('/'));
        let up = group.ancestors().take_while(|folder| folder.starts_with(&mount));
        up.filter_map(|folder| left_by_group(folder, files)).min()
    });
    left.min()
}

/// Where a version of control groups says its numbers.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// Fields of `memory.stat` with the pages of files, which are dropped where memory is wanted.
    file_pages: [&'static str; 2],
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    file_pages: ["total_inactive_file", "total_active_file"],
};
const V2: Files =
    Files { limit: "memory.max", usage: "memory.current", file_pages: ["inactive_file", "active_file"] };

/// What a group leaves; `None` without a limit.
fn left_by_group(folder: &Path, files: &Files) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(files.limit)?; // `max` is no number
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let field = |name: &str| {
        let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let droppable: u64 = files.file_pages.iter().map(|name| field(name)).sum();
    Some(limit.saturating_sub(number(files.usage)?.saturating_sub(droppable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system with these files.
    fn system(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        available_under(root.path())
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n");

    #[test]
    fn what_is_not_said_is_not_known() {
        assert_eq!(system(&[]), None);
        assert_eq!(system(&[("proc/meminfo", "MemTotal: 9000 kB\n")]), None);
        assert_eq!(system(&[("proc/meminfo", "MemAvailable: many kB\n")]), None);
        assert_eq!(system(&[MEMINFO]), Some(4000 * 1024));
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let group = |outer: &str, inner: &str| {
            system(&[
                MEMINFO,
                ("proc/self/cgroup", "0::/a/b\n"),
                ("sys/fs/cgroup/a/memory.max", outer),
                ("sys/fs/cgroup/a/memory.current", "500000\n"),
                ("sys/fs/cgroup/a/memory.stat", "anon 300000\ninactive_file 150000\nactive_file 50000\n"),
                ("sys/fs/cgroup/a/b/memory.max", inner),
                ("sys/fs/cgroup/a/b/memory.current", "100\n"),
            ])
        };
        assert_eq!(group("max\n", "max\n"), Some(4000 * 1024));
        assert_eq!(group("1000000\n", "max\n"), Some(700_000), "pages of files can be dropped");
        assert_eq!(group("1000000\n", "600100\n"), Some(600_000));
        assert_eq!(group("1000\n", "max\n"), Some(0));
        assert_eq!(group("99000000\n", "max\n"), Some(4000 * 1024));
    }

    #[test]
    fn groups_of_version_1_and_a_path_of_the_host_are_read_too() {
        let left = system(&[
            MEMINFO,
            ("proc/self/cgroup", "8:pids:/x\n4:cpu,memory:/docker/0123\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 400000\n"),
        ]);
        assert_eq!(left, Some(1_500_000));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
