//! Does the console reach Nomad's logs, and does nothing there hold up the guest?

use rustix::process::Signal;

use crate::job::Order;
use crate::process;
use crate::world::World;

/// The numbers of the `tick N` lines, which must be 1, 2, 3 … without gap or repetition; the last of them.
#[track_caller]
pub(super) fn ticks(console: &str) -> u64 {
    // The last line may still be on its way.
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    let numbers = whole
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tick ")?.parse::<u64>().ok());
    let mut last = 0;
    for number in numbers {
        assert_eq!(
            number,
            last + 1,
            "tick {number} follows tick {last} in the log:\n{}",
            around(console, number)
        );
        last = number;
    }
    last
}

fn around(console: &str, number: u64) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let place = lines
        .iter()
        .position(|line| line.trim() == format!("tick {number}"))
        .unwrap_or(0);
    lines[place.saturating_sub(5)..(place + 3).min(lines.len())].join("\n")
}

/// The guest's console is in `alloc logs` while it runs; QEMU's own messages are in the other log.
pub(super) fn live(world: &World) {
    let job = world.run(&Order::guest("logs", "steppe.ticks=fast"));
    let first = ticks(&job.wait_console("tick 3\r\n"));
    let _later = job.wait_console(&format!("tick {}\r\n", first + 10));
    assert_eq!(job.look().client_status, "running");
    assert_eq!(
        job.messages().trim(),
        "",
        "QEMU has something to say about a healthy machine"
    );

    let qemu = job.qemu(&world.main);
    assert!(process::signal(qemu, Signal::TERM), "QEMU is gone");
    let ended = job.wait_terminal();
    let messages = job.messages();
    assert!(messages.contains("terminating on signal 15"), "{messages:?}");
    assert!(
        !messages.contains("tick"),
        "the console is in the stderr log: {messages:?}"
    );
    let console = job.console();
    assert!(
        !console.contains("terminating on signal"),
        "QEMU's messages are in the stdout log"
    );
    assert!(ticks(&console) >= first + 10);
    assert_eq!(ended.client_status, "failed", "{}", ended.story());
    job.wait_event("Driver", "signal");
}
