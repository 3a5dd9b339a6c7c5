//! How much memory could this host give to a new process?

/// Memory in bytes that processes could take without swapping, as the kernel estimates it (`MemAvailable`, proc(5));
/// `None` where it doesn't say.
pub(crate) fn available_bytes() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_line_is_read() {
        let text = "MemTotal:       24689764 kB\nMemFree:        1 kB\nMemAvailable:   23068672 kB\n";
        assert_eq!(parse(text), Some(23_068_672 * 1024));
        for text in [
            "",
            "MemAvailable: many kB\n",
            "MemAvailable: 5\n",
            "MemAvailable: 18446744073709551615 kB\n",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
