//! In which order is a VM started?
//!
//! Check everything → write the record → name each step and do it → wait for QEMU's first answer → let the guest run.
//! Any failure after the record takes everything back before it is reported.

use std::fs::{File, TryLockError};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use steppe_points::reach;
use steppe_vm::control::{Request, State};
use steppe_vm::exit::{Cause, Reason, WaitStatus};
use steppe_vm::interface::{Advertised, Interface, advertised};
use steppe_vm::lease::Lease;
use steppe_vm::plan::Isolation;
use steppe_vm::record::{Header, RECORD_VERSION, Record, Step, task_key};
use steppe_vm::vm::{Accelerator, Ready};
use steppe_vm::{Vm, memory};

use super::shim::{Command, Shim, View};
use super::undo::{self, Undo, undo_of};
use super::{Ended, Failure, Order, Task, blocking, follow, network};
use crate::config::{self, Hardening};
use crate::host::cgroup::{self, Groups, Share};
use crate::host::files::{self, Places, Roots};
use crate::host::fingerprint::{self, SHIM_OF_OTHERS, lacks};
use crate::host::netd;
use crate::host::records::{self, RecordFile};
use crate::host::state_dir::{StateDir, make_private};
use crate::host::{chain, isolation, kvm, memory as host_memory, uids, unix_ns};
use crate::instance::Instance;
use crate::service::Driver;

/// How long the shim may take until QEMU has answered. The shim gives up by itself after 20 s and says why.
const PREPARED_TIMEOUT: Duration = Duration::from_secs(25);

/// How much longer than its own deadline a guest's shim may take to say that it was not ready.
const READY_SLACK: Duration = Duration::from_secs(30);

/// How long the lock of a shim to be may be held by those who look at it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// Name of the launch plan in a task's directory.
const PLAN: &str = "plan.json";

/// A VM that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) task: Arc<Task>,
    /// The address that services may register.
    pub(crate) advertised: Option<Advertised>,
}

/// Starts the VM of a task.
pub(crate) async fn start(driver: &Arc<Driver>, order: Order) -> Result<Started, Failure> {
    // One at a time for each task of an allocation, whatever its id.
    let gate = driver.tasks.gate(&order.alloc_id, &order.task_name);
    let _turn = gate.lock().await;
    let order = Arc::new(order);
    let started = start_in_turn(driver, &order).await;
    if started.is_err() {
        drop(Logs::open(&order));
    }
    started
}

async fn start_in_turn(driver: &Arc<Driver>, order: &Arc<Order>) -> Result<Started, Failure> {
    let instance = driver.instance()?;
    let netd = match instance.options.netd {
        Some(_) => driver.networks.view_for_start().await,
        None => netd::View::default(),
    };
    let mut prepared = {
        let (driver, order) = (Arc::clone(driver), Arc::clone(order));
        blocking(move || prepare(&driver, &instance, &order, &netd)).await?
    };
    let undo = Arc::clone(&prepared.undo);
    let advertised = prepared.advertised.take();
    match launch(driver, order, prepared).await {
        Ok(task) => Ok(Started { task, advertised }),
        Err(failure) => {
            let taken_back = blocking(move || Ok(take_back(&undo, failure))).await;
            Err(taken_back.unwrap_or_else(|failure| failure))
        }
    }
}

/// Takes a failed start back; the failure says so if that failed as well.
fn take_back(undo: &Undo, failure: Failure) -> Failure {
    let Err(error) = undo.run() else { return failure };
    let also = chain(&error);
    match failure {
        Failure::Denied(first) => Failure::Denied(format!("{first}; then {also}")),
        Failure::Retryable(first) => Failure::Retryable(format!("{first}; then {also}")),
    }
}

/// Everything done but the shim's start.
struct Prepared {
    header: Header,
    record: RecordFile,
    undo: Arc<Undo>,
    /// The shim's program.
    program: PathBuf,
    shim: ShimStart,
    notices: Vec<String>,
    advertised: Option<Advertised>,
    /// What the start waits for.
    ready: Option<Ready>,
    /// An empty network namespace.
    network: Option<Arc<OwnedFd>>,
    /// Held until the shim has opened its own.
    _logs: Option<Logs>,
}

/// What the steps before the shim's start leave for it.
struct ShimStart {
    /// The supervisor's user id.
    uid: u32,
    groups: Groups,
    log: File,
    lock: OwnedFd,
}

/// Both log FIFOs, open for writing.
///
/// Nomad's log collector waits for the first writer, and goes for good when the last one has gone. So nobody here opens
/// them before the shim does, with two exceptions: a start that failed, which would otherwise show four seconds later, when
/// the collector gives up waiting; and a start that takes an interrupted one back, whose shim is the last writer.
struct Logs {
    _stdout: Option<OwnedFd>,
    _stderr: Option<OwnedFd>,
}

impl Logs {
    fn open(order: &Order) -> Self {
        // Whether these are FIFOs is the shim's business; a wrong one is refused there.
        let open = |path: &str| {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
            rustix::fs::open(path, flags, Mode::empty()).ok()
        };
        Self {
            _stdout: open(&order.stdout),
            _stderr: open(&order.stderr),
        }
    }
}

/// Checks everything, then does every step up to the shim's start.
fn prepare(
    driver: &Arc<Driver>,
    instance: &Instance,
    order: &Order,
    netd: &netd::View,
) -> Result<Prepared, Failure> {
    let state = instance.state().map_err(|error| Failure::retryable(&error))?;
    let key = task_key(&order.alloc_id, &order.task_id);
    let undo = Arc::new(undo_of(instance, &state, &key));
    let logs = take_back_earlier(driver, instance, &state, order, &key)?;

    let spec = config::task(&order.config).map_err(|error| Failure::denied(&error))?;
    network::is_there(netd, &spec, instance)?;
    let checked = steppe_vm::spec::check(&spec, &order.allocated, &instance.offer(netd.known()))
        .map_err(|error| Failure::denied(&error))?;
    let alloc = &order.alloc_dir;
    let roots = Roots {
        task: alloc.join(&order.task_name),
        alloc: alloc.join("alloc"),
        images: instance.options.image_paths.clone(),
    };
    let places = files::check(&checked.vm, &roots).map_err(|error| Failure::denied(&error))?;
    let missing = |what: &str| {
        Failure::Denied(format!(
            "{what} is not installed on this node: see the driver's health"
        ))
    };
    let qemu = instance.qemu().ok_or_else(|| missing("QEMU"))?;
    // Links lead to places that are not there in QEMU's own root.
    let qemu = std::fs::canonicalize(&qemu).unwrap_or(qemu);
    let program = instance.shim().ok_or_else(|| missing("microvm-shim"))?;
    let able = instance
        .able()
        .ok_or_else(|| Failure::Retryable(SHIM_OF_OTHERS.to_owned()))?;
    let lacking = able.kernel.missing();
    if instance.options.hardening == Hardening::Required && !lacking.is_empty() {
        return Err(Failure::Denied(lacks(&lacking)));
    }
    memory_for(&checked.vm, &places)?;

    let header = Header {
        version: RECORD_VERSION,
        instance: state.instance().to_owned(),
        boot_id: records::boot_id()
            .ok_or_else(|| Failure::Retryable("the kernel's boot id can't be read".to_owned()))?
            .to_owned(),
        task_id: order.task_id.clone(),
        alloc_id: order.alloc_id.clone(),
        task_name: order.task_name.clone(),
        job_id: order.job_id.clone(),
        namespace: order.namespace.clone(),
        created_at_unix_ns: unix_ns(),
    };
    let machine = Machine {
        vm: &checked.vm,
        places: &places,
        isolation: isolation::isolation(&able, &checked.vm, &qemu, &instance.options.qemu_paths),
        qemu,
    };
    reach("start.record.before", &key);
    let mut record =
        RecordFile::create(&undo.directory, &header).map_err(|error| Failure::retryable(&error))?;
    reach("start.record.after", &key);
    let mut notices = checked.notices;
    if !lacking.is_empty() {
        notices.push(format!(
            "hardening of this VM is {}",
            fingerprint::hardening(&lacking)
        ));
    }
    match set_up(instance, order, &undo, &key, &machine, &mut record, &mut notices) {
        Ok((shim, interfaces)) => Ok(Prepared {
            header,
            record,
            program,
            shim,
            undo,
            notices,
            advertised: advertised(&checked.vm, &interfaces),
            ready: checked.vm.ready.clone(),
            network: able.network,
            _logs: logs,
        }),
        Err(failure) => Err(take_back(&undo, failure)),
    }
}

/// Takes back what earlier starts of the same task left: of this very start, if the plugin died inside it; of one with
/// another id, if the agent died inside it and forgot the id. Nomad never runs two of one task in one allocation.
fn take_back_earlier(
    driver: &Arc<Driver>,
    instance: &Instance,
    state: &StateDir,
    order: &Order,
    own_key: &str,
) -> Result<Option<Logs>, Failure> {
    let mut logs = None;
    for key in state
        .tasks_of(&order.alloc_id)
        .map_err(|error| Failure::retryable(&error))?
    {
        let earlier = undo_of(instance, state, &key);
        let record = earlier.record();
        if let Err(error) = &record
            && !undo::is_unlocked(&earlier.lock())
        {
            // It may be this very task's, and two VMs of one task must never be.
            return Err(Failure::Retryable(format!(
                "a VM of this allocation runs and is left alone: {}",
                chain(error)
            )));
        }
        let of_this_task = |record: &Record| record.header.task_name == order.task_name;
        // One that can't be read and is not this start's own is the reaper's to report.
        if key == own_key || matches!(&record, Ok(Some(record)) if of_this_task(record)) {
            tracing::info!(
                task = order.task_id,
                record = key,
                "an interrupted start is taken back first"
            );
            if let Ok(Some(record)) = &record {
                driver.tasks.remove(&record.header.task_id);
            }
            logs.get_or_insert_with(|| Logs::open(order));
            earlier.run().map_err(|error| Failure::retryable(&error))?;
        }
    }
    Ok(logs)
}

/// A checked machine and where its parts are on this host.
struct Machine<'a> {
    vm: &'a Vm,
    places: &'a Places,
    qemu: PathBuf,
    isolation: Isolation,
}

/// Refuses a machine that the host has no memory for right now.
fn memory_for(vm: &Vm, places: &Places) -> Result<(), Failure> {
    // With what is told to its guest of networks the initrd is copied into memory, where it stays.
    let initrd = vm.initrd.as_ref().filter(|_| vm.taps().next().is_some());
    let copied = initrd
        .and_then(|initrd| std::fs::metadata(places.of(initrd).join(&initrd.path)).ok())
        .map_or(0, |initrd| initrd.len());
    let needed = memory::limit_bytes(vm).saturating_add(copied);
    match host_memory::available_bytes() {
        Some(available) if available < needed => Err(Failure::Retryable(format!(
            "the host has {} MiB of memory available, the VM needs {} MiB ({} for its guest, {} beside it): stop something, \
             or ask for less",
            available >> 20,
            needed >> 20,
            vm.memory_mib,
            memory::overhead_mib(vm)
        ))),
        _ => Ok(()),
    }
}

/// The steps between record and shim, each named before it is done.
fn set_up(
    instance: &Instance,
    order: &Order,
    undo: &Undo,
    key: &str,
    machine: &Machine<'_>,
    record: &mut RecordFile,
    notices: &mut Vec<String>,
) -> Result<(ShimStart, Vec<Interface>), Failure> {
    reach("start.uids.before", key);
    let (uid, supervisor_uid) = lease(instance, order, undo, record)?;
    reach("start.uids.after", key);

    let path = undo.run_directory.clone();
    reach("start.run-directory.before", key);
    record
        .name(&Step::RunDirectory { path: path.clone() })
        .map_err(|error| Failure::retryable(&error))?;
    make_private(&path)
        .map_err(|error| Failure::Retryable(format!("run_dir: {} can't be made: {error}", path.display())))?;
    reach("start.run-directory.after", key);

    let interfaces = match &instance.options.netd {
        Some(socket) if machine.vm.taps().next().is_some() => {
            network::attach(socket, undo, machine.vm, uid, record)?
        }
        _ => Vec::new(),
    };
    notices.extend(
        interfaces
            .iter()
            .map(|interface| format!("Network {}", interface.sentence())),
    );

    let groups = cgroup::groups(&order.cgroup, &order.alloc_id, &order.task_name);
    if !groups.leaves.is_empty() {
        let share = Share {
            memory_bytes: memory::limit_bytes(machine.vm),
            cpu_shares: order.cpu_shares,
            cpus: &machine.vm.cpus,
        };
        reach("start.cgroups.before", key);
        record
            .name(&Step::Cgroups {
                leaves: groups.leaves.clone(),
                memory_bytes: Some(share.memory_bytes),
            })
            .map_err(|error| Failure::retryable(&error))?;
        if !cgroup::make(&groups, &share).map_err(|error| Failure::retryable(&error))? {
            notices.push(
                "the memory of this VM is not limited: its control group has no memory controller".to_owned(),
            );
        }
        reach("start.cgroups.after", key);
    }

    reach("start.plan.before", key);
    record
        .name(&Step::Shim)
        .map_err(|error| Failure::retryable(&error))?;
    let gid = match machine.vm.accelerator {
        Accelerator::Kvm => kvm::group().unwrap_or(uid),
        Accelerator::Tcg { .. } => uid,
    };
    let site = steppe_qemu::Site {
        owner: format!("{}.{}", order.alloc_id, order.task_name),
        key: key.to_owned(),
        program: machine.qemu.clone(),
        uid,
        gid,
        isolation: Some(machine.isolation.clone()),
        file_bytes: Some(machine.places.file_bytes),
        archive: (!interfaces.is_empty()).then(|| network::place_of_archive(undo)),
        interfaces: &interfaces,
        place: &|file| machine.places.of(file),
    };
    let plan = steppe_qemu::render(machine.vm, &site);
    let written = |path: &Path, error: std::io::Error| {
        Failure::Retryable(format!("{} can't be written: {error}", path.display()))
    };
    let path = undo.directory.join(PLAN);
    std::fs::write(&path, plan.to_json()).map_err(|error| written(&path, error))?;
    let path = undo.lock();
    let lock = lock(&path).map_err(|error| written(&path, error))?;
    let log = instance
        .shim_log()
        .map_err(|error| written(Path::new("the shim's log"), error))?;
    reach("start.plan.after", key);
    let shim = ShimStart {
        uid: supervisor_uid,
        groups,
        log,
        lock,
    };
    Ok((shim, interfaces))
}

/// Leases user ids: QEMU's and the supervisor's.
fn lease(
    instance: &Instance,
    order: &Order,
    undo: &Undo,
    record: &mut RecordFile,
) -> Result<(u32, u32), Failure> {
    let (leases, owner) = (&undo.leases, &undo.owner());
    let pair = loop {
        let uid = uids::candidate(leases, &instance.options.vm_uids, owner)
            .map_err(|error| Failure::retryable(&error))?;
        record
            .name(&Step::Uids { uid })
            .map_err(|error| Failure::retryable(&error))?;
        if uids::take(leases, Lease::Pair(uid), owner).map_err(|error| Failure::retryable(&error))? {
            break uid;
        }
    };
    let supervisor = pair + 1;
    // Two agents on one host may lease the same user, and a forgetful one the same twice: then the pair's is as good.
    let (uid, lease) = match order.allocated.user.parse() {
        // A job may also name one that Nomad leased to a task of another driver.
        Ok(lease @ Lease::User(uid)) if uids::is_free(leases, lease) && !uids::is_anybodys(uid) => {
            (uid, lease)
        }
        _ => return Ok((pair, supervisor)),
    };
    record
        .name(&Step::User { uid })
        .map_err(|error| Failure::retryable(&error))?;
    if uids::take(leases, lease, owner).map_err(|error| Failure::retryable(&error))? {
        Ok((uid, supervisor))
    } else {
        Err(Failure::Retryable(format!(
            "user id {uid}, which Nomad leased for this task, was given to another VM just now"
        )))
    }
}

fn lock(path: &Path) -> std::io::Result<OwnedFd> {
    let file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .read(true)
        .open(path)?;
    // Whoever looks whether a shim lives takes the lock for a moment.
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file.into()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// From the shim's start to the running guest.
async fn launch(driver: &Arc<Driver>, order: &Order, mut prepared: Prepared) -> Result<Arc<Task>, Failure> {
    let start = prepared.shim;
    let (mut vm_cgroups, mut shim_cgroups): (Vec<&PathBuf>, Vec<&PathBuf>) =
        start.groups.leaves.iter().partition(|leaf| cgroup::is_vm(leaf));
    for cgroups in [&mut vm_cgroups, &mut shim_cgroups] {
        cgroups.extend(&start.groups.cpuset);
    }
    let plan = prepared.undo.directory.join(PLAN);
    let key = prepared.undo.key();
    let command = Command {
        program: &prepared.program,
        plan: &plan,
        record: &prepared.undo.directory,
        stdout: &order.stdout,
        stderr: &order.stderr,
        uid: start.uid,
        vm_cgroups,
        shim_cgroups,
        log: start.log,
        lock: start.lock,
        network: prepared.network.as_deref(),
    };
    reach("start.shim.before", &key);
    let shim = Shim::spawn(command, prepared.undo.shim())
        .map_err(|error| Failure::Retryable(format!("microvm-shim can't be started: {error}")))?;
    reach("start.shim.after", &key);
    reach("start.prepared.before", &key);
    let is_answer = |view: &View| !matches!(view, View::Is(State::Starting));
    match shim.wait_until(PREPARED_TIMEOUT, is_answer).await {
        Some(View::Is(State::Prepared { .. })) => {}
        other => return Err(not_started(&shim, other).await),
    }
    reach("start.prepared.after", &key);
    reach("start.running.before", &key);
    let started_at_unix_ns = unix_ns();
    prepared
        .record
        .name(&Step::Running { started_at_unix_ns })
        .map_err(|error| Failure::retryable(&error))?;
    reach("start.running.after", &key);
    reach("start.continue.before", &key);
    shim.ask(Request::Continue)
        .await
        .map_err(|error| Failure::Retryable(format!("the guest can't be started: {error}")))?;
    reach("start.continue.after", &key);
    if let Some(ready) = &prepared.ready {
        wait_until_ready(&shim, ready, &prepared.undo).await?;
        let now = unix_ns();
        let seconds = Duration::from_nanos(now.saturating_sub(started_at_unix_ns)).as_secs_f64();
        prepared.notices.push(format!(
            "the guest is ready after {seconds:.1} s: its console showed {:?}",
            ready.pattern
        ));
    }
    for notice in &prepared.notices {
        driver.events.say(&prepared.header, notice, started_at_unix_ns);
    }
    reach("start.answer.before", &key);
    let task = follow::adopt(driver, prepared.header, started_at_unix_ns, shim, prepared.undo);
    reach("start.answer.after", &key);
    Ok(task)
}

/// Waits until the guest has shown what the job waits for, or is gone. The shim keeps the deadline.
async fn wait_until_ready(shim: &Shim, ready: &Ready, undo: &Undo) -> Result<(), Failure> {
    let is_decided =
        |view: &View| view.is_final() || matches!(view, View::Is(State::Running { ready: true, .. }));
    let ended = match shim.wait_until(ready.timeout + READY_SLACK, is_decided).await {
        Some(View::Is(State::Running { .. })) => return Ok(()),
        Some(View::Is(State::Exited { exit, .. })) => follow::recorded(exit, undo).await,
        Some(_) => follow::settle(undo)
            .await
            .unwrap_or_else(|| Ended::lost(unix_ns())),
        None => {
            return Err(Failure::Retryable(
                "the guest did not get ready in time, and its shim does not say why".to_owned(),
            ));
        }
    };
    Err(Failure::Retryable(format!(
        "the guest did not get ready: {}",
        ended.sentence()
    )))
}

/// Why QEMU didn't get as far as its first answer.
async fn not_started(shim: &Shim, view: Option<View>) -> Failure {
    // A reason that was given is better than the end that follows it.
    match view {
        Some(View::Is(State::Failed {
            reason,
            retryable: true,
        })) => Failure::Retryable(reason),
        Some(View::Is(State::Failed {
            reason,
            retryable: false,
        })) => Failure::Denied(reason),
        Some(View::Is(State::Exited { exit, stderr })) => {
            let last = stderr
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty())
                .unwrap_or("it left no message");
            let reason = format!("{}: {}", exit.outcome().sentence, last.trim());
            // Another process has the port; it may be gone at the next try.
            if last.contains("Could not set up host forwarding rule") {
                return Failure::Retryable(format!("a port of the task is in use on this host: {reason}"));
            }
            match exit.cause() {
                // What the host or somebody on it did is no fault of the job's.
                Cause::NotStarted(WaitStatus::Signaled(_)) | Cause::OutOfMemory | Cause::HostOutOfMemory => {
                    Failure::Retryable(reason)
                }
                _ if exit.reason == Reason::HostSignal => Failure::Retryable(reason),
                _ => Failure::Denied(reason),
            }
        }
        Some(View::Is(_)) => Failure::Retryable("QEMU ran before it was told to".to_owned()),
        Some(View::Lost) => {
            Failure::Retryable("microvm-shim ended without a word: see the driver's log/shim.log".to_owned())
        }
        None => {
            drop(shim.ask(Request::Kill).await);
            Failure::Retryable("QEMU did not get ready in time".to_owned())
        }
    }
}
