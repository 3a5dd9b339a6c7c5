//! Does every request get the machine or the sentence it should?

use proptest::prelude::*;

use super::*;
use crate::vm::{Forward, Protocol, TapRequest};

fn host() -> Host {
    Host {
        kvm_unusable: Some("no /dev/kvm".into()),
        tcg_allowed: true,
        tsc_khz: 2_500_000,
        user_network: true,
        workload_uids: 80_000..=89_999,
        networks: Some(
            [("tenant-a", "vlan"), ("lab", "vlan-aware"), ("default", "nat")]
                .map(|(name, kind)| KnownNetwork {
                    name: name.into(),
                    kind: kind.into(),
                })
                .into(),
        ),
    }
}

fn allocated() -> Allocated {
    Allocated {
        memory_mib: 256,
        ports: vec![AllocatedPort {
            label: "http".into(),
            host_port: 23_456,
            guest_port: 80,
            host_ip: "127.0.0.1".into(),
        }],
        whose: Whose {
            namespace: "default".into(),
            job: "web".into(),
            group: "front".into(),
            task: "vm".into(),
            alloc_id: "b2f8c3d4".into(),
            index: Some(3),
        },
        ..Allocated::default()
    }
}

fn spec() -> Spec {
    Spec {
        kernel: "vmlinux".into(),
        ..Spec::default()
    }
}

fn disk(name: &str) -> DiskSpec {
    DiskSpec {
        name: name.into(),
        file: format!("local/{name}.raw"),
        format: "raw".into(),
        read_only: false,
    }
}

fn user(ports: &[&str]) -> NetworkSpec {
    NetworkSpec {
        name: "user".into(),
        ports: ports.iter().map(|port| (*port).to_owned()).collect(),
        ..NetworkSpec::default()
    }
}

fn on(name: &str) -> NetworkSpec {
    NetworkSpec {
        name: name.into(),
        ..NetworkSpec::default()
    }
}

fn with(networks: Vec<NetworkSpec>) -> Spec {
    Spec { networks, ..spec() }
}

fn user_forwards(vm: &Vm) -> &[Forward] {
    match &vm.nics[0] {
        Nic::User { forwards } => forwards,
        Nic::Tap(tap) => panic!("{tap:?}"),
    }
}

fn vm(spec: &Spec) -> Vm {
    check(spec, &allocated(), &host()).unwrap().vm
}

fn sentence(spec: &Spec) -> String {
    check(spec, &allocated(), &host()).unwrap_err().to_string()
}

#[test]
fn the_smallest_request_has_defaults() {
    let vm = vm(&spec());
    assert_eq!(vm.vcpus, 1);
    assert_eq!(vm.memory_mib, 256);
    assert_eq!(
        vm.kernel,
        FileName {
            root: FileRoot::Images,
            path: "vmlinux".into()
        }
    );
    assert_eq!(
        vm.cmdline,
        "console=ttyS0 reboot=t panic=-1 tsc_early_khz=2500000 tsc=reliable"
    );
    assert_eq!(vm.accelerator.as_str(), "tcg");
}

#[test]
fn kvm_is_taken_where_it_works() {
    let fast = Host {
        kvm_unusable: None,
        ..host()
    };
    let checked = check(&spec(), &allocated(), &fast).unwrap();
    assert_eq!(checked.vm.accelerator, Accelerator::Kvm);
    assert_eq!(checked.vm.cmdline, "console=ttyS0 reboot=t panic=-1");
    let only_kvm = Host {
        tcg_allowed: false,
        ..host()
    };
    assert!(matches!(
        check(&spec(), &allocated(), &only_kvm),
        Err(SpecError::NoTcg(_))
    ));
    let asked = Spec {
        accelerator: Some("kvm".into()),
        ..spec()
    };
    assert_eq!(
        sentence(&asked),
        "accelerator = \"kvm\" can't be used on this node: no /dev/kvm; use \"auto\" or \"tcg\", or another node"
    );
}

#[test]
fn memory_has_bounds_and_one_trap() {
    for (asked, got) in [
        (64, Ok(64)),
        (2047, Ok(2047)),
        (2048, Ok(2047)),
        (2049, Ok(2049)),
        (63, Err(())),
        (0, Err(())),
        (-1, Err(())),
        (i64::MAX, Err(())),
    ] {
        let checked = check(
            &spec(),
            &Allocated {
                memory_mib: asked,
                ..allocated()
            },
            &host(),
        );
        assert_eq!(
            checked.as_ref().map(|c| c.vm.memory_mib).map_err(|_| ()),
            got,
            "{asked}"
        );
        assert_eq!(checked.is_ok_and(|c| !c.notices.is_empty()), asked == 2048);
    }
}

#[test]
fn names_of_files_stay_in_their_places() {
    for (text, root, path) in [
        ("local/vmlinuz", FileRoot::Task, "local/vmlinuz"),
        ("/local/a/b", FileRoot::Task, "local/a/b"),
        ("secrets/key", FileRoot::Task, "secrets/key"),
        ("alloc/data/k", FileRoot::Alloc, "data/k"),
        ("debian/vmlinuz,1", FileRoot::Images, "debian/vmlinuz,1"),
        ("local", FileRoot::Images, "local"),
    ] {
        assert_eq!(
            file_name("kernel", text, ""),
            Ok(FileName {
                root,
                path: path.into()
            }),
            "{text}"
        );
    }
    for text in [
        "/etc/passwd",
        "..",
        "local/../x",
        "local//x",
        "a/./b",
        "/",
        "local/",
        "/local",
    ] {
        assert!(
            matches!(file_name("kernel", text, ""), Err(SpecError::Path { .. })),
            "{text}"
        );
    }
    assert!(matches!(
        file_name("kernel", "a\nb", ""),
        Err(SpecError::Control { .. })
    ));
    assert!(matches!(
        file_name("kernel", "", ""),
        Err(SpecError::Empty { .. })
    ));
}

#[test]
fn disks_have_names_formats_and_a_limit() {
    let many = |n: usize| Spec {
        disks: (0..n).map(|i| disk(&format!("d{i}"))).collect(),
        ..spec()
    };
    assert_eq!(vm(&many(22)).disks.len(), 22);
    assert_eq!(
        sentence(&many(23)),
        "23 disks and 0 networks do not fit: machine \"microvm\" has room for 22 in all"
    );
    assert_eq!(
        sentence(&Spec {
            disks: vec![disk("a"), disk("a")],
            ..spec()
        }),
        "disk name \"a\" is used twice: give each disk a name of its own"
    );
    let odd = |change: fn(&mut DiskSpec)| {
        let mut disk = disk("a");
        change(&mut disk);
        sentence(&Spec {
            disks: vec![disk],
            ..spec()
        })
    };
    assert!(odd(|d| d.name = "A".into()).contains("a-z"));
    assert!(odd(|d| d.name = "a,b".into()).contains("a-z"));
    assert!(odd(|d| d.format = "vmdk".into()).contains("\"raw\" or \"qcow2\""));
    assert!(odd(|d| d.format = String::new()).contains("\"raw\" or \"qcow2\""));
    assert!(odd(|d| d.file = "debian.raw".into()).contains("begin it with local/"));
}

#[test]
fn ports_lead_into_the_guest() {
    let one = vm(&Spec {
        networks: vec![user(&["http"])],
        ..spec()
    });
    let forwards = user_forwards(&one);
    assert_eq!(forwards[0].host, "127.0.0.1:23456".parse().unwrap());
    assert_eq!(
        (forwards[0].guest_port, forwards[0].protocol),
        (80, Protocol::Tcp)
    );

    let both = vm(&Spec {
        networks: vec![user(&["http", "http/udp"])],
        ..spec()
    });
    assert_eq!(user_forwards(&both).len(), 2);

    assert_eq!(
        sentence(&Spec {
            networks: vec![user(&["web"])],
            ..spec()
        }),
        "port \"web\" is not declared in the job's network block: declared are http"
    );
    let mut mapped = user(&["http"]);
    mapped.port_map.insert("http".into(), 8080);
    let changed = vm(&with(vec![mapped.clone()]));
    assert_eq!(user_forwards(&changed)[0].guest_port, 8080);
    mapped.port_map.insert("http".into(), 70_000);
    assert!(
        sentence(&Spec {
            networks: vec![mapped.clone()],
            ..spec()
        })
        .contains("guest port 70000")
    );
    mapped.ports.clear();
    assert!(
        sentence(&Spec {
            networks: vec![mapped],
            ..spec()
        })
        .contains("not in ports")
    );
    assert!(
        sentence(&Spec {
            networks: vec![user(&["http", "http/tcp"])],
            ..spec()
        })
        .contains("listed twice")
    );
    assert!(
        sentence(&Spec {
            networks: vec![user(&["http/sctp"])],
            ..spec()
        })
        .contains("label/udp")
    );
}

#[test]
fn networks_need_their_owner() {
    assert_eq!(
        sentence(&with(vec![on("tenant-b")])),
        "network \"tenant-b\" is not known on this node: known are default, lab, tenant-a, user"
    );
    assert!(sentence(&with(vec![user(&[]), user(&[])])).starts_with("network \"user\" is given twice"));
    let refused = |host: Host, asked: &Spec| check(asked, &allocated(), &host).unwrap_err().to_string();
    let off = Host {
        user_network: false,
        ..host()
    };
    assert_eq!(
        refused(off.clone(), &with(vec![user(&[])])),
        "network \"user\" is not allowed on this node: the plugin option user_network is false"
    );
    let none = Host {
        networks: Some(Vec::new()),
        ..off
    };
    assert!(refused(none, &with(vec![on("a")])).ends_with("netd has no network"));
    let without_netd = Host {
        networks: None,
        ..host()
    };
    assert_eq!(
        refused(without_netd, &with(vec![on("tenant-a")])),
        "network \"tenant-a\" is not known on this node: the only network is \"user\", because the plugin option netd is empty"
    );
}

fn tap(network: NetworkSpec) -> TapRequest {
    let vm = vm(&with(vec![network]));
    let taps: Vec<_> = vm.taps().cloned().collect();
    taps[0].clone()
}

#[test]
fn an_interface_of_netds_has_its_defaults_and_its_keys() {
    let plain = TapRequest {
        network: "tenant-a".into(),
        ..TapRequest::default()
    };
    assert_eq!(tap(on("tenant-a")), plain);
    let all = tap(NetworkSpec {
        ipv4: Some("none".into()),
        trunk: vec!["100-120".into(), "200".into()],
        mtu: Some(1400),
        port_map: [("ssh".to_owned(), 22)].into(),
        ..on("lab")
    });
    assert_eq!(
        (
            all.ipv4.as_str(),
            all.vlan,
            all.trunk.len(),
            all.mtu,
            all.port_map["ssh"]
        ),
        ("none", 0, 2, 1400, 22)
    );
    let access = tap(NetworkSpec {
        vlan: Some(4094),
        ..on("lab")
    });
    assert_eq!((access.vlan, access.trunk.len()), (4094, 0));
    let nat = tap(NetworkSpec {
        ports: vec!["http".into()],
        ..on("default")
    });
    assert_eq!(
        (nat.forwards[0].guest_port, nat.forwards[0].host.port()),
        (80, 23_456)
    );
}

type Change = fn(&mut NetworkSpec);

#[test]
fn keys_that_do_not_go_with_their_network_are_refused() {
    let refused = |change: Change, network: &str| {
        let mut asked = on(network);
        change(&mut asked);
        sentence(&with(vec![asked]))
    };
    let table: [(&str, Change, &str); 20] = [
        (
            "user",
            |n| n.ipv4 = Some("auto".into()),
            "user-mode network does not have",
        ),
        ("user", |n| n.vlan = Some(1), "\"user\": vlan is given"),
        ("user", |n| n.trunk = vec!["1".into()], "\"user\": trunk is given"),
        ("user", |n| n.mtu = Some(1400), "\"user\": mtu is given"),
        (
            "tenant-a",
            |n| n.vlan = Some(1),
            "vlan is given, which a vlan network does not have",
        ),
        (
            "default",
            |n| n.trunk = vec!["1".into()],
            "trunk is given, which a nat network",
        ),
        (
            "tenant-a",
            |n| n.ports = vec!["http".into()],
            "an address of its own",
        ),
        (
            "tenant-a",
            |n| n.port_map = [("x".to_owned(), 0)].into(),
            "\"x\" leads to guest port 0",
        ),
        (
            "default",
            |n| n.port_map = [("x".to_owned(), 1)].into(),
            "not in ports",
        ),
        (
            "default",
            |n| n.ports = vec!["http/sctp".into()],
            "\"default\": ports = \"http/sctp\"",
        ),
        ("lab", |n| n.vlan = Some(0), "vlan = \"0\" is no VLAN"),
        ("lab", |n| n.vlan = Some(4095), "use 1 to 4094"),
        ("lab", |n| n.vlan = Some(-1), "vlan = \"-1\""),
        (
            "lab",
            |n| n.trunk = vec!["1".into(), "9-7".into()],
            "trunk = \"9-7\"",
        ),
        ("tenant-a", |n| n.mtu = Some(67), "mtu = 67"),
        ("tenant-a", |n| n.mtu = Some(1 << 32), "outside 68 to 65535"),
        (
            "tenant-a",
            |n| n.ipv4 = Some("10.1.0.300".into()),
            "ipv4 = \"10.1.0.300\" is none",
        ),
        ("tenant-a", |n| n.ipv4 = Some("10.1.0.5/16".into()), "\"+index\""),
        ("tenant-a", |n| n.ipv4 = Some("auto+index".into()), "is none"),
        (
            "tenant-a",
            |n| n.ipv4 = Some("255.255.255.254+index".into()),
            "so far behind it",
        ),
    ];
    for (network, change, wanted) in table {
        let refused = refused(change, network);
        assert!(refused.contains(wanted), "{wanted}: {refused}");
    }
    let both = NetworkSpec {
        vlan: Some(5),
        trunk: vec!["6".into()],
        ..on("lab")
    };
    assert!(sentence(&with(vec![both])).contains("vlan and trunk are both given"));
}

#[test]
fn an_index_is_added_to_an_address() {
    let with_index = |ipv4: &str, index| {
        let asked = with(vec![NetworkSpec {
            ipv4: Some(ipv4.into()),
            ..on("tenant-a")
        }]);
        let mut allocated = allocated();
        allocated.whose.index = index;
        let asked = Spec {
            identity: Some("alloc".into()),
            ..asked
        };
        check(&asked, &allocated, &host()).map(|checked| checked.vm.taps().next().unwrap().ipv4.clone())
    };
    assert_eq!(with_index("10.1.0.10", None).unwrap(), "10.1.0.10");
    assert_eq!(with_index("10.1.0.10+index", Some(0)).unwrap(), "10.1.0.10");
    assert_eq!(with_index("10.1.0.250+index", Some(7)).unwrap(), "10.1.1.1");
    let unknown = with_index("10.1.0.10+index", None).unwrap_err().to_string();
    assert!(unknown.contains("index is not known"), "{unknown}");
}

#[test]
fn a_vm_has_one_interface_on_each_segment() {
    let access = |vlan| NetworkSpec {
        vlan: Some(vlan),
        ..on("lab")
    };
    let trunk = || NetworkSpec {
        trunk: vec!["7".into()],
        ..on("lab")
    };
    let all = vec![
        on("lab"),
        access(1),
        user(&[]),
        access(2),
        trunk(),
        on("tenant-a"),
    ];
    assert_eq!(vm(&with(all)).nics.len(), 6);
    for (one, other) in [(on("lab"), on("lab")), (access(5), access(5)), (trunk(), trunk())] {
        let refused = sentence(&with(vec![one, other]));
        assert!(refused.contains("\"lab\" is given twice"), "{refused}");
    }
}

#[test]
fn an_identity_is_the_jobs_or_the_allocations() {
    let identity = |word: Option<&str>| Spec {
        identity: word.map(str::to_owned),
        ..with(vec![on("tenant-a")])
    };
    for word in [None, Some(""), Some("job")] {
        assert_eq!(vm(&identity(word)).identity, "default/web/front/vm/3");
    }
    assert_eq!(vm(&identity(Some("alloc"))).identity, "b2f8c3d4/vm");
    assert!(sentence(&identity(Some("host"))).contains("identity = \"host\""));
    let nowhere = Spec {
        networks: Vec::new(),
        ..identity(Some("alloc"))
    };
    assert_eq!(vm(&nowhere).identity, "");
    let whose = |change: fn(&mut Whose), word| {
        let mut allocated = allocated();
        change(&mut allocated.whose);
        check(&identity(word), &allocated, &host())
    };
    let long = |whose: &mut Whose| whose.group = "g".repeat(255);
    assert!(
        whose(long, None)
            .unwrap_err()
            .to_string()
            .contains("shorten a name")
    );
    assert!(whose(long, Some("alloc")).is_ok());
    assert!(
        whose(|whose| whose.index = None, None)
            .unwrap_err()
            .to_string()
            .contains("index is not known")
    );
}

#[test]
fn the_command_line_is_bounded_and_plain() {
    let with = |text: String| Spec {
        cmdline: Some(text),
        ..spec()
    };
    let ours = vm(&spec()).cmdline.len();
    let fits = CMDLINE_MAX_BYTES - ours - 1;
    assert_eq!(vm(&with("x".repeat(fits))).cmdline.len(), CMDLINE_MAX_BYTES);
    assert!(sentence(&with("x".repeat(fits + 1))).starts_with("cmdline has 2048 bytes"));
    assert!(sentence(&with("a\nb".into())).contains("control character"));
    assert!(
        vm(&with("root=/dev/vda,rw".into()))
            .cmdline
            .ends_with(" root=/dev/vda,rw")
    );
}

proptest! {
    /// Whatever the texts are: an answer without a panic, and no control character gets through.
    #[test]
    fn any_text_is_answered(
        kernel in ".*", cmdline in ".*", name in ".*", file in ".*", port in ".*", ipv4 in ".*", vlans in ".*",
    ) {
        let asked = Spec {
            kernel,
            cmdline: Some(cmdline),
            disks: vec![DiskSpec { name, file, format: "raw".into(), read_only: true }],
            networks: vec![NetworkSpec { ipv4: Some(ipv4), trunk: vec![vlans], ..on("lab") }, user(&[port.as_str()])],
            ..Spec::default()
        };
        match check(&asked, &allocated(), &host()) {
            Ok(checked) => prop_assert!(!checked.vm.cmdline.chars().any(char::is_control)),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}

#[test]
fn a_guest_is_waited_for_as_the_job_says() {
    let ready = |ready: &str, pattern: &str, timeout: &str| {
        let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        Spec {
            ready: text(ready),
            ready_pattern: text(pattern),
            ready_timeout: text(timeout),
            ..spec()
        }
    };
    for nothing in ["", "none"] {
        assert_eq!(vm(&ready(nothing, "", "")).ready, None);
    }
    let wanted = |timeout| {
        Some(Ready {
            pattern: "login:".into(),
            timeout,
        })
    };
    assert_eq!(vm(&ready("console", "login:", "")).ready, wanted(READY_TIMEOUT));
    assert_eq!(
        vm(&ready("console", "login:", "1m30s")).ready,
        wanted(Duration::from_secs(90))
    );
    for (bad, wanted) in [
        (ready("agent", "login:", ""), "ready = \"agent\""),
        (ready("console", "", ""), "ready_pattern"),
        (ready("console", "a\u{7}", ""), "ready_pattern"),
        (
            ready("console", &"x".repeat(257), ""),
            "ready_pattern has 257 bytes",
        ),
        (ready("", "login:", ""), "ready_pattern is given without ready"),
        (ready("none", "", "9s"), "ready_timeout is given without ready"),
        (ready("console", "login:", "soon"), "ready_timeout = \"soon\""),
        (ready("console", "login:", "5"), "ready_timeout = \"5\""),
        (ready("console", "login:", "999ms"), "ready_timeout"),
        (ready("console", "login:", "301s"), "ready_timeout"),
    ] {
        let sentence = sentence(&bad);
        assert!(sentence.contains(wanted), "{sentence}");
    }
}

#[test]
fn a_reboot_is_in_place_unless_the_job_says_otherwise() {
    let reboot = |word: &str| Spec {
        reboot: Some(word.to_owned()),
        ..spec()
    };
    assert_eq!(vm(&spec()).reboot, Reboot::Reset);
    assert_eq!(vm(&reboot("reset")).reboot, Reboot::Reset);
    assert_eq!(vm(&reboot("shutdown")).reboot, Reboot::Shutdown);
    assert!(sentence(&reboot("maybe")).contains("reboot = \"maybe\""));
}

#[test]
fn reserved_cores_are_processors_each_once() {
    let with = |cores: &str| {
        let allocated = Allocated {
            cores: cores.into(),
            ..allocated()
        };
        check(&spec(), &allocated, &host()).map(|checked| (checked.vm.vcpus, checked.vm.cpus))
    };
    for (list, cpus) in [
        ("", vec![]),
        ("3", vec![3]),
        ("2,0", vec![2, 0]),
        ("1-2, 7", vec![1, 2, 7]),
    ] {
        let vcpus = u32::try_from(cpus.len()).unwrap().max(1);
        assert_eq!(with(list).unwrap(), (vcpus, cpus), "{list:?}");
    }
    for list in ["x", "1,1", "0-2,1", "2-1", "-1", "1024", "0-4294967295", "1-"] {
        assert!(matches!(with(list), Err(SpecError::CoreList(_))), "{list:?}");
    }
    assert!(matches!(with("0-288"), Err(SpecError::Cores(289))));
}

#[test]
fn nothing_of_the_host_is_handed_on() {
    let with = |change: fn(&mut Allocated)| {
        let mut allocated = allocated();
        change(&mut allocated);
        check(&spec(), &allocated, &host())
    };
    assert!(with(|allocated| allocated.user = "nomad-80017".into()).is_ok());
    for user in [
        "root",
        "nomad",
        "nomad-0",
        "nomad-33",
        "nomad-90000",
        "80017",
        "nomad-80017 ",
    ] {
        let mut allocated = allocated();
        allocated.user = user.into();
        let refused = check(&spec(), &allocated, &host()).unwrap_err().to_string();
        assert!(refused.contains("user ="), "{refused}");
    }
    let device = with(|allocated| allocated.devices.push("/dev/sda".into())).unwrap_err();
    assert!(device.to_string().contains("/dev/sda"));
    let mount = with(|allocated| allocated.mounts.push("/data".into())).unwrap_err();
    assert!(mount.to_string().contains("/data"));
    let notices = with(|allocated| allocated.memory_max_mib = 512).unwrap().notices;
    assert!(
        notices.len() == 1 && notices[0].contains("memory_max = 512"),
        "{notices:?}"
    );
    assert!(
        with(|allocated| allocated.memory_max_mib = 256)
            .unwrap()
            .notices
            .is_empty()
    );
}
