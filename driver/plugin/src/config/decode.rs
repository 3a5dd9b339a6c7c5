//! How does the MessagePack that Nomad sends become values?
//!
//! Objects are maps with string keys; an absent attribute is nil (from the agent) or missing (from test harnesses); a
//! number may come as any integer, a float or a decimal string.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use steppe_vm::spec::{DiskSpec, NetworkSpec, Spec};

/// The bytes don't have the shape of the schema.
#[derive(Debug, thiserror::Error)]
#[error("the config block doesn't have the shape of the schema, or a text in it isn't UTF-8")]
pub(crate) struct DecodeError(#[from] rmp_serde::decode::Error);

/// Decodes a block; no bytes at all are an empty block.
pub(super) fn any<T: DeserializeOwned + Default>(msgpack: &[u8]) -> Result<T, DecodeError> {
    if msgpack.is_empty() {
        return Ok(T::default());
    }
    // An empty block arrives as nil.
    Ok(rmp_serde::from_slice::<Option<T>>(msgpack)?.unwrap_or_default())
}

/// Decodes a task's `config` block.
pub(crate) fn task(msgpack: &[u8]) -> Result<Spec, DecodeError> {
    let raw: RawTask = any(msgpack)?;
    let disks = raw.disk.unwrap_or_default().into_iter().map(|disk| DiskSpec {
        name: disk.name.unwrap_or_default(),
        file: disk.file.unwrap_or_default(),
        format: disk.format.unwrap_or_default(),
        read_only: disk.read_only.unwrap_or(false),
    });
    let networks = raw
        .network
        .unwrap_or_default()
        .into_iter()
        .map(|network| NetworkSpec {
            name: network.name.unwrap_or_default(),
            ports: network.ports.unwrap_or_default(),
            port_map: network
                .port_map
                .unwrap_or_default()
                .into_iter()
                .map(|(label, Number(port))| (label, port))
                .collect(),
            ipv4: network.ipv4,
            vlan: network.vlan.map(|Number(vlan)| vlan),
            trunk: network.trunk.unwrap_or_default(),
            mtu: network.mtu.map(|Number(mtu)| mtu),
        });
    Ok(Spec {
        machine: raw.machine,
        kernel: raw.kernel.unwrap_or_default(),
        initrd: raw.initrd,
        cmdline: raw.cmdline,
        accelerator: raw.accelerator,
        disks: disks.collect(),
        networks: networks.collect(),
        identity: raw.identity,
        reboot: raw.reboot,
        ready: raw.ready,
        ready_pattern: raw.ready_pattern,
        ready_timeout: raw.ready_timeout,
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawTask {
    machine: Option<String>,
    kernel: Option<String>,
    initrd: Option<String>,
    cmdline: Option<String>,
    accelerator: Option<String>,
    disk: Option<Vec<RawDisk>>,
    network: Option<Vec<RawNetwork>>,
    identity: Option<String>,
    reboot: Option<String>,
    ready: Option<String>,
    ready_pattern: Option<String>,
    ready_timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawDisk {
    name: Option<String>,
    file: Option<String>,
    format: Option<String>,
    read_only: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawNetwork {
    name: Option<String>,
    ports: Option<Vec<String>>,
    port_map: Option<BTreeMap<String, Number>>,
    ipv4: Option<String>,
    vlan: Option<Number>,
    trunk: Option<Vec<String>>,
    mtu: Option<Number>,
}

/// A whole number in any of the forms that Nomad's encoder gives it. One that isn't whole is out of every range here.
#[derive(Debug, Clone, Copy)]
struct Number(i64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Number;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number")
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Number, E> {
                Ok(Number(value))
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Number, E> {
                Ok(Number(i64::try_from(value).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Number, E> {
                format!("{value}").parse().map(Number).or(Ok(Number(-1)))
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Number, E> {
                value
                    .parse()
                    .map(Number)
                    .map_err(|_| E::custom("not a whole number"))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
