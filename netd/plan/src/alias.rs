//! How is an attachment written on its tap, and read back?
//!
//! The alias says who, where and with which addresses; further names say whose the tap is, for people and other
//! programs, and which ports of the host lead to it. What is read back may have been written by anybody with power
//! over the network: only what this release would write itself is believed.

use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use steppe_config::quoted;

use crate::attachment::{FORWARDS_MAX, NICS_MAX, QUEUES_MAX};
use crate::config::MTU;
use crate::name::{owner_altname, port_altname, tap_name};
use crate::{Attachment, Forward, LinkName, Mac, Mark, Mode, NetworkName, Owner, Protocol, Vid, Vids};

/// Longest alias that the kernel takes.
pub const ALIAS_MAX: usize = 255;

/// Longest text of a trunk port's VLANs: with all else at its longest, the alias has 248 bytes.
pub const TRUNK_TEXT_MAX: usize = 40;

/// First field of each alias of ours, with the version of what follows.
const VERSION: &str = "netd1";

/// What stands for nothing.
const NONE: &str = "-";

/// The alias of an attachment's tap.
#[must_use]
pub fn alias(attachment: &Attachment) -> String {
    let Attachment {
        owner,
        index,
        network,
        mark,
        mac,
        uid,
        queues,
        mtu,
        ..
    } = attachment;
    let mode = match &attachment.mode {
        Mode::Plain => NONE.to_owned(),
        Mode::Access(vid) => format!("a{vid}"),
        Mode::Trunk(vids) => format!("t{vids}"),
    };
    let ipv4 = attachment
        .ipv4
        .map_or_else(|| NONE.to_owned(), |net| net.to_string());
    let ipv6 = attachment
        .ipv6
        .map_or_else(|| NONE.to_owned(), |net| net.to_string());
    let (instance, id) = (owner.instance(), owner.id());
    format!(
        "{VERSION}|{instance}|{id}|{index}|{network}|{mode}|{mark}|{mac}|{ipv4}|{ipv6}|{uid}|{queues}|{mtu}"
    )
}

/// The further names of an attachment's tap: its owner's, and one for each forwarded port.
#[must_use]
pub fn altnames(attachment: &Attachment) -> Vec<String> {
    let mut names = vec![owner_altname(&attachment.owner, attachment.index)];
    names.extend(port_altnames(attachment));
    names
}

/// Those of the forwarded ports: others want them as soon as the tap is out of the way.
pub(crate) fn port_altnames(attachment: &Attachment) -> impl Iterator<Item = String> + '_ {
    attachment.forwards.iter().map(port_altname)
}

/// The alias of a bridge or VLAN of ours that was made for a network; of a bridge, with the link of the operator's that is made
/// its port.
#[must_use]
pub fn network_alias(network: &NetworkName, uplink: Option<&str>) -> String {
    match uplink {
        Some(uplink) => format!("{VERSION}|network|{network}|{uplink}"),
        None => format!("{VERSION}|network|{network}"),
    }
}

/// The uplink that a bridge's alias names. Of an alias in which anybody wrote it may be the name of any link.
pub(crate) fn uplink_of_alias<'a>(network: &NetworkName, alias: &'a str) -> Option<&'a str> {
    let rest = alias.strip_prefix(&network_alias(network, None))?;
    rest.strip_prefix('|').filter(|uplink| !uplink.is_empty())
}

/// The attachment that a tap's alias and further names tell of.
///
/// # Errors
///
/// Why they tell of none.
pub fn parse(tap: &LinkName, alias: &str, altnames: &[String]) -> Result<Attachment, String> {
    if alias.len() > ALIAS_MAX {
        return Err(format!("its alias has {} bytes", alias.len()));
    }
    let fields: Vec<&str> = alias.split('|').collect();
    if fields.first() != Some(&VERSION) {
        return Err(format!("its alias is {}, not one of {VERSION}", quoted(alias)));
    }
    let &[
        _,
        instance,
        id,
        index,
        network,
        mode,
        mark,
        mac,
        ipv4,
        ipv6,
        uid,
        queues,
        mtu,
    ] = fields.as_slice()
    else {
        return Err(format!("its alias has {} fields instead of 13", fields.len()));
    };
    let mut attachment = Attachment {
        owner: Owner::new(instance, id).map_err(|refusal| format!("in its alias, {refusal}"))?,
        index: field("index", index, |text| number(text, 0, NICS_MAX - 1))?,
        network: field("network", network, |text| text.parse().ok())?,
        mode: field("mode", mode, parse_mode)?,
        mark: field("mark", mark, |text| u64::from_str_radix(text, 16).ok().map(Mark))?,
        tap: tap.clone(),
        uid: field("uid", uid, |text| number(text, 1, u32::MAX - 1))?,
        queues: field("queues", queues, |text| number(text, 1, QUEUES_MAX))?,
        mac: field("MAC", mac, |text| {
            text.parse().ok().filter(|mac: &Mac| mac.is_local_unicast())
        })?,
        ipv4: field("IPv4 address", ipv4, |text| or_none(text, parse_ipv4))?,
        ipv6: field("IPv6 address", ipv6, |text| or_none(text, parse_ipv6))?,
        mtu: field("MTU", mtu, |text| number(text, *MTU.start(), *MTU.end()))?,
        forwards: Vec::new(),
    };
    if tap_name(&attachment.owner, attachment.index) != *tap {
        return Err(format!(
            "its alias is that of another tap, of {}",
            attachment.owner
        ));
    }
    // One text for one attachment: no signs, zeros in front, capitals, or ranges in another order.
    if self::alias(&attachment) != alias {
        return Err(format!("its alias is {}, not as netd writes it", quoted(alias)));
    }
    let computed = |net: Ipv6Net| attachment.mac.eui64(net.network());
    if attachment.ipv6.is_some_and(|net| net.addr() != computed(net)) {
        return Err("the IPv6 address in its alias is not that of its MAC".to_owned());
    }
    attachment.forwards = altnames.iter().filter_map(|name| parse_port(name)).collect();
    attachment.forwards.sort_unstable();
    if attachment.forwards.len() > FORWARDS_MAX {
        return Err(format!("{} ports lead to it", attachment.forwards.len()));
    }
    Ok(attachment)
}

/// The forwarded port that a further name tells of.
fn parse_port(altname: &str) -> Option<Forward> {
    let mut parts = altname.strip_prefix("ndp.")?.split('.');
    let protocol = match parts.next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let host_ip = Ipv4Addr::from(u32::from_str_radix(parts.next()?, 16).ok()?);
    let (host_port, guest_port) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let forward = Forward::new("port", protocol, host_ip, host_port, guest_port).ok()?;
    (port_altname(&forward) == altname).then_some(forward)
}

/// A field, or a sentence of what it is.
fn field<T>(what: &str, text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, String> {
    parse(text).ok_or_else(|| format!("the {what} in its alias is {}", quoted(text)))
}

fn number(text: &str, least: u32, most: u32) -> Option<u32> {
    text.parse().ok().filter(|number| (least..=most).contains(number))
}

fn or_none<T>(text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if text == NONE {
        Some(None)
    } else {
        parse(text).map(Some)
    }
}

fn parse_mode(text: &str) -> Option<Mode> {
    if text == NONE {
        return Some(Mode::Plain);
    }
    if let Some(vid) = text.strip_prefix('a') {
        return Vid::new(vid.parse().ok()?).map(Mode::Access);
    }
    let vids = text
        .strip_prefix('t')
        .filter(|vids| vids.len() <= TRUNK_TEXT_MAX)?;
    Vids::from_str(vids).ok().map(Mode::Trunk)
}

/// An address of a machine in its subnet.
fn parse_ipv4(text: &str) -> Option<Ipv4Net> {
    text.parse().ok().filter(|net: &Ipv4Net| {
        let address = net.addr();
        let first = address.octets()[0];
        (1..=223).contains(&first)
            && !address.is_loopback()
            && (8..=30).contains(&net.prefix_len())
            && address != net.network()
            && address != net.broadcast()
    })
}

fn parse_ipv6(text: &str) -> Option<Ipv6Net> {
    text.parse()
        .ok()
        .filter(|net: &Ipv6Net| net.prefix_len() == 64 && !net.addr().is_multicast())
}

#[cfg(test)]
mod tests;
