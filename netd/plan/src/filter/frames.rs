//! Which frames does a port of a machine pass?
//!
//! Only those that are allowed by name. A rule that looks into a header matches nothing where the header is missing
//! (in a fragment, say): so a rule that lets pass says what it saw, and none says only what it did not see.

use super::Text;
use crate::{Attachment, LinkName, Mac, Mode, Vids};

/// Names of the counters of table `bridge netd`, one for each reason for which a frame is dropped: the source address
/// is not the machine's; a VLAN tag that the port doesn't have; a frame of IEEE 802.2 (LLC); wrong ARP; wrong IPv4;
/// wrong IPv6; neighbour discovery for others; router advertisements; redirects; what only a DHCP server sends; all
/// else.
const DROPS: [&str; 11] = [
    "drop_mac",
    "drop_tag",
    "drop_llc",
    "drop_arp",
    "drop_ipv4",
    "drop_ipv6",
    "drop_nd",
    "drop_ra",
    "drop_redirect",
    "drop_dhcp",
    "drop_other",
];

const SETS: &str = "	set types { type ether_type; elements = { arp, ip, ip6 } }
	set neighbour { type icmpv6_type; elements = { nd-neighbor-solicit, nd-neighbor-advert } }
	map ports { type ifname : verdict; }
";

/// What is the same for all machines. nft 1.0.6 merges two comparisons of neighbouring fields with `!=` into one with
/// another meaning, so no rule has two such.
const COMMON: &str = "	chain foreign_mac {
		counter name drop_mac drop
	}
	chain foreign_type {
		ether type { 8021q, 8021ad, 0x9100 } counter name drop_tag drop
		ether type < 0x600 counter name drop_llc drop
		counter name drop_other drop
	}
	chain check_arp {
		arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation { request, reply } accept
		counter name drop_arp drop
	}
	chain bad_ipv4 {
		icmp type redirect counter name drop_redirect drop
		icmp type router-advertisement counter name drop_ra drop
		udp sport 67 counter name drop_dhcp drop
		udp dport 68 counter name drop_dhcp drop
		counter name drop_ipv4 drop
	}
	chain check_ipv4 {
		meta l4proto tcp accept
		udp sport 67 goto bad_ipv4
		udp dport != 68 accept
		icmp type != { redirect, router-advertisement } accept
		meta l4proto != { udp, icmp } accept
		ip frag-off & 0x1fff != 0 accept
		goto bad_ipv4
	}
	chain bad_ipv6 {
		icmpv6 type nd-router-advert counter name drop_ra drop
		icmpv6 type nd-redirect counter name drop_redirect drop
		icmpv6 type @neighbour counter name drop_nd drop
		udp sport 547 counter name drop_dhcp drop
		udp dport 546 counter name drop_dhcp drop
		counter name drop_ipv6 drop
	}
	chain check_ipv6 {
		meta l4proto tcp accept
		udp sport 547 goto bad_ipv6
		udp dport != 546 accept
		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, echo-reply, \
mld-listener-report, mld-listener-done, nd-router-solicit, nd-neighbor-solicit, mld2-listener-report } accept
		meta l4proto != { udp, icmpv6 } accept
		frag frag-off != 0 accept
		goto bad_ipv6
	}
	chain rest {
		ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
		ip6 saddr :: icmpv6 type { nd-router-solicit, mld-listener-report, mld-listener-done, mld2-listener-report } accept
		ether type arp counter name drop_arp drop
		ether type ip goto bad_ipv4
		goto bad_ipv6
	}
	chain trunk_rest {
		vlan type arp counter name drop_arp drop
		vlan type { 8021q, 8021ad, 0x9100 } counter name drop_tag drop
		vlan type < 0x600 counter name drop_llc drop
		counter name drop_other drop
	}
";

/// Where frames come in: before anything else of the bridge looks at them.
const HOOK: &str = "	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		iifname vmap @ports
		iifname \"ndt*\" counter name drop_other drop
	}
";

pub(super) fn whole<'a>(text: &mut Text, attachments: impl Iterator<Item = &'a Attachment> + Clone) {
    text.line(format_args!("table bridge netd {{"));
    for name in DROPS {
        text.line(format_args!("\tcounter {name} {{ }}"));
    }
    text.lines(SETS);
    text.lines(COMMON);
    for attachment in attachments.clone() {
        chain(text, attachment);
    }
    text.lines(HOOK);
    text.line(format_args!("}}"));
    elements(text, "add", attachments.map(|attachment| &attachment.tap));
}

pub(super) fn add(text: &mut Text, new: &[Attachment]) {
    for Attachment { tap, .. } in new {
        text.line(format_args!("add chain bridge netd v_{tap}"));
        text.line(format_args!("flush chain bridge netd v_{tap}"));
    }
    text.line(format_args!("table bridge netd {{"));
    for attachment in new {
        chain(text, attachment);
    }
    text.line(format_args!("}}"));
    elements(text, "add", new.iter().map(|attachment| &attachment.tap));
}

pub(super) fn remove(text: &mut Text, gone: &[Attachment]) {
    let taps = || gone.iter().map(|attachment| &attachment.tap);
    elements(text, "delete", taps());
    for tap in taps() {
        text.line(format_args!("flush chain bridge netd v_{tap}"));
        text.line(format_args!("delete chain bridge netd v_{tap}"));
    }
}

/// The map's elements, many in one command: nft looks at the whole set for each command.
fn elements<'a>(text: &mut Text, verb: &str, mut taps: impl Iterator<Item = &'a LinkName>) {
    let Some(first) = taps.next() else {
        return;
    };
    text.lines(&format!(
        "{verb} element bridge netd ports {{ \"{first}\" : goto v_{first}"
    ));
    for tap in taps {
        text.lines(&format!(", \"{tap}\" : goto v_{tap}"));
    }
    text.line(format_args!(" }}"));
}

fn chain(text: &mut Text, attachment: &Attachment) {
    text.line(format_args!("\tchain v_{} {{", attachment.tap));
    text.line(format_args!(
        "\t\tether saddr != {} goto foreign_mac",
        attachment.mac
    ));
    match &attachment.mode {
        Mode::Plain | Mode::Access(_) => untagged(text, attachment),
        Mode::Trunk(vids) => trunk(text, attachment.mac, vids),
    }
    text.line(format_args!("\t}}"));
}

/// A port without tags: only the machine's own addresses. There are no sets without a name here: for each that comes,
/// the kernel goes through all that are there.
fn untagged(text: &mut Text, attachment: &Attachment) {
    let mac = attachment.mac;
    text.line(format_args!("\t\tether type != @types goto foreign_type"));
    if let Some(ipv4) = attachment.ipv4.map(|net| net.addr()) {
        text.line(format_args!(
            "\t\tarp saddr ether {mac} arp saddr ip {ipv4} goto check_arp"
        ));
        // Before a machine uses its address it asks for it without having one (RFC 5227).
        text.line(format_args!(
            "\t\tarp saddr ether {mac} arp saddr ip 0.0.0.0 arp daddr ip {ipv4} goto check_arp"
        ));
        text.line(format_args!("\t\tip saddr {ipv4} goto check_ipv4"));
    }
    let own = || std::iter::once(mac.link_local()).chain(attachment.ipv6.map(|net| net.addr()));
    // Of neighbour discovery, the target (64 bits behind the header's beginning) is what must be the machine's own,
    // where it advertises, and where it looks whether somebody else has its address. Whoever solicits another's has a
    // source.
    for address in own() {
        let target = u128::from(address);
        text.line(format_args!(
            "\t\ticmpv6 type @neighbour @th,64,128 {target:#034x} accept"
        ));
    }
    for address in own() {
        text.line(format_args!("\t\tip6 saddr {address} goto check_ipv6"));
    }
    text.line(format_args!("\t\tgoto rest"));
}

/// A port with tags: a router's, which forwards what others sent, advertises itself and serves addresses. So only its
/// hardware address is certain, and one tag of its VLANs.
fn trunk(text: &mut Text, mac: Mac, vids: &Vids) {
    let vids = vids.to_string().replace(',', ", ");
    text.line(format_args!("\t\tether type != 8021q counter name drop_tag drop"));
    text.line(format_args!(
        "\t\tvlan id != {{ {vids} }} counter name drop_tag drop"
    ));
    text.line(format_args!("\t\tvlan type ip accept"));
    text.line(format_args!("\t\tvlan type ip6 accept"));
    text.line(format_args!("\t\tvlan type arp arp saddr ether {mac} accept"));
    text.line(format_args!("\t\tgoto trunk_rest"));
}
