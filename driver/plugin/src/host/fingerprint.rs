//! Is the driver healthy on this host, and what can be constrained on?
//!
//! Attributes are stable: the same host gives the same ones at each look, or every look would be a change of the node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use steppe_vm::memory;
use steppe_vm::vm::Accelerator;

use crate::config::{AcceleratorOption, Hardening};
use crate::host::netd::View;
use crate::host::{cgroup, chain, first_line};
use crate::instance::Instance;

/// How long QEMU may take to say its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// What Nomad's node shows of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    pub(crate) health: Health,
    pub(crate) attributes: BTreeMap<String, Value>,
}

/// Whether jobs are placed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// Hidden: not meant to be used.
    Undetected(String),
    /// Shown, with the reason why not.
    Unhealthy(String),
    /// Ready.
    Healthy(String),
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Bool(bool),
    Integer(i64),
}

/// QEMU's version, kept as long as its file stays the same.
#[derive(Debug, Default)]
pub(crate) struct VersionCache(Option<(PathBuf, Option<SystemTime>, String)>);

impl VersionCache {
    fn get(&mut self, qemu: &Path) -> Option<String> {
        let modified = std::fs::metadata(qemu).and_then(|data| data.modified()).ok();
        if let Some((path, at, version)) = &self.0
            && path == qemu
            && *at == modified
        {
            return Some(version.clone());
        }
        let version = ask_version(qemu)?;
        self.0 = Some((qemu.to_owned(), modified, version.clone()));
        Some(version)
    }
}

/// Looks at the host. Blocks: a few hundred milliseconds the first time, microseconds later.
pub(crate) fn look(
    instance: &Instance,
    orphans: &[String],
    netd: &View,
    versions: &mut VersionCache,
) -> Fingerprint {
    let nothing = |health| Fingerprint {
        health,
        attributes: BTreeMap::new(),
    };
    if !instance.options.enabled {
        return nothing(Health::Undetected(
            "the plugin option enabled is false".to_owned(),
        ));
    }
    if let Err(error) = instance.state() {
        return nothing(Health::Unhealthy(chain(&error)));
    }
    let Some(qemu) = instance.qemu() else {
        let name = instance.options.qemu.display();
        return nothing(Health::Unhealthy(format!(
            "QEMU is missing: {name} is not a program; install qemu-system-x86"
        )));
    };
    let Some(version) = versions.get(&qemu) else {
        return nothing(Health::Unhealthy(format!(
            "QEMU does not say its version: {} --version",
            qemu.display()
        )));
    };
    if instance.shim().is_none() {
        return nothing(Health::Unhealthy(
            "microvm-shim is missing: install it beside the plugin, or set the plugin option shim".to_owned(),
        ));
    }
    let Some(able) = instance.able() else {
        return nothing(Health::Unhealthy(SHIM_OF_OTHERS.to_owned()));
    };
    let missing = able.kernel.missing();
    if instance.options.hardening == Hardening::Required && !missing.is_empty() {
        return nothing(Health::Unhealthy(lacks(&missing)));
    }
    let kvm = instance.kvm();
    let accelerator = match (instance.options.accelerator, &kvm) {
        (AcceleratorOption::Kvm, Err(reason)) => {
            return nothing(Health::Unhealthy(format!(
                "the plugin option accelerator is \"kvm\", but {reason}"
            )));
        }
        (AcceleratorOption::Tcg, _) | (_, Err(_)) => "tcg",
        (_, Ok(())) => "kvm",
    };
    let overhead_mib = memory::base_mib(if accelerator == "kvm" {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg { tsc_khz: 0 }
    });
    let text = |text: &str| Value::Text(text.to_owned());
    let mut attributes: BTreeMap<String, Value> = [
        ("version", text(env!("CARGO_PKG_VERSION"))),
        ("qemu.version", Value::Text(version)),
        ("accelerator", text(accelerator)),
        ("kvm", Value::Bool(accelerator == "kvm")),
        ("machine.microvm", Value::Bool(true)),
        ("memory_overhead_mib", Value::Integer(overhead_mib.into())),
        ("hardening", Value::Text(hardening(&missing))),
        ("landlock_abi", Value::Integer(able.kernel.landlock_abi.into())),
        ("cgroups", text(cgroup::version())),
        // Rounded: two measurements of the same clock differ in the last digits.
        (
            "tsc_mhz",
            Value::Integer(i64::from(instance.tsc_khz() + 500) / 1000),
        ),
    ]
    .into_iter()
    .map(|(name, value)| (attribute(name), value))
    .collect();
    if instance.options.netd.is_some() {
        attributes.extend(networks(netd));
    }
    if instance.options.user_network {
        let _none = attributes.insert(attribute("network.user"), text("user"));
    }
    if !orphans.is_empty() {
        let _none = attributes.insert(attribute("orphans"), Value::Text(some_of(orphans)));
    }
    // The attributes stay as they were: what can be had here has not changed.
    if let Some(socket) = &instance.options.netd
        && let Some(reason) = netd.problem(socket)
    {
        return Fingerprint {
            health: Health::Unhealthy(reason),
            attributes,
        };
    }
    let description = match (instance.options.accelerator, kvm) {
        (AcceleratorOption::Auto, Err(reason)) => format!("Healthy, by emulation (tcg): {reason}"),
        (AcceleratorOption::Tcg, _) => "Healthy, by emulation (tcg) as configured".to_owned(),
        _ => "Healthy".to_owned(),
    };
    Fingerprint {
        health: Health::Healthy(description),
        attributes,
    }
}

/// The whole name of an attribute.
fn attribute(name: &str) -> String {
    format!("driver.microvm.{name}")
}

/// netd's networks that a VM can be on, each with its kind.
fn networks(netd: &View) -> impl Iterator<Item = (String, Value)> {
    let available = netd.networks.iter().filter(|network| network.is_available);
    available.map(|network| {
        (
            attribute(&format!("network.{}", network.name)),
            Value::Text(network.kind.clone()),
        )
    })
}

/// Why a shim is not good enough.
pub(crate) const SHIM_OF_OTHERS: &str =
    "microvm-shim does not say what its kernel can do: install the one that came with this plugin";

/// Why a kernel that lacks something is not good enough.
pub(crate) fn lacks(missing: &[&str]) -> String {
    format!(
        "QEMU can't be kept from this host by {} (the kernel has not that, or the agent not the privilege), and the plugin option \
         hardening is \"required\": mend that, or choose \"best\"",
        missing.join(" and ")
    )
}

/// How far QEMU is kept from the host.
pub(crate) fn hardening(missing: &[&str]) -> String {
    if missing.is_empty() {
        "full".to_owned()
    } else {
        format!("partial: without {}", missing.join(", without "))
    }
}

/// Most names in an attribute.
const ORPHANS_SHOWN_MAX: usize = 5;

fn some_of(names: &[String]) -> String {
    let mut text = names
        .iter()
        .take(ORPHANS_SHOWN_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if let Some(more) = names
        .len()
        .checked_sub(ORPHANS_SHOWN_MAX)
        .filter(|more| *more > 0)
    {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Runs `qemu --version` with a deadline and nothing of ours to inherit.
pub(crate) fn ask_version(qemu: &Path) -> Option<String> {
    use std::process::{Command, Stdio};
    let mut child = Command::new(qemu)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let line = child
        .stdout
        .take()
        .and_then(|output| first_line(output, VERSION_TIMEOUT));
    drop(child.kill());
    drop(child.wait());
    parse_version(&line?)
}

/// `QEMU emulator version 7.2.22 (Debian …)`.
fn parse_version(text: &str) -> Option<String> {
    let version = text
        .lines()
        .next()?
        .strip_prefix("QEMU emulator version ")?
        .split_whitespace()
        .next()?;
    version
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_qemus_own_line() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022\n";
        assert_eq!(parse_version(debian).as_deref(), Some("7.2.22"));
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2\n").as_deref(),
            Some("10.0.2")
        );
        for text in ["", "bash 5", "QEMU emulator version ", "QEMU emulator version x"] {
            assert_eq!(parse_version(text), None, "{text:?}");
        }
    }
}
