//! Killed at any step, is everything right after the next start?

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use steppe_proto::net::{self, Protocol};

use crate::harness::say;
use crate::host::{INSTANCE, machine, nic, owner, port};
use crate::netd::{CONFIG, How, Netd, Refused};
use crate::points::Points;
use crate::space::{self, Space};
use crate::state;
use crate::wait::PATIENCE;

/// One more network.
const MORE: &str = r#"
[network.more]
kind = "bridge"
probe = "0s"
"#;

/// Networks of VLANs, alone.
const VLANS: &str = r#"
[network.tenant]
kind = "vlan"
uplink = "up1"
vid = 100
probe = "0s"

[network.aware]
kind = "vlan-aware"
uplink = "up2"
vids = ["100-120", "200"]
probe = "0s"
"#;

/// A host with things that are not netd's, some of which look so. Nothing of it is drawn by chance.
fn host(name: &str) -> (Space, Space) {
    let host = Space::new(name);
    let neighbour = Space::new(&format!("{name}-neighbour"));
    // The kernel would give links addresses when it finds the time.
    host.set("ipv6/conf/default/addr_gen_mode", "1");
    for (number, uplink) in ["up0", "up1", "up2"].into_iter().enumerate() {
        space::join((&host, uplink), (&neighbour, uplink));
        host.ip(&format!(
            "link set {uplink} down\nlink set {uplink} address 02:ff:00:00:00:1{number} up"
        ));
    }
    host.ip(
        "link add br0 address 02:ff:00:00:00:01 type bridge\n\
         link add ndbforeign address 02:ff:00:00:00:02 type bridge\n\
         link add ndtforeign address 02:ff:00:00:00:03 type veth peer name ndtother address 02:ff:00:00:00:04\n\
         link set ndtforeign master br0 up\n\
         link set ndtforeign alias netd1|checks|m|0|default|-|0|02:00:00:00:00:01|-|-|64001|1|1500\n\
         link add others address 02:ff:00:00:00:05 type veth peer name others2 address 02:ff:00:00:00:06\n\
         link set others group 28260\n\
         link set others2 group 28261\n\
         link set br0 up\n\
         address add 172.16.0.1/24 dev br0\n\
         address add 192.0.2.1/24 dev br0",
    );
    host.nft(
        "table inet others {\n\
           map ports { type inet_service : ipv4_addr; elements = { 80 : 10.0.0.1, 81 : 10.0.0.2 } }\n\
           chain forward { type filter hook forward priority 0; policy accept; tcp dport 9 drop; }\n\
         }\n\
         table bridge others { chain c { type filter hook prerouting priority 0; iifname \"ndtforeign\" accept; }\n}\n",
    );
    (host, neighbour)
}

/// One thing that happens while netd may be killed.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// It starts, and answers.
    Start,
    /// All of these machines in one batch.
    Attach(&'static [&'static str]),
    Detach(&'static str),
    /// Reloads a configuration, with or without one more network.
    Configure(bool),
    /// Somebody else takes away and changes what is netd's.
    Drift,
    /// What was detached is deleted.
    Sweep,
    /// No machine lives any more.
    Wipe,
}

const SCRIPT: &[Step] = &[
    Step::Start,
    Step::Attach(&["a", "b"]),
    Step::Drift,
    Step::Configure(true),
    Step::Attach(&["more"]),
    Step::Detach("a"),
    Step::Sweep,
    Step::Attach(&["c"]),
    Step::Detach("more"),
    Step::Configure(false),
    Step::Sweep,
];

/// What VLANs add, on a slower machine.
const VLAN_SCRIPT: &[Step] = &[Step::Start, Step::Attach(&["v"])];

fn request(id: &str) -> net::AttachRequest {
    let nics = match id {
        "a" => {
            let mut first = nic("default");
            first.ports = vec![
                port(Protocol::Tcp, "192.0.2.1", 8080, 80),
                port(Protocol::Udp, "192.0.2.1", 8053, 53),
            ];
            vec![first, nic("lan")]
        }
        "more" => vec![nic("more")],
        "v" => {
            let trunk = net::Nic {
                trunk: vec!["110-112".to_owned(), "200".to_owned()],
                ..nic("aware")
            };
            vec![nic("tenant"), trunk]
        }
        _ => vec![nic("lan")],
    };
    machine(id, &nics)
}

/// Runs at a time: half of each is waiting.
const PARALLEL: usize = 4;

/// Between two looks: each takes as long.
const PAUSE: Duration = Duration::from_millis(40);

/// netd was killed, or refused.
#[derive(Debug)]
enum Broken {
    Killed,
    Refused(Refused),
}

impl From<Refused> for Broken {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// A run of the script.
struct Run<'a> {
    host: &'a Space,
    netd: Netd<'a>,
    points: Points,
    vlans: bool,
    /// Machines that the driver has begun to attach and not ended to detach.
    live: BTreeSet<&'static str>,
}

/// What a run leaves.
#[derive(Debug)]
struct End {
    ours: BTreeSet<String>,
    foreign: BTreeSet<String>,
    /// The same after every machine has gone.
    idle: BTreeSet<String>,
}

impl<'a> Run<'a> {
    fn new(host: &'a Space, vlans: bool) -> Self {
        let mut netd = Netd::new(host, "", How::default());
        let points = Points::listen(&netd.folder().join("points.sock"));
        netd.set_how(How {
            points: true,
            variables: vec![points.variable()],
            ..How::default()
        });
        let run = Self {
            host,
            netd,
            points,
            vlans,
            live: BTreeSet::new(),
        };
        run.configure(false);
        run
    }

    fn configure(&self, more: bool) {
        let networks = if self.vlans { VLANS } else { CONFIG };
        let more = if more { MORE } else { "" };
        self.netd.write_config(&format!("{networks}{more}"));
    }

    /// Waits until something is so, or netd is killed.
    fn settles(&self, what: &str, look: impl Fn() -> Result<(), String>) -> Result<(), Broken> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.points.killed() {
                return Err(Broken::Killed);
            }
            match look() {
                Ok(()) => return Ok(()),
                Err(last) => assert!(Instant::now() < deadline, "{what}: seen last: {last}"),
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn step(&mut self, step: Step) -> Result<(), Broken> {
        match step {
            Step::Start => {
                self.netd.spawn();
                self.settles("netd answers", || {
                    self.netd
                        .client()
                        .version()
                        .map_err(|refused| refused.to_string())
                })
            }
            Step::Attach(ids) => {
                self.live.extend(ids);
                let requests: Vec<_> = ids.iter().map(|id| request(id)).collect();
                Ok(self.netd.client().attach_batch(&requests).map(drop)?)
            }
            Step::Detach(id) => {
                self.netd.client().detach(&owner(id), false)?;
                self.live.remove(id);
                Ok(())
            }
            Step::Configure(more) => {
                self.configure(more);
                self.netd.signal(Signal::HUP);
                self.settles("the configuration is reloaded", || {
                    let networks = self.netd.client().try_networks();
                    let networks = networks.map_err(|refused| refused.to_string())?;
                    let there = networks.iter().any(|network| network.name == "more");
                    if there == more {
                        Ok(())
                    } else {
                        Err(format!("{networks:?}"))
                    }
                })
            }
            Step::Drift => {
                let whole = state::ours(self.host);
                self.host.ip("link set ndblan down\nlink set ndbdefault mtu 1300");
                self.host.nft("delete table bridge netd");
                self.settles("what was changed is repaired", || {
                    let difference = state::difference(&whole, &state::ours(self.host));
                    if difference.is_empty() {
                        Ok(())
                    } else {
                        Err(difference)
                    }
                })
            }
            Step::Wipe => {
                self.live.clear();
                for _ in 0..2 {
                    self.netd.client().sync::<&str>(INSTANCE, &[])?;
                }
                self.step(Step::Sweep)
            }
            Step::Sweep => self.settles("what was detached is deleted", || {
                let listed = self.netd.client().try_list();
                let listed = listed.map_err(|refused| refused.to_string())?.len();
                let taps = state::taps(self.host).len();
                if listed == taps {
                    Ok(())
                } else {
                    Err(format!("{taps} taps, {listed} listed"))
                }
            }),
        }
    }

    /// The next start, and what the driver says then. It goes on with what it had begun, or takes it back.
    fn recover(&mut self, step: Step, gives_up: bool) {
        self.netd.kill();
        self.points.arm(None);
        self.netd.begin();
        if gives_up && let Step::Attach(ids) = step {
            self.live.retain(|id| !ids.contains(id));
        }
        let live: Vec<&str> = self.live.iter().copied().collect();
        for _ in 0..2 {
            self.netd
                .client()
                .sync(INSTANCE, &live)
                .unwrap_or_else(|refused| panic!("Sync: {refused}"));
        }
        let listed = self.netd.client().list();
        let of_the_living = |one: &net::Interface| {
            let id = one.owner.as_ref().map(|owner| owner.id.as_str());
            id.is_some_and(|id| self.live.contains(id))
        };
        let left: Vec<_> = listed.iter().filter(|one| !of_the_living(one)).collect();
        assert!(
            left.is_empty(),
            "interfaces of machines that don't live: {left:?}"
        );
    }

    /// Does a step; where netd is killed within it, starts netd again and does it once more.
    fn step_anyway(&mut self, step: Step, gives_up: bool) {
        match self.step(step) {
            Ok(()) => return,
            Err(Broken::Refused(refused)) if !self.points.killed() => panic!("{step:?}: {refused}"),
            Err(_) => {}
        }
        self.recover(step, gives_up);
        if matches!(step, Step::Start) {
            return;
        }
        if let Err(broken) = self.step(step) {
            panic!("{step:?} once more: {broken:?}");
        }
    }

    /// What is not netd's; with VLANs, on a slower machine, it was looked at elsewhere.
    fn look_at_foreign(&self) -> BTreeSet<String> {
        if self.vlans {
            BTreeSet::new()
        } else {
            state::foreign(self.host)
        }
    }

    /// Runs the script, being killed at a point, or not at all.
    fn run(&mut self, countdown: Option<usize>) -> End {
        self.points.arm(countdown);
        let gives_up = countdown.is_some_and(|number| number % 2 == 1);
        let script = if self.vlans { VLAN_SCRIPT } else { SCRIPT };
        for step in script.iter().copied() {
            self.step_anyway(step, gives_up);
        }
        if self.points.killed() {
            // By what netd did by itself after the last step.
            self.recover(Step::Sweep, false);
        }
        let (ours, foreign) = (state::ours(self.host), self.look_at_foreign());
        self.step_anyway(Step::Wipe, gives_up);
        let idle = state::ours(self.host);
        End { ours, foreign, idle }
    }
}

/// What the script runs through: a step that it misses would not be noticed.
const ACTIONS: [&str; 15] = [
    "make-bridge",
    "pin-mtu",
    "set-alias",
    "add-altname",
    "add-address",
    "enslave",
    "sysctl",
    "make-tap",
    "set-link",
    "set-port",
    "add-fdb",
    "persist-tap",
    "filter",
    "trash",
    "sweep",
];

const VLAN_ACTIONS: [&str; 2] = ["make-vlan", "add-port-vlans"];

/// Killed before and after each step of start, attach, detach, repair, reload and sweep, netd makes good what was begun, and
/// touches nothing that is not its own.
pub(crate) fn netd_crash_matrix() {
    matrix(false);
}

/// The same with VLANs.
pub(crate) fn netd_crash_matrix_vlan() {
    matrix(true);
}

fn matrix(vlans: bool) {
    let began = Instant::now();
    let (before, undisturbed, points) = {
        let (host, _neighbour) = host("undisturbed");
        let mut run = Run::new(&host, vlans);
        let before = run.look_at_foreign();
        let end = run.run(None);
        (before, end, run.points.reached())
    };
    // What the operator told netd to do with them: uplinks are its ports, and packets are forwarded.
    let by_order = |line: &&String| {
        ["up0", "up1", "up2", "forward", "accept_redirects"]
            .iter()
            .any(|word| line.contains(word))
    };
    let untouched: BTreeSet<String> = before.iter().filter(|line| !by_order(line)).cloned().collect();
    let after = undisturbed.foreign.iter().filter(|line| !by_order(line));
    state::assert_same("what is not netd's", &untouched, &after.cloned().collect());
    let kinds: BTreeSet<&str> = points
        .iter()
        .filter_map(|point| point.split('.').nth(1))
        .collect();
    let actions: &[&str] = if vlans { &VLAN_ACTIONS } else { &ACTIONS };
    for action in actions {
        assert!(
            kinds.contains(action),
            "the script does not reach {action}, only {kinds:?}"
        );
    }

    // Between two steps one place is enough. With VLANs, on a slower machine: one of each step that they add.
    let needed = |number: usize| {
        let (point, later) = (&points[number], &points[number + 1..]);
        if vlans {
            point.contains("vlan") && point.ends_with(".before") && !later.contains(point)
        } else {
            let next = later.first().map_or("", String::as_str);
            !(point.ends_with(".after") && next.ends_with(".before"))
        }
    };
    let numbers: VecDeque<usize> = (0..points.len()).filter(|number| needed(*number)).collect();
    let count = numbers.len();
    let queue = Mutex::new(numbers);
    let next = || {
        queue
            .lock()
            .expect("nothing panics with the lock held")
            .pop_front()
    };
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(number) = next() {
                    let point = &points[number];
                    let run = std::panic::catch_unwind(|| {
                        let (host, _neighbour) = host(&format!("killed-{number}"));
                        let mut run = Run::new(&host, vlans);
                        let end = run.run(Some(number));
                        let mut faults = Vec::new();
                        for (what, before, after) in [
                            ("what is netd's", &undisturbed.ours, &end.ours),
                            ("what is not netd's", &undisturbed.foreign, &end.foreign),
                            ("what is netd's without machines", &undisturbed.idle, &end.idle),
                        ] {
                            let difference = state::difference(before, after);
                            if !difference.is_empty() {
                                faults.push(format!("{what}:\n{difference}"));
                            }
                        }
                        faults
                    });
                    let faults = run.unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned();
                        vec![text.unwrap_or_else(|| "it panicked".to_owned())]
                    });
                    let folder =
                        std::path::Path::new(crate::harness::SCRATCH).join(format!("killed-{number}"));
                    if faults.is_empty() {
                        drop(std::fs::remove_dir_all(folder));
                    } else {
                        let mut failures = failures.lock().expect("nothing panics with the lock held");
                        failures.push(format!("killed at {point} ({number}):\n{}", faults.join("\n")));
                        queue.lock().expect("nothing panics with the lock held").clear();
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("nothing panics with the lock held");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    say(&format!(
        "killed at each of {count} of {} points of {} kinds of steps, in {:.1} s",
        points.len(),
        kinds.len(),
        began.elapsed().as_secs_f64()
    ));
}
