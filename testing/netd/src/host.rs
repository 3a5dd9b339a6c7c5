//! What is asked of netd, in the words of the checks?

use steppe_proto::net;

use crate::netd::Client;

/// The driver instance that most checks speak as.
pub(crate) const INSTANCE: &str = "checks";

/// The user of most machines.
pub(crate) const UID: u32 = 64_001;

/// A machine of [`INSTANCE`].
pub(crate) fn owner(id: &str) -> net::Owner {
    net::Owner {
        instance: INSTANCE.to_owned(),
        id: id.to_owned(),
    }
}

/// A machine with these interfaces, with an identity of its own.
pub(crate) fn machine(id: &str, nics: &[net::Nic]) -> net::AttachRequest {
    net::AttachRequest {
        owner: Some(owner(id)),
        identity: format!("default/checks/group/{id}/0"),
        uid: UID,
        queues: 1,
        nics: nics.to_vec(),
    }
}

/// An interface on a network, everything else left to netd.
pub(crate) fn nic(network: &str) -> net::Nic {
    net::Nic {
        network: network.to_owned(),
        ..net::Nic::default()
    }
}

/// The same with this address.
pub(crate) fn at(network: &str, ipv4: &str) -> net::Nic {
    net::Nic {
        ipv4: ipv4.to_owned(),
        ..nic(network)
    }
}

/// A port of the host that leads to a port of the guest.
pub(crate) fn port(protocol: net::Protocol, host_ip: &str, host_port: u32, guest_port: u32) -> net::Port {
    net::Port {
        protocol: protocol.into(),
        host_ip: host_ip.to_owned(),
        host_port,
        guest_port,
    }
}

/// Attaches a machine with one interface.
#[track_caller]
pub(crate) fn attach_one(client: &Client, id: &str, nic: net::Nic) -> net::Interface {
    let mut interfaces = attach(client, &machine(id, &[nic]));
    assert_eq!(interfaces.len(), 1, "one interface was asked for");
    interfaces.remove(0)
}

/// Attaches a machine.
#[track_caller]
pub(crate) fn attach(client: &Client, request: &net::AttachRequest) -> Vec<net::Interface> {
    client
        .attach(request)
        .unwrap_or_else(|refused| panic!("Attach {:?}: {refused}", request.owner))
}
