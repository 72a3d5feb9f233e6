//! How many threads a rank may compute on: the processors that it may run on, each divided among the ranks of its host that may run
//! there too, and no more than its part of what a control group grants them.
//!
//! A launcher may bind ranks to processors of their own, to those of a socket together, or not at all: the masks say which.

use std::fs;
use std::path::Path;
use std::thread;

/// The bytes of a mask: 1024 processors.
pub(crate) const MASK: usize = 128;

/// The processors that this process may run on, one bit each. Where the system does not say, none.
pub(crate) fn allowed() -> [u8; MASK] {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default(); // Linux
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    parse(list.unwrap_or_default())
}

/// A list as `0-3,8,10-11`.
fn parse(list: &str) -> [u8; MASK] {
    let mut mask = [0; MASK];
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else { continue };
        for cpu in first..=last.min(MASK * 8 - 1) {
            mask[cpu / 8] |= 1 << (cpu % 8);
        }
    }
    mask
}

/// What a host has for all of its ranks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    /// Its processors.
    processors: usize,
    /// Those whose time a control group grants the ranks together.
    quota: Option<f64>,
}

impl Host {
    pub(crate) fn read() -> Self {
        let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default(); // Linux
        let processors = match count(&parse(&online)) {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        Self { processors, quota: quota_under(Path::new("/")) }
    }

    /// The threads of one of the ranks of a host, at least one; by the number of ranks alone where the masks are empty.
    pub(crate) fn share(self, masks: &[[u8; MASK]], rank: usize) -> usize {
        let own = &masks[rank];
        let ranks_at = |cpu: usize| masks.iter().filter(|mask| has(mask, cpu)).count();
        let shares: f64 =
            (0..MASK * 8).filter(|&cpu| has(own, cpu)).map(|cpu| 1.0 / ranks_at(cpu) as f64).sum();
        if shares == 0.0 { self.even_share(masks.len()) } else { self.within_quota(shares, masks.len()) }
    }

    /// The threads of each of so many ranks, were none bound to processors.
    pub(crate) fn even_share(self, ranks: usize) -> usize {
        self.within_quota(self.processors as f64 / ranks.max(1) as f64, ranks)
    }

    fn within_quota(self, processors: f64, ranks: usize) -> usize {
        let granted = self.quota.map_or(f64::INFINITY, |quota| quota / ranks.max(1) as f64);
        (processors.min(granted) + 1e-6).max(1.0) as usize
    }
}

fn has(mask: &[u8; MASK], cpu: usize) -> bool {
    mask[cpu / 8] >> (cpu % 8) & 1 == 1
}

fn count(mask: &[u8; MASK]) -> usize {
    mask.iter().map(|byte| byte.count_ones() as usize).sum()
}

/// The processors whose time the control groups of this process grant, on the system whose `proc` and `sys` lie in a folder. Groups limit
/// those within them, so that every one on the way up counts.
fn quota_under(root: &Path) -> Option<f64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let quotas = groups.lines().filter_map(|line| {
        // `hierarchy:controllers:/path`; version 2 names no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let mount = match controllers {
            "" => "sys/fs/cgroup",
            _ if controllers.split(',').any(|name| name == "cpu") => "sys/fs/cgroup/cpu",
            _ => return None,
        };
        let mount = root.join(mount);
        // In a container the path may be the host's, and not be there: the mount is the container's group then.
        let group = mount.join(path.trim_start_matches('/'));
        let up = group.ancestors().take_while(|folder| folder.starts_with(&mount));
        up.filter_map(quota_of).min_by(f64::total_cmp)
    });
    quotas.min_by(f64::total_cmp)
}

/// What a group grants; `None` without a limit.
fn quota_of(group: &Path) -> Option<f64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let (quota, period) = match read("cpu.max") {
        Some(max) => {
            let (quota, period) = max.trim().split_once(' ')?;
            (quota.to_owned(), period.to_owned())
        }
        None => (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?),
    };
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|&number| number > 0.0); // `max` and -1 are no limit
    Some(number(&quota)? / number(&period)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Host = Host { processors: 64, quota: None };

    fn masks(lists: &[&str]) -> Vec<[u8; MASK]> {
        lists.iter().map(|list| parse(list)).collect()
    }

    fn shares(host: Host, lists: &[&str]) -> Vec<usize> {
        (0..lists.len()).map(|rank| host.share(&masks(lists), rank)).collect()
    }

    #[test]
    fn lists_are_read() {
        let bits = |list| count(&parse(list));
        assert_eq!((bits("0-3,8,10-11\n"), parse("0-3,8,10-11")[..2] == [0b1111, 0b1101]), (7, true));
        assert_eq!((bits(""), bits("nonsense"), bits("1020-2000")), (0, 0, 4));
    }

    #[test]
    fn processors_are_divided_among_those_who_share_them() {
        assert_eq!(shares(FREE, &["0-7", "0-7"]), [4, 4]); // not bound
        assert_eq!(shares(FREE, &["0-3", "4-7"]), [4, 4]); // bound to processors of their own
        assert_eq!(shares(FREE, &["0-3", "0-3", "4-7", "4-7"]), [2; 4]); // bound to sockets
        assert_eq!(shares(FREE, &["0", "1", "0-1"]), [1, 1, 1]);
        assert_eq!(shares(FREE, &["0-1"; 8]), [1; 8]); // more ranks than processors
        assert_eq!(shares(FREE, &["", ""]), [32, 32]); // unknown
        assert_eq!(FREE.even_share(3), 21);
    }

    #[test]
    fn a_quota_is_divided_among_the_ranks() {
        let host = |quota| Host { quota: Some(quota), ..FREE };
        assert_eq!(shares(host(3.0), &["0-7"]), [3]);
        assert_eq!(shares(host(6.0), &["0-7", "0-7"]), [3, 3]);
        assert_eq!(shares(host(6.0), &["0-7", "8-15"]), [3, 3]); // bound, and granted less
        assert_eq!(shares(host(100.0), &["0-7", "0-7"]), [4, 4]);
        assert_eq!(shares(host(1.5), &["0-7", "0-7"]), [1, 1]);
        assert_eq!(shares(host(6.0), &["", ""]), [3, 3]);
    }

    #[test]
    fn the_tightest_group_s_quota_counts() {
        let quota = |files: &[(&str, &str)]| {
            let root = tempfile::tempdir().unwrap();
            for (path, content) in files {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            quota_under(root.path())
        };
        assert_eq!(quota(&[]), None);
        let v2 = |outer: &str, inner: &str| {
            quota(&[
                ("proc/self/cgroup", "0::/a/b\n"),
                ("sys/fs/cgroup/a/cpu.max", outer),
                ("sys/fs/cgroup/a/b/cpu.max", inner),
            ])
        };
        assert_eq!(v2("max 100000\n", "max 100000\n"), None);
        assert_eq!(v2("400000 100000\n", "max 100000\n"), Some(4.0));
        assert_eq!(v2("400000 100000\n", "150000 100000\n"), Some(1.5));
        let v1 = |quota_us: &str| {
            quota(&[
                ("proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/docker/0123\n0::/\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota_us),
                ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ])
        };
        assert_eq!((v1("200000\n"), v1("-1\n")), (Some(2.0), None));
    }
}
