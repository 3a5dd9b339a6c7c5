//! Which addresses does a network have?

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::{Ipv4, Ipv6};
use steppe_config::{Problems, Table, quoted};

const IPV4: &[&str] = &["subnet", "gateway", "pool"];
const IPV6: &[&str] = &["prefix", "gateway"];
/// The longest and the shortest prefix of a subnet: below are too few addresses, above nobody has that many.
const PREFIX_LENGTHS: RangeInclusive<u8> = 8..=30;

pub(super) fn ipv4(table: &Table<'_, '_>, nat: bool, problems: &mut Problems) -> Option<Ipv4> {
    table.refuse_unknown(&format!("keys of {}", table.path), IPV4, problems);
    let Some((subnet, at)) = table.text("subnet", problems) else {
        if table.place("subnet").is_none() {
            problems.add(
                table.at,
                format!("{} has no subnet; give one, such as \"10.1.0.0/16\"", table.path),
            );
        }
        return None;
    };
    let key = table.key("subnet");
    let Ok(subnet) = Ipv4Net::from_str(subnet) else {
        problems.add(
            at,
            format!(
                "{key} is {}; give a subnet such as \"10.1.0.0/16\"",
                quoted(subnet)
            ),
        );
        return None;
    };
    let first = subnet.network();
    if !PREFIX_LENGTHS.contains(&subnet.prefix_len()) {
        let (least, most) = (PREFIX_LENGTHS.start(), PREFIX_LENGTHS.end());
        problems.add(
            at,
            format!("{key} is {subnet}; the prefix length of a subnet of machines is {least} to {most}"),
        );
        return None;
    }
    if subnet.addr() != first {
        problems.add(
            at,
            format!(
                "{key} is {subnet}, which is an address in a subnet; the subnet is {}",
                subnet.trunc()
            ),
        );
        return None;
    }
    if first.octets()[0] == 0 || first.is_loopback() || first.octets()[0] >= 224 {
        problems.add(
            at,
            format!("{key} is {subnet}, which no machine can have; give another subnet"),
        );
        return None;
    }
    let hosts = next(first)..=previous(subnet.broadcast());
    let inside = |address: Ipv4Addr| hosts.contains(&address);
    let mut gateway = nat.then_some(*hosts.start());
    if let Some((text, at)) = table.text("gateway", problems) {
        match Ipv4Addr::from_str(text) {
            Ok(address) if inside(address) => gateway = Some(address),
            Ok(address) => problems.add(
                at,
                format!(
                    "{} is {address}; give an address of {subnet}, from {} to {}",
                    table.key("gateway"),
                    hosts.start(),
                    hosts.end()
                ),
            ),
            Err(_) => problems.add(
                at,
                format!(
                    "{} is {}; give an IPv4 address",
                    table.key("gateway"),
                    quoted(text)
                ),
            ),
        }
    }
    // Where the gateway has the first address, as it mostly does, the pool begins behind it.
    let start = if gateway == Some(*hosts.start()) {
        next(*hosts.start())
    } else {
        *hosts.start()
    };
    let mut pool = start..=*hosts.end();
    if let Some((text, at)) = table.text("pool", problems) {
        let ends = text.split_once('-').and_then(|(first, last)| {
            let first = Ipv4Addr::from_str(first.trim()).ok()?;
            Some((first, Ipv4Addr::from_str(last.trim()).ok()?))
        });
        let key = table.key("pool");
        match ends {
            Some((first, last)) if first <= last && inside(first) && inside(last) => pool = first..=last,
            Some((first, last)) if first > last => {
                problems.add(
                    at,
                    format!("{key} ends before it begins: give \"{last}-{first}\""),
                );
            }
            Some(_) => problems.add(
                at,
                format!(
                    "{key} is {}, which is not within {subnet}: give addresses from {} to {}",
                    quoted(text),
                    hosts.start(),
                    hosts.end()
                ),
            ),
            None => problems.add(
                at,
                format!(
                    "{key} is {}; give two addresses such as \"10.1.1.0-10.1.1.255\"",
                    quoted(text)
                ),
            ),
        }
    }
    Some(Ipv4 {
        subnet,
        gateway,
        pool,
    })
}

pub(super) fn ipv6(table: &Table<'_, '_>, problems: &mut Problems) -> Option<Ipv6> {
    table.refuse_unknown(&format!("keys of {}", table.path), IPV6, problems);
    let Some((text, at)) = table.text("prefix", problems) else {
        if table.place("prefix").is_none() {
            problems.add(
                table.at,
                format!("{} has no prefix; give one, such as \"fd00:1::/64\"", table.path),
            );
        }
        return None;
    };
    let key = table.key("prefix");
    let prefix = Ipv6Net::from_str(text).ok().filter(|prefix| {
        let first = prefix.network();
        prefix.prefix_len() == 64
            && prefix.addr() == first
            && !first.is_multicast()
            && !first.is_unicast_link_local()
            && u128::from(first) >> 64 != 0
    });
    let Some(prefix) = prefix else {
        problems.add(
            at,
            format!(
                "{key} is {}; give a prefix of 64 bits, such as \"fd00:1::/64\"",
                quoted(text)
            ),
        );
        return None;
    };
    let mut gateway = None;
    if let Some((text, at)) = table.text("gateway", problems) {
        match Ipv6Addr::from_str(text) {
            Ok(address)
                if address.is_unicast_link_local()
                    || (prefix.contains(&address) && address != prefix.network()) =>
            {
                gateway = Some(address);
            }
            _ => problems.add(
                at,
                format!(
                    "{} is {}; give an address of {prefix} or of fe80::/10",
                    table.key("gateway"),
                    quoted(text)
                ),
            ),
        }
    }
    Some(Ipv6 { prefix, gateway })
}

fn next(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address).saturating_add(1))
}

fn previous(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address).saturating_sub(1))
}
