//! What do forty pairs of starts say?

use crate::figures::{Report, Samples, apart};
use crate::one::{Driver, Ending, One, graceful_stop_ms, start};
use crate::{Bench, BenchError, say};

/// Pairs of ours with ours, for the spread.
const SAME_PAIRS: usize = 10;

/// Of the built-in driver's starts, so many boot to their end (six seconds each under emulation).
const BOOTS: usize = 10;

/// Graceful stops of the built-in driver; it looks once a second, so they hardly differ.
const STOPS: usize = 5;

/// The starts of one driver.
#[derive(Debug, Default)]
struct Starts {
    start: Samples,
    cpu: Samples,
    plugin_cpu: Samples,
    helpers_cpu: Samples,
    child_cpu: Samples,
    boot: Samples,
    told: Samples,
}

impl Starts {
    fn push(&mut self, one: One) {
        self.start.push(one.start_ms);
        self.cpu
            .push(one.plugin_cpu_ms + one.helpers_cpu_ms + one.child_cpu_ms);
        self.plugin_cpu.push(one.plugin_cpu_ms);
        self.helpers_cpu.push(one.helpers_cpu_ms);
        self.child_cpu.push(one.child_cpu_ms);
        one.boot_ms.into_iter().for_each(|value| self.boot.push(value));
        one.told_ms.into_iter().for_each(|value| self.told.push(value));
    }
}

/// Pairs of starts, one after the other; which is first changes from pair to pair.
fn pairs(bench: &Bench, name: &str, rival: Driver, count: usize) -> Result<(Starts, Starts), BenchError> {
    let (mut ours, mut theirs) = (Starts::default(), Starts::default());
    for pair in 0..count {
        let ending = if rival == Driver::Ours || pair < BOOTS {
            Ending::Poweroff
        } else {
            Ending::AtOnce
        };
        let mut one = |theirs_turn: bool| -> Result<(), BenchError> {
            let job = format!("{name}-{pair}-{}", u8::from(theirs_turn));
            if theirs_turn {
                theirs.push(start(bench, rival, ending, &job)?);
            } else {
                ours.push(start(bench, Driver::Ours, Ending::Poweroff, &job)?);
            }
            Ok(())
        };
        let first = pair % 2 == 1;
        one(first)?;
        one(!first)?;
        if (pair + 1) % 10 == 0 {
            say(&format!("{name}: {} of {count} pairs", pair + 1));
        }
    }
    Ok((ours, theirs))
}

pub(crate) fn measure(bench: &Bench, count: usize, report: &mut Report) -> Result<(), BenchError> {
    // Files come into the page cache, the plugin's pool of threads is there.
    for number in 0..2 {
        start(
            bench,
            Driver::Ours,
            Ending::Poweroff,
            &format!("warm-ours-{number}"),
        )?;
        start(
            bench,
            Driver::BuiltIn,
            Ending::AtOnce,
            &format!("warm-built-in-{number}"),
        )?;
    }
    let (a, b) = pairs(bench, "a-a", Driver::Ours, SAME_PAIRS.min(count))?;
    let (ours, theirs) = pairs(bench, "ours-built-in", Driver::BuiltIn, count)?;
    let mut stop = Samples::default();
    for number in 0..STOPS.min(count) {
        stop.push(graceful_stop_ms(bench, &format!("graceful-{number}"))?);
    }
    say(&format!(
        "medians of {} starts of ours, {} of the built-in driver:",
        ours.start.len(),
        theirs.start.len()
    ));

    let start = apart(&a.start, &b.start).max(ours.start.spread());
    report.add(
        "StartTask to QEMU's exec",
        ours.start.median(),
        "ms",
        Some(50.0),
        start,
    );
    report.add(
        "StartTask to QEMU's exec, built-in driver",
        theirs.start.median(),
        "ms",
        None,
        theirs.start.spread(),
    );
    let both = start + theirs.start.spread();
    report.add(
        "StartTask to QEMU's exec, ratio",
        ours.start.median() / theirs.start.median(),
        "",
        Some(0.6),
        both,
    );

    let cpu = apart(&a.cpu, &b.cpu).max(ours.cpu.spread());
    report.add("CPU in that", ours.cpu.median(), "ms", Some(5.0), cpu);
    for (name, part) in [
        ("of it, the plugin", &ours.plugin_cpu),
        ("of it, the shim", &ours.helpers_cpu),
        ("of it, the child until exec", &ours.child_cpu),
    ] {
        report.add(name, part.median(), "ms", None, part.spread());
    }
    report.add(
        "CPU in that, built-in driver",
        theirs.cpu.median(),
        "ms",
        None,
        theirs.cpu.spread(),
    );
    let both = cpu + theirs.cpu.spread();
    report.add(
        "CPU in that, ratio",
        ours.cpu.median() / theirs.cpu.median(),
        "",
        Some(0.1),
        both,
    );

    let told = apart(&a.told, &b.told).max(ours.told.spread());
    report.add(
        "guest power-off to terminal event",
        ours.told.median(),
        "ms",
        None,
        told,
    );
    report.add(
        "graceful stop, built-in driver",
        stop.median(),
        "ms",
        None,
        stop.spread(),
    );
    let ratio = ours.told.median() / stop.median();
    report.add(
        "guest power-off to terminal event, ratio to that",
        ratio,
        "",
        Some(0.1),
        told + stop.spread(),
    );

    let boot = apart(&a.boot, &b.boot).max(ours.boot.spread());
    report.add(
        "exec to the end of a guest that powers off at once",
        ours.boot.median(),
        "ms",
        None,
        boot,
    );
    report.add(
        "the same kernel with the built-in driver",
        theirs.boot.median(),
        "ms",
        None,
        theirs.boot.spread(),
    );
    let ratio = ours.boot.median() / theirs.boot.median();
    report.add("the same, ratio", ratio, "", None, boot + theirs.boot.spread());
    Ok(())
}
