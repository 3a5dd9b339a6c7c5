//! What can this kernel do?
//!
//! It is asked for links that can't be made, because `/` is in no link's name; what it objects to tells what it knows. Nothing
//! is made, not even for a moment, and modules that can be loaded on demand are.

use netd_plan::Kernel;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rustix::io::Errno;

use crate::netlink::Netlink;

// Numbers of linux/if_link.h and linux/if_ether.h.
const IFLA_BR_VLAN_PROTOCOL: u16 = 8;
const ETH_P_IP: u16 = 0x0800;

/// Looks.
#[must_use]
pub fn look(netlink: &mut Netlink) -> Kernel {
    // A kernel without VLANs knows no such kind of link; any other misses the VLAN's number.
    let vlan = refusal(netlink, vec![LinkInfo::Kind(InfoKind::Vlan)]);
    // A kernel that filters no VLANs on bridges doesn't look at the protocol of their tags; any other knows no VLANs of IPv4.
    let odd = InfoBridge::Other(DefaultNla::new(
        IFLA_BR_VLAN_PROTOCOL,
        ETH_P_IP.to_be_bytes().to_vec(),
    ));
    let bridge = refusal(
        netlink,
        vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![odd])),
        ],
    );
    Kernel {
        vlan: vlan != Some(Errno::OPNOTSUPP),
        vlan_filtering: bridge == Some(Errno::PROTONOSUPPORT),
    }
}

fn refusal(netlink: &mut Netlink, info: Vec<LinkInfo>) -> Option<Errno> {
    let mut message = LinkMessage::default();
    message.attributes.extend([
        LinkAttribute::IfName("nd/none".to_owned()),
        LinkAttribute::LinkInfo(info),
    ]);
    let made = netlink.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
    made.err().map(|error| error.errno)
}
