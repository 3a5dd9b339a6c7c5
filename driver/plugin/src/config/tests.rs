//! Are options and task blocks read as their tables say?

use serde::Serialize;

use super::*;

fn pack(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    value
        .serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map())
        .unwrap();
    bytes
}

#[derive(Serialize, Default)]
struct Given {
    #[serde(skip_serializing_if = "Option::is_none")]
    run_dir: Option<String>,
    accelerator: Option<String>,
    vm_uids: Option<String>,
    image_paths: Option<Vec<String>>,
    qemu: Option<String>,
    log_level: Option<String>,
    orphan_grace: Option<String>,
    netd: Option<String>,
}

#[test]
fn nothing_given_is_all_defaults() {
    for bytes in [Vec::new(), vec![0xc0], vec![0x80], pack(&Given::default())] {
        let options = options(&bytes).unwrap();
        assert!(options.enabled && !options.user_network && options.shim.is_none() && options.netd.is_none());
        assert_eq!(options.accelerator, AcceleratorOption::Auto);
        assert_eq!(options.vm_uids, 1_900_000_000..=1_900_065_535);
        assert_eq!(options.run_dir, PathBuf::from("/run/steppe"));
    }
}

/// The defaults in the tables are the defaults of the decoder.
#[test]
fn tables_and_decoder_have_the_same_defaults() {
    let options = options(&[]).unwrap();
    let default = |name: &str| {
        OPTIONS
            .iter()
            .find(|key| key.name == name)
            .unwrap()
            .default
            .trim_matches('"')
    };
    assert_eq!(default("state_dir"), options.state_dir.to_str().unwrap());
    assert_eq!(default("run_dir"), options.run_dir.to_str().unwrap());
    assert_eq!(default("qemu"), options.qemu.to_str().unwrap());
    assert_eq!(
        default("vm_uids"),
        format!("{}-{}", options.vm_uids.start(), options.vm_uids.end())
    );
    assert_eq!(
        humantime::parse_duration(default("orphan_grace")).unwrap(),
        options.orphan_grace
    );
    assert_eq!(default("enabled"), options.enabled.to_string());
    assert_eq!(default("user_network"), options.user_network.to_string());
}

#[test]
fn bad_values_name_their_option() {
    let refused = |given: Given| options(&pack(&given)).unwrap_err().to_string();
    let text = |value: &str| Some(value.to_owned());
    assert!(
        refused(Given {
            accelerator: text("hvf"),
            ..Given::default()
        })
        .contains("accelerator = \"hvf\"")
    );
    assert!(
        refused(Given {
            log_level: text("loud"),
            ..Given::default()
        })
        .contains("log_level")
    );
    for grace in ["", "soon", "0s", "-1h", "5"] {
        assert!(
            refused(Given {
                orphan_grace: text(grace),
                ..Given::default()
            })
            .contains("orphan_grace"),
            "{grace:?}"
        );
    }
    assert!(
        refused(Given {
            run_dir: text("run"),
            ..Given::default()
        })
        .contains("run_dir")
    );
    assert!(
        refused(Given {
            run_dir: text(&format!("/{}", "x".repeat(40))),
            ..Given::default()
        })
        .contains("run_dir")
    );
    assert!(
        refused(Given {
            netd: text("netd.sock"),
            ..Given::default()
        })
        .contains("netd = \"netd.sock\"")
    );
    let netd = Given {
        netd: text("/run/netd/netd.sock"),
        ..Given::default()
    };
    assert_eq!(
        options(&pack(&netd)).unwrap().netd,
        Some("/run/netd/netd.sock".into())
    );
    assert!(
        refused(Given {
            qemu: text("./qemu"),
            ..Given::default()
        })
        .contains("qemu")
    );
    assert!(
        refused(Given {
            qemu: text(""),
            ..Given::default()
        })
        .contains("qemu")
    );
    assert!(
        refused(Given {
            image_paths: Some(vec!["/a/../b".into()]),
            ..Given::default()
        })
        .contains("image_paths")
    );
    for range in [
        "",
        "5",
        "5-4",
        "0-10",
        "1000000-999999",
        "70000-70000",
        "70000-4294967295",
        "a-b",
    ] {
        assert!(
            refused(Given {
                vm_uids: text(range),
                ..Given::default()
            })
            .contains("vm_uids"),
            "{range}"
        );
    }
}

#[test]
fn task_blocks_come_in_several_encodings() {
    #[derive(Serialize)]
    struct Net<T> {
        name: &'static str,
        ports: Vec<&'static str>,
        port_map: std::collections::BTreeMap<&'static str, T>,
    }
    #[derive(Serialize)]
    struct Task<T> {
        kernel: &'static str,
        initrd: Option<&'static str>,
        network: Vec<Net<T>>,
        unknown: u8,
    }
    fn port<T: Serialize>(value: T) -> i64 {
        let network = vec![Net {
            name: "user",
            ports: vec!["http"],
            port_map: [("http", value)].into(),
        }];
        let task = task(&pack(&Task {
            kernel: "k",
            initrd: None,
            network,
            unknown: 1,
        }))
        .unwrap();
        assert_eq!((task.kernel.as_str(), task.initrd), ("k", None));
        task.networks[0].port_map["http"]
    }
    assert_eq!(port(80u8), 80);
    assert_eq!(port(80i64), 80);
    assert_eq!(port(80.0f64), 80);
    assert_eq!(port(80.5f64), -1);
    assert_eq!(port("80"), 80);
    assert_eq!(port(u64::MAX), i64::MAX);
}

#[test]
fn a_network_of_netds_has_its_keys() {
    #[derive(Serialize)]
    struct Net {
        name: &'static str,
        ipv4: Option<&'static str>,
        vlan: Option<f64>,
        trunk: Option<Vec<&'static str>>,
        mtu: Option<u16>,
    }
    #[derive(Serialize)]
    struct Task {
        kernel: &'static str,
        identity: &'static str,
        network: Vec<Net>,
    }
    let network = vec![
        Net {
            name: "lab",
            ipv4: Some("none"),
            vlan: Some(100.0),
            trunk: Some(vec!["1-2"]),
            mtu: Some(1400),
        },
        Net {
            name: "user",
            ipv4: None,
            vlan: None,
            trunk: None,
            mtu: None,
        },
    ];
    let read = task(&pack(&Task {
        kernel: "k",
        identity: "alloc",
        network,
    }))
    .unwrap();
    assert_eq!(read.identity.as_deref(), Some("alloc"));
    let [lab, user] = read.networks.as_slice() else {
        panic!("{read:?}")
    };
    assert_eq!(
        (lab.ipv4.as_deref(), lab.vlan, lab.mtu),
        (Some("none"), Some(100), Some(1400))
    );
    assert_eq!(lab.trunk, ["1-2"]);
    // The schema gives no defaults: a network that doesn't know a key must not find it given.
    assert_eq!(
        (&user.ipv4, user.vlan, user.mtu, user.trunk.len()),
        (&None, None, None, 0)
    );
    for key in NETWORK
        .iter()
        .filter(|key| matches!(key.name, "ipv4" | "vlan" | "mtu"))
    {
        assert_eq!(key.default, "", "{}", key.name);
    }
}

#[test]
fn garbage_is_an_error_not_a_panic() {
    for bytes in [
        &[0xc1][..],
        &[0x81],
        &[0x81, 0xa6, b'k', b'e', b'r', b'n', b'e', b'l', 0xa1, 0xff],
        &[0x93, 1, 2, 3],
    ] {
        assert!(task(bytes).is_err(), "{bytes:?}");
    }
}
