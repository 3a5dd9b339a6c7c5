//! How are the options spelled that every machine profile shares?
//!
//! Whatever a tenant can influence goes into JSON objects or descriptors; the comma-separated strings here are made of
//! our own words and numbers only.

use serde_json::{Value, json};
use steppe_vm::interface::Interface;
use steppe_vm::plan::{Access, Descriptor, Place, Source};
use steppe_vm::vm::{Accelerator, Disk, DiskFormat, FileName, Forward, Reboot};

use crate::Site;

/// First descriptor number that QEMU inherits.
const DESCRIPTOR_FIRST: i32 = 3;

/// Where a program finds its own descriptors as files. `/proc/self/fd` would do on a host, but in its own root QEMU has no
/// `/proc`.
const DESCRIPTORS: &str = "/dev/fd";

/// Arguments and descriptors while they are put together.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) arguments: Vec<String>,
    pub(crate) descriptors: Vec<Descriptor>,
    fdsets: u32,
}

impl Options {
    /// `-name value`.
    pub(crate) fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.arguments.push(format!("-{name}"));
        self.arguments.push(value.into());
    }

    /// `-name`.
    pub(crate) fn flag(&mut self, name: &str) {
        self.arguments.push(format!("-{name}"));
    }

    /// `-name {…}`.
    pub(crate) fn json(&mut self, name: &str, value: &Value) {
        self.pair(name, value.to_string());
    }

    fn descriptor(&mut self, name: &str, source: Source) -> i32 {
        let number = DESCRIPTOR_FIRST + i32::try_from(self.descriptors.len()).unwrap_or(i32::MAX);
        self.descriptors.push(Descriptor {
            number,
            name: name.to_owned(),
            source,
        });
        number
    }

    fn file(&mut self, name: &str, file: &FileName, access: Access, site: &Site<'_>) -> i32 {
        let Place { beneath, path } = place(file, site);
        let source = Source::File {
            beneath,
            path,
            access,
        };
        self.descriptor(name, source)
    }

    /// No default devices, no configuration files, no window; system calls that QEMU never needs here are denied.
    /// A panic ends the machine.
    pub(crate) fn base(&mut self, site: &Site<'_>, reboot: Reboot) {
        self.pair("name", format!("{},debug-threads=on", site.key));
        self.flag("nodefaults");
        self.flag("no-user-config");
        self.pair("display", "none");
        self.pair(
            "sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        let reboot = match reboot {
            Reboot::Reset => "reset",
            Reboot::Shutdown => "shutdown",
        };
        self.pair("action", format!("panic=exit-failure,reboot={reboot}"));
        // Paused before the first instruction: the guest runs only after everything it needs is confirmed.
        self.flag("S");
    }

    /// QMP and the serial console, each over one inherited socket.
    pub(crate) fn channels(&mut self) {
        let qmp = self.descriptor("qmp", Source::Qmp);
        self.pair("chardev", format!("socket,id=qmp,fd={qmp}"));
        self.pair("mon", "chardev=qmp,mode=control");
        let console = self.descriptor("console", Source::Console);
        self.pair("chardev", format!("socket,id=console,fd={console}"));
        self.pair("serial", "chardev:console");
    }

    pub(crate) fn processor(&mut self, accelerator: Accelerator, vcpus: u32) {
        match accelerator {
            Accelerator::Kvm => {
                self.pair("accel", "kvm");
                self.pair("cpu", "host");
            }
            Accelerator::Tcg { .. } => {
                // 32 MiB of translation cache instead of up to 1 GiB, for 3 to 4 % more CPU time.
                self.pair("accel", "tcg,thread=multi,tb-size=32");
                self.pair("cpu", "max");
            }
        }
        self.pair("smp", vcpus.to_string());
    }

    /// Guest memory as a named backend (the machine refers to it as `ram`).
    pub(crate) fn memory(&mut self, mib: u32) {
        self.pair("m", format!("{mib}M"));
        self.json(
            "object",
            &json!({"qom-type": "memory-backend-ram", "id": "ram", "size": u64::from(mib) << 20}),
        );
    }

    /// Kernel, initial RAM disk and command line. QEMU opens the first two once more by their descriptors' names.
    pub(crate) fn boot(
        &mut self,
        kernel: &FileName,
        initrd: Option<&FileName>,
        cmdline: &str,
        site: &Site<'_>,
    ) {
        let number = self.file("kernel", kernel, Access::Load, site);
        self.pair("kernel", format!("{DESCRIPTORS}/{number}"));
        let number = match (initrd, &site.archive) {
            (None, None) => None,
            (Some(initrd), None) => Some(self.file("initrd", initrd, Access::Load, site)),
            (initrd, Some(archive)) => {
                let mut files: Vec<Place> = initrd.iter().map(|initrd| place(initrd, site)).collect();
                files.push(archive.clone());
                Some(self.descriptor("initrd", Source::Joined { files }))
            }
        };
        if let Some(number) = number {
            self.pair("initrd", format!("{DESCRIPTORS}/{number}"));
        }
        self.pair("append", cmdline);
    }

    /// The file behind a disk, as block node `disk-<name>`.
    pub(crate) fn block_node(&mut self, disk: &Disk, site: &Site<'_>) -> String {
        let access = if disk.read_only {
            Access::Read
        } else {
            Access::ReadWrite
        };
        let number = self.file(&format!("disk-{}", disk.name), &disk.file, access, site);
        self.fdsets += 1;
        let set = self.fdsets;
        self.pair("add-fd", format!("fd={number},set={set}"));
        let node = format!("disk-{}", disk.name);
        let file = json!({
            "driver": "file",
            "filename": format!("/dev/fdset/{set}"),
            "discard": "unmap",
            "read-only": disk.read_only,
        });
        let mut block = json!({
            "driver": match disk.format { DiskFormat::Raw => "raw", DiskFormat::Qcow2 => "qcow2" },
            "node-name": node,
            "discard": "unmap",
            "read-only": disk.read_only,
            "file": file,
        });
        if disk.format == DiskFormat::Qcow2 {
            // Whatever the header says by the time QEMU reads it, no backing file is opened. (An external data file is
            // refused by the check of the header before.)
            block["backing"] = Value::Null;
        }
        self.json("blockdev", &block);
        node
    }

    /// QEMU's user-mode network: closed to the outside and to the host, but for the forwarded ports.
    pub(crate) fn user_netdev(&mut self, id: &str, forwards: &[Forward]) {
        let forwards: Vec<Value> = forwards
            .iter()
            .map(|forward| json!({"str": hostfwd(forward)}))
            .collect();
        self.json(
            "netdev",
            &json!({"type": "user", "id": id, "restrict": true, "ipv6": false, "hostfwd": forwards}),
        );
    }

    /// A tap device of netd's, by one descriptor for each of its queues.
    pub(crate) fn tap_netdev(&mut self, id: &str, interface: &Interface) {
        let queues: Vec<String> = (0..interface.queues)
            .map(|_| {
                let source = Source::Tap {
                    name: interface.tap.clone(),
                    multi_queue: interface.queues > 1,
                };
                self.descriptor(id, source).to_string()
            })
            .collect();
        // No vhost: the kernel itself would read what the guest writes into its queues.
        self.json(
            "netdev",
            &json!({"type": "tap", "id": id, "fds": queues.join(":"), "vhost": false}),
        );
    }
}

fn place(file: &FileName, site: &Site<'_>) -> Place {
    Place {
        beneath: (site.place)(file),
        path: file.path.clone().into(),
    }
}

/// QEMU's own notation, from numbers only: `tcp:127.0.0.1:8080-10.0.2.15:80`. 10.0.2.15 is the first address that
/// QEMU's DHCP server hands out.
fn hostfwd(forward: &Forward) -> String {
    format!(
        "{}:{}-10.0.2.15:{}",
        forward.protocol.as_str(),
        forward.host,
        forward.guest_port
    )
}
