//! How are messages about links, ports, addresses and forwarding entries put together?

use ipnet::IpNet;
use netd_plan::{Link, LinkKind, Mac, PortFlags, Vid, Vids};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecBridge, AfSpecInet6, AfSpecUnspec, BridgeVlanInfo, BridgeVlanInfoFlags, In6AddrGenMode, InfoBridge,
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, Prop,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;

use super::{Cause, Hands};
use crate::netlink::{KernelError, Netlink};
use crate::observe;

impl Hands {
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Cause> {
        Ok(self.netlink.request(message, flags)?)
    }

    /// What is so already is as good: then the kernel says one of these errors.
    fn ask_or(&mut self, message: RouteNetlinkMessage, flags: u16, as_good: &[Errno]) -> Result<(), Cause> {
        let done = self.netlink.request(message, flags);
        Ok(done.or_else(|error| passed_over(error, as_good))?)
    }

    fn set(&mut self, name: &str, attributes: impl IntoIterator<Item = LinkAttribute>) -> Result<(), Cause> {
        let mut message = named(name);
        message.attributes.extend(attributes);
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    pub(super) fn set_alias(&mut self, name: &str, alias: &str) -> Result<(), Cause> {
        self.set(name, [LinkAttribute::IfAlias(alias.to_owned())])
    }

    /// Only a change counts as set.
    pub(super) fn pin_mtu(&mut self, name: &str, mtu: u32) -> Result<(), Cause> {
        let other = if mtu > 1280 { mtu - 1 } else { mtu + 1 };
        self.set(name, [LinkAttribute::Mtu(other)])?;
        self.set(name, [LinkAttribute::Mtu(mtu)])
    }

    pub(super) fn set_link(&mut self, name: &str, mac: Mac, mtu: u32, group: u32) -> Result<(), Cause> {
        let own = [
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(group),
        ];
        self.without_ipv6(name, &own)
    }

    /// A tap's ARP is its bridge's: the host itself answers nothing that a machine asks there.
    pub(super) fn up(&mut self, name: &str) -> Result<(), Cause> {
        let mut message = named(name);
        let own = if name.starts_with(netd_plan::name::TAP) {
            LinkFlags::Up | LinkFlags::Noarp
        } else {
            LinkFlags::Up
        };
        message.header.flags = own;
        message.header.change_mask = own;
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sets properties, and that the kernel gives the link no IPv6 address; a kernel without IPv6 gives none anyway.
    fn without_ipv6(&mut self, name: &str, attributes: &[LinkAttribute]) -> Result<(), Cause> {
        let none = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]);
        let all = attributes.iter().cloned().chain([none]);
        match self.set(name, all) {
            Err(cause) if cause.errno() == Some(Errno::AFNOSUPPORT) => {
                self.set(name, attributes.iter().cloned())
            }
            done => done,
        }
    }

    pub(super) fn index(&self, name: &str) -> Result<u32, Errno> {
        name_to_index(self.netlink.socket(), name)
    }

    /// Whether a link of that name is of ours and of that kind.
    fn is_ours(&mut self, name: &str, kind: impl Fn(&LinkKind) -> bool) -> Result<bool, KernelError> {
        let link = observe::one(&mut self.netlink, name)?;
        Ok(link.is_some_and(|link| link.name == name && link.group == self.group && kind(&link.kind)))
    }

    pub(super) fn make_bridge(
        &mut self,
        name: &str,
        mac: Mac,
        mtu: u32,
        filtering: bool,
        group: u32,
    ) -> Result<(), Cause> {
        // Snooping without a querier loses neighbour discovery.
        let mut settings = vec![InfoBridge::MulticastSnooping(false)];
        if filtering {
            settings.extend([InfoBridge::VlanFiltering(true), InfoBridge::VlanDefaultPvid(0)]);
        }
        let mut message = named(name);
        message.attributes.extend([
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(group),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(settings)),
            ]),
        ]);
        let made = self
            .netlink
            .request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
        let bridge = |kind: &LinkKind| matches!(kind, LinkKind::Bridge { vlan_filtering, .. } if *vlan_filtering == filtering);
        match made {
            Ok(()) => {}
            Err(error) if error.errno != Errno::EXIST => return Err(error.into()),
            Err(_) if self.is_ours(name, bridge)? => {}
            Err(_) => return Err(Cause::Foreign(name.to_owned())),
        }
        self.without_ipv6(name, &[])
    }

    pub(super) fn make_vlan(
        &mut self,
        name: &str,
        parent: &str,
        vid: Vid,
        master: &str,
        mtu: u32,
        group: u32,
    ) -> Result<(), Cause> {
        let parent = self.index(parent)?;
        let mut message = named(name);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.extend([
            LinkAttribute::Link(parent),
            LinkAttribute::Controller(self.index(master)?),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(group),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(vid.get())])),
            ]),
        ]);
        let made = self
            .netlink
            .request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
        let same = LinkKind::Vlan {
            parent,
            vid: vid.get(),
        };
        match made {
            Ok(()) => Ok(()),
            Err(error) if error.errno != Errno::EXIST => Err(error.into()),
            Err(_) if self.is_ours(name, |kind| *kind == same)? => Ok(()),
            Err(_) => Err(Cause::Foreign(name.to_owned())),
        }
    }

    pub(super) fn add_altname(&mut self, name: &str, altname: &str) -> Result<(), Cause> {
        let mut message = named(name);
        message
            .attributes
            .push(LinkAttribute::PropList(vec![Prop::AltIfName(altname.to_owned())]));
        let added = self.netlink.request(
            RouteNetlinkMessage::NewLinkProp(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        let Err(error) = added else {
            return Ok(());
        };
        let holder = observe::one(&mut self.netlink, altname)?;
        match holder {
            Some(holder) if error.errno == Errno::EXIST && holder.name == name => Ok(()),
            _ => Err(error.into()),
        }
    }

    pub(super) fn remove_altname(&mut self, name: &str, altname: &str) -> Result<(), Cause> {
        let mut message = named(name);
        message
            .attributes
            .push(LinkAttribute::PropList(vec![Prop::AltIfName(altname.to_owned())]));
        // The kernel calls a further name that the link doesn't have an invalid one.
        let as_good = [Errno::NODEV, Errno::NOENT, Errno::INVAL];
        self.ask_or(RouteNetlinkMessage::DelLinkProp(message), 0, &as_good)
    }

    pub(super) fn enslave(&mut self, name: &str, master: &str) -> Result<(), Cause> {
        let master = self.index(master)?;
        // The kernel would take it from another bridge without a word.
        let elsewhere = |link: Link| link.master.is_some_and(|other| other != master);
        let new = self.taps.keys().any(|tap| tap.as_str() == name);
        if !new && observe::one(&mut self.netlink, name)?.is_some_and(elsewhere) {
            return Err(Cause::Enslaved(name.to_owned()));
        }
        self.set(name, [LinkAttribute::Controller(master)])
    }

    pub(super) fn release(&mut self, name: &str, master: &str) -> Result<(), Cause> {
        let master = self.index(master)?;
        let there = |link: Link| link.master == Some(master);
        if observe::one(&mut self.netlink, name)?.is_some_and(there) {
            self.set(name, [LinkAttribute::Controller(0)])?;
        }
        Ok(())
    }

    pub(super) fn add_address(&mut self, name: &str, address: IpNet) -> Result<(), Cause> {
        let message = self.address(name, address)?;
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.ask_or(RouteNetlinkMessage::NewAddress(message), flags, &[Errno::EXIST])
    }

    pub(super) fn remove_address(&mut self, name: &str, address: IpNet) -> Result<(), Cause> {
        let message = self.address(name, address)?;
        self.ask_or(
            RouteNetlinkMessage::DelAddress(message),
            0,
            &[Errno::ADDRNOTAVAIL],
        )
    }

    fn address(&self, name: &str, address: IpNet) -> Result<AddressMessage, Errno> {
        let mut message = AddressMessage::default();
        message.header.family = match address {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        message.header.prefix_len = address.prefix_len();
        message.header.index = self.index(name)?;
        message.attributes = vec![
            AddressAttribute::Local(address.addr()),
            AddressAttribute::Address(address.addr()),
        ];
        Ok(message)
    }

    pub(super) fn set_port(&mut self, name: &str, flags: PortFlags) -> Result<(), Cause> {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::Isolated(flags.isolated),
                InfoBridgePort::Learning(flags.learning),
                InfoBridgePort::UnicastFlood(flags.unicast_flood),
                InfoBridgePort::MulticastFlood(flags.multicast_flood),
                InfoBridgePort::BroadcastFlood(flags.broadcast_flood),
                InfoBridgePort::Guard(flags.bpdu_guard),
            ])),
        ]));
        self.ask(RouteNetlinkMessage::NewLink(message), 0)
    }

    pub(super) fn add_port_vlans(&mut self, name: &str, vids: &Vids, untagged: bool) -> Result<(), Cause> {
        let message = self.port_vlans(name, vids, untagged)?;
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    pub(super) fn remove_port_vlans(&mut self, name: &str, vids: &Vids) -> Result<(), Cause> {
        let message = self.port_vlans(name, vids, false)?;
        self.ask_or(RouteNetlinkMessage::DelLink(message), 0, &[Errno::NOENT])
    }

    fn port_vlans(&self, name: &str, vids: &Vids, untagged: bool) -> Result<LinkMessage, Errno> {
        let mut flags = BridgeVlanInfoFlags::empty();
        flags.set(
            BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            untagged,
        );
        let info = |vid: Vid, more| {
            AfSpecBridge::VlanInfo(BridgeVlanInfo {
                flags: flags | more,
                vid: vid.get(),
            })
        };
        let mut infos = Vec::new();
        for &(first, last) in vids.ranges() {
            if first == last {
                infos.push(info(first, BridgeVlanInfoFlags::empty()));
            } else {
                infos.push(info(first, BridgeVlanInfoFlags::RangeBegin));
                infos.push(info(last, BridgeVlanInfoFlags::RangeEnd));
            }
        }
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.header.index = self.index(name)?;
        message.attributes.push(LinkAttribute::AfSpecBridge(infos));
        Ok(message)
    }

    pub(super) fn add_fdb(&mut self, name: &str, mac: Mac) -> Result<(), Cause> {
        let message = self.fdb(name, mac)?;
        // A learned entry that leads elsewhere is moved.
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewNeighbour(message), flags)
    }

    pub(super) fn remove_fdb(&mut self, name: &str, mac: Mac) -> Result<(), Cause> {
        let message = self.fdb(name, mac)?;
        self.ask_or(RouteNetlinkMessage::DelNeighbour(message), 0, &[Errno::NOENT])
    }

    fn fdb(&self, name: &str, mac: Mac) -> Result<NeighbourMessage, Errno> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.index(name)?;
        message.header.state = NeighbourState::Noarp;
        // Sticky: a frame with this address from elsewhere would move the entry there otherwise.
        message.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        Ok(message)
    }

    pub(super) fn trash(&mut self, name: &str, group: u32, altnames: &[String]) -> Result<(), Cause> {
        let mut message = named(name);
        message.header.change_mask = LinkFlags::Up;
        message
            .attributes
            .extend([LinkAttribute::Group(group), LinkAttribute::Controller(0)]);
        self.ask_or(RouteNetlinkMessage::SetLink(message), 0, &[Errno::NODEV])?;
        for altname in altnames {
            self.remove_altname(name, altname)?;
        }
        Ok(())
    }

    pub(super) fn delete_link(&mut self, name: &str) -> Result<(), Cause> {
        if !self.is_ours(name, |_| true)? {
            return Ok(());
        }
        Ok(delete_link(&mut self.netlink, name)?)
    }
}

/// Deletes one link; none is as good.
pub(crate) fn delete_link(netlink: &mut Netlink, name: &str) -> Result<(), KernelError> {
    let gone = netlink.request(RouteNetlinkMessage::DelLink(named(name)), 0);
    gone.or_else(|error| passed_over(error, &[Errno::NODEV]))
}

/// Deletes every link of a group in one message; none is as good.
pub(crate) fn delete_group(netlink: &mut Netlink, group: u32) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    let gone = netlink.request(RouteNetlinkMessage::DelLink(message), 0);
    gone.or_else(|error| passed_over(error, &[Errno::NODEV]))
}

/// What an error means that says nothing but that it is so already.
fn passed_over(error: KernelError, as_good: &[Errno]) -> Result<(), KernelError> {
    if as_good.contains(&error.errno) {
        Ok(())
    } else {
        Err(error)
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}
