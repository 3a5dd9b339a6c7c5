//! What do the checks of suite `net` share: three hosts on one machine, each with its netd and its Nomad client?
//!
//! ```text
//!  this process: Nomad's server, 192.0.2.254 and, as any machine on the tenants' network, 10.1.0.1
//!    │ bridge `hosts`, 192.0.2.0/24              │ bridge `tenants`, 10.1.0.0/16, fd00:1::/64
//!    ├── eth0 of h1, .1                          ├── eth1 of h1, the uplink of netd's network `tenant`
//!    ├── eth0 of h2, .2                          ├── eth1 of h2
//!    └── eth0 of h3, .3                          └── eth1 of h3
//! ```

use std::io::{Seek, Write};
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};

use crate::agent::{Client, Place};
use crate::job::Order;
use crate::namespace::{Namespace, output};
use crate::netd::{NETD, Netd};
use crate::world::{Shared, required};

/// Our address among the hosts.
pub(crate) const SWITCH: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);

/// How many hosts all checks share.
const HOSTS: usize = 3;

/// A host of its own.
///
/// Fields are dropped in order: the client ends before netd, and both before what they run in.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) client: Client,
    pub(crate) netd: Netd,
    pub(crate) namespace: Namespace,
}

/// The hosts, and what every suite has.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) hosts: Vec<Host>,
    shared: Shared,
    /// The folder of today's netd.
    pub(crate) programs: PathBuf,
    /// Counts hosts.
    number: AtomicU8,
}

impl Deref for Net {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Net {
    /// Makes all of it, in the network that this process is in, which is its own (`main.rs`).
    pub(crate) fn new() -> Self {
        switch();
        let mut net = Self {
            hosts: Vec::new(),
            shared: Shared::new("net", SWITCH),
            programs: required("STEPPE_PLUGIN_DIR", NETD),
            number: AtomicU8::new(1),
        };
        net.hosts = net.own_hosts("h", HOSTS);
        net
    }

    /// Hosts that only one check has: they are named after a letter, and reached by it.
    pub(crate) fn own_hosts(&self, letter: &str, count: usize) -> Vec<Host> {
        self.own_hosts_with(letter, count, "")
    }

    /// The same where the driver has further options.
    pub(crate) fn own_hosts_with(&self, letter: &str, count: usize, further: &str) -> Vec<Host> {
        let hosts: Vec<Host> = (1..=count)
            .map(|number| self.host(&format!("{letter}{number}"), further))
            .collect();
        for host in &hosts {
            host.netd.start();
            host.client.agent.start();
        }
        for host in &hosts {
            host.client.wait_healthy(&self.api);
        }
        hosts
    }

    /// A host on which nothing is started yet.
    fn host(&self, name: &str, further: &str) -> Host {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::new(192, 0, 2, number);
        let namespace = Namespace::new(self.scratch.path(), name, address);
        join(&namespace, name);
        let netd = Netd::new(&namespace, &self.scratch.path().join(name), &self.programs);
        let options = format!("{}    netd = {:?}\n{further}", self.options(), netd.socket());
        let client = self.client_with(name, &options, |setup| setup.place = Place::on(&namespace));
        Host {
            client,
            netd,
            namespace,
        }
    }
}

impl Order {
    /// An interface on the network that all hosts are on, with this address.
    pub(crate) fn tenant(self, ipv4: &str) -> Self {
        self.network(json!({ "name": "tenant", "ipv4": ipv4 }))
    }

    /// For any host with such a letter.
    pub(crate) fn on_any(mut self, letter: &str) -> Self {
        self.datacenter = format!("{letter}*");
        self
    }

    /// Adds a key to its group.
    pub(crate) fn group(mut self, key: &str, value: Value) -> Self {
        self.further.group.insert(key.to_owned(), value);
        self
    }
}

/// Makes the two bridges.
fn switch() {
    let bridge = "type bridge mcast_snooping 0 nf_call_iptables 0 nf_call_ip6tables 0 nf_call_arptables 0";
    batch(
        Command::new("ip"),
        &format!(
            "link set lo up
             link add hosts {bridge}
             link add tenants {bridge}
             address add {SWITCH}/24 dev hosts
             address add 10.1.0.1/16 dev tenants
             address add fd00:1::1/64 dev tenants nodad
             link set hosts up
             link set tenants up"
        ),
    );
}

/// Joins a host to both.
fn join(host: &Namespace, name: &str) {
    let pid = host.pid();
    batch(
        Command::new("ip"),
        &format!(
            "link add {name}.0 type veth peer name eth0 netns {pid}
             link add {name}.1 type veth peer name eth1 netns {pid}
             link set {name}.0 master hosts up
             link set {name}.1 master tenants up"
        ),
    );
    batch(
        host.command("ip"),
        &format!(
            "address add {}/24 dev eth0
             link set eth0 up
             link set eth1 up
             route add default via {SWITCH}",
            host.address
        ),
    );
}

/// Runs `ip` once for several commands, a line each.
fn batch(mut ip: Command, lines: &str) {
    let mut file = tempfile::tempfile().expect("a file can be made in /tmp");
    writeln!(file, "{lines}")
        .and_then(|()| file.rewind())
        .expect("it can be written");
    let _printed = output(ip.args(["-batch", "-"]).stdin(Stdio::from(file)));
}
