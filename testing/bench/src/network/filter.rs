//! How much throughput does the filter take, with nearly a thousand machines?
//!
//! Two of them talk TCP, each in a namespace of its own behind a pair of links whose outer end has the name of the machine's
//! tap. The filter is netd's own text, loaded by its own means. Beside it: no filter, and the layout in which each interface
//! brings a chain of its own into the path of every frame, which is what a filter made one interface at a time comes to.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use netd::nft::Nft;
use netd_plan::{Attachment, Observed, filter};

use crate::figures::{Report, Samples, apart};
use crate::{BenchError, say};

use super::space::Space;
use super::steps::{config, decided};

/// One less than the ports of a bridge would leave beside an uplink and a spare one; the kernel takes 1024 chains of one hook.
const MACHINES: usize = 999;

/// For how long each try sends.
const TIME: Duration = Duration::from_millis(250);

/// The filter leaves 0.85 of the throughput: that many times as long for a byte.
const GOAL: f64 = 1.176;

/// That is only told where a chain for each leaves 0.6 at most; else the rest of the path is so slow that no filter would show.
const WALKED_SHOWS: f64 = 1.667;

/// Pairs of none with none, for the spread.
const SAME_PAIRS: usize = 10;

/// What stands in the path of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Nothing,
    Ours,
    /// A chain for each interface, all of them walked by each frame.
    Walked,
}

/// Two machines that talk.
#[derive(Debug)]
struct Field {
    /// Kept: with the last reference its links are gone.
    _switch: Space,
    ends: [Space; 2],
    nft: Nft,
    ours: String,
    walked: String,
    /// Where the second listens.
    address: SocketAddr,
}

fn failed(what: impl std::fmt::Display) -> BenchError {
    BenchError::Task(format!("the filter's measurement: {what}"))
}

impl Field {
    fn new() -> Result<Self, BenchError> {
        let config = config()?;
        let mut machines: Vec<Attachment> = Vec::new();
        for number in 0..MACHINES {
            let new = decided(&config, &Observed::default(), &machines, &format!("vm-{number}"))?;
            machines.extend(new);
        }
        let switch = Space::new("switch")?;
        let ends = [Space::new("end0")?, Space::new("end1")?];
        switch.ip(
            "link add br0 type bridge nf_call_iptables 0 nf_call_ip6tables 0 nf_call_arptables 0 mcast_snooping 0\n\
             link set br0 up\n",
        )?;
        // In the middle of what is walked.
        let pair = [MACHINES / 2, MACHINES / 2 + 1].map(|place| machines.get(place));
        let mut address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        for (end, machine) in ends.iter().zip(pair) {
            let machine = machine.ok_or_else(|| failed("there are too few machines"))?;
            let ipv4 = machine.ipv4.ok_or_else(|| failed("a machine has no address"))?;
            switch.ip(&format!(
                "link add {tap} type veth peer name eth0 netns {end}\nlink set {tap} master br0\nlink set {tap} up\n",
                tap = machine.tap,
                end = end.name(),
            ))?;
            end.ip(&format!(
                "link set eth0 address {}\nlink set eth0 up\naddress add {ipv4} dev eth0\n",
                machine.mac
            ))?;
            address = SocketAddr::from((ipv4.addr(), 5001));
        }
        switch.enter()?;
        Ok(Self {
            _switch: switch,
            ends,
            nft: Nft::open(false).map_err(failed)?,
            ours: filter::whole(&config, machines.iter()),
            walked: walked(&machines),
            address,
        })
    }

    fn set(&mut self, layout: Layout) -> Result<(), BenchError> {
        let text = match layout {
            Layout::Nothing => "flush ruleset",
            Layout::Ours => &self.ours,
            Layout::Walked => &self.walked,
        };
        self.nft.run("flush ruleset").map_err(failed)?;
        let _nothing = self.nft.run(text).map_err(failed)?;
        Ok(())
    }

    /// What comes through in a while, in Gbit/s.
    fn throughput(&mut self, layout: Layout) -> Result<f64, BenchError> {
        self.set(layout)?;
        let io = |error| BenchError::Io("two machines can't talk".to_owned(), error);
        let listener = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                self.ends[1].enter()?;
                TcpListener::bind(self.address).map_err(io)
            });
            made.join().unwrap_or_else(|_| Err(failed("a thread panicked")))
        })?;
        let reader = std::thread::spawn(move || -> std::io::Result<(u64, Duration)> {
            let (mut stream, _) = listener.accept()?;
            let began = Instant::now();
            let mut buffer = vec![0; 1 << 18];
            let mut bytes = 0;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok((bytes, began.elapsed())),
                    length => bytes += length as u64,
                }
            }
        });
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| {
                self.ends[0].enter()?;
                let mut stream =
                    TcpStream::connect_timeout(&self.address, Duration::from_secs(5)).map_err(io)?;
                let buffer = vec![0; 1 << 17];
                let began = Instant::now();
                while began.elapsed() < TIME {
                    stream.write_all(&buffer).map_err(io)?;
                }
                Ok(())
            });
            sent.join().unwrap_or_else(|_| Err(failed("a thread panicked")))
        })?;
        let read = reader.join().map_err(|_| failed("a thread panicked"))?;
        let (bytes, time) = read.map_err(io)?;
        Ok(bytes as f64 * 8.0 / time.as_secs_f64() / 1e9)
    }
}

/// A chain for each interface, as a filter has them that is made one interface at a time.
fn walked(machines: &[Attachment]) -> String {
    let mut text = "table bridge walked {\n".to_owned();
    for machine in machines {
        let (tap, mac) = (&machine.tap, machine.mac);
        let ipv4 = machine.ipv4.map_or(Ipv4Addr::UNSPECIFIED, |ipv4| ipv4.addr());
        // Writing to a string doesn't fail.
        let _done = write!(
            text,
            "\tchain in_{tap} {{\n\
             \t\ttype filter hook prerouting priority -300;\n\
             \t\tiifname \"{tap}\" ether saddr != {mac} drop\n\
             \t\tiifname \"{tap}\" arp saddr ether != {mac} drop\n\
             \t\tiifname \"{tap}\" arp saddr ip != {ipv4} drop\n\
             \t\tiifname \"{tap}\" ip saddr != {ipv4} drop\n\
             \t\tiifname \"{tap}\" ether type ip6 drop\n\t}}\n"
        );
    }
    text + "}\n"
}

pub(super) fn measure(pairs: usize, report: &mut Report) -> Result<(), BenchError> {
    let mut field = Field::new()?;
    let (mut a, mut b) = (Samples::default(), Samples::default());
    for _ in 0..SAME_PAIRS.min(pairs) {
        a.push(field.throughput(Layout::Nothing)?);
        b.push(field.throughput(Layout::Nothing)?);
    }
    let (mut nothing, mut ours, mut walked) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..pairs {
        let mut turns = [
            (Layout::Nothing, &mut nothing),
            (Layout::Ours, &mut ours),
            (Layout::Walked, &mut walked),
        ];
        turns.rotate_left(round % 3);
        for (layout, samples) in turns {
            samples.push(field.throughput(layout)?);
        }
    }
    for (name, samples) in [
        ("TCP between two machines, no filter", &nothing),
        ("TCP between two machines, netd's filter of 999", &ours),
        ("TCP between two machines, a chain for each of 999", &walked),
    ] {
        report.add(name, samples.median(), "Gbit/s", None, samples.spread());
    }
    let spread = apart(&a, &b).max(nothing.spread());
    // Times per byte, so that less is better, as with all figures.
    let both = spread + walked.spread();
    let slower = nothing.median() / walked.median();
    report.add(
        "a chain for each of 999: time per byte, ratio to no filter",
        slower,
        "",
        None,
        both,
    );
    let shows = slower * (1.0 - both) >= WALKED_SHOWS;
    if !shows {
        say(
            "a chain for each interface hardly slows this host down: what the filter takes can't be told here",
        );
    }
    report.add(
        "netd's filter of 999: time per byte, ratio to no filter",
        nothing.median() / ours.median(),
        "",
        shows.then_some(GOAL),
        spread + ours.spread(),
    );
    Ok(())
}
