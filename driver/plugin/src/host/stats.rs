//! How much processor time and memory does a process use?

/// Figures of a process at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Processor time in user mode, in clock ticks.
    pub(crate) user_ticks: u64,
    /// Processor time in the kernel, in clock ticks.
    pub(crate) system_ticks: u64,
    /// Resident memory in bytes.
    pub(crate) rss_bytes: u64,
}

/// Reads the figures of a process; `None` when it is gone.
pub(crate) fn read(pid: i32) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse(&stat, rustix::param::page_size() as u64)
}

/// Field numbers are proc(5)'s; the name in field 2 may contain anything, so fields are counted after its last bracket.
fn parse(stat: &str, page_bytes: u64) -> Option<Usage> {
    const FIRST_AFTER_NAME: usize = 3;
    let (_, rest) = stat.rsplit_once(')')?;
    let field = |number: usize| {
        rest.split_ascii_whitespace()
            .nth(number - FIRST_AFTER_NAME)?
            .parse::<u64>()
            .ok()
    };
    Some(Usage {
        user_ticks: field(14)?,
        system_ticks: field(15)?,
        rss_bytes: field(24)? * page_bytes,
    })
}

/// Clock ticks per second.
pub(crate) fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "77 (a) R (b) S 1 2 3 4 5 6 7 8 9 10 110 50 13 14 20 0 4 0 21 22 99 24";
        let usage = parse(stat, 4096).unwrap();
        assert_eq!(
            usage,
            Usage {
                user_ticks: 110,
                system_ticks: 50,
                rss_bytes: 99 * 4096
            }
        );
        assert_eq!(parse("", 1), None);
        assert_eq!(parse("1 (x) S 1", 1), None);
    }

    #[test]
    fn this_process_has_figures() {
        let usage = read(rustix::process::getpid().as_raw_nonzero().get()).unwrap();
        assert!(usage.rss_bytes > 0);
        assert_eq!(read(i32::MAX), None);
    }
}
