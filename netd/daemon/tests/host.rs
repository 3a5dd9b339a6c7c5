//! Does netd do to a host what it says?
//!
//! Each test has a network namespace of its own; as root, which CI's machine gives.

#![expect(clippy::unwrap_used, reason = "what these helpers can't do is a failed test")]
#![expect(unsafe_code, reason = "a tap is opened by an ioctl, as QEMU does")]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netd::{Netd, Service};
use netd_plan::Config;
use nix::sched::{CloneFlags, unshare};
use steppe_daemon::peer::{Peer, Roles};
use steppe_proto::net::{self, network_server::Network, watch_response::Event};
use tokio::runtime::{Builder, Runtime};
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status};

const NAT: &str = "
[network.default]
kind = \"nat\"
ipv4 = { subnet = \"10.83.0.0/20\", gateway = \"10.83.0.1\" }
";

/// netd in the network namespace of the calling thread.
struct Host {
    runtime: Runtime,
    service: Service,
    netd: Netd,
}

impl Host {
    fn start(config: &str) -> Self {
        let (config, _) = Config::parse(&[("test.toml".to_owned(), config.to_owned())]).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let netd = Netd::start(config, runtime.handle()).unwrap();
        let roles = Roles::resolve(&[], &[]).unwrap();
        Self {
            service: Service::new(netd.clone(), roles),
            netd,
            runtime,
        }
    }

    fn attach(&self, request: net::AttachRequest) -> Result<Vec<net::Interface>, Status> {
        let answer = self.runtime.block_on(self.service.attach(asked(request)))?;
        Ok(answer.into_inner().interfaces)
    }

    fn detach(&self, id: &str, force: bool) -> Result<Vec<String>, Status> {
        let request = net::DetachRequest {
            owner: Some(owner(id)),
            force,
        };
        let answer = self.runtime.block_on(self.service.detach(asked(request)))?;
        Ok(answer.into_inner().taps)
    }

    fn list(&self) -> Vec<net::Interface> {
        let request = asked(net::ListRequest::default());
        let answer = self.runtime.block_on(self.service.list(request)).unwrap();
        answer.into_inner().interfaces
    }

    fn sync(&self, live: &[&str]) -> net::SyncResponse {
        let request = net::SyncRequest {
            instance: "test".to_owned(),
            live: live.iter().map(|id| (*id).to_owned()).collect(),
        };
        let answer = self.runtime.block_on(self.service.sync(asked(request))).unwrap();
        answer.into_inner()
    }

    fn pass(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// Waits until something holds.
    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < until, "{what}");
            self.pass(Duration::from_millis(20));
        }
    }
}

fn asked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Peer { uid: 0, pid: None });
    request
}

fn owner(id: &str) -> net::Owner {
    net::Owner {
        instance: "test".to_owned(),
        id: id.to_owned(),
    }
}

/// A machine with one interface.
fn machine(id: &str, network: &str) -> net::AttachRequest {
    net::AttachRequest {
        owner: Some(owner(id)),
        identity: format!("default/web/vm/task/{id}"),
        uid: 70_000,
        queues: 1,
        nics: vec![net::Nic {
            network: network.to_owned(),
            ..net::Nic::default()
        }],
    }
}

fn own_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("tests of netd run as root");
}

/// What a program of the host prints.
fn says(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .arg0(program)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A tap that is held open, as QEMU holds it.
fn open_tap(name: &str) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR.
    request[16..18].copy_from_slice(&0x5002_u16.to_ne_bytes());
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: the request is as long as an ifreq, and has its layout.
    let code = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
    tap
}

/// An ARP request with the header that virtio puts before a frame.
fn who_has(from: &net::Interface, sender: &str, target: &str) -> Vec<u8> {
    let mac: Vec<u8> = from
        .mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mut frame = vec![0; 10];
    frame.extend([0xff; 6]);
    frame.extend(&mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(&mac);
    frame.extend(octets(sender));
    frame.extend([0; 6]);
    frame.extend(octets(target));
    frame
}

/// Whether a frame arrives.
fn arrives(tap: &mut File, frame: &[u8]) -> bool {
    let until = Instant::now() + Duration::from_millis(500);
    let mut room = [0; 2048];
    while Instant::now() < until {
        match tap.read(&mut room) {
            Ok(length) if room[10..length].starts_with(&frame[10..]) => return true,
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    false
}

fn address(interface: &net::Interface) -> &str {
    interface.ipv4.split('/').next().unwrap()
}

#[test]
fn two_machines_reach_each_other() {
    own_namespace();
    let host = Host::start(NAT);
    let one = host.attach(machine("one", "default")).unwrap().remove(0);
    let two = host.attach(machine("two", "default")).unwrap().remove(0);
    assert_eq!(
        host.attach(machine("one", "default")).unwrap(),
        std::slice::from_ref(&one)
    );
    let (mut tap_one, mut tap_two) = (open_tap(&one.tap), open_tap(&two.tap));
    host.until("the kernel tells that both are held open", || {
        host.list().iter().all(|interface| interface.carrier)
    });
    let honest = who_has(&one, address(&one), address(&two));
    tap_one.write_all(&honest).unwrap();
    assert!(arrives(&mut tap_two, &honest));
    let lie = who_has(&one, "10.83.7.7", address(&two));
    tap_one.write_all(&lie).unwrap();
    assert!(!arrives(&mut tap_two, &lie));
    let refused = host.detach("one", false).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(steppe_proto::detail(&refused).unwrap().reason, "in-use");
    assert_eq!(host.detach("one", true).unwrap(), [one.tap]);
    drop((tap_one, tap_two));
    assert_eq!(host.detach("two", false).unwrap(), [two.tap]);
    assert_eq!(host.detach("two", false).unwrap(), [""; 0]);
    host.until("taps are deleted", || {
        !says("ip", &["-o", "link"]).contains("ndt")
    });
    assert!(host.list().is_empty());
}

#[test]
fn a_restart_finds_what_was_there() {
    own_namespace();
    let first = Host::start(NAT);
    let mut request = machine("one", "default");
    request.queues = 2;
    request.nics[0].ports = vec![net::Port {
        protocol: net::Protocol::Tcp.into(),
        host_ip: "127.0.0.1".to_owned(),
        host_port: 8080,
        guest_port: 80,
    }];
    let one = first.attach(request.clone()).unwrap();
    let two = first.attach(machine("two", "default")).unwrap();
    // A second netd knows nothing but what the kernel says. The first one does nothing meanwhile.
    let second = Host::start(NAT);
    let mut there = [one.clone(), two].concat();
    there.sort_by(|one, other| one.tap.cmp(&other.tap));
    assert_eq!(second.list(), there);
    assert_eq!(second.attach(request.clone()).unwrap(), one);
    request.uid += 1;
    let refused = second.attach(request).unwrap_err();
    assert_eq!(
        steppe_proto::detail(&refused).unwrap().reason,
        "other-spec",
        "{refused:?}"
    );
    // Two syncs in a row.
    assert_eq!(second.sync(&["two"]).condemned, ["one"]);
    let synced = second.sync(&["two", "three"]);
    assert_eq!(
        (synced.removed, synced.kept, synced.unknown),
        (vec!["one".to_owned()], 1, vec!["three".to_owned()])
    );
    assert_eq!(second.list().len(), 1);
}

#[test]
fn drift_is_repaired() {
    own_namespace();
    let host = Host::start(NAT);
    let one = host.attach(machine("one", "default")).unwrap().remove(0);
    // The order of chains tells only when they were made.
    let rules = || {
        let text = says("nft", &["-s", "list", "ruleset"]);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let before = rules();
    assert!(before.iter().any(|line| line.contains(&one.mac)), "{before:?}");
    // Tables of others are nobody's business, once netd has looked at its own.
    let redeclared = || host.netd.counts().redeclared.get();
    let undisturbed = (0..5).any(|number| {
        host.pass(Duration::from_millis(300));
        let before = redeclared();
        says("nft", &["add", "table", "ip", &format!("theirs{number}")]);
        host.pass(Duration::from_millis(300));
        redeclared() == before
    });
    assert!(undisturbed);
    says("nft", &["flush", "ruleset"]);
    host.until("the filter is declared anew", || rules() == before);
    let tap = one.tap.as_str();
    let is_port = || says("ip", &["-d", "link", "show", tap]).contains("master ndbdefault");
    says("ip", &["link", "set", tap, "nomaster"]);
    assert!(!is_port());
    host.until("the tap is a port again", is_port);
    assert!(redeclared() >= 1);
    says("ip", &["link", "delete", tap]);
    host.until("an interface whose tap is gone is gone", || {
        host.list().is_empty()
    });
}

#[test]
fn another_host_has_the_address() {
    own_namespace();
    for arguments in [
        "link add other0 type veth peer name up0",
        "link set up0 up",
        "address add 10.9.0.7/24 dev other0",
        "link set other0 up",
    ] {
        let words: Vec<&str> = arguments.split(' ').collect();
        says("ip", &words);
    }
    let host = Host::start(
        "
        [network.lan]
        kind = \"bridge\"
        uplink = \"up0\"
        ipv4 = { subnet = \"10.9.0.0/24\" }
        ",
    );
    let mut request = machine("one", "lan");
    request.nics[0].ipv4 = "10.9.0.7".to_owned();
    let refused = host.attach(request.clone()).unwrap_err();
    assert_eq!(
        steppe_proto::detail(&refused).unwrap().reason,
        "address-taken",
        "{refused:?}"
    );
    request.nics[0].ipv4 = "10.9.0.8".to_owned();
    let one = host.attach(request).unwrap().remove(0);
    // Its identity lives elsewhere: the link-local address of its MAC answers.
    says("ip", &["link", "set", "other0", "down"]);
    host.detach("one", false).unwrap();
    says("ip", &["link", "set", "other0", "address", &one.mac]);
    says("ip", &["link", "set", "other0", "up"]);
    host.until("it has its link-local address", || {
        says("ip", &["-6", "address", "show", "dev", "other0", "-tentative"]).contains("fe80")
    });
    let refused = host.attach(machine("one", "lan")).unwrap_err();
    assert_eq!(
        steppe_proto::detail(&refused).unwrap().reason,
        "identity-held",
        "{refused:?}"
    );
}

#[test]
fn a_batch_is_whole_or_nothing() {
    own_namespace();
    let host = Host::start(NAT);
    host.attach(machine("first", "default")).unwrap();
    let batch = |requests| {
        let asked = asked(net::AttachBatchRequest { requests });
        host.runtime.block_on(host.service.attach_batch(asked))
    };
    // A link with the name of a tap to be is in the way of the last one.
    let mut blocked = machine("three", "default");
    blocked.queues = 4;
    let three = host.attach(blocked.clone()).unwrap().remove(0);
    host.detach("three", false).unwrap();
    host.until("it is deleted", || {
        !says("ip", &["-o", "link"]).contains(&three.tap)
    });
    says("ip", &["link", "add", &three.tap, "type", "bridge"]);
    let before = (says("ip", &["-o", "link"]), host.list());
    let requests = vec![machine("one", "default"), machine("two", "default"), blocked];
    let refused = batch(requests.clone()).unwrap_err();
    let detail = steppe_proto::detail(&refused).unwrap();
    assert_eq!(
        (refused.code(), detail.step.as_str()),
        (Code::Internal, "make-tap"),
        "{refused:?}"
    );
    // Another test may be starting a program right now, which has all descriptors for a moment, those of the taps as well.
    host.until("the host is as it was", || {
        (says("ip", &["-o", "link"]), host.list()) == before
    });
    let ruleset = says("nft", &["list", "ruleset"]);
    assert_eq!(ruleset.matches("chain v_ndt").count(), 1, "{ruleset}");
    says("ip", &["link", "delete", &three.tap]);
    let responses = batch(requests).unwrap().into_inner().responses;
    assert_eq!(responses.len(), 3);
    assert_eq!(host.list().len(), 4);
}

#[test]
fn two_at_once_never_get_one_address() {
    own_namespace();
    for command in [
        "link add other0 type veth peer name up0",
        "link set up0 up",
        "link set other0 up",
    ] {
        says("ip", &command.split(' ').collect::<Vec<_>>());
    }
    let host = Host::start(
        "[network.lan]\nkind = \"bridge\"\nuplink = \"up0\"\nipv4 = { subnet = \"10.9.0.0/24\" }\n",
    );
    let request = |id: &str| {
        let mut request = machine(id, "lan");
        request.nics[0].ipv4 = "10.9.0.7".to_owned();
        request
    };
    // While other hosts are asked for the first, the second is refused, and a third with another address is not held up.
    let (one, two, three) = host.runtime.block_on(async {
        tokio::join!(
            host.service.attach(asked(request("one"))),
            host.service.attach(asked(request("two"))),
            host.service.attach(asked(machine("three", "lan"))),
        )
    });
    assert!(one.is_ok() && three.is_ok(), "{one:?} {three:?}");
    let refused = two.unwrap_err();
    let detail = steppe_proto::detail(&refused).unwrap();
    assert_eq!(detail.reason, "address-taken");
    assert_eq!(detail.holder, Some(owner("one")));
}

#[test]
fn networks_come_and_go() {
    own_namespace();
    let host = Host::start(NAT);
    let one = host.attach(machine("one", "default")).unwrap().remove(0);
    let mut watched = host
        .runtime
        .block_on(host.service.watch(asked(net::WatchRequest::default())))
        .unwrap()
        .into_inner();
    let mut next = || {
        let next = async { tokio::time::timeout(Duration::from_secs(5), watched.next()).await };
        host.runtime
            .block_on(next)
            .unwrap()
            .unwrap()
            .unwrap()
            .event
            .unwrap()
    };
    let Event::Snapshot(snapshot) = next() else {
        panic!("a snapshot comes first");
    };
    assert_eq!(snapshot.interfaces, std::slice::from_ref(&one));
    let reload = |config: &str| {
        let (config, _) = Config::parse(&[("test.toml".to_owned(), config.to_owned())]).unwrap();
        host.runtime.block_on(host.netd.reload(config))
    };
    // What machines can't follow is a problem.
    let problems = reload(&NAT.replace("10.83", "10.84")).unwrap_err();
    assert_eq!(problems[0].place, "network.default");
    assert!(problems[0].sentence.contains("ipv4.subnet"), "{}", problems[0]);
    // A network that is configured no more stays for the machine that is there.
    reload(&NAT.replace("default", "other").replace("10.83", "10.84")).unwrap();
    let Event::Networks(networks) = next() else {
        panic!("the networks have changed");
    };
    let names: Vec<_> = networks
        .networks
        .iter()
        .map(|one| (one.name.as_str(), one.unavailable.is_empty()))
        .collect();
    assert_eq!(names, [("default", false), ("other", true)]);
    let refused = host.attach(machine("two", "default")).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(host.attach(machine("one", "default")).unwrap(), [one]);
    host.detach("one", false).unwrap();
    assert!(matches!(next(), Event::Removed(_)));
    host.until("its bridge is gone", || {
        !says("ip", &["-o", "link"]).contains("ndbdefault")
    });
    let refused = host.attach(machine("two", "default")).unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

/// Not a test: netd that attaches machines until it is killed.
#[test]
#[ignore = "started by a_kill_leaves_whole_taps"]
fn attach_until_killed() {
    let host = Host::start(NAT);
    for number in 0..10_000 {
        host.attach(machine(&number.to_string(), "default")).unwrap();
        println!("attached");
    }
}

#[test]
fn a_kill_leaves_whole_taps() {
    own_namespace();
    for round in 0..5_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "attach_until_killed", "--ignored", "--nocapture"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let attached = stdout.lines().filter(|line| line.as_ref().unwrap() == "attached");
        assert_eq!(attached.take(5).count(), 5);
        // Somewhere between two of them.
        std::thread::sleep(Duration::from_micros(300 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let host = Host::start(NAT);
        let links = says("ip", &["-o", "link"]);
        let taps = links.lines().filter(|line| line.contains(": ndt")).count();
        let there = host.list();
        assert!(taps >= 5);
        assert_eq!(taps, there.len(), "{links}");
        assert!(there.iter().all(|interface| interface.faults.is_empty()));
        for interface in there {
            host.detach(&interface.owner.unwrap().id, false).unwrap();
        }
        host.until("taps are deleted", || {
            !says("ip", &["-o", "link"]).contains("ndt")
        });
    }
}
