//! What does a guest do on its network?
//!
//! A guest is a namespace of its own with a card that is joined to netd's tap frame by frame: its protocols are a real kernel's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use steppe_proto::net;

use crate::frame::{self, Mac};
use crate::ping;
use crate::space::Space;
use crate::tap::Tap;
use crate::wait;

/// A guest that runs.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) space: Space,
    outer: Arc<Tap>,
    stop: Arc<OwnedFd>,
    pump: Option<JoinHandle<()>>,
}

/// The address of a guest's interface without its prefix length.
#[track_caller]
pub(crate) fn ipv4(interface: &net::Interface) -> Ipv4Addr {
    let (address, _) = interface
        .ipv4
        .split_once('/')
        .unwrap_or_else(|| panic!("{} has no IPv4 address", interface.tap));
    address.parse().expect("netd writes addresses")
}

/// The same of IPv6.
#[track_caller]
pub(crate) fn ipv6(interface: &net::Interface) -> Ipv6Addr {
    let (address, _) = interface
        .ipv6
        .split_once('/')
        .unwrap_or_else(|| panic!("{} has no IPv6 address", interface.tap));
    address.parse().expect("netd writes addresses")
}

/// The hardware address of a guest's interface.
pub(crate) fn mac(interface: &net::Interface) -> Mac {
    frame::mac(&interface.mac)
}

/// Opens a guest's side of a tap without a guest: as its user.
#[track_caller]
pub(crate) fn open(host: &Space, interface: &net::Interface) -> Tap {
    Tap::open(host, &interface.tap, interface.uid, interface.queues > 1).unwrap_or_else(|error| {
        panic!(
            "{} can't be opened by user {}: {error}",
            interface.tap, interface.uid
        )
    })
}

/// The same, and waits until its port takes frames: that is when the kernel has noticed its carrier.
#[track_caller]
pub(crate) fn plug(host: &Space, interface: &net::Interface) -> Tap {
    let tap = open(host, interface);
    takes_frames(host, &interface.tap);
    tap
}

/// Waits until a port of a bridge takes frames.
#[track_caller]
pub(crate) fn takes_frames(space: &Space, port: &str) {
    wait::until("a port takes frames", || {
        let link = space.json("ip", &["-d", "-j", "link", "show", port]);
        let state = &link[0]["linkinfo"]["info_slave_data"]["state"];
        if state == "forwarding" {
            Ok(())
        } else {
            Err(state.to_string())
        }
    });
}

impl Guest {
    /// Boots a guest on an interface, with the addresses that netd decided, its card being `eth0`.
    #[track_caller]
    pub(crate) fn boot(host: &Space, interface: &net::Interface) -> Self {
        let addresses = [&interface.ipv4, &interface.ipv6];
        let addresses = addresses.into_iter().filter(|address| !address.is_empty());
        let gateways = [&interface.ipv4_gateway, &interface.ipv6_gateway];
        let gateways = gateways.into_iter().filter(|gateway| !gateway.is_empty());
        let commands: String = addresses
            .map(|address| format!("address add {address} dev eth0 nodad\n"))
            .chain(gateways.map(|gateway| format!("route add default via {gateway}\n")))
            .collect();
        Self::boot_as(host, interface, &commands)
    }

    /// Boots a guest that gives itself addresses, or whatever these commands of `ip` do.
    #[track_caller]
    pub(crate) fn boot_as(host: &Space, interface: &net::Interface, commands: &str) -> Self {
        let outer = Arc::new(open(host, interface));
        let space = Space::empty(&interface.tap);
        let inner = Tap::open(&space, "eth0", 0, false).expect("a card can be made");
        let (mac, mtu) = (&interface.mac, interface.mtu);
        space.ip(&format!(
            "link set lo up\nlink set eth0 address {mac} mtu {mtu}\nlink set eth0 up\n{commands}"
        ));
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("an event can be made");
        let stop = Arc::new(stop);
        let pump = {
            let (outer, stop) = (Arc::clone(&outer), Arc::clone(&stop));
            std::thread::spawn(move || pump(&outer, &inner, &stop))
        };
        Self {
            space,
            outer,
            stop,
            pump: Some(pump),
        }
    }

    /// Sends a frame past the guest's own protocols.
    #[track_caller]
    pub(crate) fn send(&self, frame: &[u8]) {
        self.outer.send(frame);
    }

    /// Whether an address answers to a ping.
    #[track_caller]
    pub(crate) fn reaches(&self, address: impl Into<IpAddr>) -> bool {
        ping::answers(&self.space, address.into(), ping::SIZE)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).expect("an event can be sent");
        if let Some(pump) = self.pump.take() {
            drop(pump.join());
        }
    }
}

/// Carries frames both ways until told to stop, or one side is gone.
fn pump(outer: &Tap, inner: &Tap, stop: &OwnedFd) {
    loop {
        let mut waiting = [outer.poll(), inner.poll(), PollFd::new(stop, PollFlags::IN)];
        if rustix::event::poll(&mut waiting, None).is_err() || !waiting[2].revents().is_empty() {
            return;
        }
        for (from, to) in [(outer, inner), (inner, outer)] {
            while let Ok(whole) = from.take() {
                // A card that is down takes nothing.
                drop(to.pass(&whole));
            }
        }
        let failed = PollFlags::ERR | PollFlags::HUP;
        if waiting[..2].iter().any(|one| one.revents().intersects(failed)) {
            return;
        }
    }
}
