//! How many threads a rank may compute on: the processors that it may run on, each divided among the ranks of its host that may run
//! there too.
//!
//! A launcher may bind ranks to processors of their own, to those of a socket together, or not at all: the masks say which.

/// The bytes of a mask: 1024 processors.
pub(crate) const MASK: usize = 128;

/// The processors that this process may run on, one bit each. Where the system does not say, none.
pub(crate) fn allowed() -> [u8; MASK] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default(); // Linux
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

/// The threads of one of the ranks of a host, at least one; by the number of ranks alone where the masks are empty.
pub(crate) fn share(masks: &[[u8; MASK]], rank: usize) -> usize {
    // What the control group leaves counts too.
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    share_of(masks, rank, available)
}

fn share_of(masks: &[[u8; MASK]], rank: usize, available: usize) -> usize {
    let has = |mask: &[u8; MASK], cpu: usize| mask[cpu / 8] >> (cpu % 8) & 1 == 1;
    let own = &masks[rank];
    let ranks_at = |cpu: usize| masks.iter().filter(|mask| has(mask, cpu)).count();
    let shares: f64 = (0..MASK * 8).filter(|&cpu| has(own, cpu)).map(|cpu| 1.0 / ranks_at(cpu) as f64).sum();
    let share = if shares == 0.0 { available / masks.len() } else { (shares + 1e-6) as usize };
    share.clamp(1, available.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let bits = |list| parse(list).iter().map(|byte| byte.count_ones()).sum::<u32>();
        assert_eq!((bits("0-3,8,10-11\n"), parse("0-3,8,10-11")[..2] == [0b1111, 0b1101]), (7, true));
        assert_eq!((bits(""), bits("nonsense"), bits("1020-2000")), (0, 0, 4));
    }

    #[test]
    fn processors_are_divided_among_those_who_share_them() {
        let masks = |lists: &[&str]| lists.iter().map(|list| parse(list)).collect::<Vec<_>>();
        let shares = |lists: &[&str]| {
            (0..lists.len()).map(|rank| share_of(&masks(lists), rank, 64)).collect::<Vec<_>>()
        };
        assert_eq!(shares(&["0-7", "0-7"]), [4, 4]); // not bound
        assert_eq!(shares(&["0-3", "4-7"]), [4, 4]); // bound to processors of their own
        assert_eq!(shares(&["0-3", "0-3", "4-7", "4-7"]), [2; 4]); // bound to sockets
        assert_eq!(shares(&["0", "1", "0-1"]), [1, 1, 1]);
        assert_eq!(shares(&["0-1"; 8]), [1; 8]); // more ranks than processors
        assert_eq!(shares(&["", ""]), [32, 32]); // unknown
        assert_eq!(share_of(&masks(&["0-7"]), 0, 3), 3); // a control group's limit
    }
}
