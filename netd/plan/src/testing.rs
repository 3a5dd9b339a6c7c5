//! What do tests take for a configuration, a request and a kernel?

use std::collections::BTreeSet;
use std::sync::LazyLock;

use ipnet::IpNet;

use crate::{
    Action, Answered, Attachment, Config, Identity, Kernel, Link, LinkKind, LinkName, Network, Observed,
    Owner, PortFlags, PortVlan, Refusal, Request, RequestNic, Vid, decide,
};

/// Every kind of network, made and found.
pub(crate) const CONFIG: &str = r#"
[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20" }

[network.lan]
kind = "bridge"
uplink = "eth1"
mtu = 1500
ipv4 = { subnet = "10.1.0.0/16", gateway = "10.1.0.1", pool = "10.1.1.0-10.1.1.255" }
ipv6 = { prefix = "fd00:1::/64", gateway = "fd00:1::1" }

[network.old]
kind = "bridge"
bridge = "br0"
isolated = true

[network.tenant-a]
kind = "vlan"
uplink = "eth2"
vid = 100
ipv4 = { subnet = "10.100.0.0/24" }

[network.many]
kind = "vlan-aware"
uplink = "eth3"
vids = ["100-120", "200"]
vid = 101
ipv4 = { subnet = "10.2.0.0/16" }
ipv6 = { prefix = "fd00:2::/64" }

[network.theirs]
kind = "vlan-aware"
bridge = "br1"
vids = ["1-4094"]
"#;

pub(crate) const KERNEL: Kernel = Kernel {
    vlan: true,
    vlan_filtering: true,
};

pub(crate) fn config_of(text: &str) -> Config {
    match Config::parse(&[("netd.toml".to_owned(), text.to_owned())]) {
        Ok((config, _)) => config,
        Err(problems) => panic!("{problems:?}"),
    }
}

pub(crate) fn config() -> &'static Config {
    static PARSED: LazyLock<Config> = LazyLock::new(|| config_of(CONFIG));
    &PARSED
}

pub(crate) fn network_of<'c>(config: &'c Config, name: &str) -> &'c Network {
    let mut networks = config.networks.values();
    networks
        .find(|network| network.name.as_str() == name)
        .expect("it is configured")
}

pub(crate) fn nic(network: &str) -> RequestNic {
    RequestNic {
        network: network.to_owned(),
        ..RequestNic::default()
    }
}

pub(crate) fn owner(id: &str) -> Owner {
    Owner::new("0123456789abcdef", id).expect("a good owner")
}

/// A request for a machine of its own identity.
pub(crate) fn request(id: &str, nics: impl IntoIterator<Item = RequestNic>) -> Request {
    Request {
        owner: owner(id),
        identity: Identity::new(&format!("default/job/{id}/vm/0")).expect("a good identity"),
        uid: 1000,
        queues: 1,
        nics: nics.into_iter().collect(),
    }
}

/// The decision where nobody else is asked, with the links of [`host`].
pub(crate) fn decided(existing: &[Attachment], request: &Request) -> Result<Vec<Attachment>, Refusal> {
    decide(config(), &host(), existing.iter(), &Answered::new(), request)
}

/// One attachment of each kind.
pub(crate) fn attachments() -> Vec<Attachment> {
    static DECIDED: LazyLock<Vec<Attachment>> = LazyLock::new(decide_all);
    DECIDED.clone()
}

fn decide_all() -> Vec<Attachment> {
    let mut port = nic("default");
    port.ports = vec![
        crate::Forward::new("ports", crate::Protocol::Tcp, [10, 0, 0, 1].into(), 8080, 80)
            .expect("a good port"),
    ];
    let mut access = nic("many");
    access.vlan = 200;
    let mut trunk = nic("many");
    trunk.trunk = vec!["100-102".to_owned(), "200".to_owned()];
    let mut theirs = nic("theirs");
    theirs.vlan = 7;
    let requests = [
        request("a", [port, nic("lan")]),
        request("b", [nic("lan"), nic("old"), access, trunk]),
        request("c", [nic("tenant-a"), theirs]),
    ];
    let mut all = Vec::new();
    for request in requests {
        let new = decided(&all, &request).expect("a good request");
        all.extend(new);
    }
    all
}

/// A link of somebody else's.
pub(crate) fn link(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind,
        group: 0,
        alias: None,
        altnames: Vec::new(),
        mac: Some(crate::Mac([
            2,
            0,
            0,
            0,
            0,
            u8::try_from(index % 256).expect("a byte"),
        ])),
        mtu: 1500,
        up: true,
        carrier: true,
        master: None,
        port: None,
        vlans: Vec::new(),
        fdb: Default::default(),
        addresses: BTreeSet::new(),
    }
}

pub(crate) fn bridge_kind(vlan_filtering: bool, default_pvid: u32) -> LinkKind {
    LinkKind::Bridge {
        vlan_filtering,
        default_pvid: Vid::new(default_pvid),
    }
}

/// The links of a host before netd came: uplinks and bridges of [`CONFIG`], and links that are nobody's concern.
pub(crate) fn host() -> Observed {
    let mut links = vec![
        link(1, "lo", LinkKind::Other("loopback".to_owned())),
        link(2, "eth0", LinkKind::Other(String::new())),
        link(3, "eth1", LinkKind::Other(String::new())),
        link(4, "eth2", LinkKind::Other(String::new())),
        link(5, "eth3", LinkKind::Other(String::new())),
        link(6, "br0", bridge_kind(false, 0)),
        link(7, "br1", bridge_kind(true, 1)),
        link(8, "veth0", LinkKind::Other("veth".to_owned())),
        link(9, "ndtforeign", LinkKind::Other("veth".to_owned())),
    ];
    links[1].addresses = ["192.0.2.7/24", "10.0.0.1/24"].map(net).into();
    links[7].master = Some(6);
    Observed {
        links: links.into_iter().map(|link| (link.name.clone(), link)).collect(),
    }
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("an address")
}

/// What the kernel makes of an action.
pub(crate) fn apply(observed: &mut Observed, action: &Action) {
    let index = 1 + observed.links.values().map(|link| link.index).max().unwrap_or(0);
    let index_of = |observed: &Observed, name: &str| observed.links[name].index;
    let filters = |observed: &Observed, master: Option<u32>| {
        observed.links.values().any(|link| {
            Some(link.index) == master
                && matches!(
                    link.kind,
                    LinkKind::Bridge {
                        vlan_filtering: true,
                        ..
                    }
                )
        })
    };
    let at = |observed: &mut Observed, name: &str, change: &dyn Fn(&mut Link)| {
        change(
            observed
                .links
                .get_mut(name)
                .unwrap_or_else(|| panic!("{action}: no {name}")),
        );
    };
    match action.clone() {
        Action::MakeBridge {
            name,
            mac,
            mtu,
            vlan_filtering,
            group,
        } => {
            let made = Link {
                group,
                mac: Some(mac),
                mtu,
                up: false,
                ..link(index, name.as_str(), bridge_kind(vlan_filtering, 0))
            };
            assert!(
                observed.links.insert(name.to_string(), made).is_none(),
                "{action}"
            );
        }
        Action::PinMtu { name, mtu } => at(observed, name.as_str(), &|link| link.mtu = mtu),
        Action::MakeVlan {
            name,
            parent,
            vid,
            master,
            mtu,
            group,
        } => {
            let parent = index_of(observed, &parent);
            let made = Link {
                group,
                mtu,
                master: Some(index_of(observed, master.as_str())),
                ..link(
                    index,
                    name.as_str(),
                    LinkKind::Vlan {
                        parent,
                        vid: vid.get(),
                    },
                )
            };
            assert!(
                observed.links.insert(name.to_string(), made).is_none(),
                "{action}"
            );
        }
        Action::SetAlias { name, alias } => {
            assert!(alias.len() <= 255);
            at(observed, name.as_str(), &|link| link.alias = Some(alias.clone()));
        }
        Action::AddAltname { name, altname } => {
            assert!(altname.len() <= 127);
            assert!(
                observed
                    .links
                    .values()
                    .all(|link| !link.altnames.contains(&altname)),
                "{action}"
            );
            at(observed, name.as_str(), &|link| {
                link.altnames.push(altname.clone())
            });
        }
        Action::RemoveAltname { name, altname } => {
            at(observed, name.as_str(), &|link| {
                link.altnames.retain(|there| *there != altname)
            });
        }
        Action::Release { name, master } => {
            let master = index_of(observed, &master);
            at(observed, &name, &|link| {
                assert_eq!(link.master, Some(master), "{action}");
                (link.master, link.port, link.vlans) = (None, None, Vec::new());
            });
        }
        Action::Enslave { name, master } => {
            let master = index_of(observed, &master);
            let given = observed.links.values().find_map(|link| match link.kind {
                LinkKind::Bridge {
                    vlan_filtering: true,
                    default_pvid,
                } if link.index == master => default_pvid,
                _ => None,
            });
            at(observed, &name, &|link| {
                link.master = Some(master);
                link.port = Some(PortFlags {
                    isolated: false,
                    learning: true,
                    unicast_flood: true,
                    multicast_flood: true,
                    broadcast_flood: true,
                    bpdu_guard: false,
                });
                link.fdb.clear();
                link.vlans = given
                    .map(|vid| PortVlan {
                        vid,
                        pvid: true,
                        untagged: true,
                    })
                    .into_iter()
                    .collect();
            });
        }
        Action::AddAddress { name, address } => {
            at(observed, name.as_str(), &|link| {
                assert!(link.addresses.insert(address))
            });
        }
        Action::RemoveAddress { name, address } => {
            at(observed, name.as_str(), &|link| {
                assert!(link.addresses.remove(&address))
            });
        }
        Action::Sysctl { .. } | Action::Filter { .. } => {}
        Action::MakeTap {
            name,
            uid,
            multi_queue,
        } => {
            let kind = LinkKind::Tap {
                uid: Some(uid),
                multi_queue,
                persistent: false,
            };
            let made = Link {
                up: false,
                carrier: false,
                ..link(index, name.as_str(), kind)
            };
            assert!(
                observed.links.insert(name.to_string(), made).is_none(),
                "{action}"
            );
        }
        Action::SetLink {
            name,
            mac,
            mtu,
            group,
        } => at(observed, name.as_str(), &|link| {
            (link.mac, link.mtu, link.group) = (Some(mac), mtu, group);
        }),
        Action::SetPort { name, flags } => at(observed, name.as_str(), &|link| {
            assert!(link.master.is_some(), "{action}");
            link.port = Some(flags);
        }),
        Action::AddPortVlans { name, vids, untagged } => at(observed, &name, &|link| {
            assert!(!vids.is_empty(), "{action}");
            link.vlans.retain(|vlan| !vids.contains(vlan.vid));
            link.vlans.extend(vids.iter().map(|vid| PortVlan {
                vid,
                pvid: untagged,
                untagged,
            }));
        }),
        Action::RemovePortVlans { name, vids } => at(observed, &name, &|link| {
            assert!(!vids.is_empty(), "{action}");
            link.vlans.retain(|vlan| !vids.contains(vlan.vid));
        }),
        Action::AddFdb { name, mac } => {
            let filters = filters(observed, observed.links[name.as_str()].master);
            at(observed, name.as_str(), &|link| {
                link.fdb.insert((mac, None), true);
                if filters {
                    let tagged = link.vlans.iter().map(|vlan| ((mac, Some(vlan.vid)), true));
                    link.fdb.extend(tagged);
                }
            });
        }
        Action::RemoveFdb { name, mac } => {
            at(observed, name.as_str(), &|link| {
                link.fdb.retain(|(entry, _), _| *entry != mac)
            });
        }
        Action::Up { name } => at(observed, name.as_str(), &|link| link.up = true),
        Action::PersistTap { name } => at(observed, name.as_str(), &|link| {
            if let LinkKind::Tap { persistent, .. } = &mut link.kind {
                *persistent = true;
            }
        }),
        Action::Trash {
            name,
            group,
            altnames,
        } => at(observed, name.as_str(), &|link| {
            (link.up, link.master, link.port, link.group) = (false, None, None, group);
            link.vlans.clear();
            link.fdb.clear();
            link.altnames.retain(|there| !altnames.contains(there));
        }),
        Action::DeleteGroup { group } => observed.links.retain(|_, link| link.group != group),
        Action::DeleteLink { name } => delete(observed, &name),
    }
}

/// What was its port, or on it, goes with it or becomes free.
fn delete(observed: &mut Observed, name: &LinkName) {
    let Some(gone) = observed.links.remove(name.as_str()) else {
        return;
    };
    observed
        .links
        .retain(|_, link| !matches!(link.kind, LinkKind::Vlan { parent, .. } if parent == gone.index));
    for link in observed
        .links
        .values_mut()
        .filter(|link| link.master == Some(gone.index))
    {
        (link.master, link.port) = (None, None);
        link.vlans.clear();
        link.fdb.clear();
    }
}

/// The links after everything was done for some attachments.
pub(crate) fn attached(config: &Config, new: &[Attachment]) -> Observed {
    let mut observed = host();
    for name in new
        .iter()
        .map(|attachment| &attachment.network)
        .collect::<BTreeSet<_>>()
    {
        let steps = crate::network(config, &config.networks[name], &observed, KERNEL);
        for action in steps.unwrap_or_else(|unavailable| panic!("{unavailable}")) {
            apply(&mut observed, &action);
        }
    }
    for action in crate::attach(config, &observed.clone(), [].iter(), new) {
        apply(&mut observed, &action);
    }
    observed
}
