//! Is the plan for a given machine the one we agreed on?

use std::path::PathBuf;

use steppe_vm::plan::{LaunchPlan, Network, Visible};
use steppe_vm::vm::{
    Accelerator, Disk, DiskFormat, FileName, FileRoot, Forward, Machine, Nic, Protocol, Ready, Reboot,
    TapRequest, Vm,
};

use super::*;

fn file(root: FileRoot, path: &str) -> FileName {
    FileName {
        root,
        path: path.into(),
    }
}

fn small() -> Vm {
    Vm {
        machine: Machine::Microvm,
        accelerator: Accelerator::Tcg { tsc_khz: 2_500_000 },
        vcpus: 1,
        cpus: Vec::new(),
        memory_mib: 128,
        kernel: file(FileRoot::Images, "vmlinux"),
        initrd: None,
        cmdline: "console=ttyS0".into(),
        disks: vec![],
        nics: vec![],
        identity: String::new(),
        reboot: Reboot::Reset,
        ready: None,
    }
}

fn large() -> Vm {
    let disk = |name: &str, format, read_only| Disk {
        name: name.into(),
        file: file(FileRoot::Task, &format!("local/{name},1")),
        format,
        read_only,
    };
    let forward = |protocol, host: &str, guest_port| Forward {
        label: "http".into(),
        protocol,
        host: host.parse().unwrap(),
        guest_port,
    };
    Vm {
        accelerator: Accelerator::Kvm,
        vcpus: 2,
        cpus: vec![3, 1],
        memory_mib: 2047,
        initrd: Some(file(FileRoot::Alloc, "initrd.img")),
        disks: vec![
            disk("root", DiskFormat::Qcow2, false),
            disk("data", DiskFormat::Raw, true),
        ],
        nics: vec![Nic::User {
            forwards: vec![
                forward(Protocol::Tcp, "127.0.0.1:20000", 80),
                forward(Protocol::Udp, "192.0.2.1:20001", 53),
            ],
        }],
        reboot: Reboot::Shutdown,
        ready: Some(Ready {
            pattern: "login:".into(),
            timeout: std::time::Duration::from_secs(90),
        }),
        ..small()
    }
}

/// On two networks of netd's, with another one between them.
fn networked() -> Vm {
    let tap = |network: &str| {
        Nic::Tap(TapRequest {
            network: network.into(),
            ..TapRequest::default()
        })
    };
    let user = large().nics.swap_remove(0);
    Vm {
        nics: vec![tap("tenant-a"), user, tap("lab")],
        identity: "default/web/front/vm/0".into(),
        disks: Vec::new(),
        ..large()
    }
}

/// What netd made for a machine.
fn interfaces(vm: &Vm) -> Vec<Interface> {
    let interface = |(index, tap): (usize, &TapRequest)| Interface {
        network: tap.network.clone(),
        tap: ["ndtabcdefghij", "ndtklmnopqrst"][index % 2].into(),
        queues: vm.queues(),
        mac: format!("02:00:00:00:00:{index:02x}"),
        mtu: 1500,
        ..Interface::default()
    };
    vm.taps().enumerate().map(interface).collect()
}

fn plan(vm: &Vm) -> LaunchPlan {
    let place = |file: &FileName| PathBuf::from(format!("/{:?}", file.root).to_lowercase());
    let interfaces = interfaces(vm);
    render(
        vm,
        &Site {
            owner: "b2f8c3d4.vm".into(),
            key: "b2f8c3d4.01234567".into(),
            program: "/usr/bin/qemu-system-x86_64".into(),
            uid: 1_900_000_000,
            gid: 1_900_000_000,
            isolation: Some(Isolation {
                namespaces: true,
                landlock: true,
                seccomp: false,
                network: Network::None,
                root: vec![
                    Visible::Execute("/usr/bin/qemu-system-x86_64".into()),
                    Visible::Read("/usr/lib".into()),
                    Visible::Device("/dev/null".into()),
                    Visible::Link {
                        path: "/lib".into(),
                        target: "usr/lib".into(),
                    },
                ],
            }),
            file_bytes: Some(1 << 34),
            archive: (!interfaces.is_empty()).then(|| Place {
                beneath: "/record".into(),
                path: "network.cpio".into(),
            }),
            interfaces: &interfaces,
            place: &place,
        },
    )
}

/// The printed plans are files, so that a change of one argument is one line of a diff. `UPDATE=1` rewrites them.
#[test]
fn plans_are_the_golden_ones() {
    for (name, vm) in [("small", small()), ("large", large()), ("networked", networked())] {
        let printed = plan(&vm).to_string();
        let path = format!("{}/src/golden/{name}.plan", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &printed).unwrap();
        }
        assert_eq!(
            printed,
            std::fs::read_to_string(&path).unwrap(),
            "{path}; UPDATE=1 rewrites it"
        );
    }
}

#[test]
fn plans_pass_their_own_check() {
    for vm in [small(), large(), networked()] {
        let plan = plan(&vm);
        assert_eq!(LaunchPlan::parse(plan.to_json().as_bytes()).unwrap(), plan);
    }
}

#[test]
fn the_fullest_machine_has_descriptors_left() {
    let mut vm = large();
    let disk = vm.disks[0].clone();
    vm.disks = (0..22)
        .map(|n| Disk {
            name: format!("d{n}"),
            ..disk.clone()
        })
        .collect();
    assert!(LaunchPlan::parse(plan(&vm).to_json().as_bytes()).is_ok());
    let tap = networked().nics.swap_remove(0);
    let most = Vm {
        vcpus: 288,
        cpus: Vec::new(),
        disks: Vec::new(),
        nics: vec![tap; 22],
        ..vm
    };
    let plan = plan(&most);
    assert_eq!(plan.descriptors.len(), 4 + 22 * 8);
    assert!(LaunchPlan::parse(plan.to_json().as_bytes()).is_ok());
}

/// A guest without an initrd of its own gets the archive as one.
#[test]
fn the_archive_is_behind_the_initrd_or_alone() {
    let files = |vm: &Vm| {
        let plan = plan(vm);
        let of = |descriptor: &steppe_vm::plan::Descriptor| match &descriptor.source {
            steppe_vm::plan::Source::Joined { files } => Some(files.len()),
            _ => None,
        };
        plan.descriptors.iter().find_map(of)
    };
    let alone = Vm {
        initrd: None,
        ..networked()
    };
    assert_eq!(
        (files(&networked()), files(&alone), files(&large())),
        (Some(2), Some(1), None)
    );
}
