//! How is a netd started for measurements, and asked?

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use netd::netlink::Netlink;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::process::{Pid, Signal};
use steppe_daemon::client::{channel, request};
use steppe_proto::net;
use steppe_proto::net::network_client::NetworkClient;
use tonic::Status;
use tonic::transport::Channel;

use crate::BenchError;

/// One bridge without a way to other hosts; nobody is asked whether an address is taken.
pub(super) const CONFIG: &str = "\
[network.bench]
kind = \"bridge\"
uplink = \"up0\"
ipv4 = { subnet = \"10.9.0.0/16\" }
probe = \"0ms\"
";

/// The network's name.
pub(super) const NETWORK: &str = "bench";

/// Whatever is asked for here takes no longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks whether links are gone.
const PAUSE: Duration = Duration::from_millis(1);

/// A netd in the namespace of the thread that started it, and its client.
#[derive(Debug)]
pub(super) struct Daemon {
    folder: PathBuf,
    process: Option<Child>,
    netlink: Netlink,
    pub(super) client: NetworkClient<Channel>,
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> BenchError {
    move |error| BenchError::Io(what.to_owned(), error)
}

/// What netd said against a request.
pub(super) fn refused(status: Status) -> BenchError {
    BenchError::Task(format!("netd refuses: {}", status.message()))
}

/// A machine with one interface.
pub(super) fn machine(id: &str) -> net::AttachRequest {
    net::AttachRequest {
        owner: Some(owner(id)),
        identity: format!("default/bench/vm/vm/{id}"),
        uid: 65_533,
        queues: 1,
        nics: vec![net::Nic {
            network: NETWORK.to_owned(),
            ..net::Nic::default()
        }],
    }
}

/// Whose it is.
pub(super) fn owner(id: &str) -> net::Owner {
    net::Owner {
        instance: "bench".to_owned(),
        id: id.to_owned(),
    }
}

impl Daemon {
    /// Starts one, and waits until it answers.
    pub(super) async fn start(program: &Path, folder: &Path) -> Result<Self, BenchError> {
        std::fs::create_dir_all(folder).map_err(failed("a folder can't be made"))?;
        std::fs::write(folder.join("netd.toml"), CONFIG)
            .map_err(failed("netd's configuration can't be written"))?;
        let mut daemon = Self {
            client: NetworkClient::new(channel(&folder.join("netd.sock"))),
            netlink: Netlink::open(NETLINK_ROUTE).map_err(failed("the kernel can't be asked for links"))?,
            folder: folder.to_owned(),
            process: None,
        };
        daemon.begin(program).await?;
        Ok(daemon)
    }

    /// Starts it again.
    pub(super) async fn begin(&mut self, program: &Path) -> Result<(), BenchError> {
        let process = Command::new(program)
            .arg("serve")
            .arg("--config")
            .arg(self.folder.join("netd.toml"))
            .arg("--socket")
            .arg(self.folder.join("netd.sock"))
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(failed("netd can't be started"))?;
        self.process = Some(process);
        let deadline = Instant::now() + LIMIT;
        while self.version().await.is_err() {
            if Instant::now() > deadline {
                return Err(BenchError::Late("netd's first answer".to_owned()));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// A request that does nothing; how long it took.
    pub(super) async fn version(&mut self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        let asked = request(net::VersionRequest {}, LIMIT);
        let _version = self.client.version(asked).await.map_err(refused)?;
        Ok(began.elapsed())
    }

    /// Attaches; the tap, and how long it took.
    pub(super) async fn attach(&mut self, id: &str) -> Result<(String, Duration), BenchError> {
        attach(&mut self.client, id).await
    }

    /// Waits until links of these names are gone.
    pub(super) async fn gone(&mut self, taps: &BTreeSet<String>) -> Result<(), BenchError> {
        let deadline = Instant::now() + LIMIT;
        let mut left: Vec<&String> = taps.iter().collect();
        while let Some(tap) = left.last() {
            let link = netd::observe::one(&mut self.netlink, tap);
            let link =
                link.map_err(|error| BenchError::Task(format!("links can't be looked at: {error}")))?;
            if link.is_none() {
                left.pop();
                continue;
            }
            if Instant::now() > deadline {
                return Err(BenchError::Late(format!("the end of link {tap}")));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Its memory, in MiB.
    pub(super) fn resident_mib(&self) -> f64 {
        let pid = self.process.as_ref().map_or(0, Child::id);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.map_or(f64::NAN, |kib| kib / 1024.0)
    }

    /// Ends it; links and filter stay.
    pub(super) fn stop(&mut self) -> Result<(), BenchError> {
        if let Some(mut process) = self.process.take() {
            rustix::process::kill_process(Pid::from_child(&process), Signal::TERM)
                .map_err(|errno| failed("netd can't be ended")(errno.into()))?;
            let _status = process.wait().map_err(failed("netd can't be waited for"))?;
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // What failed is of no interest any more.
        drop(self.stop());
    }
}

/// Attaches over any connection.
pub(super) async fn attach(
    client: &mut NetworkClient<Channel>,
    id: &str,
) -> Result<(String, Duration), BenchError> {
    let began = Instant::now();
    let answer = client
        .attach(request(machine(id), LIMIT))
        .await
        .map_err(refused)?;
    let took = began.elapsed();
    let tap = answer.into_inner().interfaces.into_iter().next();
    let tap = tap.ok_or_else(|| BenchError::Task("netd gives no interface".to_owned()))?;
    Ok((tap.tap, took))
}

/// Detaches over any connection.
pub(super) async fn detach(client: &mut NetworkClient<Channel>, id: &str) -> Result<(), BenchError> {
    let asked = net::DetachRequest {
        owner: Some(owner(id)),
        force: false,
    };
    client.detach(request(asked, LIMIT)).await.map_err(refused)?;
    Ok(())
}
