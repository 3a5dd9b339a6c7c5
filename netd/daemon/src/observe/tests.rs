//! Is what the kernel says read as it is meant, and never worse than not at all?

use super::*;

/// An attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A tap as the kernel tells of it, with this alias.
fn tap(alias: &[u8]) -> Vec<u8> {
    let info = [
        attribute(IFLA_INFO_KIND, b"tun\0"),
        attribute(
            IFLA_INFO_DATA,
            &[
                attribute(IFLA_TUN_OWNER, &7_u32.to_ne_bytes()),
                attribute(IFLA_TUN_TYPE, &[IFF_TAP]),
                attribute(IFLA_TUN_PERSIST, &[1]),
            ]
            .concat(),
        ),
        attribute(IFLA_INFO_SLAVE_KIND, b"bridge\0"),
        attribute(IFLA_INFO_SLAVE_DATA, &attribute(IFLA_BRPORT_ISOLATED, &[1])),
    ]
    .concat();
    let mut message = vec![0; 16];
    message[4] = 9;
    message[8] = 1;
    for (kind, value) in [
        (IFLA_IFNAME, b"ndta\0".as_slice()),
        (IFLA_IFALIAS, alias),
        (IFLA_GROUP, &0x6e64_u32.to_ne_bytes()),
        (IFLA_PROP_LIST, &attribute(IFLA_ALT_IFNAME, b"nd.a.b.0\0")),
        (IFLA_LINKINFO, &info),
    ] {
        message.extend(attribute(kind, value));
    }
    message
}

#[test]
fn a_tap_is_read() {
    let link = link(&tap(b"netd1|x\0")).unwrap();
    let kind = LinkKind::Tap {
        uid: Some(7),
        multi_queue: false,
        persistent: true,
    };
    assert_eq!((link.index, link.name.as_str(), link.group), (9, "ndta", 0x6e64));
    assert_eq!((link.kind, link.up), (kind, true));
    assert_eq!(
        (link.alias.as_deref(), link.altnames.as_slice()),
        (Some("netd1|x"), &["nd.a.b.0".to_owned()][..])
    );
    assert!(link.port.is_some_and(|port| port.isolated && !port.learning));
}

#[test]
fn odd_bytes_spoil_nothing() {
    let odd = link(&tap(b"\xff\xfe|\n")).unwrap();
    assert_eq!(odd.alias.as_deref(), Some("\u{fffd}\u{fffd}|\n"));
    let whole = tap(b"netd1");
    for length in 0..whole.len() {
        // Cut off anywhere it may be no link, or less of one, but nothing worse.
        let _less = link(&whole[..length]);
    }
    for place in 16..whole.len() {
        let mut changed = whole.clone();
        changed[place] = 0xff;
        let _other = link(&changed);
    }
}

#[test]
fn vlans_come_as_ranges() {
    let info = |flags: u16, vid: u16| {
        attribute(
            IFLA_BRIDGE_VLAN_INFO,
            &[flags.to_ne_bytes(), vid.to_ne_bytes()].concat(),
        )
    };
    let infos = [
        info(BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED, 5),
        info(BRIDGE_VLAN_INFO_RANGE_BEGIN, 100),
        info(BRIDGE_VLAN_INFO_RANGE_END, 102),
        // A beginning without an end, and what can't be a VLAN.
        info(BRIDGE_VLAN_INFO_RANGE_BEGIN, 200),
        info(0, 300),
        info(0, 4095),
    ]
    .concat();
    let mut message = vec![0; 16];
    message[4] = 9;
    message.extend(attribute(IFLA_AF_SPEC, &infos));
    let mut vlans = BTreeMap::new();
    vlans_of(RTM_NEWLINK, &message, &mut vlans);
    let numbers: Vec<u16> = vlans[&9].iter().map(|vlan| vlan.vid.get()).collect();
    assert_eq!(numbers, [5, 100, 101, 102, 300]);
    assert!(vlans[&9][0].pvid && vlans[&9][0].untagged && !vlans[&9][1].untagged);
}

#[test]
fn an_interrupted_dump_is_repeated_but_not_for_ever() {
    let told = |interruptions: u32| {
        let mut dumps = 0;
        let seen = repeated(|| {
            dumps += 1;
            Ok((Observed::default(), dumps <= interruptions))
        });
        let seen = seen.unwrap();
        (seen.whole, seen.repeated)
    };
    assert_eq!(told(0), (true, 0));
    assert_eq!(told(3), (true, 3));
    assert_eq!(told(DUMPS_MAX), (true, DUMPS_MAX));
    assert_eq!(told(u32::MAX), (false, DUMPS_MAX));
}
