//! Is what is written on a tap read back, and nothing else believed?

use proptest::prelude::*;

use super::*;
use crate::testing::{attachments, owner};

#[test]
fn golden_alias() {
    let all = attachments();
    let written: Vec<String> = all.iter().map(alias).collect();
    assert_eq!(
        written,
        [
            "netd1|0123456789abcdef|a|0|default|-|1145d33e7ecfe808|22:cc:6d:f1:97:2f|10.83.10.0/20|-|1000|1|1500",
            "netd1|0123456789abcdef|a|1|lan|-|1145d33e7ecfe808|1e:50:ec:17:c9:21|10.1.1.76/16|\
             fd00:1::1c50:ecff:fe17:c921/64|1000|1|1500",
            "netd1|0123456789abcdef|b|0|lan|-|02d52ae36d81a743|4e:d3:24:62:76:2f|10.1.1.155/16|\
             fd00:1::4cd3:24ff:fe62:762f/64|1000|1|1500",
            "netd1|0123456789abcdef|b|1|old|-|02d52ae36d81a743|7a:e8:59:10:5a:b9|-|-|1000|1|1500",
            "netd1|0123456789abcdef|b|2|many|a200|02d52ae36d81a743|36:2f:c7:ef:bb:0a|10.2.61.205/16|\
             fd00:2::342f:c7ff:feef:bb0a/64|1000|1|1500",
            "netd1|0123456789abcdef|b|3|many|t100-102,200|02d52ae36d81a743|fe:56:7d:75:14:42|-|-|1000|1|1500",
            "netd1|0123456789abcdef|c|0|tenant-a|-|755e75a662490770|86:68:31:53:fc:91|10.100.0.175/24|-|1000|1|1500",
            "netd1|0123456789abcdef|c|1|theirs|a7|755e75a662490770|52:c1:a6:2c:dd:1d|-|-|1000|1|1500",
        ]
    );
    assert_eq!(
        altnames(&all[0]),
        ["nd.0123456789abcdef.a.0", "ndp.tcp.0a000001.8080.80"]
    );
    for attachment in &all {
        let read = parse(&attachment.tap, &alias(attachment), &altnames(attachment));
        assert_eq!(read.as_ref(), Ok(attachment));
    }
    let network: NetworkName = "tenant-a".parse().expect("good");
    assert_eq!(network_alias(&network, None), "netd1|network|tenant-a");
    let alias = network_alias(&network, Some("eth|1"));
    assert_eq!(alias, "netd1|network|tenant-a|eth|1");
    assert_eq!(uplink_of_alias(&network, &alias), Some("eth|1"));
    let of = |alias| uplink_of_alias(&network, alias);
    assert_eq!(of("netd1|network|tenant-a"), None);
    assert_eq!(of("netd1|network|tenant-a|"), None);
    assert_eq!(of("netd1|network|tenant-ab|eth1"), None);
}

#[test]
fn hostile_aliases_are_not_believed() {
    let good = attachments().remove(1);
    let text = alias(&good);
    let field = |number: usize, value: &str| {
        let mut fields: Vec<&str> = text.split('|').collect();
        fields[number] = value;
        fields.join("|")
    };
    let cases = [
        (String::new(), "its alias is \"\", not one of netd1"),
        ("x".repeat(300), "its alias has 300 bytes"),
        (field(0, "netd2"), "not one of netd1"),
        (format!("{text}|"), "its alias has 14 fields instead of 13"),
        ("netd1|a".to_owned(), "its alias has 2 fields instead of 13"),
        (field(1, "A"), "in its alias, owner.instance is \"A\""),
        (field(2, "../../x"), "in its alias, owner.id is \"../../x\""),
        (
            field(2, "b"),
            "its alias is that of another tap, of 0123456789abcdef/b",
        ),
        (field(3, "0"), "its alias is that of another tap"),
        (field(3, "32"), "the index in its alias is \"32\""),
        (field(3, "+1"), "not as netd writes it"),
        (field(3, "01"), "not as netd writes it"),
        (field(4, "Lan"), "the network in its alias is \"Lan\""),
        (field(5, "a0"), "the mode in its alias is \"a0\""),
        (field(5, "a4095"), "the mode in its alias is \"a4095\""),
        (field(5, "t2-1"), "the mode in its alias is \"t2-1\""),
        (field(5, "t2,1"), "not as netd writes it"),
        (field(5, "t"), "the mode in its alias is \"t\""),
        (
            field(5, &format!("t{}", "1,".repeat(40))),
            "the mode in its alias is",
        ),
        (field(6, "7f"), "not as netd writes it"),
        (field(6, "g"), "the mark in its alias is \"g\""),
        (
            field(7, "01:00:5e:00:00:01"),
            "the MAC in its alias is \"01:00:5e:00:00:01\"",
        ),
        (field(7, "ff:ff:ff:ff:ff:ff"), "the MAC in its alias is"),
        (
            field(7, "02:00:00:00:00:01"),
            "the IPv6 address in its alias is not that of its MAC",
        ),
        (
            field(8, "10.1.1.5"),
            "the IPv4 address in its alias is \"10.1.1.5\"",
        ),
        (field(8, "10.1.0.0/16"), "the IPv4 address in its alias is"),
        (field(8, "10.1.255.255/16"), "the IPv4 address in its alias is"),
        (field(8, "127.0.0.1/8"), "the IPv4 address in its alias is"),
        (field(8, "224.0.0.1/16"), "the IPv4 address in its alias is"),
        (field(8, "0.0.0.1/16"), "the IPv4 address in its alias is"),
        (field(8, "10.1.1.5/0"), "the IPv4 address in its alias is"),
        (field(9, "ff02::1/64"), "the IPv6 address in its alias is"),
        (
            field(9, "fd00:1::1/64"),
            "the IPv6 address in its alias is not that of its MAC",
        ),
        (field(9, "fd00:1::1/128"), "the IPv6 address in its alias is"),
        (field(10, "0"), "the uid in its alias is \"0\""),
        (field(10, "4294967295"), "the uid in its alias is"),
        (field(11, "0"), "the queues in its alias is \"0\""),
        (field(11, "257"), "the queues in its alias is \"257\""),
        (field(12, "67"), "the MTU in its alias is \"67\""),
        (field(12, "65536"), "the MTU in its alias is \"65536\""),
        (field(12, "1500\n"), "the MTU in its alias is \"1500\\n\""),
        (
            field(12, "\u{1b}[31m\0"),
            "the MTU in its alias is \"\\u{1b}[31m\\0\"",
        ),
    ];
    for (text, why) in cases {
        let said = parse(&good.tap, &text, &[]).expect_err(&text);
        assert!(said.contains(why), "{text:?}: {said}");
        assert!(!said.contains(char::is_control), "{said:?}");
    }
    let ports: Vec<String> = (1..=129)
        .map(|port| format!("ndp.tcp.0a000001.{port}.80"))
        .collect();
    let said = parse(&good.tap, &text, &ports).expect_err("too many");
    assert_eq!(said, "129 ports lead to it");
}

#[test]
fn altnames_that_are_no_ports() {
    for text in [
        "",
        "ndp.",
        "nd.tcp.0a000001.80.80",
        "ndp.sctp.0a000001.80.80",
        "ndp.tcp.0A000001.80.80",
        "ndp.tcp.a000001.80.80",
        "ndp.tcp.00000000.80.80",
        "ndp.tcp.e0000001.80.80",
        "ndp.tcp.ffffffff.80.80",
        "ndp.tcp.0a000001.0.80",
        "ndp.tcp.0a000001.80.65536",
        "ndp.tcp.0a000001.080.80",
        "ndp.tcp.0a000001.80",
        "ndp.tcp.0a000001.80.80.80",
        "ndp.tcp.0a000001.+80.80",
    ] {
        assert_eq!(parse_port(text), None, "{text}");
    }
}

fn mode() -> impl Strategy<Value = Mode> {
    let vid = || (1_u32..=4094).prop_filter_map("a VLAN", Vid::new);
    prop_oneof![
        Just(Mode::Plain),
        vid().prop_map(Mode::Access),
        prop::collection::btree_set(vid(), 1..8).prop_map(|vids| Mode::Trunk(vids.into_iter().collect())),
    ]
}

prop_compose! {
    fn attachment()(
        (instance, id, index) in ("[a-z0-9-]{1,16}", "[A-Za-z0-9._-]{1,48}", 0..NICS_MAX),
        network in "[a-z][a-z0-9-]{0,11}",
        mode in mode(),
        (mark, mac) in (any::<u64>(), any::<[u8; 6]>()),
        ipv4 in prop::option::of((any::<[u8; 2]>(), 1_u8..=254)),
        prefix in prop::option::of(1_u64..=u64::MAX),
        (uid, queues, mtu) in (1..u32::MAX, 1..=QUEUES_MAX, 68_u32..=65_535),
        ports in prop::collection::btree_set((any::<bool>(), 0x0100_0000_u32..0xe000_0000, 1_u32..=65_535, 1_u32..=65_535), 0..5),
    ) -> Attachment {
        let owner = Owner::new(&instance, &id).expect("good");
        let mac = Mac([mac[0] & 0xfc | 2, mac[1], mac[2], mac[3], mac[4], mac[5]]);
        let forwards = ports.into_iter().map(|(tcp, host_ip, host_port, guest_port)| {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            Forward::new("", protocol, host_ip.into(), host_port, guest_port).expect("good")
        });
        let mut forwards: Vec<Forward> = forwards.collect();
        forwards.sort_unstable();
        Attachment {
            tap: tap_name(&owner, index),
            owner,
            index,
            network: network.parse().expect("good"),
            mode,
            mark: Mark(mark),
            uid,
            queues,
            mac,
            ipv4: ipv4.map(|([a, b], c)| Ipv4Net::new([10, a, b, c].into(), 24).expect("a length")),
            ipv6: prefix
                // Multicast is no prefix of machines.
                .map(|prefix| u128::from(prefix & !(0xff << 56) | 0xfd << 56) << 64)
                .map(|prefix| Ipv6Net::new(mac.eui64(prefix.into()), 64).expect("a length")),
            mtu,
            forwards,
        }
    }
}

proptest! {
    #[test]
    fn attachments_come_back(attachment in attachment()) {
        let fits = match &attachment.mode {
            Mode::Trunk(vids) => vids.to_string().len() <= TRUNK_TEXT_MAX,
            _ => true,
        };
        prop_assume!(fits);
        let (text, names) = (alias(&attachment), altnames(&attachment));
        prop_assert!(text.len() <= ALIAS_MAX);
        prop_assert!(names.iter().all(|name| name.len() <= 127));
        prop_assert_eq!(parse(&attachment.tap, &text, &names), Ok(attachment));
    }

    #[test]
    fn garbage_never_panics(text in "\\PC{0,300}", names in prop::collection::vec("\\PC{0,40}", 0..3)) {
        let tap = tap_name(&owner("a"), 0);
        prop_assert!(parse(&tap, &text, &names).is_err());
    }

    #[test]
    fn what_is_read_is_what_was_written(place in 0_usize..160, with in "\\PC{0,3}", cut in 0_usize..3) {
        let good = attachments().remove(1);
        let mut text = alias(&good);
        let place = place.min(text.len());
        text.replace_range(place..(place + cut).min(text.len()), &with);
        if let Ok(read) = parse(&good.tap, &text, &[]) {
            prop_assert_eq!(alias(&read), text);
        }
    }
}
