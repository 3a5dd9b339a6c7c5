//! Does every request get the machine or the sentence it should?

use proptest::prelude::*;

use super::*;

fn host() -> Host {
    Host {
        kvm_unusable: Some("no /dev/kvm".into()),
        tcg_allowed: true,
        tsc_khz: 2_500_000,
        user_network: true,
        workload_uids: 80_000..=89_999,
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
        port_map: BTreeMap::new(),
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
    let Nic::User { forwards } = &one.nics[0];
    assert_eq!(forwards[0].host, "127.0.0.1:23456".parse().unwrap());
    assert_eq!(
        (forwards[0].guest_port, forwards[0].protocol),
        (80, Protocol::Tcp)
    );

    let both = vm(&Spec {
        networks: vec![user(&["http", "http/udp"])],
        ..spec()
    });
    let Nic::User { forwards } = &both.nics[0];
    assert_eq!(forwards.len(), 2);

    assert_eq!(
        sentence(&Spec {
            networks: vec![user(&["web"])],
            ..spec()
        }),
        "port \"web\" is not declared in the job's network block: declared are http"
    );
    let mut mapped = user(&["http"]);
    mapped.port_map.insert("http".into(), 8080);
    let Nic::User { forwards } = &vm(&Spec {
        networks: vec![mapped.clone()],
        ..spec()
    })
    .nics[0];
    assert_eq!(forwards[0].guest_port, 8080);
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
    let tenant = NetworkSpec {
        name: "tenant-a".into(),
        ..NetworkSpec::default()
    };
    assert!(
        sentence(&Spec {
            networks: vec![tenant],
            ..spec()
        })
        .contains("\"tenant-a\" is not known")
    );
    assert!(
        sentence(&Spec {
            networks: vec![user(&[]), user(&[])],
            ..spec()
        })
        .contains("given twice")
    );
    let off = Host {
        user_network: false,
        ..host()
    };
    let asked = Spec {
        networks: vec![user(&[])],
        ..spec()
    };
    assert_eq!(check(&asked, &allocated(), &off), Err(SpecError::UserNetwork));
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
    fn any_text_is_answered(kernel in ".*", cmdline in ".*", name in ".*", file in ".*", port in ".*") {
        let asked = Spec {
            kernel,
            cmdline: Some(cmdline),
            disks: vec![DiskSpec { name, file, format: "raw".into(), read_only: true }],
            networks: vec![user(&[port.as_str()])],
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
