//! Is a frame lost while netd is restarted, replaced, killed or away?

use std::time::{Duration, Instant};

use crate::hosts::Net;
use crate::job::{Job, Order};
use crate::wait::{self, seconds};
use crate::world::required;

/// How long netd is away at a time, in seconds: whoever replaces it may take a minute.
const AWAY: u64 = 60;

/// Datagrams a second, as the guest sends them.
const RATE: f64 = 100.0;

/// Two VMs on two hosts: one sends a numbered datagram each 10 ms, the other counts. None is missing at the end.
pub(super) fn over_restart(net: &Net) {
    let hosts = net.own_hosts("m", 2);
    let counts = net.run(
        &Order::guest("counts", "steppe.count")
            .tenant("10.1.0.50")
            .on(&hosts[0].client),
    );
    let _console = counts.wait_ready();
    let sends = net.run(
        &Order::guest("sends", "steppe.stream=10.1.0.50")
            .tenant("10.1.0.51")
            .on(&hosts[1].client),
    );
    // Undisturbed, to begin with.
    let began = Instant::now();
    let first = complete(&counts, 300);

    let points = required("STEPPE_POINTS_PLUGIN_DIR", crate::netd::NETD);
    let act = |what: &str, act: &dyn Fn(&crate::netd::Netd)| {
        for host in &hosts {
            act(&host.netd);
        }
        let came = received(&counts).expect(what).0;
        let _later = complete(&counts, came + 100);
        for (job, host) in [(&counts, &hosts[0]), (&sends, &hosts[1])] {
            let own = host.netd.of(&job.allocation);
            assert!(
                matches!(own.as_slice(), [one] if one.carrier),
                "after {what}: {own:?}"
            );
        }
    };
    act("a restart", &|netd| {
        netd.terminate();
        netd.start();
    });
    act("kill -9", &|netd| {
        netd.kill9();
        netd.start();
    });
    act("an upgrade", &|netd| {
        netd.install(&points);
        netd.terminate();
        netd.start();
    });
    for host in &hosts {
        host.netd.terminate();
    }
    let went = Instant::now();
    let at = received(&counts).expect("it counts").0;
    std::thread::sleep(Duration::from_secs(AWAY));
    let (came, _) = complete(&counts, at);
    let seconds = went.elapsed().as_secs_f64();
    assert!(
        f64::from(came - at) > RATE / 2.0 * seconds,
        "{} datagrams in {seconds:.1} s",
        came - at
    );
    for host in &hosts {
        host.netd.start();
    }
    act("its absence", &|_| ());

    let (came, last) = complete(&counts, first.0);
    crate::harness::say(&format!(
        "    {came} of {last} datagrams in {:.0} s, netd away for {AWAY} s of them",
        began.elapsed().as_secs_f64()
    ));
    let _ended = sends.stop_and_wait();
}

/// How many came, of how many that were sent, as the guest said it last.
fn received(counts: &Job<'_>) -> Option<(u32, u32)> {
    let console = counts.console();
    // The last line may be there by half.
    let whole = &console[..console.rfind('\n')?];
    let line = whole
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("steppe-guest: stream "))?;
    let (came, sent) = line.trim().split_once(" of ")?;
    Some((came.parse().ok()?, sent.parse().ok()?))
}

/// Waits until so many came; none is missing.
#[track_caller]
fn complete(counts: &Job<'_>, least: u32) -> (u32, u32) {
    wait::until(&format!("{least} datagrams"), seconds(60), || {
        let (came, sent) = received(counts).ok_or("none yet")?;
        assert_eq!(came, sent, "datagrams that came and that were sent");
        if came >= least {
            Ok((came, sent))
        } else {
            Err(format!("{came}"))
        }
    })
}
