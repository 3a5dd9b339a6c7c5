//! Is there nothing more on the host after many starts and stops than before?

use crate::harness::{say, side_by_side};
use crate::host::Snapshot;
use crate::job::Order;
use crate::process;
use crate::wait::{self, seconds};
use crate::world::World;

/// Descriptors that Tokio, the logs or a connection on its way may add to the plugin meanwhile.
const DESCRIPTORS_SPARE: usize = 2;

pub(super) fn cycles(world: &World) {
    let number = |variable: &str, default: usize| -> usize {
        let Ok(text) = std::env::var(variable) else {
            return default;
        };
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} = {text:?} is no number"))
    };
    let cycles = number("STEPPE_CYCLES", 40);
    let parallel = number("STEPPE_PARALLEL", 8).max(1);
    // What the first start ever makes for good, such as the folder of the leases, is there before the count.
    let _end = cycle(world, 0);
    let plugin = world.main.plugin().expect("the plugin runs").pid;
    let before = Snapshot::of(&world.main);
    let descriptors = process::descriptors(plugin);

    let began = std::time::Instant::now();
    let numbers: Vec<usize> = (0..cycles).collect();
    let ends = side_by_side(parallel, &numbers, |number| cycle(world, *number));
    let timerless = ends.iter().filter(|end| **end == End::Timerless).count();
    say(&format!(
        "    {cycles} cycles, {parallel} at a time, in {:.1} s; {timerless} guests found no timer on the busy host",
        began.elapsed().as_secs_f64()
    ));
    assert!(
        timerless <= cycles / TIMERLESS_ONE_IN,
        "too many guests found no timer: is it the host?"
    );

    wait::until(
        "nothing more on the host than before",
        seconds(15),
        || match Snapshot::of(&world.main).since(&before).as_slice() {
            [] => Ok(()),
            left => Err(left.join("\n")),
        },
    );
    assert_eq!(
        world.main.plugin().map(|plugin| plugin.pid),
        Some(plugin),
        "the plugin is another one"
    );
    wait::until("the plugin's descriptors", seconds(15), || {
        let now = process::descriptors(plugin);
        if now <= descriptors + DESCRIPTORS_SPARE {
            Ok(())
        } else {
            Err(format!("{now}, {descriptors} before"))
        }
    });
}

/// How a cycle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As it should.
    Well,
    /// The guest was switched off at its kill timeout, because its kernel had found no timer that works.
    ///
    /// Linux measures its APIC timer against the TSC for a tenth of a second. Where the host takes an emulated processor
    /// away for that long in between, it measures nothing, and a microvm has no other timer.
    Timerless,
}

/// What the kernel says then; a warning, so `quiet` alone would hide it.
const NO_TIMER: &str = "disabling apic timer";

/// One in fifty was seen with 24 guests booting on two processors.
const TIMERLESS_ONE_IN: usize = 20;

/// Every fourth VM is stopped hard in the middle of its boot, the others shut down.
fn cycle(world: &World, number: usize) -> End {
    let is_hard = number % 4 == 3;
    // Should it not end, its log tells why.
    let mut order = Order::guest("cycle", "loglevel=5 steppe.ticks");
    if is_hard {
        order.kill_signal = "SIGKILL".to_owned();
    }
    order.kill_timeout = seconds(30);
    let job = world.run(&order);
    let _running = job.wait_running();
    if !is_hard {
        let _console = job.wait_ready();
    }
    let ended = job.stop_and_wait();
    let code = super::stop::terminated(&ended).exit_code;
    let console = job.console();
    if !is_hard && code == 137 && console.contains(NO_TIMER) {
        return End::Timerless;
    }
    assert_eq!(
        code,
        if is_hard { 137 } else { 0 },
        "{}\n{console}",
        ended.story()
    );
    End::Well
}
