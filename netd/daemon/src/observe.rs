//! What does the kernel say there is?
//!
//! Only what [`Observed`] has a place for is read out of the kernel's answers; anything else is passed over, and nothing
//! that somebody wrote on a link of theirs keeps the rest from being seen.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netd_plan::{Link, LinkKind, Mac, Observed, PortFlags, PortVlan, Vid};
use netlink_packet_core::DefaultNla;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use crate::netlink::{KernelError, Netlink, attributes, number, text};

/// A dump that others change meanwhile is asked for again so often.
const DUMPS_MAX: u32 = 5;

// Numbers of linux/if_link.h, linux/if_tun.h and linux/neighbour.h.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWNEIGH: u16 = 28;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_CARRIER: u16 = 33;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFF_TAP: u8 = 2;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_BRPORT_GUARD: u16 = 5;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 1 << 2;
const BRIDGE_VLAN_INFO_RANGE_BEGIN: u16 = 1 << 3;
const BRIDGE_VLAN_INFO_RANGE_END: u16 = 1 << 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_LLADDR: u16 = 2;
const NDA_VLAN: u16 = 5;
const NUD_NOARP: u16 = 0x40;
const NTF_STICKY: u8 = 0x40;
const IFF_UP: u32 = 1;

/// Everything there is, and whether that is certain.
#[derive(Debug)]
pub struct Seen {
    /// What there is.
    pub observed: Observed,
    /// False where the kernel said each time that links changed while it told of them: something may be missing.
    pub whole: bool,
    /// How many dumps had to be repeated.
    pub repeated: u32,
}

/// All links, without addresses and forwarding tables.
///
/// # Errors
///
/// When the kernel does not answer.
pub fn links(netlink: &mut Netlink) -> Result<Seen, KernelError> {
    repeated(|| {
        let mut observed = Observed::default();
        let interrupted = all_links(netlink, &mut observed)?;
        Ok((observed, interrupted))
    })
}

/// One link, by its name or a further name.
///
/// # Errors
///
/// When the kernel does not answer; a link that is not there is no error.
pub fn one(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, KernelError> {
    let mut request = LinkMessage::default();
    // A name that no link can have is not asked for as one.
    request
        .attributes
        .push(if name.len() <= netd_plan::name::LINK_NAME_MAX {
            LinkAttribute::IfName(name.to_owned())
        } else {
            LinkAttribute::Other(DefaultNla::new(IFLA_ALT_IFNAME, [name.as_bytes(), &[0]].concat()))
        });
    get(netlink, request)
}

fn get(netlink: &mut Netlink, mut request: LinkMessage) -> Result<Option<Link>, KernelError> {
    request
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut found = None;
    match netlink.get(RouteNetlinkMessage::GetLink(request), &mut |kind, payload| {
        if kind == RTM_NEWLINK {
            found = link(payload);
        }
    }) {
        Ok(()) => Ok(found),
        Err(error) if error.errno == Errno::NODEV => Ok(None),
        Err(error) => Err(error),
    }
}

/// Everything there is.
///
/// # Errors
///
/// When the kernel does not answer.
pub fn all(netlink: &mut Netlink) -> Result<Seen, KernelError> {
    repeated(|| once(netlink))
}

fn repeated(mut dump: impl FnMut() -> Result<(Observed, bool), KernelError>) -> Result<Seen, KernelError> {
    let mut repeated = 0;
    loop {
        let (observed, interrupted) = dump()?;
        if !interrupted || repeated == DUMPS_MAX {
            return Ok(Seen {
                observed,
                whole: !interrupted,
                repeated,
            });
        }
        repeated += 1;
    }
}

fn all_links(netlink: &mut Netlink, observed: &mut Observed) -> Result<bool, KernelError> {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut interrupted = netlink.dump(RouteNetlinkMessage::GetLink(request), &mut |kind, payload| {
        if kind == RTM_NEWLINK
            && let Some(link) = link(payload)
        {
            observed.links.insert(link.name.clone(), link);
        }
    })?;
    interrupted |= vlans(netlink, observed)?;
    Ok(interrupted)
}

fn once(netlink: &mut Netlink) -> Result<(Observed, bool), KernelError> {
    let mut observed = Observed::default();
    let mut interrupted = all_links(netlink, &mut observed)?;
    let names: BTreeMap<u32, String> = observed
        .links
        .values()
        .map(|link| (link.index, link.name.clone()))
        .collect();
    for bridge in bridges_with_taps(&observed) {
        interrupted |= fdb(netlink, bridge, &names, &mut observed)?;
    }
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Unspec;
    interrupted |= netlink.dump(RouteNetlinkMessage::GetAddress(request), &mut |kind, payload| {
        if kind == RTM_NEWADDR
            && let Some((index, address)) = address(payload)
            && let Some(link) = names.get(&index).and_then(|name| observed.links.get_mut(name))
        {
            link.addresses.insert(address);
        }
    })?;
    Ok((observed, interrupted))
}

/// The bridges that filter VLANs.
fn filtering(observed: &Observed) -> Vec<u32> {
    let filters = |link: &&Link| {
        matches!(
            link.kind,
            LinkKind::Bridge {
                vlan_filtering: true,
                ..
            }
        )
    };
    observed
        .links
        .values()
        .filter(filters)
        .map(|link| link.index)
        .collect()
}

/// The bridges that have a tap as port: only there are entries of ours.
fn bridges_with_taps(observed: &Observed) -> Vec<u32> {
    let taps = observed
        .links
        .values()
        .filter(|link| matches!(link.kind, LinkKind::Tap { .. }));
    let mut bridges: Vec<u32> = taps.filter_map(|link| link.master).collect();
    bridges.sort_unstable();
    bridges.dedup();
    bridges
}

/// VLANs of the ports of bridges that filter them; others have some nevertheless, which mean nothing.
fn vlans(netlink: &mut Netlink, observed: &mut Observed) -> Result<bool, KernelError> {
    let bridges = filtering(observed);
    if bridges.is_empty() {
        return Ok(false);
    }
    let mut request = LinkMessage::default();
    request.header.interface_family = AddressFamily::Bridge;
    request
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::BrvlanCompressed]));
    let mut vlans = BTreeMap::new();
    let interrupted = netlink.dump(RouteNetlinkMessage::GetLink(request), &mut |kind, payload| {
        vlans_of(kind, payload, &mut vlans);
    })?;
    for link in observed.links.values_mut() {
        if link.master.is_some_and(|master| bridges.contains(&master)) || bridges.contains(&link.index) {
            link.vlans = vlans.remove(&link.index).unwrap_or_default();
        }
    }
    Ok(interrupted)
}

fn fdb(
    netlink: &mut Netlink,
    bridge: u32,
    names: &BTreeMap<u32, String>,
    observed: &mut Observed,
) -> Result<bool, KernelError> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    request.attributes.push(NeighbourAttribute::Controller(bridge));
    netlink.dump(
        RouteNetlinkMessage::GetNeighbour(request),
        &mut |kind, payload| {
            if kind == RTM_NEWNEIGH
                && let Some((index, entry)) = fdb_entry(payload)
                && let Some(link) = names.get(&index).and_then(|name| observed.links.get_mut(name))
            {
                link.fdb.extend([entry]);
            }
        },
    )
}

/// The value of the first attribute of a kind.
fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

fn short(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn byte(bytes: &[u8]) -> Option<bool> {
    bytes.first().map(|byte| *byte != 0)
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    Some(Mac(bytes.try_into().ok()?))
}

/// A link, of the bytes after the header of netlink: `ifinfomsg`, attributes.
pub(crate) fn link(payload: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: number(payload.get(4..8))?,
        name: String::new(),
        kind: LinkKind::Other(String::new()),
        group: 0,
        alias: None,
        altnames: Vec::new(),
        mac: None,
        mtu: 0,
        up: number(payload.get(8..12))? & IFF_UP != 0,
        carrier: false,
        master: None,
        port: None,
        vlans: Vec::new(),
        fdb: Default::default(),
        addresses: Default::default(),
    };
    let mut on = None;
    let mut info = None;
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = mac(value),
            IFLA_MTU => link.mtu = number(Some(value)).unwrap_or_default(),
            IFLA_LINK => on = number(Some(value)),
            IFLA_MASTER => link.master = number(Some(value)),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_GROUP => link.group = number(Some(value)).unwrap_or_default(),
            IFLA_CARRIER => link.carrier = byte(value).unwrap_or_default(),
            IFLA_PROP_LIST => {
                let names = attributes(value).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
                link.altnames = names.map(|(_, name)| text(name)).collect();
            }
            IFLA_LINKINFO => info = Some(value),
            _ => {}
        }
    }
    if let Some(info) = info {
        (link.kind, link.port) = link_info(info, on);
    }
    (!link.name.is_empty()).then_some(link)
}

/// What a link is, and how it is set as a bridge's port.
fn link_info(info: &[u8], on: Option<u32>) -> (LinkKind, Option<PortFlags>) {
    let (mut kind, mut master) = (String::new(), String::new());
    let (mut data, mut port): (&[u8], &[u8]) = (&[], &[]);
    for (number, value) in attributes(info) {
        match number {
            IFLA_INFO_KIND => kind = text(value),
            IFLA_INFO_DATA => data = value,
            IFLA_INFO_SLAVE_KIND => master = text(value),
            IFLA_INFO_SLAVE_DATA => port = value,
            _ => {}
        }
    }
    let kind = match kind.as_str() {
        "tun" => tap(data),
        "bridge" => LinkKind::Bridge {
            vlan_filtering: attribute(data, IFLA_BR_VLAN_FILTERING)
                .and_then(byte)
                .unwrap_or_default(),
            default_pvid: attribute(data, IFLA_BR_VLAN_DEFAULT_PVID)
                .and_then(short)
                .and_then(|vid| Vid::new(u32::from(vid))),
        },
        "vlan" => LinkKind::Vlan {
            parent: on.unwrap_or_default(),
            vid: attribute(data, IFLA_VLAN_ID).and_then(short).unwrap_or_default(),
        },
        _ => LinkKind::Other(kind),
    };
    (kind, (master == "bridge").then(|| port_flags(port)))
}

fn tap(data: &[u8]) -> LinkKind {
    let (mut uid, mut is_tap, mut persistent, mut multi_queue) = (None, false, false, false);
    for (kind, value) in attributes(data) {
        match kind {
            IFLA_TUN_OWNER => uid = number(Some(value)),
            IFLA_TUN_TYPE => is_tap = value.first() == Some(&IFF_TAP),
            IFLA_TUN_PERSIST => persistent = byte(value).unwrap_or_default(),
            IFLA_TUN_MULTI_QUEUE => multi_queue = byte(value).unwrap_or_default(),
            _ => {}
        }
    }
    if is_tap {
        LinkKind::Tap {
            uid,
            multi_queue,
            persistent,
        }
    } else {
        LinkKind::Other("tun".to_owned())
    }
}

fn port_flags(data: &[u8]) -> PortFlags {
    let flag = |kind| attribute(data, kind).and_then(byte).unwrap_or_default();
    PortFlags {
        isolated: flag(IFLA_BRPORT_ISOLATED),
        learning: flag(IFLA_BRPORT_LEARNING),
        unicast_flood: flag(IFLA_BRPORT_UNICAST_FLOOD),
        multicast_flood: flag(IFLA_BRPORT_MCAST_FLOOD),
        broadcast_flood: flag(IFLA_BRPORT_BCAST_FLOOD),
        bpdu_guard: flag(IFLA_BRPORT_GUARD),
    }
}

/// The VLANs that a message tells of; neighbours with the same flags come as a beginning and an end.
fn vlans_of(kind: u16, payload: &[u8], vlans: &mut BTreeMap<u32, Vec<PortVlan>>) {
    let Some(index) = number(payload.get(4..8)).filter(|_| kind == RTM_NEWLINK) else {
        return;
    };
    let mut begin = None;
    let specific = attribute(payload.get(16..).unwrap_or_default(), IFLA_AF_SPEC).unwrap_or_default();
    for (_, info) in attributes(specific).filter(|(kind, _)| *kind == IFLA_BRIDGE_VLAN_INFO) {
        let (Some(flags), Some(vid)) = (info.get(..2).and_then(short), info.get(2..).and_then(short)) else {
            continue;
        };
        if flags & BRIDGE_VLAN_INFO_RANGE_BEGIN != 0 {
            begin = Some(vid);
            continue;
        }
        let first = begin.take().filter(|_| flags & BRIDGE_VLAN_INFO_RANGE_END != 0);
        let all = (first.unwrap_or(vid)..=vid).filter_map(|vid| Vid::new(u32::from(vid)));
        vlans.entry(index).or_default().extend(all.map(|vid| PortVlan {
            vid,
            pvid: flags & BRIDGE_VLAN_INFO_PVID != 0,
            untagged: flags & BRIDGE_VLAN_INFO_UNTAGGED != 0,
        }));
    }
}

/// An address in a VLAN, and whether it is sticky.
type Entry = ((Mac, Option<Vid>), bool);

/// A static entry of a forwarding table, and whether it is sticky: `ndmsg`, attributes.
fn fdb_entry(payload: &[u8]) -> Option<(u32, Entry)> {
    let index = number(payload.get(4..8))?;
    let sticky = payload.get(10)? & NTF_STICKY != 0;
    if payload.get(8..10).and_then(short)? & NUD_NOARP == 0 {
        return None;
    }
    let (mut address, mut vid) = (None, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            NDA_LLADDR => address = mac(value),
            NDA_VLAN => vid = Vid::new(u32::from(short(value)?)),
            _ => {}
        }
    }
    Some((index, ((address?, vid), sticky)))
}

/// An address: `ifaddrmsg`, attributes. Of a point-to-point link `IFA_LOCAL` is the own one.
fn address(payload: &[u8]) -> Option<(u32, IpNet)> {
    let prefix = *payload.get(1)?;
    let index = number(payload.get(4..8))?;
    let (mut own, mut other) = (None, None);
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            IFA_LOCAL => own = ip(value),
            IFA_ADDRESS => other = ip(value),
            _ => {}
        }
    }
    Some((index, IpNet::new(own.or(other)?, prefix).ok()?))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
