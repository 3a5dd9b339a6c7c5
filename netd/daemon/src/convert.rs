//! How do requests and answers of net.v1 become ours, and ours theirs?

use netd_plan::{
    Attachment, Config, Forward, Identity, Mode, Network, Owner, Protocol, Refusal, Request, RequestNic,
};
use rustix::io::Errno;
use steppe_proto::net;
use tonic::{Code, Status};

use crate::apply::StepError;

/// Why a request is not carried out.
#[derive(Debug)]
pub struct Refused {
    /// What to say.
    pub refusal: Box<Refusal>,
    /// The step that failed, where one did.
    pub step: &'static str,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal: Box::new(refusal),
            step: "",
        }
    }
}

impl From<StepError> for Refused {
    fn from(error: StepError) -> Self {
        let errno = error.cause.errno();
        let full = error.step == "enslave" && errno == Some(Errno::XFULL);
        let passing = [
            Errno::AGAIN,
            Errno::BUSY,
            Errno::INTR,
            Errno::NOBUFS,
            Errno::NOMEM,
        ];
        let refusal = Refusal {
            reason: if full { "bridge-full" } else { "system" },
            field: String::new(),
            sentence: error.to_string(),
            holder: None,
            retryable: full || errno.is_some_and(|errno| passing.contains(&errno)),
        };
        Self {
            refusal: Box::new(refusal),
            step: error.step,
        }
    }
}

impl Refused {
    /// The owner's last request is still under way.
    pub(crate) fn under_way(owner: &Owner) -> Self {
        Self::later(
            "unavailable",
            format!("another request for {owner} is under way; ask again when it is over"),
        )
    }

    /// Something that passes.
    pub(crate) fn later(reason: &'static str, sentence: String) -> Self {
        let refusal = Refusal {
            reason,
            field: String::new(),
            sentence,
            holder: None,
            retryable: true,
        };
        refusal.into()
    }
}

impl From<Refused> for Status {
    fn from(Refused { refusal, step }: Refused) -> Self {
        let code = match refusal.reason {
            "unknown-network" => Code::NotFound,
            "invalid" => Code::InvalidArgument,
            "address-taken" | "port-taken" | "identity-held" => Code::AlreadyExists,
            "pool-exhausted" | "bridge-full" => Code::ResourceExhausted,
            "other-spec" | "in-use" => Code::FailedPrecondition,
            "unavailable" => Code::Unavailable,
            _ => Code::Internal,
        };
        let detail = net::ErrorDetail {
            reason: refusal.reason.to_owned(),
            field: refusal.field.clone(),
            holder: refusal.holder.as_ref().map(owner_out),
            retryable: refusal.retryable,
            step: step.to_owned(),
        };
        steppe_proto::status(code, refusal.sentence, &detail)
    }
}

/// An owner, its texts checked.
pub(crate) fn owner(owner: Option<net::Owner>) -> Result<Owner, Refusal> {
    let owner =
        owner.ok_or_else(|| Refusal::invalid("owner", "owner is missing; say whose the interfaces are"))?;
    Owner::new(&owner.instance, &owner.id)
}

fn owner_out(owner: &Owner) -> net::Owner {
    net::Owner {
        instance: owner.instance().to_owned(),
        id: owner.id().to_owned(),
    }
}

/// A request, its texts checked for form.
pub(crate) fn request(request: net::AttachRequest) -> Result<Request, Refusal> {
    let mut nics = Vec::with_capacity(request.nics.len());
    for (index, nic) in request.nics.into_iter().enumerate() {
        let mut ports = Vec::with_capacity(nic.ports.len());
        for (port_index, port) in nic.ports.into_iter().enumerate() {
            ports.push(forward(&format!("nics[{index}].ports[{port_index}]"), &port)?);
        }
        nics.push(RequestNic {
            network: nic.network,
            ipv4: nic.ipv4,
            vlan: nic.vlan,
            trunk: nic.trunk,
            mtu: nic.mtu,
            ports,
        });
    }
    Ok(Request {
        owner: owner(request.owner)?,
        identity: Identity::new(&request.identity)?,
        uid: request.uid,
        queues: request.queues,
        nics,
    })
}

fn forward(field: &str, port: &net::Port) -> Result<Forward, Refusal> {
    let protocol = match net::Protocol::try_from(port.protocol) {
        Ok(net::Protocol::Tcp) => Protocol::Tcp,
        Ok(net::Protocol::Udp) => Protocol::Udp,
        Ok(net::Protocol::Unspecified) | Err(_) => {
            return Err(Refusal::invalid(
                format!("{field}.protocol"),
                format!("{field}.protocol is {}; give 1 (TCP) or 2 (UDP)", port.protocol),
            ));
        }
    };
    let host_ip = port.host_ip.parse().map_err(|_| {
        let shown: String = port.host_ip.chars().take(60).collect();
        Refusal::invalid(
            format!("{field}.host_ip"),
            format!("{field}.host_ip is {shown:?}; give an IPv4 address of this host"),
        )
    })?;
    Forward::new(field, protocol, host_ip, port.host_port, port.guest_port)
}

/// An interface, as its network's configuration is now.
pub(crate) fn interface(
    config: &Config,
    attachment: &Attachment,
    carrier: bool,
    faults: &[String],
) -> net::Interface {
    let network = config.networks.get(&attachment.network);
    let gateway = |network: &Network| network.ipv4.as_ref()?.gateway.map(|gateway| gateway.to_string());
    let gateway6 = |network: &Network| network.ipv6.as_ref()?.gateway.map(|gateway| gateway.to_string());
    let text = |address: Option<String>| address.unwrap_or_default();
    net::Interface {
        owner: Some(owner_out(&attachment.owner)),
        index: attachment.index,
        network: attachment.network.to_string(),
        kind: network.map(Network::kind_name).unwrap_or_default().to_owned(),
        tap: attachment.tap.to_string(),
        uid: attachment.uid,
        queues: attachment.queues,
        mac: attachment.mac.to_string(),
        ipv4: text(attachment.ipv4.map(|address| address.to_string())),
        ipv4_gateway: text(network.filter(|_| attachment.ipv4.is_some()).and_then(gateway)),
        ipv6: text(attachment.ipv6.map(|address| address.to_string())),
        ipv6_gateway: text(network.filter(|_| attachment.ipv6.is_some()).and_then(gateway6)),
        dns: network
            .map(|network| network.dns.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        mtu: attachment.mtu,
        vlan: attachment.vid().map_or(0, |vid| u32::from(vid.get())),
        trunk: match &attachment.mode {
            Mode::Trunk(vids) => vids.to_string().split(',').map(str::to_owned).collect(),
            Mode::Plain | Mode::Access(_) => Vec::new(),
        },
        ports: attachment.forwards.iter().map(port_out).collect(),
        carrier,
        faults: faults.to_vec(),
    }
}

fn port_out(forward: &Forward) -> net::Port {
    let protocol = match forward.protocol {
        Protocol::Tcp => net::Protocol::Tcp,
        Protocol::Udp => net::Protocol::Udp,
    };
    net::Port {
        protocol: protocol.into(),
        host_ip: forward.host_ip.to_string(),
        host_port: u32::from(forward.host_port),
        guest_port: u32::from(forward.guest_port),
    }
}

/// What is left of an interface that is gone.
pub(crate) fn removed(attachment: &Attachment) -> net::Interface {
    net::Interface {
        owner: Some(owner_out(&attachment.owner)),
        index: attachment.index,
        tap: attachment.tap.to_string(),
        ..net::Interface::default()
    }
}
