//! What went through the taps, and what did the filter drop?
//!
//! Only for metrics: nothing is decided by it.

use std::collections::BTreeMap;

use netlink_packet_core::NetlinkSerializable;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;

use crate::netlink::{KernelError, Netlink, attributes, text};

// Numbers of linux/if_link.h, linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
const RTM_NEWLINK: u16 = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_STATS64: u16 = 23;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWOBJ: u16 = 18;
const NFT_MSG_GETOBJ: u16 = 19;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_COUNTER_PACKETS: u16 = 2;
/// `struct ifinfomsg`.
const HEADER: usize = 16;
/// `struct nfgenmsg`.
const GENERIC_HEADER: usize = 4;
/// Family bridge, version 0, no resource; then the attribute that names the table, `NFTA_OBJ_TABLE`.
const ASK: [u8; 16] = {
    let ([l0, l1], [k0, k1]) = (9_u16.to_ne_bytes(), 1_u16.to_ne_bytes());
    [7, 0, 0, 0, l0, l1, k0, k1, b'n', b'e', b't', b'd', 0, 0, 0, 0]
};

/// What went through a tap. A tap receives what its guest sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes that the guest sent.
    pub guest_sent_bytes: u64,
    /// Packets that the guest sent.
    pub guest_sent_packets: u64,
    /// Packets of the guest that were dropped.
    pub guest_sent_dropped: u64,
    /// Bytes for the guest.
    pub guest_received_bytes: u64,
    /// Packets for the guest.
    pub guest_received_packets: u64,
    /// Packets for the guest that were dropped.
    pub guest_received_dropped: u64,
}

/// What went through taps of ours, by name. A dump that was disturbed misses some, this time.
///
/// # Errors
///
/// When the kernel does not answer.
pub fn of_taps(netlink: &mut Netlink) -> Result<BTreeMap<String, Stats>, KernelError> {
    let mut stats = BTreeMap::new();
    let _disturbed = netlink.dump(
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        &mut |kind, payload| {
            let link = payload.get(HEADER..).unwrap_or_default();
            if kind == RTM_NEWLINK
                && let Some((name, counted)) = tap(link)
            {
                stats.insert(name, counted);
            }
        },
    )?;
    Ok(stats)
}

fn tap(link: &[u8]) -> Option<(String, Stats)> {
    let find = |wanted: u16| {
        let mut all = attributes(link);
        all.find_map(|(kind, value)| (kind == wanted).then_some(value))
    };
    let name = text(find(IFLA_IFNAME)?);
    if !name.starts_with(netd_plan::name::TAP) {
        return None;
    }
    let counted = find(IFLA_STATS64)?;
    // `struct rtnl_link_stats64`: numbers of eight bytes.
    let number = |index: usize| {
        let bytes = counted.get(index * 8..index * 8 + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let stats = Stats {
        guest_sent_packets: number(0)?,
        guest_received_packets: number(1)?,
        guest_sent_bytes: number(2)?,
        guest_received_bytes: number(3)?,
        guest_sent_dropped: number(6)?,
        guest_received_dropped: number(7)?,
    };
    Some((name, stats))
}

/// Frames that the filter dropped, by reason. libnftables would read every rule for that.
///
/// # Errors
///
/// When the kernel does not answer.
pub fn of_filter(netlink: &mut Netlink) -> Result<BTreeMap<String, u64>, KernelError> {
    let mut drops = BTreeMap::new();
    let _disturbed = netlink.dump(Counters, &mut |kind, payload| {
        if kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWOBJ
            && let Some((reason, frames)) = drop_counter(payload.get(GENERIC_HEADER..).unwrap_or_default())
        {
            drops.insert(reason, frames);
        }
    })?;
    Ok(drops)
}

/// Asks for the counters of the table in which frames are dropped.
struct Counters;

impl NetlinkSerializable for Counters {
    fn message_type(&self) -> u16 {
        NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETOBJ
    }

    fn buffer_len(&self) -> usize {
        ASK.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&ASK);
    }
}

/// The reason of a counter for which frames are dropped, and its number of frames.
fn drop_counter(object: &[u8]) -> Option<(String, u64)> {
    let find = |within: &'_ [u8], wanted: u16| {
        let mut all = attributes(within);
        all.find_map(|(kind, value)| (kind == wanted).then(|| value.to_vec()))
    };
    let name = text(&find(object, NFTA_OBJ_NAME)?);
    let reason = name.strip_prefix("drop_")?;
    let frames = find(&find(object, NFTA_OBJ_DATA)?, NFTA_COUNTER_PACKETS)?;
    Some((reason.to_owned(), u64::from_be_bytes(frames.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn counters_are_read_and_the_rest_passed_over() {
        let data = attribute(NFTA_COUNTER_PACKETS, &3_u64.to_be_bytes());
        let counter = |name: &[u8], data: &[u8]| {
            let parts = [
                attribute(1, b"netd\0"),
                attribute(NFTA_OBJ_NAME, name),
                attribute(NFTA_OBJ_DATA, data),
            ];
            drop_counter(&parts.concat())
        };
        assert_eq!(counter(b"drop_mac\0", &data), Some(("mac".to_owned(), 3)));
        assert_eq!(counter(b"other\0", &data), None);
        assert_eq!(counter(b"drop_mac\0", &data[..6]), None);
        assert_eq!(drop_counter(&[]), None);
    }
}
