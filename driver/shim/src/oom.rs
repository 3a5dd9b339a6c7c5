//! Did the kernel kill something in a control group for want of memory, and whose?

use std::path::{Path, PathBuf};

use steppe_vm::exit::Oom;

/// What the groups count. A kill is counted where the process was, whichever group above it, or the host, had too little.
pub(crate) fn happened(groups: &[PathBuf]) -> Oom {
    if !groups.iter().any(|group| kills(group) > 0) {
        Oom::None
    } else if groups.iter().any(|group| reached_limit(group)) {
        Oom::Limit
    } else {
        Oom::Host
    }
}

/// Whether the group's own limit was ever reached: `memory.failcnt` of version 1, `oom` in `memory.events.local` of 2. Version 1
/// doesn't count there where memory and swap together have the same limit; then the most that was used says it.
fn reached_limit(group: &Path) -> bool {
    let read = |name| std::fs::read_to_string(group.join(name)).unwrap_or_default();
    let number = |name| read(name).trim().parse::<u64>().ok();
    let events = read("memory.events.local");
    let local = events.lines().filter_map(|line| line.strip_prefix("oom "));
    let counted = local
        .chain([read("memory.failcnt").as_str()])
        .filter_map(|number| number.trim().parse::<u64>().ok())
        .any(|count| count > 0);
    let most = number("memory.max_usage_in_bytes");
    let limit = number("memory.limit_in_bytes");
    counted || matches!((most, limit), (Some(most), Some(limit)) if most.saturating_add(CHARGE_BYTES) > limit)
}

/// What the kernel charges at once, and more: a group is killed in before its last charge would reach the limit.
const CHARGE_BYTES: u64 = 1 << 20;

/// Version 2 counts in `memory.events`, version 1 in `memory.oom_control`: lines of a word and a number in both.
fn kills(group: &Path) -> u64 {
    ["memory.events", "memory.oom_control"]
        .iter()
        .filter_map(|name| std::fs::read_to_string(group.join(name)).ok())
        .map(|text| count(&text))
        .sum()
}

fn count(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .filter_map(|number| number.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_counted() {
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(
            count("low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\noom_group_kill 0\n"),
            1
        );
        assert_eq!(count("oom_kill x\n"), 0);
        assert_eq!(happened(&["/does/not/exist".into()]), Oom::None);
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(group.path().join(name), text).unwrap();
        let groups = [group.path().to_owned()];
        write("memory.oom_control", "oom_kill 1\n");
        write("memory.failcnt", "0\n");
        assert_eq!(happened(&groups), Oom::Host);
        write("memory.failcnt", "7\n");
        assert_eq!(happened(&groups), Oom::Limit);
        write("memory.failcnt", "0\n");
        write("memory.limit_in_bytes", "273678336\n");
        write("memory.max_usage_in_bytes", "200000000\n");
        assert_eq!(happened(&groups), Oom::Host);
        write("memory.max_usage_in_bytes", "273674240\n");
        assert_eq!(happened(&groups), Oom::Limit);
        write("memory.max_usage_in_bytes", "0\n");
        std::fs::remove_file(group.path().join("memory.failcnt")).unwrap();
        write("memory.events.local", "low 0\noom 1\noom_kill 1\n");
        assert_eq!(happened(&groups), Oom::Limit);
    }
}
