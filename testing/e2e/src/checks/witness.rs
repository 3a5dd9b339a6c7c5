//! Did a VM notice what was done around it?

use std::time::{Duration, Instant};

use super::logs::ticks;
use super::stop::assert_exit;
use crate::agent::Client;
use crate::api::Allocation;
use crate::host::{self, Vm};
use crate::job::{Job, Order};
use crate::wait::{self, seconds};
use crate::world::World;

/// How long what a task made may still be there after its end. A shim holds a log for its reader up to 5 s.
const GONE_LIMIT: Duration = seconds(30);

/// A running VM that counts, and answers when it is asked.
pub(super) struct Witness<'w> {
    pub(super) job: Job<'w>,
    /// Its processes at the beginning.
    vm: Vm,
    qemu: u32,
    /// The guest's seconds since its boot, and when that was.
    uptime: f64,
    at: Instant,
}

impl<'w> Witness<'w> {
    /// What it runs: ticks into its log, and HTTP.
    pub(super) fn order(name: &str, client: &Client) -> Order {
        Order::with_http(name, "steppe.ticks=fast").on(client)
    }

    /// Takes down how it is with a VM that has just been started.
    #[track_caller]
    pub(super) fn new(job: Job<'w>, client: &Client) -> Self {
        let _running = job.wait_running();
        let _console = job.wait_console("tick 3\r\n");
        let vm = the_vm(&job, client);
        let qemu = job.qemu(client);
        let uptime = job.uptime();
        Self {
            job,
            vm,
            qemu,
            uptime,
            at: Instant::now(),
        }
    }

    /// QEMU's process id.
    pub(super) fn qemu(&self) -> u32 {
        self.qemu
    }

    /// Its shim's process id.
    pub(super) fn shim(&self) -> u32 {
        self.vm.shim
    }

    /// Its record's folder.
    pub(super) fn record(&self, client: &Client) -> std::path::PathBuf {
        client.state_dir().join("tasks").join(&self.vm.key).join("record")
    }

    /// The same processes, and a guest that has never stopped. Gives its uptime.
    #[track_caller]
    pub(super) fn untouched(&self, client: &Client) -> f64 {
        assert_eq!(
            the_vm(&self.job, client),
            self.vm,
            "{}: other processes",
            self.job.id
        );
        let (uptime, wall) = (self.job.uptime(), self.at.elapsed().as_secs_f64());
        // The guest's clock may lag where the host is busy; a guest that was started again would be far below.
        assert!(
            uptime > self.uptime && uptime >= self.uptime + wall / 2.0,
            "{}: uptime {}, then {uptime} after {wall:.1} s",
            self.job.id,
            self.uptime
        );
        uptime
    }

    /// The log has all that the guest said, and goes on.
    #[track_caller]
    pub(super) fn ticks_on(&self) {
        let sofar = ticks(&self.job.console());
        let console = self.job.wait_console(&format!("tick {}\r\n", sofar + 5));
        let _complete = ticks(&console);
    }

    /// Stops it as ever: the guest is asked, and nothing that Nomad shows tells of more than one orderly life.
    #[track_caller]
    pub(super) fn stop(self) {
        let ended = self.job.stop_and_wait();
        assert_exit(&ended, 0, 0);
        let console = self.job.console();
        assert!(console.contains("steppe-guest: bye"), "no orderly end: {console}");
        let _complete = ticks(&console);
        assert_eq!(self.job.allocations(), 1, "Nomad made another allocation");
        assert_eq!(starts(&ended), 1, "{}", ended.story());
        let troubles = ["Driver Failure", "Restarting", "Failed Restoring Task"];
        let trouble = |event: &&crate::api::Event| troubles.contains(&event.kind.as_str());
        assert!(
            !ended.events().iter().any(|event| trouble(&event)),
            "{}",
            ended.story()
        );
    }
}

/// How often Nomad saw the task start.
pub(super) fn starts(allocation: &Allocation) -> usize {
    let events = allocation.events().iter();
    events.filter(|event| event.kind == "Started").count()
}

/// A job's VM, which must be the only one.
#[track_caller]
pub(super) fn the_vm(job: &Job<'_>, client: &Client) -> Vm {
    match job.vms(client).as_slice() {
        [vm] => vm.clone(),
        other => panic!("{} has {} VMs: {other:?}", job.id, other.len()),
    }
}

/// Waits until a client's driver has nothing on the host that is there for tasks.
#[track_caller]
pub(super) fn wait_nothing_left(client: &Client) {
    wait::until(
        &format!("nothing of {} is left on the host", client.name),
        GONE_LIMIT,
        || match host::leavings(client).as_slice() {
            [] => Ok(()),
            left => Err(left.join("\n")),
        },
    );
}

/// Ends an agent as a service manager does, and waits for its plugin, which goes with it.
#[track_caller]
pub(super) fn terminate(client: &Client) {
    client.agent.terminate();
    wait::until("the plugins' end", seconds(10), || {
        match client.plugins().as_slice() {
            [] => Ok(()),
            left => Err(format!("{left:?}")),
        }
    });
}

/// A client with a plugin folder of its own, in which today's files are, or an earlier release's.
pub(super) fn client_with_files(world: &World, name: &str, options: &str, files: &std::path::Path) -> Client {
    let plugins = world.scratch.path().join(name).join("plugins");
    crate::world::place(files, &plugins);
    world.client_with(name, options, |setup| setup.plugins = plugins)
}
