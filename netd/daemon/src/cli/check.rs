//! Is the configuration right, can this host have its networks, and what would become of a request?

use std::path::PathBuf;

use netd_plan::{Config, Kernel, effective_mtu, network};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::thread::CapabilitySet;
use serde::Serialize;
use steppe_daemon::text::{self, UNKNOWN, plain};
use steppe_proto::net::{
    AttachRequest, CheckResponse, NetworkInfo, NetworksRequest, Nic, Owner, Port, Protocol,
};

use netd::netlink::Netlink;
use netd::{kernel, observe};

use super::ask::{AskError, Daemon, wait_for};
use super::settings::{Loaded, Wrong, load, needed};
use super::show::{self, InterfaceJson};
use super::{Arguments, CliError, JSON_VERSION, Outcome, explain};

/// What a request is made for where the command line doesn't say it.
const OWNER: (&str, &str) = ("check", "check");
const IDENTITY: &str = "check";
/// Nobody's user: the check makes nothing.
const UID: u32 = 65534;

/// What `check --json` prints without a request.
#[derive(Debug, Serialize)]
struct Checked {
    version: u32,
    files: Vec<String>,
    problems: Vec<Wrong>,
    daemon: Option<DaemonJson>,
    networks: Vec<Here>,
    /// What of the host's settings changes what machines reach.
    remarks: Vec<&'static str>,
}

/// Where the kernel says whether bridged frames pass iptables as well. It is there once br_netfilter is loaded.
const CALLS_IPTABLES: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
const IPTABLES: &str = "net.bridge.bridge-nf-call-iptables is 1, as Docker and Kubernetes set it: frames of machines pass iptables too, \
     which may drop them there, and a machine doesn't reach its own forwarded port; set it to 0, or let iptables accept what \
     comes from links ndb*";

fn remarks() -> Vec<&'static str> {
    let calls = std::fs::read_to_string(CALLS_IPTABLES).is_ok_and(|value| value.trim() == "1");
    calls.then_some(IPTABLES).into_iter().collect()
}

#[derive(Debug, Serialize)]
struct DaemonJson {
    socket: String,
    answers: bool,
    release: Option<String>,
    /// Why it doesn't answer.
    problem: Option<String>,
}

/// A network on this host.
#[derive(Debug, Serialize)]
struct Here {
    name: String,
    kind: &'static str,
    bridge: String,
    mtu: u32,
    ipv4: Option<String>,
    ipv6: Option<String>,
    available: bool,
    /// Why it is not.
    reason: Option<String>,
    /// What netd would do before it is there; empty where it is.
    actions: Vec<String>,
    /// Whether the running netd has it like this; null where none answers.
    running: Option<bool>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    if !arguments.request.is_empty() {
        return dry_run(arguments);
    }
    let loaded = match load(arguments) {
        Ok(loaded) => loaded,
        Err(problems) => return Ok(wrong(problems, arguments.json)),
    };
    let (daemon, running) = ask_daemon(loaded.socket(arguments))?;
    let networks = look(&loaded.config, running.as_deref())?;
    let well = networks.iter().all(|network| network.available);
    let checked = Checked {
        version: JSON_VERSION,
        files: loaded.files.clone(),
        problems: Vec::new(),
        daemon: Some(daemon),
        networks,
        remarks: remarks(),
    };
    let text = if arguments.json {
        text::json(&checked)
    } else {
        page(&loaded, &checked)
    };
    Ok(Outcome { text, well })
}

/// A configuration that is wrong: that is all there is to say.
fn wrong(problems: Vec<Wrong>, json: bool) -> Outcome {
    let text = if json {
        text::json(&Checked {
            version: JSON_VERSION,
            files: Vec::new(),
            problems,
            daemon: None,
            networks: Vec::new(),
            remarks: Vec::new(),
        })
    } else {
        let lines = problems.iter().map(|problem| plain(&problem.line()) + "\n");
        lines.collect()
    };
    Outcome { text, well: false }
}

fn ask_daemon(path: PathBuf) -> Result<(DaemonJson, Option<Vec<NetworkInfo>>), CliError> {
    let socket = path.to_string_lossy().into_owned();
    let asked = wait_for(async {
        let mut daemon = Daemon::find(path).await?;
        let networks = daemon
            .ask(NetworksRequest {}, async |client, request| {
                client.networks(request).await
            })
            .await?;
        Ok::<_, AskError>((daemon.release, networks.networks))
    })?;
    Ok(match asked {
        Ok((release, networks)) => {
            let daemon = DaemonJson {
                socket,
                answers: true,
                release: Some(release),
                problem: None,
            };
            (daemon, Some(networks))
        }
        Err(error) => {
            let daemon = DaemonJson {
                socket,
                answers: false,
                release: None,
                problem: Some(error.to_string()),
            };
            (daemon, None)
        }
    })
}

/// Whether the kernel says what it can do.
fn may_ask() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// What this host can have of a configuration.
fn look(config: &Config, running: Option<&[NetworkInfo]>) -> Result<Vec<Here>, CliError> {
    let failed = |error: &dyn std::error::Error| {
        CliError::failed(format!(
            "the kernel can't be asked for links: {}",
            steppe_daemon::chain(error)
        ))
    };
    let mut netlink = Netlink::open(NETLINK_ROUTE).map_err(|error| failed(&error))?;
    let observed = observe::all(&mut netlink)
        .map_err(|error| failed(&error))?
        .observed;
    // Others than root are told nothing by the kernel: then it counts as one that can.
    let kernel = if may_ask() {
        kernel::look(&mut netlink)
    } else {
        Kernel {
            vlan: true,
            vlan_filtering: true,
        }
    };
    let here = config.networks.values().map(|of| {
        let steps = network(config, of, &observed, kernel);
        let (actions, reason) = match steps {
            Ok(actions) => (actions.iter().map(ToString::to_string).collect(), None),
            Err(unavailable) => (Vec::new(), Some(unavailable.sentence)),
        };
        let ipv4 = of.ipv4.as_ref().map(|ipv4| ipv4.subnet.to_string());
        let ipv6 = of.ipv6.as_ref().map(|ipv6| ipv6.prefix.to_string());
        let same = |info: &NetworkInfo| {
            info.kind == of.kind_name()
                && info.ipv4 == ipv4.clone().unwrap_or_default()
                && info.ipv6 == ipv6.clone().unwrap_or_default()
        };
        Here {
            name: of.name.to_string(),
            kind: of.kind_name(),
            bridge: of.bridge(),
            mtu: effective_mtu(of, &observed),
            available: reason.is_none(),
            reason,
            actions,
            running: running.map(|all| all.iter().any(|info| info.name == of.name.as_str() && same(info))),
            ipv4,
            ipv6,
        }
    });
    Ok(here.collect())
}

const HEAD: [&str; 7] = ["NETWORK", "KIND", "BRIDGE", "MTU", "IPV4", "IPV6", "HERE"];

fn page(loaded: &Loaded, checked: &Checked) -> String {
    let mut page = match loaded.files.as_slice() {
        [] => "no configuration file: what netd brings along holds\n".to_owned(),
        files => {
            let lines = files.iter().map(|file| format!("{}: no problems\n", plain(file)));
            lines.collect()
        }
    };
    let mut notes = String::new();
    if let Some(daemon) = &checked.daemon {
        page.push_str(&match (&daemon.release, &daemon.problem) {
            (Some(release), _) => {
                format!("netd {} answers at {}\n", plain(release), plain(&daemon.socket))
            }
            (None, Some(problem)) => plain(problem) + "\n",
            (None, None) => String::new(),
        });
    }
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    for network in &checked.networks {
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| UNKNOWN.to_owned());
        rows.push(vec![
            network.name.clone(),
            network.kind.to_owned(),
            plain(&network.bridge),
            network.mtu.to_string(),
            or_unknown(&network.ipv4),
            or_unknown(&network.ipv6),
            if network.available { "yes" } else { "no" }.to_owned(),
        ]);
        if let Some(reason) = &network.reason {
            notes.push_str(&format!("{}: {}\n", network.name, plain(reason)));
        }
        if network.running == Some(false) {
            let name = &network.name;
            notes.push_str(&format!(
                "{name}: the netd that runs does not know it so: systemctl reload netd\n"
            ));
        }
    }
    for remark in &checked.remarks {
        notes.push_str(&format!("{remark}\n"));
    }
    if !may_ask() {
        notes.push_str("whether the kernel has VLANs, and filters them, was not asked: that takes root\n");
    }
    format!("{page}\n{}{notes}", text::table(&rows))
}

/// A request that is described on the command line.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wanted {
    nics: Vec<Nic>,
    uid: Option<u32>,
    queues: Option<u32>,
}

impl Eq for Wanted {}

impl Wanted {
    pub(super) fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// The interfaces.
    pub(super) fn nics(&self) -> &[Nic] {
        &self.nics
    }

    /// The options that describe one.
    pub(super) const OPTIONS: [&str; 8] =
        ["network", "ipv4", "vlan", "trunk", "mtu", "port", "uid", "queues"];

    /// Whether an option describes a request.
    pub(super) fn knows(option: &str) -> bool {
        Self::OPTIONS.contains(&option)
    }

    /// Takes an option's value; each `--network` begins an interface.
    pub(super) fn take(&mut self, option: &str, value: &str) -> Result<(), String> {
        let number = || {
            let number = value.parse::<u32>();
            number.map_err(|_| format!("--{option} {value:?} is no number"))
        };
        match option {
            "uid" => self.uid = Some(number()?),
            "queues" => self.queues = Some(number()?),
            "network" => self.nics.push(Nic {
                network: value.to_owned(),
                ..Nic::default()
            }),
            _ => {
                let Some(nic) = self.nics.last_mut() else {
                    return Err(format!("--{option} stands before any --network"));
                };
                match option {
                    "ipv4" => nic.ipv4 = value.to_owned(),
                    "vlan" => nic.vlan = number()?,
                    "mtu" => nic.mtu = number()?,
                    "trunk" => nic
                        .trunk
                        .extend(value.split(',').map(|part| part.trim().to_owned())),
                    _ => nic.ports.push(port(value)?),
                }
            }
        }
        Ok(())
    }
}

/// A forwarded port, as `PROTOCOL:HOST_IP:HOST_PORT:GUEST_PORT`.
fn port(words: &str) -> Result<Port, String> {
    let parts: Vec<&str> = words.split(':').collect();
    let parsed = match parts.as_slice() {
        [protocol, host_ip, host_port, guest_port] => {
            let protocol = match *protocol {
                "tcp" => Some(Protocol::Tcp),
                "udp" => Some(Protocol::Udp),
                _ => None,
            };
            match (protocol, host_port.parse(), guest_port.parse()) {
                (Some(protocol), Ok(host_port), Ok(guest_port)) => Some(Port {
                    protocol: protocol.into(),
                    host_ip: (*host_ip).to_owned(),
                    host_port,
                    guest_port,
                }),
                _ => None,
            }
        }
        _ => None,
    };
    parsed.ok_or_else(|| {
        format!("--port {words:?} is not of the form tcp:192.0.2.1:8080:80, host before guest")
    })
}

/// What `check --json` prints for a request.
#[derive(Debug, Serialize)]
struct Dry {
    version: u32,
    interfaces: Vec<InterfaceJson>,
    actions: Vec<String>,
    refused: Option<Refused>,
}

/// Why it would be refused.
#[derive(Debug, Serialize)]
struct Refused {
    reason: Option<String>,
    field: Option<String>,
    sentence: String,
    retryable: bool,
}

/// Asks the daemon what would become of a request.
fn dry_run(arguments: &Arguments) -> Result<Outcome, CliError> {
    let usage = |text: String| CliError::Usage(text, "netd check".to_owned());
    let owner = match &arguments.owner {
        Some(words) => {
            let owner = explain::owner(words).map_err(usage)?;
            (owner.instance().to_owned(), owner.id().to_owned())
        }
        None => (OWNER.0.to_owned(), OWNER.1.to_owned()),
    };
    let wanted = &arguments.request;
    if wanted.nics().is_empty() {
        return Err(usage("--uid and --queues go with --network".to_owned()));
    }
    let request = AttachRequest {
        owner: Some(Owner {
            instance: owner.0,
            id: owner.1,
        }),
        identity: arguments.identity.clone().unwrap_or_else(|| IDENTITY.to_owned()),
        uid: wanted.uid.unwrap_or(UID),
        queues: wanted.queues.unwrap_or(1),
        nics: wanted.nics().to_vec(),
    };
    let path = needed(arguments)?.socket(arguments);
    let answer = wait_for(async {
        let mut daemon = Daemon::find(path).await?;
        daemon
            .ask(request, async |client, request| client.check(request).await)
            .await
    })?;
    match answer {
        Ok(response) => Ok(Outcome::from(if arguments.json {
            text::json(&Dry {
                version: JSON_VERSION,
                interfaces: response.interfaces.iter().map(InterfaceJson::from).collect(),
                actions: response.actions,
                refused: None,
            })
        } else {
            would(&response)
        })),
        Err(AskError::Refused(status)) if arguments.json => {
            let detail = steppe_proto::detail(&status).unwrap_or_default();
            let some = |text: String| Some(text).filter(|text| !text.is_empty());
            let text = text::json(&Dry {
                version: JSON_VERSION,
                interfaces: Vec::new(),
                actions: Vec::new(),
                refused: Some(Refused {
                    reason: some(detail.reason),
                    field: some(detail.field),
                    sentence: status.message().to_owned(),
                    retryable: detail.retryable,
                }),
            });
            Ok(Outcome { text, well: false })
        }
        Err(error) => Err(error.into()),
    }
}

/// What a request would do.
fn would(response: &CheckResponse) -> String {
    let mut rows = vec![show::HEAD.map(str::to_owned).to_vec()];
    rows.extend(response.interfaces.iter().map(show::row));
    let mut page = text::table(&rows);
    for note in response.interfaces.iter().flat_map(show::notes) {
        page.push_str(&note);
        page.push('\n');
    }
    page.push_str(if response.actions.is_empty() {
        "\nnothing would be done: all of it is there\n"
    } else {
        "\nwould be done:\n"
    });
    for (number, action) in response.actions.iter().enumerate() {
        let mut lines = action.lines();
        let first = lines.next().unwrap_or_default();
        page.push_str(&format!("{:>4}  {}\n", number + 1, plain(first)));
        for line in lines {
            page.push_str(&format!("        {}\n", plain(line)));
        }
    }
    page
}
