//! Do a nat network's machines reach what they should, does what should reach them, and nothing else?

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use steppe_proto::net::{self, Protocol};
use tonic::Code;

use crate::frame;
use crate::guest::{self, Guest};
use crate::host::{attach, attach_one, machine, nic, owner, port};
use crate::netd::Netd;
use crate::space::{self, Space};
use crate::wait::PATIENCE;

const CONFIG: &str = r#"
[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1", pool = "10.83.0.2-10.83.15.254" }

[network.other]
kind = "nat"
ipv4 = { subnet = "10.84.0.0/24", gateway = "10.84.0.1" }

[network.open]
kind = "nat"
ipv4 = { subnet = "10.85.0.0/24", gateway = "10.85.0.1" }
host_access = true
"#;

/// The host's address, and that of another host beside it.
const HOST: &str = "192.0.2.1";
const NEIGHBOUR: &str = "192.0.2.2";

const TCP: u16 = 20_080;
const UDP: u16 = 20_053;
/// A port of the host that is nobody's business.
const SERVICE: u16 = 22;

/// A try whose packets may be lost to what they wait for: a neighbour's address.
const TRY: Duration = Duration::from_secs(2);

/// Answers each TCP connection with the address it comes from.
fn serve_tcp(space: &Space, port: u16) {
    let listener = space.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
    let listener = listener.expect("a guest's port is free");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().expect("a connection has two ends");
            drop(write!(stream, "{}", peer.ip()));
        }
    });
}

/// Answers each datagram with the address it comes from.
fn serve_udp(space: &Space, port: u16) {
    let socket = bind(space, port);
    std::thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut datagram) {
            drop(socket.send_to(peer.ip().to_string().as_bytes(), peer));
        }
    });
}

fn bind(space: &Space, port: u16) -> UdpSocket {
    space
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
        .unwrap_or_else(|error| panic!("port {port} in {}: {error}", space.name()))
}

/// What a TCP server says to a client in this namespace.
fn over_tcp(space: &Space, to: SocketAddr) -> Result<String, String> {
    let asked = space.enter(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    });
    asked.map_err(|error| format!("TCP from {} to {to}: {error}", space.name()))
}

/// What a UDP server says to a client in this namespace.
fn over_udp(space: &Space, to: SocketAddr) -> Result<String, String> {
    let asked = space.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(TRY))?;
        let mut answer = [0; 64];
        let deadline = Instant::now() + PATIENCE;
        loop {
            socket.send(b"?")?;
            match socket.recv(&mut answer) {
                Ok(length) => return Ok(String::from_utf8_lossy(&answer[..length]).into_owned()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
        }
    });
    asked.map_err(|error| format!("UDP from {} to {to}: {error}", space.name()))
}

fn to(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// Both protocols reach the guest from here, and it sees them come from there.
#[track_caller]
fn reached(from: &Space, address: &str, seen: &str) {
    assert_eq!(over_tcp(from, to(address, TCP)), Ok(seen.to_owned()));
    assert_eq!(over_udp(from, to(address, UDP)), Ok(seen.to_owned()));
}

/// Sends a datagram that should not arrive.
fn send(from: &Space, address: impl Into<IpAddr>, port: u16, text: &str) {
    let address = SocketAddr::new(address.into(), port);
    let sent = from.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(text.as_bytes(), address));
    sent.unwrap_or_else(|error| panic!("a datagram to {address}: {error}"));
}

/// What has arrived at a socket.
fn arrived(socket: &UdpSocket) -> Vec<String> {
    socket.set_nonblocking(true).expect("a socket can be set so");
    let mut datagram = [0; 256];
    let mut texts = Vec::new();
    while let Ok(length) = socket.recv(&mut datagram) {
        texts.push(String::from_utf8_lossy(&datagram[..length]).into_owned());
    }
    texts
}

fn request(id: &str) -> net::AttachRequest {
    let mut nic = nic("default");
    nic.ports = vec![
        port(Protocol::Tcp, HOST, TCP.into(), 80),
        port(Protocol::Udp, HOST, UDP.into(), 53),
    ];
    machine(id, &[nic])
}

/// Ports of the host lead to the guest from everywhere, and a guest gets at nothing of the host.
pub(crate) fn nat_ports() {
    let host = Space::new("host");
    let neighbour = Space::new("neighbour");
    space::join((&host, "up0"), (&neighbour, "eth0"));
    host.ip(&format!("address add {HOST}/24 dev up0"));
    neighbour.ip(&format!("address add {NEIGHBOUR}/24 dev eth0"));
    let mut netd = Netd::start(&host, CONFIG);
    let interface = attach(netd.client(), &request("web")).remove(0);
    let guest = Guest::boot(&host, &interface);
    serve_tcp(&guest.space, 80);
    serve_udp(&guest.space, 53);
    let other = attach_one(netd.client(), "other", nic("default"));
    let other = Guest::boot(&host, &other);

    reached(&neighbour, HOST, NEIGHBOUR);
    let gateway = interface.ipv4_gateway.as_str();
    reached(&host, HOST, HOST);
    reached(&host, "127.0.0.1", gateway);
    // Round the host, back into the same bridge.
    reached(&other.space, HOST, gateway);
    // Where bridges call iptables, the packet changes its destination within the bridge, which sends no frame back to where it
    // came from: only there a machine does not reach its own port.
    if host.try_set("bridge/bridge-nf-call-iptables", "0") {
        reached(&other.space, HOST, gateway);
    }
    reached(&guest.space, HOST, gateway);
    // Guests of one network reach each other as they are.
    let address = guest::ipv4(&interface).to_string();
    serve_tcp(&guest.space, TCP);
    assert!(over_tcp(&other.space, to(&address, TCP)).is_ok());

    // Out, with the host's address.
    serve_udp(&neighbour, 53);
    serve_tcp(&neighbour, 80);
    assert_eq!(over_udp(&other.space, to(NEIGHBOUR, 53)), Ok(HOST.to_owned()));
    assert_eq!(over_tcp(&other.space, to(NEIGHBOUR, 80)), Ok(HOST.to_owned()));

    walls(&host, &neighbour, &netd, &guest, &interface);
    taken(&host, &neighbour, &mut netd, guest);
}

/// What must not arrive anywhere. A ping behind it, which is let through, tells that it is lost and not late.
fn walls(host: &Space, neighbour: &Space, netd: &Netd<'_>, guest: &Guest, interface: &net::Interface) {
    let gateway: Ipv4Addr = interface.ipv4_gateway.parse().expect("an address");
    let service = bind(host, SERVICE);
    for address in [gateway, HOST.parse().expect("an address")] {
        send(&guest.space, address, SERVICE, "to the host");
    }
    // A guest's kernel would not send this.
    let bridge = host.json("ip", &["-j", "link", "show", "ndbdefault"]);
    let bridge = frame::mac(bridge[0]["address"].as_str().expect("a bridge has an address"));
    let (own, loopback) = (guest::ipv4(interface), Ipv4Addr::LOCALHOST);
    for (source, destination) in [(own, loopback), (loopback, gateway), (loopback, loopback)] {
        let macs = (bridge, guest::mac(interface));
        guest.send(&frame::udp4(
            macs,
            (source, destination),
            (7, SERVICE),
            "loopback",
        ));
    }
    // Other nat networks.
    let second = attach_one(netd.client(), "second", nic("other"));
    let second_guest = Guest::boot(host, &second);
    let inner = bind(&second_guest.space, SERVICE);
    send(&guest.space, guest::ipv4(&second), SERVICE, "to another network");
    assert!(guest.reaches(gateway), "the gateway answers");
    assert!(
        second_guest.reaches(second.ipv4_gateway.parse::<IpAddr>().expect("an address")),
        "the gateway answers"
    );
    assert_eq!(arrived(&service), [""; 0], "at the host");
    assert_eq!(arrived(&inner), [""; 0], "at another nat network's guest");

    // From outside there is no way in but the forwarded ports.
    neighbour.ip(&format!("route add 10.83.0.0/20 via {HOST}"));
    let inner = bind(&guest.space, SERVICE);
    send(neighbour, own, SERVICE, "past the host");
    reached(neighbour, HOST, NEIGHBOUR);
    assert_eq!(arrived(&inner), [""; 0], "from another host");

    // Where the operator allows it, the host's services are reached.
    let open = attach_one(netd.client(), "open", nic("open"));
    let open_guest = Guest::boot(host, &open);
    let gateway: Ipv4Addr = open.ipv4_gateway.parse().expect("an address");
    assert!(open_guest.reaches(gateway));
    send(&open_guest.space, gateway, SERVICE, "allowed");
    service.set_nonblocking(false).expect("a socket can be set so");
    service
        .set_read_timeout(Some(PATIENCE))
        .expect("a time can be set");
    let mut datagram = [0; 64];
    let length = service.recv(&mut datagram).expect("host_access lets it through");
    assert_eq!(&datagram[..length], b"allowed");
}

/// A port has one machine at a time, over restarts, and the next gets it when that one is gone.
fn taken(host: &Space, neighbour: &Space, netd: &mut Netd<'_>, guest: Guest) {
    let second = || netd.client().attach(&request("late")).map(drop);
    let refused = second().expect_err("the port is taken");
    assert_eq!(refused.code, Code::AlreadyExists, "{refused}");
    assert_eq!(refused.detail.reason, "port-taken", "{refused}");
    assert_eq!(refused.detail.holder, Some(owner("web")), "{refused}");
    netd.restart();
    let again = netd
        .client()
        .attach(&request("late"))
        .expect_err("the port is taken");
    assert_eq!(again.detail.holder, Some(owner("web")), "{again}");
    // Also after a restart the filter forwards.
    reached(neighbour, HOST, NEIGHBOUR);
    drop(guest);
    netd.client()
        .detach(&owner("web"), false)
        .expect("nobody holds it open");
    assert!(
        over_tcp(host, to("127.0.0.1", TCP)).is_err(),
        "nobody listens any more"
    );
    let interface = attach(netd.client(), &request("late")).remove(0);
    let guest = Guest::boot(host, &interface);
    serve_tcp(&guest.space, 80);
    serve_udp(&guest.space, 53);
    reached(neighbour, HOST, NEIGHBOUR);
    reached(host, "127.0.0.1", &interface.ipv4_gateway);
}
