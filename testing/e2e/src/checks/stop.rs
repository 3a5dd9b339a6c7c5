//! How does a VM end, and what does Nomad say of it?

use std::time::Duration;

use crate::api::{Allocation, Event};
use crate::harness::side_by_side;
use crate::job::Order;
use crate::wait::{self, seconds};
use crate::world::World;

/// The event with the exit code.
#[track_caller]
pub(super) fn terminated(allocation: &Allocation) -> &Event {
    allocation
        .event("Terminated")
        .unwrap_or_else(|| panic!("no exit: {}", allocation.story()))
}

/// The task ended with this exit code and signal.
#[track_caller]
pub(super) fn assert_exit(allocation: &Allocation, code: i64, signal: i64) {
    let end = terminated(allocation);
    assert_eq!(
        (end.exit_code, end.signal),
        (code, signal),
        "{}",
        allocation.story()
    );
}

/// The exit code of a guest's program is the task's, and decides between complete and failed.
pub(super) fn batch_exit(world: &World) {
    side_by_side(2, &[(7, "failed"), (0, "complete")], |(code, status)| {
        let job = world.run(&Order::guest("exit", &format!("steppe.exit={code}")));
        let ended = job.wait_terminal();
        assert_eq!(
            ended.client_status,
            *status,
            "exit code {code}: {}",
            ended.story()
        );
        assert_exit(&ended, *code, 0);
        job.wait_event("Driver", &format!("exit code {code}"));
        assert_eq!(
            ended.task().map(|task| task.restarts),
            Some(0),
            "{}",
            ended.story()
        );
    });
}

/// `job stop` lets the guest shut down.
pub(super) fn graceful(world: &World) {
    let job = world.run(&Order::guest("graceful", ""));
    let _console = job.wait_ready();
    let ended = job.stop_and_wait();
    assert_exit(&ended, 0, 0);
    assert_eq!(ended.client_status, "complete", "{}", ended.story());
    let console = job.console();
    let orderly: Vec<&str> = console
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("steppe-guest: "))
        .collect();
    assert_eq!(
        orderly,
        [
            "steppe-guest: ready",
            "steppe-guest: powering off",
            "steppe-guest: bye"
        ],
        "{}",
        ended.story()
    );
}

/// A guest that ignores the power button is gone when the kill timeout is over, not before and not much later.
pub(super) fn deadline(world: &World) {
    const KILL_TIMEOUT: Duration = seconds(5);
    const AT_MOST: Duration = seconds(8);
    let mut order = Order::guest("deaf", "steppe.ignore-poweroff");
    order.kill_timeout = KILL_TIMEOUT;
    let job = world.run(&order);
    let _console = job.wait_ready();
    let qemu = job.qemu(&world.main);
    job.stop();
    let ended = job.wait_terminal();
    let asked = ended
        .event("Killing")
        .unwrap_or_else(|| panic!("{}", ended.story()));
    let end = terminated(&ended);
    let took = Duration::from_nanos(u64::try_from(end.time - asked.time).unwrap_or(0));
    assert!(
        (KILL_TIMEOUT..=AT_MOST).contains(&took),
        "gone after {:.2} s: {}",
        took.as_secs_f64(),
        ended.story()
    );
    assert_eq!((end.exit_code, end.signal), (137, 9), "{}", ended.story());
    assert!(crate::process::one(qemu).is_none(), "QEMU {qemu} is still there");
    job.wait_event("Driver", "did not power off in time");
}

/// A guest that powers itself off has ended well.
pub(super) fn guest_poweroff(world: &World) {
    let job = world.run(&Order::guest("poweroff", "steppe.poweroff"));
    let ended = job.wait_terminal();
    assert_exit(&ended, 0, 0);
    assert_eq!(ended.client_status, "complete", "{}", ended.story());
    job.wait_event("Driver", "powered itself off");
    wait::until("the last line of the console", seconds(5), || {
        let console = job.console();
        if console.contains("steppe-guest: bye") {
            Ok(())
        } else {
            Err(console)
        }
    });
}
