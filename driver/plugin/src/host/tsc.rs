//! How fast does the host's time stamp counter run?

#![expect(unsafe_code, reason = "reading the counter is an intrinsic")]

use std::arch::x86_64::{__cpuid, __cpuid_count, _rdtsc};
use std::time::{Duration, Instant};

/// Length of the measurement: the clock's own error of about a microsecond is then 10 in a million.
const MEASURE: Duration = Duration::from_millis(100);

/// CPUID leaf with the counter's ratio to the crystal clock, and the crystal's rate where it is told.
const LEAF_TSC: u32 = 0x15;

/// Rate in kHz: from CPUID where the processor tells it, else measured.
pub(crate) fn khz() -> u32 {
    from_cpuid().unwrap_or_else(measure)
}

fn from_cpuid() -> Option<u32> {
    if __cpuid(0).eax < LEAF_TSC {
        return None;
    }
    let leaf = __cpuid_count(LEAF_TSC, 0);
    let (denominator, numerator, crystal_hz) =
        (u64::from(leaf.eax), u64::from(leaf.ebx), u64::from(leaf.ecx));
    if denominator == 0 || numerator == 0 || crystal_hz == 0 {
        return None;
    }
    u32::try_from(crystal_hz * numerator / denominator / 1000).ok()
}

fn measure() -> u32 {
    let (start, from) = pair();
    std::thread::sleep(MEASURE);
    let (end, to) = pair();
    let nanoseconds = end.duration_since(start).as_nanos().max(1);
    u32::try_from(u128::from(to.wrapping_sub(from)) * 1_000_000 / nanoseconds).unwrap_or(0)
}

/// The clock and the counter at the same moment: of a few tries, the one that was interrupted least.
fn pair() -> (Instant, u64) {
    let attempt = || {
        // SAFETY: every x86-64 processor has the instruction.
        let before = unsafe { _rdtsc() };
        let now = Instant::now();
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        (
            after.wrapping_sub(before),
            now,
            before.wrapping_add(after.wrapping_sub(before) / 2),
        )
    };
    let best = (0..16).map(|_| attempt()).min_by_key(|(width, ..)| *width);
    best.map_or_else(|| (Instant::now(), 0), |(_, now, counter)| (now, counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (first, second) = (measure(), measure());
        // Any machine that runs this has a counter of 0.5 to 10 GHz; the two differ by less than a thousandth.
        assert!((500_000..10_000_000).contains(&first), "{first}");
        assert!(first.abs_diff(second) < first / 1000, "{first} {second}");
    }
}
