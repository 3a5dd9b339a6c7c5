//! Did the kernel kill something in a control group because its memory limit was reached?

use std::path::{Path, PathBuf};

/// Whether one of the groups counts such a kill.
pub(crate) fn happened(groups: &[PathBuf]) -> bool {
    groups.iter().any(|group| kills(group) > 0)
}

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
        assert!(!happened(&["/does/not/exist".into()]));
    }
}
