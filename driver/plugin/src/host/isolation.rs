//! What can this host keep QEMU from, and what of its files does QEMU need to see?

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use steppe_vm::plan::{Isolation, Kernel, Network, Visible};
use steppe_vm::vm::{Accelerator, Nic, Protocol, Vm};

use super::first_line;

/// How long the shim may take to say what its kernel can do. It takes a few milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where QEMU's libraries and firmware are, on the distributions that follow the File System Hierarchy Standard. What a
/// host doesn't have is left out.
const READ: [&str; 8] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/qemu-kvm",
    "/etc/ld.so.cache",
];

/// The program that loads programs and their libraries.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// What is beside a program that isn't installed beneath `/usr`.
const BESIDE: [&str; 3] = ["lib", "lib64", "share/qemu"];

/// Where NixOS keeps everything, each package in a directory of its own.
const NIX_STORE: &str = "/nix/store";

/// What a QEMU opens whatever its machine. The first must open for writing, or QEMU locks its disks in a weaker way.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];

/// What this host can do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Able {
    pub(crate) kernel: Kernel,
    /// An empty network namespace, which all VMs of this process share: a process's own would cost each start half a
    /// millisecond, and nobody in it could do more.
    pub(crate) network: Option<Arc<OwnedFd>>,
}

/// Asks the shim what its kernel can do. Takes a few milliseconds.
pub(crate) fn look(shim: &Path) -> std::io::Result<Able> {
    let mut child = Command::new(shim)
        .arg("kernel")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let answer = child
        .stdout
        .take()
        .and_then(|output| first_line(output, ANSWER_TIMEOUT));
    // It stands in a network namespace that it has made, until its input ends.
    let network = File::open(format!("/proc/{}/ns/net", child.id()));
    drop(child.kill());
    let _status = child.wait()?;
    let kernel: Kernel = serde_json::from_str(&answer.unwrap_or_default())?;
    let network = if kernel.namespaces {
        Some(Arc::new(OwnedFd::from(network?)))
    } else {
        None
    };
    Ok(Able { kernel, network })
}

/// What a plan says for this machine on this host, with further files that the operator wants QEMU to see.
pub(crate) fn isolation(able: &Able, vm: &Vm, qemu: &Path, paths: &[PathBuf]) -> Isolation {
    // A tap device needs no network of QEMU's: it is open before.
    let mut user = vm.nics.iter().filter_map(|nic| match nic {
        Nic::User { forwards } => Some(forwards),
        Nic::Tap(_) => None,
    });
    let network = user.next().map_or(Network::None, |forwards| {
        if forwards.iter().any(|forward| forward.protocol == Protocol::Udp) {
            Network::Host
        } else {
            Network::Tcp
        }
    });
    Isolation {
        namespaces: able.kernel.namespaces,
        landlock: able.kernel.landlock_abi > 0,
        seccomp: able.kernel.seccomp,
        network,
        root: visible(qemu, paths, vm.accelerator == Accelerator::Kvm, &kind),
    }
}

/// What a path is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Missing,
    Link(PathBuf),
    Other,
}

fn kind(path: &Path) -> Kind {
    match std::fs::symlink_metadata(path) {
        Err(_) => Kind::Missing,
        Ok(data) if data.is_symlink() => std::fs::read_link(path).map_or(Kind::Missing, Kind::Link),
        Ok(_) => Kind::Other,
    }
}

fn visible(qemu: &Path, paths: &[PathBuf], kvm: bool, kind: &dyn Fn(&Path) -> Kind) -> Vec<Visible> {
    let mut visible: Vec<Visible> = DEVICES.iter().map(|path| Visible::Device(path.into())).collect();
    if kvm {
        visible.push(Visible::Device("/dev/kvm".into()));
    }
    let mut put = |path: &Path, as_what: fn(PathBuf) -> Visible| match kind(path) {
        Kind::Missing => {}
        Kind::Link(target) => visible.push(Visible::Link {
            path: path.to_owned(),
            target,
        }),
        Kind::Other => visible.push(as_what(path.to_owned())),
    };
    for path in READ {
        put(Path::new(path), Visible::Read);
    }
    let prefix = qemu.ancestors().nth(2).unwrap_or(Path::new("/"));
    if qemu.starts_with(NIX_STORE) {
        put(Path::new(NIX_STORE), Visible::Execute);
    } else if prefix != Path::new("/usr") && prefix != Path::new("/") {
        for name in BESIDE {
            put(&prefix.join(name), Visible::Read);
        }
    }
    for path in paths {
        put(path, Visible::Execute);
        // Where it is a link, what it leads to is meant as well.
        if let Ok(target) = std::fs::canonicalize(path)
            && target != *path
        {
            put(&target, Visible::Execute);
        }
    }
    // A link there says where it is; what counts is the file.
    visible.push(Visible::Execute(qemu.to_owned()));
    if let Ok(loader) = std::fs::canonicalize(LOADER) {
        visible.push(Visible::Execute(loader));
    }
    visible
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian(path: &Path) -> Kind {
        match path.to_str().unwrap() {
            "/lib" => Kind::Link("usr/lib".into()),
            "/lib64" => Kind::Link("usr/lib64".into()),
            "/usr/share/qemu-kvm" | "/opt/qemu/lib64" => Kind::Missing,
            _ => Kind::Other,
        }
    }

    fn has(visible: &[Visible], wanted: &Visible) -> bool {
        visible.contains(wanted)
    }

    #[test]
    fn what_is_there_is_seen_as_it_is_there() {
        let seen = visible(Path::new("/usr/bin/qemu-system-x86_64"), &[], false, &debian);
        assert!(has(
            &seen,
            &Visible::Execute("/usr/bin/qemu-system-x86_64".into())
        ));
        assert!(has(&seen, &Visible::Read("/usr/share/qemu".into())));
        assert!(has(
            &seen,
            &Visible::Link {
                path: "/lib".into(),
                target: "usr/lib".into()
            }
        ));
        let paths: Vec<&Path> = seen.iter().map(Visible::path).collect();
        for absent in [
            "/usr/share/qemu-kvm",
            "/usr",
            "/usr/bin",
            "/etc",
            "/dev/kvm",
            "/proc",
            "/sys",
            "/",
        ] {
            assert!(!paths.contains(&Path::new(absent)), "{absent}");
        }
    }

    #[test]
    fn a_program_elsewhere_finds_what_is_beside_it() {
        let own = visible(
            Path::new("/opt/qemu/bin/qemu-system-x86_64"),
            &["/srv/lib".into()],
            true,
            &debian,
        );
        for wanted in [
            Visible::Read("/opt/qemu/lib".into()),
            Visible::Read("/opt/qemu/share/qemu".into()),
            Visible::Execute("/srv/lib".into()),
            Visible::Device("/dev/kvm".into()),
        ] {
            assert!(has(&own, &wanted), "{wanted:?}");
        }
        assert!(!has(&own, &Visible::Read("/opt/qemu/lib64".into())));
        let nix = visible(
            Path::new("/nix/store/abc-qemu/bin/qemu-system-x86_64"),
            &[],
            false,
            &debian,
        );
        assert!(has(&nix, &Visible::Execute("/nix/store".into())));
    }
}
