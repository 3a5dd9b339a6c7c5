//! Does netd do its work with what its unit gives it, and does it need all of that?
//!
//! Started by setpriv as the unit says: an ordinary user, these capabilities, no others to gain, no group; and by this
//! program with the unit's filter of system calls, as far as it forbids some.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::thread::CapabilitySet;
use steppe_proto::net::{self, Protocol};

use crate::frame::{self, BROADCAST};
use crate::guest::{self, Guest};
use crate::harness::{SCRATCH, say};
use crate::host::{at, attach_one, machine, nic, owner, port};
use crate::netd::{How, Netd, Refused, for_everybody};
use crate::space::{self, Space};
use crate::{confine, state};

use super::races::becomes;

const CONFIG: &str = r#"
[daemon]
readers = ["65533"]

[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1", pool = "10.83.0.2-10.83.15.254" }

[network.lan]
kind = "bridge"
uplink = "up0"
ipv4 = { subnet = "10.1.0.0/16", pool = "10.1.1.0-10.1.1.255" }
ipv6 = { prefix = "fd00:1::/64" }
probe = "200ms"
"#;

/// The section of ARCHITECTURE.md.
const SECTION: &str = "## Privileges of netd";

/// Nobody in particular.
const USER: u32 = 64_900;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn file(path: &str) -> String {
    let path = Path::new(ROOT).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What the unit's file says.
#[derive(Debug)]
struct Unit(Vec<(String, String)>);

impl Unit {
    fn read() -> Self {
        let text = file("dist/netd.service");
        let lines = text.lines().filter(|line| !line.starts_with(['#', '[']));
        let settings = lines.filter_map(|line| line.split_once('='));
        Self(
            settings
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    /// Every value of a setting.
    fn all(&self, key: &str) -> Vec<&str> {
        let found = self.0.iter().filter(|(known, _)| known == key);
        found.map(|(_, value)| value.as_str()).collect()
    }

    #[track_caller]
    fn one(&self, key: &str) -> &str {
        match self.all(key)[..] {
            [value] => value,
            ref other => panic!("dist/netd.service says {key} {} times", other.len()),
        }
    }
}

/// Capabilities that a text names.
fn capabilities(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    words
        .filter_map(|word| word.strip_prefix("CAP_"))
        .map(str::to_owned)
        .collect()
}

/// How it is started: as the unit says, with these capabilities.
fn how(unit: &Unit, capabilities: &BTreeSet<String>) -> How {
    let set: String = capabilities
        .iter()
        .map(|name| format!(",+{}", name.to_lowercase()))
        .collect();
    let mut through: Vec<String> = [
        "setpriv",
        "--reuid",
        &USER.to_string(),
        "--regid",
        &USER.to_string(),
    ]
    .map(str::to_owned)
    .into();
    through.extend(["--clear-groups", "--no-new-privs"].map(str::to_owned));
    // Gained in this order: what is inherited must be before it is ambient.
    through.extend(
        ["--inh-caps", "--ambient-caps", "--bounding-set"].map(|option| format!("{option}=-all{set}")),
    );
    let this = std::env::current_exe().expect("this program has a path");
    through.push(
        for_everybody(&this)
            .to_str()
            .expect("our paths are ASCII")
            .to_owned(),
    );
    through.push(confine::CONFINED.to_owned());
    through.push(unit.one("UMask").to_owned());
    through.push(unit.all("SystemCallFilter").join("\n"));
    through.push(unit.one("RestrictAddressFamilies").to_owned());
    How {
        through,
        ..How::default()
    }
}

/// Makes the tun device everybody's, as udev does; a host without udev may have kept it to root.
fn open_tun() {
    let node = Path::new(SCRATCH).join("tun");
    let device = std::fs::metadata(TUN).expect("there is a tun device").rdev();
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, &node, FileType::CharacterDevice, mode, device).expect("root makes devices");
    std::fs::set_permissions(&node, Permissions::from_mode(0o666)).expect("root sets modes");
    rustix::mount::mount_bind(&node, TUN).expect("root mounts");
}

const TUN: &str = "/dev/net/tun";

/// A host of its own, whose folder is the user's.
fn start<'a>(host: &'a Space, neighbour: &Space, how: How) -> Netd<'a> {
    space::join((host, "up0"), (neighbour, "eth0"));
    neighbour.ip("address add 10.1.0.5/16 dev eth0");
    host.ip("address add 192.0.2.1/24 dev lo");
    let netd = Netd::new(host, CONFIG, how);
    std::os::unix::fs::chown(netd.folder(), Some(USER), Some(USER)).expect("root gives folders away");
    netd
}

/// All that netd is there for; the first thing that fails.
fn work(host: &Space, netd: &mut Netd<'_>) -> Result<(), String> {
    let said = |what: &str, refused: &Refused| format!("{what}: {refused}");
    let ported = net::Nic {
        ports: vec![port(Protocol::Tcp, "192.0.2.1", 8080, 80)],
        ..nic("default")
    };
    let client = netd.client();
    let both = client
        .attach(&machine("a", &[ported, nic("lan")]))
        .map_err(|refused| said("an attach", &refused))?;
    let taken = client.attach(&machine("b", &[at("lan", "10.1.0.5")]));
    match taken {
        Err(refused) if refused.detail.reason == "address-taken" => {}
        Err(refused) => return Err(said("a probe", &refused)),
        Ok(_) => return Err("a probe: an address that another host has is given".to_owned()),
    }
    // Links, addresses, forwarding and the filter do what they should.
    let guest = Guest::boot(host, &both[1]);
    if !guest.reaches([10, 1, 0, 5]) {
        return Err("a guest reaches nothing".to_owned());
    }
    let card = guest::plug(host, &both[0]);
    let other = attach_one(client, "c", nic("default"));
    let heard = guest::plug(host, &other);
    let macs = (BROADCAST, guest::mac(&both[0]));
    let says =
        |source: [u8; 4], text: &str| frame::udp4(macs, (source.into(), guest::ipv4(&other)), (9, 9), text);
    card.send(&says([10, 83, 7, 7], "forged"));
    card.send(&says(guest::ipv4(&both[0]).octets(), "honest"));
    let frames = heard.receive_until(b"honest");
    if frames.iter().any(|frame| crate::tap::contains(frame, b"forged")) {
        return Err("a forged frame arrives".to_owned());
    }
    if host.run("cat", &["/proc/sys/net/ipv4/ip_forward"]).trim() != "1" {
        return Err("nothing is forwarded".to_owned());
    }
    drop((guest, card, heard));
    let whole = state::ours(host);
    host.nft("flush ruleset");
    becomes(host, &whole);
    netd.restart();
    becomes(host, &whole);
    for id in ["a", "c"] {
        crate::wait::until("a machine is detached", || {
            netd.client()
                .detach(&owner(id), false)
                .map_err(|refused| refused.to_string())
        });
    }
    crate::wait::until("every tap is deleted", || {
        let taps = state::taps(host);
        if taps.is_empty() {
            Ok(())
        } else {
            Err(format!("{taps:?}"))
        }
    });
    Ok(())
}

/// A line of /proc/PID/status.
fn status(netd: &Netd<'_>, key: &str) -> String {
    let path = format!("/proc/{}/status", netd.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).expect("netd runs");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("/proc tells nothing of {key}"))
        .trim()
        .to_owned()
}

fn set(netd: &Netd<'_>, key: &str) -> BTreeSet<String> {
    let bits = u64::from_str_radix(&status(netd, key), 16).expect("the kernel writes hexadecimal numbers");
    let known = CapabilitySet::from_bits_retain(bits);
    known.iter_names().map(|(name, _)| name.to_owned()).collect()
}

/// netd has the user and the capabilities of its unit and of ARCHITECTURE.md, does everything with them, and misses each.
pub(crate) fn unit_privileges_netd() {
    let unit = Unit::read();
    let given = capabilities(unit.one("AmbientCapabilities"));
    assert_eq!(capabilities(unit.one("CapabilityBoundingSet")), given);
    assert_eq!(unit.one("NoNewPrivileges"), "yes");
    let document = file("ARCHITECTURE.md");
    let section = document
        .split_once(SECTION)
        .map(|(_, rest)| rest.split("\n## ").next().unwrap_or_default());
    let section = section.unwrap_or_else(|| panic!("ARCHITECTURE.md has no section {SECTION}"));
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `CAP_"));
    let documented = rows
        .map(|row| row.split('`').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(given, documented, "ARCHITECTURE.md, {SECTION}");

    open_tun();
    let (host, neighbour) = (Space::new("as-given"), Space::new("as-given-neighbour"));
    let mut netd = start(&host, &neighbour, how(&unit, &given));
    netd.begin();
    work(&host, &mut netd).unwrap_or_else(|fault| panic!("with {given:?}: {fault}"));
    for key in ["CapEff", "CapPrm"] {
        assert_eq!(set(&netd, key), given, "{key}");
    }
    assert_eq!(set(&netd, "CapBnd"), given);
    for key in ["CapInh", "CapAmb"] {
        assert_eq!(set(&netd, key), BTreeSet::new(), "{key}: netd executes nothing");
    }
    assert_eq!(status(&netd, "NoNewPrivs"), "1");
    assert_eq!(status(&netd, "Groups"), "");
    for key in ["Uid", "Gid"] {
        assert_eq!(status(&netd, key), vec![USER.to_string(); 4].join("\t"), "{key}");
    }
    // Drivers and readers that are other users than netd reach its socket.
    let client = netd.another_client();
    let asked = std::thread::spawn(move || {
        crate::system::become_user(65_533).expect("a thread of root's can be any user's");
        client.try_list().map(|listed| listed.len())
    });
    let listed = asked.join().expect("asking does not panic");
    assert_eq!(listed.map_err(|refused| refused.to_string()), Ok(0));
    netd.stop();

    // As root it gives up the rest.
    let space = Space::new("as-root");
    let netd = Netd::start(&space, "");
    assert_eq!(set(&netd, "CapEff"), given);
    assert_eq!(status(&netd, "NoNewPrivs"), "1");
    drop(netd);

    for missing in &given {
        let rest: BTreeSet<String> = given.iter().filter(|name| *name != missing).cloned().collect();
        let name = format!("without-{}", missing.to_lowercase());
        let (host, neighbour) = (Space::new(&name), Space::new(&format!("{name}-neighbour")));
        let mut netd = start(&host, &neighbour, how(&unit, &rest));
        netd.spawn();
        let seen = loop {
            if netd.has_ended() {
                let log = netd.log();
                break log.lines().last().unwrap_or("it ends").to_owned();
            }
            if netd.client().version().is_ok() {
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&host, &mut netd)));
                break match done {
                    Ok(Ok(())) => panic!("netd needs no CAP_{missing}"),
                    Ok(Err(fault)) => fault,
                    Err(_) => "netd does not do its work".to_owned(),
                };
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        say(&format!("without CAP_{missing}: {seen}"));
    }
}
