//! How is a shim started here just as the plugin starts it?

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use steppe_vm::control::{Lines, Message, Request, State, VERSION_MAX, VERSION_MIN};
use steppe_vm::plan::LaunchPlan;
use steppe_vm::record::line;

use crate::one::{self, Driver};
use crate::{Bench, BenchError, cost, variable};

/// A start, or an end, on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// Users that nobody else has: QEMU's, then the supervisor's.
const UID: u32 = 1_912_001_000;

/// Numbers of the descriptors that the shim inherits.
const CLIENT_FD: i32 = 3;
const LOCK_FD: i32 = 4;
const NETWORK_FD: i32 = 5;

/// The shim, and what the plugin gave it for a VM.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) shim: PathBuf,
    /// What `first.s` was made into.
    pub(crate) first: PathBuf,
    /// Where all files of our launches are.
    pub(crate) directory: PathBuf,
    pub(crate) plan: LaunchPlan,
    groups: Vec<Group>,
    /// An empty network namespace.
    network: OwnedFd,
}

/// A control group that the shim is told of.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// The shim's option.
    pub(crate) option: String,
    pub(crate) path: PathBuf,
    /// Whether it is made for each launch; the others are there for all tasks.
    own: bool,
    /// What is set in it.
    values: Vec<(&'static str, String)>,
}

pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> BenchError {
    let what = what.into();
    move |error| BenchError::Io(what, error)
}

fn errno(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> BenchError {
    let what = what.into();
    move |error| BenchError::Io(what, error.into())
}

/// The values of an option, which stand behind it.
pub(crate) fn values<'a>(arguments: &'a [String], option: &'a str) -> impl Iterator<Item = &'a String> {
    let pairs = arguments.iter().zip(arguments.iter().skip(1));
    pairs
        .filter(move |(name, _)| *name == option)
        .map(|(_, value)| value)
}

impl Template {
    /// Starts a VM through Nomad, and keeps what the plugin made of it.
    pub(crate) fn take(bench: &Bench) -> Result<Self, BenchError> {
        const JOB: &str = "launch-template";
        let shim = bench.agents.join("bin/plugins/microvm-shim");
        bench
            .api
            .submit(JOB, &one::task(bench, Driver::Ours, "", false)?)?;
        let allocation = bench.api.allocations(JOB, 1)?.swap_remove(0);
        let began = bench
            .watch
            .began(&allocation, LIMIT)
            .map_err(|error| bench.api.explain(&allocation, error))?;
        let _state = bench.api.task_state(&allocation, "running", LIMIT)?;
        let of_it = |(_, arguments): &(u32, Vec<String>)| {
            values(arguments, "--plan").any(|path| path.contains(&allocation))
        };
        let (_, arguments) = cost::running(&shim)
            .into_iter()
            .find(of_it)
            .ok_or_else(|| BenchError::Task(format!("no shim runs for {allocation}")))?;
        let path = values(&arguments, "--plan").next().cloned().unwrap_or_default();
        let text = fs::read(&path).map_err(io(format!("{path} can't be read")))?;
        let mut plan = LaunchPlan::parse(&text)
            .map_err(|error| BenchError::Task(format!("{path} can't be used: {error}")))?;
        if plan.isolation.is_none() {
            return Err(BenchError::Task(format!("{path} isolates nothing")));
        }
        (plan.uid, plan.gid) = (UID, UID);
        // One virtual processor, as a job has that reserves no core; pinning it is part of "everything".
        plan.cpus = vec![last_processor(began.pid)?];
        let groups = ["--vm-cgroup", "--shim-cgroup"].into_iter().flat_map(|option| {
            let paths = values(&arguments, option);
            paths.map(|path| group(option, Path::new(path), &allocation))
        });
        let groups = groups.collect();
        let directory = bench.agents.join("launch");
        fs::create_dir_all(&directory).map_err(io("the launches' directory can't be made"))?;
        let network = empty_network(&shim)?;
        bench.api.purge(JOB)?;
        let _at = bench.watch.ended_ns(began.pid, LIMIT)?;
        Ok(Self {
            shim,
            first: PathBuf::from(variable("STEPPE_BENCH_FIRST")?),
            directory,
            plan,
            groups,
            network,
        })
    }
}

/// The last processor that a process may use.
fn last_processor(pid: u32) -> Result<u32, BenchError> {
    let list = status(pid, "Cpus_allowed_list:");
    let last = list.rsplit([',', '-']).next().and_then(|text| text.parse().ok());
    last.ok_or_else(|| BenchError::Task(format!("process {pid} may use the processors {list:?}")))
}

/// A line of a process's status, without its name.
pub(crate) fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim().to_owned()
}

/// The group of our own that is like one of a VM's. Its name begins with the allocation's id, by which whoever cleans up
/// after a broken run finds it.
fn group(option: &str, path: &Path, allocation: &str) -> Group {
    let text = path.display().to_string();
    let own = text.contains(allocation);
    let limit = |name| Some((name, fs::read_to_string(path.join(name)).ok()?));
    Group {
        option: option.to_owned(),
        path: PathBuf::from(text.replace(&format!("{allocation}.vm"), &format!("{allocation}.launch"))),
        own,
        values: if own {
            ["memory.limit_in_bytes", "memory.max"]
                .into_iter()
                .filter_map(limit)
                .collect()
        } else {
            Vec::new()
        },
    }
}

/// As the plugin gets one.
fn empty_network(shim: &Path) -> Result<OwnedFd, BenchError> {
    let mut child = Command::new(shim)
        .arg("kernel")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(io("the shim can't be started"))?;
    let answered = child
        .stdout
        .take()
        .map_or(Ok(0), |mut output| output.read(&mut [0; 256]));
    let network = File::open(format!("/proc/{}/ns/net", child.id()));
    drop(child.stdin.take());
    let _status = child.wait().map_err(io("the shim can't be waited for"))?;
    let _length = answered.map_err(io("the shim's words can't be read"))?;
    let network = network.map_err(io("the shim's network namespace can't be opened"))?;
    let of = |path: &str| fs::metadata(path).map(|data| data.ino()).ok();
    if network.metadata().map(|data| data.ino()).ok() == of("/proc/self/ns/net") {
        return Err(BenchError::Task("the shim makes no network namespace".to_owned()));
    }
    Ok(network.into())
}

/// Control groups as the plugin makes them, until this is dropped.
#[derive(Debug)]
pub(crate) struct Leaves<'a>(&'a [Group]);

impl<'a> Leaves<'a> {
    fn make(groups: &'a [Group]) -> Result<Self, BenchError> {
        let leaves = Self(groups);
        for group in leaves.own() {
            let failed = || io(format!("{} can't be made", group.path.display()));
            if let Some(parent) = group.path.parent().filter(|parent| !parent.exists()) {
                fs::create_dir(parent).map_err(failed())?;
                // Version 2 alone has it. A host may lack a controller.
                let control = parent.join("cgroup.subtree_control");
                for controller in ["+memory", "+cpu"] {
                    let _lacking = control.exists().then(|| fs::write(&control, controller));
                }
            }
            fs::create_dir(&group.path).map_err(failed())?;
            for (name, value) in &group.values {
                fs::write(group.path.join(name), value).map_err(failed())?;
            }
        }
        Ok(leaves)
    }

    /// Those that are not all tasks'.
    pub(crate) fn own(&self) -> impl Iterator<Item = &'a Group> + use<'a> {
        self.0.iter().filter(|group| group.own)
    }
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        let leaves = self.own().map(|group| group.path.as_path());
        let parents = self.own().filter_map(|group| group.path.parent());
        for path in leaves.chain(parents) {
            // A process that has just ended may still be counted.
            let deadline = Instant::now() + LIMIT;
            while path.exists() && fs::remove_dir(path).is_err() && Instant::now() < deadline {
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// A shim that was started.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    /// Where its files are.
    directory: PathBuf,
    process: Child,
    /// What its process had used before it was executed.
    pub(crate) before_ns: u64,
    client: UnixStream,
    lines: Lines,
    stdout: File,
    stderr: File,
    /// What has come through it.
    pub(crate) messages: Vec<u8>,
    pub(crate) leaves: Leaves<'a>,
}

impl<'a> Running<'a> {
    /// Starts the shim with this plan.
    pub(crate) fn start(template: &'a Template, plan: &LaunchPlan) -> Result<Self, BenchError> {
        let directory = template.directory.join("task");
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(io("the last launch's directory can't be removed"))?;
        }
        fs::create_dir(&directory).map_err(io("a launch's directory can't be made"))?;
        let path = |name: &str| directory.join(name);
        fs::write(path("plan.json"), plan.to_json()).map_err(io("a launch's plan can't be written"))?;
        let (stdout, stderr) = (fifo(&path("stdout"))?, fifo(&path("stderr"))?);
        let lock = File::create(path("lock")).map_err(io("a launch's lock can't be made"))?;
        lock.try_lock()
            .map_err(|error| BenchError::Task(format!("a launch's lock can't be taken: {error}")))?;
        let leaves = Leaves::make(&template.groups)?;
        let (mut client, theirs) = UnixStream::pair().map_err(io("a socket pair can't be had"))?;
        let hello = Request::Hello {
            min: VERSION_MIN,
            max: VERSION_MAX,
        };
        client
            .set_read_timeout(Some(LIMIT))
            .and_then(|()| client.write_all(line(&hello).as_bytes()))
            .map_err(io("the shim can't be spoken to"))?;

        let mut command = Command::new(&template.first);
        command.arg(&template.shim).arg("supervise");
        for (name, value) in [
            ("--plan", path("plan.json")),
            ("--record", directory.clone()),
            ("--control", path("control")),
            ("--stdout", path("stdout")),
            ("--stderr", path("stderr")),
        ] {
            command.arg(name).arg(value);
        }
        command.args(["--uid", &(UID + 1).to_string()]);
        for group in &template.groups {
            command.arg(&group.option).arg(&group.path);
        }
        let network = template
            .network
            .try_clone()
            .map_err(io("a descriptor can't be copied"))?;
        let mut mappings = Vec::new();
        for (option, parent_fd, child_fd) in [
            ("--client-fd", OwnedFd::from(theirs), CLIENT_FD),
            ("--lock-fd", lock.into(), LOCK_FD),
            ("--net-fd", network, NETWORK_FD),
        ] {
            command.args([option, &child_fd.to_string()]);
            mappings.push(FdMapping { parent_fd, child_fd });
        }
        let log = File::create(path("log")).map_err(io("a launch's log can't be made"))?;
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .fd_mappings(mappings)
            .map_err(|error| BenchError::Task(format!("descriptors can't be passed: {error}")))?;
        let process = command.spawn().map_err(io("first.s can't be started"))?;
        let mut running = Self {
            directory,
            before_ns: 0,
            process,
            client,
            lines: Lines::default(),
            stdout,
            stderr,
            messages: Vec::new(),
            leaves,
        };
        running.before_ns = go(running.process.id())?;
        Ok(running)
    }

    /// The monitor's process.
    pub(crate) fn monitor(&self) -> u32 {
        self.process.id()
    }

    /// Asks the shim for something; its answer is for [`Self::hear`].
    pub(crate) fn ask(&mut self, request: Request) -> Result<(), BenchError> {
        self.client
            .write_all(line(&request).as_bytes())
            .map_err(io("the shim can't be asked"))
    }

    /// Waits for a message that is wanted; what a start must not come to is an error.
    pub(crate) fn hear<T>(&mut self, mut wanted: impl FnMut(&Message) -> Option<T>) -> Result<T, BenchError> {
        loop {
            let message = self
                .lines
                .take()
                .map_err(|error| BenchError::Task(error.to_string()))?;
            if let Some(message) = message {
                if let Some(found) = wanted(&message) {
                    return Ok(found);
                }
                match message {
                    Message::Refused { reason }
                    | Message::State {
                        state: State::Failed { reason, .. },
                    } => return Err(BenchError::Task(format!("a launch failed: {reason}"))),
                    Message::State {
                        state: State::Exited { exit, stderr },
                    } => return Err(BenchError::Task(format!("a launch ended: {exit:?}: {stderr}"))),
                    _ => continue,
                }
            }
            let mut buffer = [0; 4096];
            match self.client.read(&mut buffer) {
                Ok(0) => {
                    let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                    return Err(BenchError::Task(format!("the shim has ended: {log}")));
                }
                Ok(length) => self.lines.feed(buffer.get(..length).unwrap_or_default()),
                Err(error) => return Err(BenchError::Io("the shim does not answer".to_owned(), error)),
            }
        }
    }

    /// Waits for the shim's end, and reads its logs meanwhile: it holds them until they are read.
    pub(crate) fn end(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.drain();
            let ended = self.process.try_wait();
            if ended.map_err(io("the shim can't be waited for"))?.is_some() {
                self.drain();
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(BenchError::Late("the end of a shim".to_owned()));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn drain(&mut self) {
        let mut buffer = [0; 4096];
        while self.stdout.read(&mut buffer).is_ok_and(|length| length > 0) {}
        while let Ok(length @ 1..) = self.stderr.read(&mut buffer) {
            self.messages
                .extend_from_slice(buffer.get(..length).unwrap_or_default());
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // After an end in order there is nothing to kill. QEMU and the supervisor die with the monitor.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A FIFO with its reader.
fn fifo(path: &Path) -> Result<File, BenchError> {
    let failed = || format!("{} can't be made", path.display());
    rustix::fs::mkfifoat(rustix::fs::CWD, path, Mode::RUSR | Mode::WUSR).map_err(errno(failed()))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(io(failed()))
}

/// Waits until `first.s` stands, and lets it execute what it is there for. Returns what its process has used by then, in ns.
pub(crate) fn go(pid: u32) -> Result<u64, BenchError> {
    let deadline = Instant::now() + LIMIT;
    while !status(pid, "State:").starts_with('T') {
        if Instant::now() > deadline {
            return Err(BenchError::Late("the stop of first.s".to_owned()));
        }
        std::thread::sleep(PAUSE);
    }
    let used = cost::cpu_ns(pid);
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = process.ok_or_else(|| BenchError::Task(format!("{pid} is no process")))?;
    rustix::process::kill_process(process, Signal::CONT).map_err(errno("first.s can't be continued"))?;
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_gets_groups_of_its_own_and_shares_what_is_shared() {
        let own = group("--vm-cgroup", Path::new("/g/memory/nomad/1-2.vm/vm"), "1-2");
        assert_eq!(own.path, Path::new("/g/memory/nomad/1-2.launch/vm"));
        let scope = group(
            "--vm-cgroup",
            Path::new("/g/share.slice/1-2.vm.scope/shim"),
            "1-2",
        );
        assert_eq!(scope.path, Path::new("/g/share.slice/1-2.launch.scope/shim"));
        let shared = group("--vm-cgroup", Path::new("/g/cpuset/nomad/share"), "1-2");
        assert_eq!(shared.path, Path::new("/g/cpuset/nomad/share"));
        assert_eq!([own.own, scope.own, shared.own], [true, true, false]);
    }

    #[test]
    fn an_options_values_stand_behind_it() {
        let arguments = ["shim", "--plan", "a", "--vm-cgroup", "b", "--vm-cgroup", "c"].map(str::to_owned);
        let of = |option| values(&arguments, option).collect::<Vec<_>>();
        assert_eq!(of("--vm-cgroup"), ["b", "c"]);
        assert_eq!(of("--plan"), ["a"]);
        assert!(of("--net-fd").is_empty());
    }
}
