//! Does a task get exactly what it was given where control groups are of version 2?
//!
//! Runs as root in a machine of `testing/vm` with two processors, where version 2 has its controllers: `testing/vm/test.sh
//! resources_cgroup2` builds it and runs it there. Nomad's part, its groups and its calls, is played here; the program in
//! QEMU's place is `testing/inmate`; everything between them is real.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nomad_proto::base::base_plugin_server::BasePlugin as _;
use nomad_proto::base::{
    ClientTopology, ClientTopologyCore, NomadConfig, NomadDriverConfig, SetConfigRequest,
};
use nomad_proto::drivers as wire;
use nomad_proto::drivers::driver_server::Driver as _;
use serde_json::json;
use steppe_vm::exit::Cause;
use tokio_stream::StreamExt;
use tonic::Request;
use tracing::level_filters::LevelFilter;

use super::{Driver, base, tasks};
use crate::host::{cgroup, records};

/// Where `testing/vm/test.sh` puts programs and image.
const INMATE: &str = "/opt/steppe/bin/qemu-inmate";
const SHIM: &str = "/opt/steppe/bin/microvm-shim";
const IMAGES: &str = "/opt/steppe/images";
const KERNEL: &str = "stub";

const STATE_DIR: &str = "/var/lib/steppe/driver";
const RUN_DIR: &str = "/run/steppe";
const ALLOCATIONS: &str = "/var/lib/nomad/alloc";

const GROUPS: &str = "/sys/fs/cgroup";
const MIB: u64 = 1 << 20;

/// What emulating QEMU may take besides its guest's memory: itself, and for each processor.
const OVERHEAD_MIB: u64 = 128;
const OVERHEAD_VCPU_MIB: u64 = 4;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How far figures may lie apart.
const TOLERANCE: f64 = 0.10;

/// Samples of half a second each.
const SAMPLES: usize = 6;

fn write(path: impl AsRef<Path>, text: &str) {
    let path = path.as_ref();
    fs::write(path, text).unwrap_or_else(|error| panic!("{text:?} to {}: {error}", path.display()));
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn number(path: impl AsRef<Path>) -> u64 {
    read(&path).trim().parse().unwrap()
}

/// A file of lines with a word and a number each.
fn numbers(path: impl AsRef<Path>) -> BTreeMap<String, u64> {
    let text = read(path);
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs
        .map(|(word, number)| (word.to_owned(), number.parse().unwrap()))
        .collect()
}

fn names_in(folder: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Waits until something is so.
async fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not come to be");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What Nomad's client makes of groups at its start, and what it writes when cores are reserved (client/lib/cgroupslib:
/// `init.go`, `partition_linux.go`).
mod nomad {
    use super::{GROUPS, write};

    const ACTIVATION: &str = "+cpuset +cpu +io +memory +pids";

    pub(super) fn start() {
        write(format!("{GROUPS}/cgroup.subtree_control"), ACTIVATION);
        for group in [
            "nomad.slice",
            "nomad.slice/share.slice",
            "nomad.slice/reserve.slice",
        ] {
            std::fs::create_dir(format!("{GROUPS}/{group}")).unwrap();
            write(format!("{GROUPS}/{group}/cgroup.subtree_control"), ACTIVATION);
        }
        write(format!("{GROUPS}/nomad.slice/cpuset.cpus"), "0-1");
    }

    pub(super) fn partition(share: &str, reserve: &str) {
        write(format!("{GROUPS}/nomad.slice/share.slice/cpuset.cpus"), share);
        write(format!("{GROUPS}/nomad.slice/reserve.slice/cpuset.cpus"), reserve);
    }
}

/// What a job asks for, and the scheduler gives.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// Makes the allocation's id.
    number: u8,
    memory_mib: u64,
    cpu_shares: i64,
    /// Reserved cores, empty for a share.
    cores: &'static str,
    /// For the program in QEMU's place.
    cmdline: &'static str,
}

/// A task as its allocation sees it.
struct Allocation {
    asked: Asked,
    id: String,
    task_id: String,
    directory: PathBuf,
    /// Nomad's group of the task.
    scope: PathBuf,
    /// What the guest's console has shown so far.
    console: Arc<Mutex<String>>,
}

impl Allocation {
    /// Does what Nomad's client does before it calls the driver.
    fn new(asked: Asked) -> Self {
        let id = format!("00000000-0000-4000-8000-0000000000{:02x}", asked.number);
        let directory = Path::new(ALLOCATIONS).join(&id);
        for folder in ["vm/local", "vm/secrets", "alloc/logs"] {
            fs::create_dir_all(directory.join(folder)).unwrap();
        }
        let partition = if asked.cores.is_empty() {
            "share.slice"
        } else {
            "reserve.slice"
        };
        let scope = Path::new(GROUPS)
            .join("nomad.slice")
            .join(partition)
            .join(format!("{id}.vm.scope"));
        fs::create_dir(&scope).unwrap();
        let allocation = Self {
            asked,
            task_id: format!("{id}/vm/0000{:04x}", asked.number),
            id,
            directory,
            scope,
            console: Arc::default(),
        };
        for stream in ["stdout", "stderr"] {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, allocation.log(stream), fifo, mode, 0).unwrap();
            let (path, console) = (allocation.log(stream), Arc::clone(&allocation.console));
            // Nomad's log collector: waits for the first writer, and reads until the last has gone.
            drop(std::thread::spawn(move || {
                let mut pipe = fs::File::open(path).unwrap();
                let mut bytes = [0; 4096];
                while let Ok(length @ 1..) = pipe.read(&mut bytes) {
                    console
                        .lock()
                        .unwrap()
                        .push_str(&String::from_utf8_lossy(&bytes[..length]));
                }
            }));
        }
        allocation
    }

    fn log(&self, stream: &str) -> PathBuf {
        self.directory.join(format!("alloc/logs/.vm.{stream}.fifo"))
    }

    fn config(&self) -> wire::TaskConfig {
        let block = json!({"kernel": KERNEL, "cmdline": self.asked.cmdline});
        let memory_mb = i64::try_from(self.asked.memory_mib).unwrap();
        wire::TaskConfig {
            id: self.task_id.clone(),
            name: "vm".to_owned(),
            alloc_id: self.id.clone(),
            job_id: "job".to_owned(),
            namespace: "default".to_owned(),
            alloc_dir: self.directory.to_str().unwrap().to_owned(),
            stdout_path: self.log("stdout").to_str().unwrap().to_owned(),
            stderr_path: self.log("stderr").to_str().unwrap().to_owned(),
            msgpack_driver_config: rmp_serde::to_vec_named(&block).unwrap(),
            resources: Some(wire::Resources {
                allocated_resources: Some(wire::AllocatedTaskResources {
                    cpu: Some(wire::AllocatedCpuResources {
                        cpu_shares: self.asked.cpu_shares,
                    }),
                    memory: Some(wire::AllocatedMemoryResources {
                        memory_mb,
                        memory_max_mb: 0,
                    }),
                    networks: Vec::new(),
                }),
                linux_resources: Some(wire::LinuxResources {
                    cpu_shares: self.asked.cpu_shares,
                    memory_limit_bytes: memory_mb << 20,
                    cpuset_cpus: self.asked.cores.to_owned(),
                    cpuset_cgroup: self.scope.to_str().unwrap().to_owned(),
                    ..wire::LinuxResources::default()
                }),
                ports: Vec::new(),
            }),
            ..wire::TaskConfig::default()
        }
    }

    async fn until_console_shows(&self, text: &str) {
        until(&format!("{text:?} on the console"), || {
            self.console.lock().unwrap().contains(text)
        })
        .await;
    }
}

/// The driver, called as Nomad calls it.
struct Host {
    driver: Arc<Driver>,
    service: tasks::Service,
}

impl Host {
    async fn new() -> Self {
        let driver = Arc::new(Driver::new(&go_plugin::Plugin {
            stopper: go_plugin::Stopper::new(),
            log: go_plugin::LogSink::new(LevelFilter::INFO),
        }));
        let options = json!({
            "accelerator": "tcg", "qemu": INMATE, "shim": SHIM, "image_paths": [IMAGES],
            "state_dir": STATE_DIR, "run_dir": RUN_DIR,
        });
        let core = ClientTopologyCore {
            base_speed: 1000,
            ..ClientTopologyCore::default()
        };
        let configured = base::Service(Arc::clone(&driver))
            .set_config(Request::new(SetConfigRequest {
                msgpack_config: rmp_serde::to_vec_named(&options).unwrap(),
                nomad_config: Some(NomadConfig {
                    driver: Some(NomadDriverConfig {
                        topology: Some(ClientTopology {
                            cores: vec![core; 2],
                            ..ClientTopology::default()
                        }),
                        ..NomadDriverConfig::default()
                    }),
                }),
                plugin_api_version: "0.1.0".to_owned(),
            }))
            .await;
        drop(configured.unwrap());
        let service = tasks::Service(Arc::clone(&driver));
        Self { driver, service }
    }

    async fn start(&self, asked: Asked) -> Allocation {
        let allocation = Allocation::new(asked);
        let task = Some(allocation.config());
        let request = Request::new(wire::StartTaskRequest { task });
        let started = self.service.start_task(request).await;
        drop(started.unwrap_or_else(|status| panic!("{asked:?}: {status}")));
        allocation
    }

    async fn qemu_pid(&self, allocation: &Allocation) -> i32 {
        let task_id = allocation.task_id.clone();
        let request = Request::new(wire::InspectTaskRequest { task_id });
        let inspected = self.service.inspect_task(request).await.unwrap().into_inner();
        inspected.driver.unwrap().attributes["qemu_pid"].parse().unwrap()
    }

    async fn wait(&self, allocation: &Allocation) -> wire::ExitResult {
        let task_id = allocation.task_id.clone();
        let waited = self
            .service
            .wait_task(Request::new(wire::WaitTaskRequest { task_id }));
        let answer = tokio::time::timeout(PATIENCE, waited).await;
        answer
            .expect("the task ends")
            .unwrap()
            .into_inner()
            .result
            .unwrap()
    }

    /// Destroys a task, and does what Nomad does then; nothing of the task may be left.
    async fn destroy(&self, allocation: Allocation) {
        let task_id = allocation.task_id.clone();
        let request = Request::new(wire::DestroyTaskRequest { task_id, force: true });
        drop(self.service.destroy_task(request).await.unwrap());
        for leaf in ["vm", "shim"] {
            assert!(!allocation.scope.join(leaf).exists(), "group {leaf} is left");
        }
        fs::remove_dir(&allocation.scope).expect("nothing is left in Nomad's group");
        let key = steppe_vm::record::task_key(&allocation.id, &allocation.task_id);
        assert!(!Path::new(STATE_DIR).join("tasks").join(&key).exists());
        let left: Vec<String> = names_in(RUN_DIR)
            .into_iter()
            .flat_map(|folder| names_in(Path::new(RUN_DIR).join(folder)))
            .filter(|name| *name == key)
            .collect();
        assert!(left.is_empty(), "{left:?}");
        fs::remove_dir_all(&allocation.directory).unwrap();
    }
}

/// Which processors each thread of a process may use, by its name.
fn allowed(pid: i32) -> BTreeMap<String, String> {
    let threads = format!("/proc/{pid}/task");
    names_in(&threads)
        .into_iter()
        .map(|thread| {
            let folder = Path::new(&threads).join(&thread);
            let status = read(folder.join("status"));
            let list = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            let name = read(folder.join("comm")).trim().to_owned();
            (format!("{name} ({thread})"), list.unwrap().trim().to_owned())
        })
        .collect()
}

/// Whether each vCPU's thread has exactly its processor, and every other thread those of all.
fn assert_pinned(pid: i32, cores: &[&str], all: &str) {
    let threads = allowed(pid);
    for (vcpu, core) in cores.iter().enumerate() {
        let own: Vec<&String> = threads
            .iter()
            .filter(|(name, _)| name.starts_with(&format!("CPU {vcpu}/")))
            .map(|(_, list)| list)
            .collect();
        assert_eq!(own, [*core], "vCPU {vcpu} of {threads:?}");
    }
    let others: Vec<&String> = threads
        .iter()
        .filter(|(name, _)| !name.starts_with("CPU "))
        .map(|(_, list)| list)
        .collect();
    assert!(!others.is_empty());
    assert!(others.iter().all(|list| *list == all), "{threads:?}");
}

fn near(what: &str, is: f64, should_be: f64) {
    assert!(
        (is - should_be).abs() <= should_be * TOLERANCE,
        "{what}: {is} is not within a tenth of {should_be}"
    );
}

/// Who takes more than it was given is killed, alone, and Nomad is told why.
async fn limit(host: &Host) {
    let allocation = host
        .start(Asked {
            number: 1,
            memory_mib: 64,
            cpu_shares: 500,
            cores: "",
            cmdline: "inmate.hog=400",
        })
        .await;
    let vm = allocation.scope.join("vm");
    let limit_mib = 64 + OVERHEAD_MIB + OVERHEAD_VCPU_MIB;
    assert_eq!(number(vm.join("memory.max")), limit_mib * MIB);
    // opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value(500), which Nomad's own drivers use.
    assert_eq!(number(allocation.scope.join("cpu.weight")), 58);

    let result = host.wait(&allocation).await;
    assert!(result.oom_killed, "{result:?}");
    assert_eq!((result.exit_code, result.signal), (137, 9));
    assert_eq!(numbers(vm.join("memory.events"))["oom_kill"], 1);
    assert_eq!(
        numbers(allocation.scope.join("shim/memory.events"))["oom_kill"],
        0
    );
    // It had what it was given before, less what its program takes.
    let shown = allocation.console.lock().unwrap().clone();
    let reached: Vec<u64> = shown
        .lines()
        .filter_map(|line| line.strip_prefix("inmate: hog at ")?.strip_suffix(" MiB"))
        .map(|mib| mib.parse().unwrap())
        .collect();
    let most = reached.into_iter().max().unwrap();
    assert!(
        (limit_mib - 10..=limit_mib).contains(&most),
        "{most} of {limit_mib} MiB"
    );

    // The shim lived on and wrote down what it saw.
    let task = host.driver.tasks.get(&allocation.task_id).unwrap();
    let exit = records::read_exit(&task.undo.directory).unwrap().unwrap();
    assert_eq!(exit.record.cause(), Cause::OutOfMemory);
    let (events, _) = host.driver.events.listen();
    let said: Vec<&wire::DriverTaskEvent> = events
        .iter()
        .filter(|event| {
            event
                .annotations
                .get("cause")
                .is_some_and(|cause| cause == "out-of-memory")
        })
        .collect();
    assert_eq!(said.len(), 1, "{events:?}");
    drop(task);
    host.destroy(allocation).await;
}

/// Each vCPU has exactly one processor; two VMs with a core each don't share one.
async fn pinning(host: &Host) {
    nomad::partition("1", "0");
    let first = host
        .start(Asked {
            number: 2,
            memory_mib: 64,
            cpu_shares: 1000,
            cores: "0",
            cmdline: "",
        })
        .await;
    assert_pinned(host.qemu_pid(&first).await, &["0"], "0");
    // Who has no cores of its own uses what the others leave.
    let shared = host
        .start(Asked {
            number: 3,
            memory_mib: 64,
            cpu_shares: 1000,
            cores: "",
            cmdline: "",
        })
        .await;
    assert_eq!(read(shared.scope.join("cpuset.cpus.effective")).trim(), "1");
    let lists = allowed(host.qemu_pid(&shared).await);
    assert!(lists.values().all(|list| list == "1"), "{lists:?}");
    host.destroy(shared).await;
    nomad::partition("", "0-1");
    let second = host
        .start(Asked {
            number: 4,
            memory_mib: 64,
            cpu_shares: 1000,
            cores: "1",
            cmdline: "",
        })
        .await;
    assert_pinned(host.qemu_pid(&first).await, &["0"], "0");
    assert_pinned(host.qemu_pid(&second).await, &["1"], "1");
    host.destroy(first).await;
    host.destroy(second).await;
}

/// Processor time of a process in seconds, as the kernel tells it (proc(5), fields 14 and 15 of `stat`).
fn process_seconds(pid: i32) -> f64 {
    let stat = read(format!("/proc/{pid}/stat"));
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks: u32 = [14, 15]
        .map(|field| fields[field - 3].parse::<u32>().unwrap())
        .iter()
        .sum();
    f64::from(ticks) / f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).unwrap())
}

/// Resident memory of a process in MiB.
fn process_mib(pid: &str) -> f64 {
    let status = read(format!("/proc/{pid}/status"));
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    f64::from(rss.trim().strip_suffix(" kB").unwrap().parse::<u32>().unwrap()) / 1024.0
}

fn mib(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap()) / 1024.0
}

/// A sample of Nomad's, and what the kernel counts then.
struct Sample {
    seconds: f64,
    all: wire::TaskResourceUsage,
    qemu: wire::TaskResourceUsage,
    /// `cpu.stat` of QEMU's leaf and of the whole task.
    leaf: BTreeMap<String, u64>,
    scope: BTreeMap<String, u64>,
    process_seconds: f64,
}

impl Sample {
    async fn take(stream: &mut Samples, scope: &Path, pid: i32) -> Self {
        let sample = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap();
        let mut stats = sample.unwrap().unwrap().stats.unwrap();
        let stamp = stats.timestamp.unwrap();
        // Of a day: all are taken in the same second or the next few.
        let second = u32::try_from(stamp.seconds.rem_euclid(86_400)).unwrap();
        Self {
            seconds: f64::from(second) + f64::from(stamp.nanos) / 1e9,
            all: stats.agg_resource_usage.unwrap(),
            qemu: stats.resource_usage_by_pid.remove(&pid.to_string()).unwrap(),
            leaf: numbers(scope.join("vm/cpu.stat")),
            scope: numbers(scope.join("cpu.stat")),
            process_seconds: process_seconds(pid),
        }
    }
}

type Samples = tokio_stream::wrappers::ReceiverStream<Result<wire::TaskStatsResponse, tonic::Status>>;

/// Processor seconds that samples tell of, after the first.
fn told(samples: &[Sample], percent: fn(&Sample) -> f64) -> f64 {
    samples
        .windows(2)
        .map(|pair| (pair[1].seconds - pair[0].seconds) * percent(&pair[1]) / 100.0)
        .sum()
}

/// Processor seconds that a group has counted meanwhile.
fn counted(samples: &[Sample], group: fn(&Sample) -> &BTreeMap<String, u64>, name: &str) -> f64 {
    let (first, last) = (&samples[0], &samples[samples.len() - 1]);
    f64::from(u32::try_from(group(last)[name] - group(first)[name]).unwrap()) / 1e6
}

fn cpu(usage: &wire::TaskResourceUsage) -> &wire::CpuUsage {
    usage.cpu.as_ref().unwrap()
}

fn memory(usage: &wire::TaskResourceUsage) -> &wire::MemoryUsage {
    usage.memory.as_ref().unwrap()
}

/// What Nomad is told of a busy VM with two cores is what the kernel counts.
async fn stats(host: &Host) {
    let allocation = host
        .start(Asked {
            number: 5,
            memory_mib: 64,
            cpu_shares: 2000,
            cores: "0,1",
            cmdline: "inmate.busy inmate.hog=150",
        })
        .await;
    let scope = allocation.scope.clone();
    assert_eq!(number(scope.join("cpu.weight")), 170);
    let pid = host.qemu_pid(&allocation).await;
    assert_pinned(pid, &["0", "1"], "0-1");
    allocation
        .until_console_shows("inmate: hog done at 150 MiB")
        .await;

    let request = Request::new(wire::TaskStatsRequest {
        task_id: allocation.task_id.clone(),
        collection_interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 500_000_000,
        }),
    });
    let mut stream = host.service.task_stats(request).await.unwrap().into_inner();
    let mut samples = Vec::new();
    while samples.len() < SAMPLES {
        samples.push(Sample::take(&mut stream, &scope, pid).await);
    }
    drop(stream);

    let (first, last) = (&samples[0], &samples[SAMPLES - 1]);
    let busy = counted(&samples, |sample| &sample.leaf, "usage_usec");
    let elapsed = last.seconds - first.seconds;
    // Two processors, which it shares with this test.
    assert!(busy > 1.5 * elapsed, "{busy} s of processor time in {elapsed} s");
    near(
        "QEMU's processor time",
        told(&samples, |sample| cpu(&sample.qemu).percent),
        busy,
    );
    let of_process = last.process_seconds - first.process_seconds;
    near(
        "QEMU's processor time",
        told(&samples, |sample| cpu(&sample.qemu).percent),
        of_process,
    );
    near(
        "QEMU's time in user mode",
        told(&samples, |sample| cpu(&sample.qemu).user_mode),
        counted(&samples, |sample| &sample.leaf, "user_usec"),
    );
    near(
        "the VM's processor time",
        told(&samples, |sample| cpu(&sample.all).percent),
        counted(&samples, |sample| &sample.scope, "usage_usec"),
    );
    // A core has 1000 MHz here, so a percent of one is 10.
    near("ticks", cpu(&last.all).total_ticks, cpu(&last.all).percent * 10.0);

    near(
        "QEMU's memory",
        mib(memory(&last.qemu).rss),
        process_mib(&pid.to_string()),
    );
    let all: f64 = ["vm", "shim"]
        .iter()
        .flat_map(|leaf| {
            read(scope.join(leaf).join("cgroup.procs"))
                .lines()
                .map(process_mib)
                .collect::<Vec<_>>()
        })
        .sum();
    near("the VM's memory", mib(memory(&last.all).rss), all);
    near(
        "what is charged for the VM",
        mib(memory(&last.all).usage),
        mib(number(scope.join("memory.current"))),
    );
    host.destroy(allocation).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and control groups of version 2: testing/vm/test.sh resources_cgroup2 runs it in a machine of its own"]
async fn everything_on_version_2() {
    nomad::start();
    assert_eq!(cgroup::version(), "v2");
    let host = Host::new().await;
    limit(&host).await;
    pinning(&host).await;
    nomad::partition("", "0-1");
    stats(&host).await;
    // Nothing of any of them is left.
    assert_eq!(names_in(Path::new(STATE_DIR).join("tasks")), [""; 0]);
    assert_eq!(names_in(Path::new(RUN_DIR).join("uids")), [""; 0]);
    let running: Vec<PathBuf> = names_in("/proc")
        .iter()
        .filter_map(|name| fs::read_link(format!("/proc/{name}/exe")).ok())
        .filter(|program| program.starts_with("/opt/steppe"))
        .collect();
    assert!(running.is_empty(), "{running:?}");
}
