//! What is attached, and which requests are refused?
//!
//! An attachment is one interface of one machine. It is written on its tap (alias and further names), and read back
//! from there: there is no other memory of it.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use steppe_config::quoted;

use crate::{Identity, LinkName, Mac, NetworkName, Vid, Vids};

/// Whose something is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    instance: String,
    id: String,
}

/// Most interfaces of one machine.
pub(crate) const NICS_MAX: u32 = 32;

/// Most queues of an interface: the kernel's limit.
pub const QUEUES_MAX: u32 = 256;

/// Most forwarded ports of an interface: the kernel keeps one further name of the tap for each, and tells of all in
/// one message.
pub(crate) const FORWARDS_MAX: usize = 128;

/// Longest text of an owner's instance.
pub(crate) const INSTANCE_MAX: usize = 16;

/// Longest id of an owner.
pub(crate) const OWNER_ID_MAX: usize = 48;

impl Owner {
    /// An owner, its texts checked.
    ///
    /// # Errors
    ///
    /// `instance` is not 1 to 16 of `a-z0-9-`, or `id` not 1 to 48 of `A-Za-z0-9._-`.
    pub fn new(instance: &str, id: &str) -> Result<Self, Refusal> {
        let instance_fits = (1..=INSTANCE_MAX).contains(&instance.len())
            && instance
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if !instance_fits {
            return Err(Refusal::invalid(
                "owner.instance",
                format!(
                    "owner.instance is {}; give 1 to {INSTANCE_MAX} characters of a-z, 0-9 and -",
                    quoted(instance)
                ),
            ));
        }
        let id_fits = (1..=OWNER_ID_MAX).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if !id_fits {
            return Err(Refusal::invalid(
                "owner.id",
                format!(
                    "owner.id is {}; give 1 to {OWNER_ID_MAX} characters of A-Z, a-z, 0-9, \".\", \"_\" and -",
                    quoted(id)
                ),
            ));
        }
        Ok(Self {
            instance: instance.to_owned(),
            id: id.to_owned(),
        })
    }

    /// The program instance that asked.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// One machine of it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.instance, self.id)
    }
}

/// What was asked for, its texts checked for form but not against the networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// For whom.
    pub owner: Owner,
    /// What addresses are computed from.
    pub identity: Identity,
    /// The user that may open the taps.
    pub uid: u32,
    /// Queues of each interface.
    pub queues: u32,
    /// The interfaces in order.
    pub nics: Vec<RequestNic>,
}

/// One interface of a [`Request`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestNic {
    /// Name of the network, as given.
    pub network: String,
    /// Empty, `auto`, `none` or an address.
    pub ipv4: String,
    /// VLAN of an access port, 0 for none.
    pub vlan: u32,
    /// VLANs of a trunk port.
    pub trunk: Vec<String>,
    /// MTU for the guest, 0 for the network's.
    pub mtu: u32,
    /// Ports of the host that lead to the guest.
    pub ports: Vec<Forward>,
}

/// One interface of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Whose.
    pub owner: Owner,
    /// Position in the machine, from 0.
    pub index: u32,
    /// The network.
    pub network: NetworkName,
    /// Which of its VLANs.
    pub mode: Mode,
    /// What its addresses are computed from, as far as it is remembered.
    pub mark: Mark,
    /// The tap.
    pub tap: LinkName,
    /// The user that may open it.
    pub uid: u32,
    /// Its queues.
    pub queues: u32,
    /// The guest's hardware address.
    pub mac: Mac,
    /// The guest's IPv4 address with the subnet's prefix length.
    pub ipv4: Option<Ipv4Net>,
    /// The guest's IPv6 address with the prefix's length.
    pub ipv6: Option<Ipv6Net>,
    /// MTU that the guest is told.
    pub mtu: u32,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<Forward>,
}

/// The first 64 bits of the identity's SHA-256: enough to know a machine again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(pub u64);

/// Which VLANs of a network an interface is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// The network's only one.
    Plain,
    /// One VLAN of a vlan-aware network, untagged towards the guest.
    Access(Vid),
    /// Several, tagged towards the guest.
    Trunk(Vids),
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address of the host.
    pub host_ip: Ipv4Addr,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the guest.
    pub guest_port: u16,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Why a request is refused: what, where, the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    /// One of the reasons of `net.v1.ErrorDetail`.
    pub reason: &'static str,
    /// Field of the request, such as `nics[0].ipv4`; may be empty.
    pub field: String,
    /// For a person.
    pub sentence: String,
    /// Who holds what was asked for.
    pub holder: Option<Owner>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
}

impl Attachment {
    /// The VLAN of an access port.
    #[must_use]
    pub fn vid(&self) -> Option<Vid> {
        match self.mode {
            Mode::Access(vid) => Some(vid),
            Mode::Plain | Mode::Trunk(_) => None,
        }
    }
}

impl Mode {
    /// The part of its network in which an interface's addresses are its own, as it goes into what addresses are
    /// computed from.
    #[must_use]
    pub fn segment(&self) -> Cow<'static, str> {
        match self {
            Self::Plain => Cow::Borrowed(""),
            Self::Access(vid) => Cow::Owned(vid.to_string()),
            Self::Trunk(_) => Cow::Borrowed("trunk"),
        }
    }

    /// Whether two interfaces of one network have the same segment.
    #[must_use]
    pub fn shares_segment(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Access(one), Self::Access(other)) => one == other,
            (Self::Plain, Self::Plain) | (Self::Trunk(_), Self::Trunk(_)) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Protocol {
    /// Its word in net.proto's sense and nftables'.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Forward {
    /// A forwarded port from a request's fields, checked.
    ///
    /// # Errors
    ///
    /// An address that no host has, or a port that is none. `field` is the port's place in the request, such as
    /// `nics[0].ports[1]`.
    pub fn new(
        field: &str,
        protocol: Protocol,
        host_ip: Ipv4Addr,
        host_port: u32,
        guest_port: u32,
    ) -> Result<Self, Refusal> {
        if host_ip.octets()[0] == 0 || host_ip.is_multicast() || host_ip.is_broadcast() {
            return Err(Refusal::invalid(
                format!("{field}.host_ip"),
                format!("{field}.host_ip is {host_ip}; give an address of this host"),
            ));
        }
        let port = |key: &str, number: u32| {
            let port = u16::try_from(number).ok().filter(|port| *port > 0);
            port.ok_or_else(|| {
                Refusal::invalid(
                    format!("{field}.{key}"),
                    format!("{field}.{key} is {number}; ports are 1 to 65535"),
                )
            })
        };
        Ok(Self {
            protocol,
            host_ip,
            host_port: port("host_port", host_port)?,
            guest_port: port("guest_port", guest_port)?,
        })
    }
}

impl Refusal {
    /// The request is wrong in itself, and will be so later.
    #[must_use]
    pub fn invalid(field: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self {
            reason: "invalid",
            field: field.into(),
            sentence: sentence.into(),
            holder: None,
            retryable: false,
        }
    }
}
