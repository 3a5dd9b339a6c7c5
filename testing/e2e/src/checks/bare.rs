//! What has the process that a guest could break into, and what have the two beside it?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::page::page_json;
use super::witness::the_vm;
use crate::agent::Client;
use crate::harness::{say, side_by_side};
use crate::host::{self, Vm};
use crate::job::{Job, Order, STUB_READY};
use crate::process;
use crate::world::{IMAGES, World};

/// The set of all five kinds of capabilities in which a process has none.
const NO_CAPABILITY: &str = "0000000000000000";

/// What a monitor keeps: CAP_KILL, and CAP_SYS_NICE where its VM has cores (linux/capability.h).
const KILL: &str = "0000000000000020";
const KILL_AND_NICE: &str = "0000000000800020";

/// What QEMU makes for itself: kinds of descriptors that lead to nothing outside of it.
const OWN_KINDS: [&str; 6] = [
    "anon_inode:[eventfd]",
    "anon_inode:[eventpoll]",
    "anon_inode:[signalfd]",
    "anon_inode:[timerfd]",
    "anon_inode:kvm-vm",
    "anon_inode:kvm-vcpu:",
];

/// Two disks by which a guest has done something, a port through which somebody has asked, and a VM with neither.
pub(super) fn qemu_is_bare(world: &World) {
    let client = &world.main;
    let orders = [
        disks(world),
        Order::with_http("bare-net", ""),
        Order::stub("bare-none", ""),
    ];
    let jobs = side_by_side(orders.len(), &orders, |order| {
        let job = world.run(order);
        let _running = job.wait_running();
        if order.config["kernel"] == crate::world::STUB {
            let _console = job.wait_console(STUB_READY);
        } else {
            let _console = job.wait_ready();
        }
        job
    });
    let (disk, user, none) = match jobs.as_slice() {
        [disk, user, none] => (disk, user, none),
        other => panic!("{} jobs", other.len()),
    };
    assert!(
        disk.console().contains("disk wrote 'steppe-disk 1'"),
        "{}",
        disk.console()
    );
    let _answered = user.uptime();

    let seen: Vec<Bare> = jobs.iter().map(|job| look(world, client, job)).collect();
    let mut faults: Vec<String> = seen.iter().flat_map(|bare| bare.faults.clone()).collect();
    faults.extend(between(&seen));
    let looked: usize = seen.iter().map(|bare| bare.looked).sum();
    say(&format!(
        "    {looked} facts of {} processes; QEMU of {} has {} descriptors, of {} {}, of {} {}",
        3 * seen.len(),
        disk.id,
        process::descriptors(seen[0].qemu),
        user.id,
        process::descriptors(seen[1].qemu),
        none.id,
        process::descriptors(seen[2].qemu),
    ));
    assert!(
        faults.is_empty(),
        "{} of {looked} facts are not as they should be:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

fn disks(world: &World) -> Order {
    let images = world.scratch.path().join(IMAGES);
    let mut order = Order::guest("bare-disk", "steppe.disk").set(
        "disk",
        json!([
            { "name": "first", "file": "local/first.raw", "format": "raw" },
            { "name": "second", "file": "local/second.raw", "format": "raw", "read_only": true },
        ]),
    );
    for name in ["first", "second"] {
        let path = images.join(format!("bare-{name}.raw"));
        // Text, because it goes through one of Nomad's templates.
        std::fs::write(&path, " ".repeat(64 * 512)).expect("a file can be written in the scratch folder");
        order
            .files
            .push((path.display().to_string(), format!("local/{name}.raw")));
    }
    order
}

/// What was seen of one VM.
pub(super) struct Bare {
    name: String,
    qemu: u32,
    /// Whether its QEMU has the host's network.
    host_network: bool,
    /// How many facts were compared.
    looked: usize,
    pub(super) faults: Vec<String>,
}

impl Bare {
    /// Takes down a fact that must be so.
    fn must(&mut self, is_so: bool, fault: impl FnOnce() -> String) {
        self.looked += 1;
        if is_so {
            return;
        }
        let fault = format!("{}: {}", self.name, fault());
        // Several threads have the same.
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    fn equal<T: PartialEq + Debug>(&mut self, what: &str, seen: T, wanted: T) {
        let same = seen == wanted;
        self.must(same, || format!("{what} is {seen:?}, not {wanted:?}"));
    }
}

/// Looks at the three processes of a job's VM.
pub(super) fn look(world: &World, client: &Client, job: &Job<'_>) -> Bare {
    let vm = the_vm(job, client);
    let qemu = job.qemu(client);
    let supervisor = vm.supervisor().expect("a VM that runs has a supervisor");
    let inspected = page_json(world, &client.state_dir(), &["inspect", &vm.key]);
    let plan = &inspected["plan"];
    let mut bare = Bare {
        name: job.id.clone(),
        qemu,
        host_network: plan["isolation"]["network"] != "none",
        looked: 0,
        faults: Vec::new(),
    };
    let about = |bare: &mut Bare, who: &str| bare.name = format!("{}, {who}", job.id);

    about(&mut bare, "QEMU");
    identity(
        &mut bare,
        qemu,
        [number(&inspected["uid"]), number(&plan["gid"])],
        2,
        Some(NO_CAPABILITY),
    );
    bare.equal("the plan's uid", number(&plan["uid"]), number(&inspected["uid"]));
    is_nobody(&mut bare, number(&plan["uid"]), number(&plan["gid"]));
    program(&mut bare, qemu, plan);
    bare.equal(
        "its parent",
        process::one(qemu).map(|process| process.parent),
        Some(vm.shim),
    );
    let [group, session, terminal] = session(qemu);
    bare.equal("its process group", group, i64::from(qemu));
    bare.equal("its session", session, i64::from(qemu));
    bare.equal("its terminal", terminal, 0);
    limits(&mut bare, qemu, &plan["limits"]);
    let adjusted = read(qemu, "oom_score_adj");
    bare.equal("oom_score_adj", adjusted.trim(), "0");
    namespaces(&mut bare, qemu);
    network(&mut bare, qemu);
    root(&mut bare, qemu, &plan["isolation"]["root"]);
    let files = plan_files(plan);
    qemu_descriptors(&mut bare, qemu, supervisor, plan, &files, job);
    groups(&mut bare, client, job, &inspected, qemu, "vm");

    about(&mut bare, "the supervisor");
    let second = number(&inspected["supervisor_uid"]);
    bare.must(second != number(&inspected["uid"]), || {
        format!("it has QEMU's uid {second}")
    });
    identity(&mut bare, supervisor, [second, second], 1, Some(NO_CAPABILITY));
    is_nobody(&mut bare, second, second);
    shim_process(&mut bare, supervisor, &vm);
    supervisor_descriptors(&mut bare, supervisor, client);
    groups(&mut bare, client, job, &inspected, supervisor, "shim");

    about(&mut bare, "the monitor");
    let pins = plan["cpus"].as_array().is_some_and(|cpus| !cpus.is_empty());
    let kept = if pins { KILL_AND_NICE } else { KILL };
    identity(&mut bare, vm.shim, [0, 0], 1, None);
    let status = process::status(vm.shim, vm.shim);
    for (kind, wanted) in [
        ("CapEff", kept),
        ("CapPrm", kept),
        ("CapBnd", NO_CAPABILITY),
        ("CapInh", NO_CAPABILITY),
        ("CapAmb", NO_CAPABILITY),
    ] {
        bare.equal(kind, status[kind].as_str(), wanted);
    }
    shim_process(&mut bare, vm.shim, &vm);
    monitor_descriptors(&mut bare, &vm, client);
    groups(&mut bare, client, job, &inspected, vm.shim, "shim");

    bare.name.clone_from(&job.id);
    bare
}

/// What is so of several VMs together.
fn between(seen: &[Bare]) -> Vec<String> {
    let mut all = Bare {
        name: "all VMs".to_owned(),
        qemu: 0,
        host_network: false,
        looked: 0,
        faults: Vec::new(),
    };
    for kind in ["mnt", "ipc", "uts"] {
        let own: BTreeSet<String> = seen.iter().map(|bare| namespace(bare.qemu, kind)).collect();
        all.equal(&format!("the number of {kind} namespaces"), own.len(), seen.len());
    }
    let alone = seen.iter().filter(|bare| !bare.host_network);
    let networks: BTreeSet<String> = alone.map(|bare| namespace(bare.qemu, "net")).collect();
    all.equal("the number of empty network namespaces", networks.len(), 1);
    let hosts: Vec<bool> = seen.iter().map(|bare| bare.host_network).collect();
    all.equal("who has the host's network", hosts, vec![false, true, false]);
    all.faults
}

/// A number of the page.
fn number(value: &Value) -> u32 {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.unwrap_or_else(|| panic!("{value} is no id"))
}

/// A file of a process in /proc.
fn read(pid: u32, name: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{name}"))
        .unwrap_or_else(|error| panic!("/proc/{pid}/{name}: {error}"))
}

/// Who it is, and what it may not become: the same of each of its threads.
fn identity(bare: &mut Bare, pid: u32, ids: [u32; 2], filters: u32, capabilities: Option<&str>) {
    let threads = process::threads(pid);
    bare.must(!threads.is_empty(), || "it has no threads".to_owned());
    for thread in threads {
        let status = process::status(pid, thread);
        if status.is_empty() {
            // One of QEMU's threads for the disks' I/O, which come and go.
            continue;
        }
        let of_all = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
        let [uid, gid] = ids;
        bare.equal(
            "Uid (real, effective, saved, of files)",
            status["Uid"].clone(),
            of_all(uid),
        );
        bare.equal(
            "Gid (real, effective, saved, of files)",
            status["Gid"].clone(),
            of_all(gid),
        );
        if let Some(wanted) = capabilities {
            bare.equal("Groups", status["Groups"].as_str(), "");
            for kind in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                bare.equal(kind, status[kind].as_str(), wanted);
            }
        }
        bare.equal("NoNewPrivs", status["NoNewPrivs"].as_str(), "1");
        // Filtered; 1 would be the strict mode of old.
        bare.equal("Seccomp", status["Seccomp"].as_str(), "2");
        let count = status["Seccomp_filters"].clone();
        bare.must(count.parse().is_ok_and(|count: u32| count >= filters), || {
            format!("it has {count} filters of system calls, not {filters} or more")
        });
    }
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_else(|error| panic!("{error}"));
    bare.must(environment.is_empty(), || {
        format!("its environment is {:?}", String::from_utf8_lossy(&environment))
    });
}

/// Nobody whom the host knows has these ids. (Under KVM the group is that of its device.)
fn is_nobody(bare: &mut Bare, uid: u32, gid: u32) {
    let third = |line: &str| line.split(':').nth(2).map(str::to_owned);
    let ids_in = |file: &str| -> Vec<String> {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
        text.lines().filter_map(third).collect()
    };
    let users = ids_in("/etc/passwd");
    bare.must(!users.is_empty(), || "/etc/passwd has nobody".to_owned());
    bare.must(!users.contains(&uid.to_string()), || {
        format!("uid {uid} is somebody's in /etc/passwd")
    });
    let kvm = std::fs::metadata("/dev/kvm").map(|data| data.gid());
    if kvm.ok() != Some(gid) || gid == uid {
        bare.must(!ids_in("/etc/group").contains(&gid.to_string()), || {
            format!("gid {gid} is a group of /etc/group")
        });
    }
}

/// It runs what the plan says, with the plan's words.
fn program(bare: &mut Bare, qemu: u32, plan: &Value) {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut planned = vec![word(&plan["program"])];
    planned.extend(plan["arguments"].as_array().into_iter().flatten().map(word));
    let real = process::one(qemu).expect("QEMU runs");
    bare.equal("its program", real.program, PathBuf::from(&planned[0]));
    bare.equal("its arguments", real.arguments, planned);
    for option in ["-sandbox", "-nodefaults", "-no-user-config"] {
        bare.must(
            plan["arguments"]
                .as_array()
                .is_some_and(|words| words.iter().any(|word| word == option)),
            || format!("it has no {option}"),
        );
    }
}

/// Process group, session and controlling terminal (proc(5)).
fn session(pid: u32) -> [i64; 3] {
    let stat = read(pid, "stat");
    let (_, fields) = stat.rsplit_once(") ").expect("stat has a name in brackets");
    let mut fields = fields.split(' ').skip(2);
    [(); 3].map(|()| {
        let field = fields.next().and_then(|field| field.parse().ok());
        field.expect("stat has these three numbers")
    })
}

fn limits(bare: &mut Bare, qemu: u32, planned: &Value) {
    let text = read(qemu, "limits");
    for (name, key) in [
        ("Max core file size", "core_bytes"),
        ("Max open files", "open_files"),
        ("Max processes", "processes"),
        ("Max file size", "file_bytes"),
        ("Max locked memory", "locked_bytes"),
    ] {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("no {name:?} in:\n{text}"));
        let both: Vec<&str> = line.split_whitespace().take(2).collect();
        let wanted = planned[key].as_u64();
        bare.must(wanted.is_some(), || format!("the plan has no limit {key}"));
        let wanted = wanted.unwrap_or_default().to_string();
        bare.equal(name, both, vec![wanted.as_str(); 2]);
    }
    // What a core file or a swap would show of a guest is nobody's.
    bare.equal("core_bytes of the plan", planned["core_bytes"].as_u64(), Some(1));
}

/// The name of a process's namespace.
fn namespace(pid: u32, kind: &str) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    let link = link.unwrap_or_else(|error| panic!("/proc/{pid}/ns/{kind}: {error}"));
    link.display().to_string()
}

fn namespaces(bare: &mut Bare, qemu: u32) {
    let host = std::process::id();
    for kind in ["mnt", "ipc", "uts"] {
        bare.must(namespace(qemu, kind) != namespace(host, kind), || {
            format!("its {kind} namespace is the host's")
        });
    }
    let is_hosts = namespace(qemu, "net") == namespace(host, "net");
    let planned = bare.host_network;
    bare.equal("whether its network is the host's", is_hosts, planned);
}

/// Its network namespace, if it isn't the host's, has one interface, which was never up, and no socket.
fn network(bare: &mut Bare, qemu: u32) {
    if bare.host_network {
        return;
    }
    let rows = |pid: u32, name: &str, heads: usize| -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{name}"));
        let text = text.unwrap_or_default();
        text.lines()
            .skip(heads)
            .map(|line| line.trim().to_owned())
            .collect()
    };
    let interface = |row: &String| row.split(':').next().unwrap_or_default().to_owned();
    let interfaces: Vec<String> = rows(qemu, "dev", 2).iter().map(interface).collect();
    bare.equal("its network interfaces", interfaces, vec!["lo".to_owned()]);
    // An interface lo that is up has its addresses by itself.
    let own = rows(std::process::id(), "fib_trie", 0);
    assert!(
        own.iter().any(|row| row.contains("127.0.0.1")),
        "no 127.0.0.1 here: {own:?}"
    );
    for (table, heads) in [
        ("fib_trie", 0),
        ("if_inet6", 0),
        ("route", 1),
        ("tcp", 1),
        ("tcp6", 1),
        ("udp", 1),
        ("udp6", 1),
        ("raw", 1),
        ("packet", 1),
        ("unix", 1),
    ] {
        bare.equal(
            &format!("/proc/net/{table}"),
            rows(qemu, table, heads),
            Vec::new(),
        );
    }
}

/// A path of the plan's root, and the place to which it is a link.
fn visible(root: &Value) -> Vec<(PathBuf, Option<PathBuf>)> {
    let path = |value: &Value| PathBuf::from(value.as_str().unwrap_or_default());
    let entries = root.as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .map(|entry| match &entry["link"] {
            Value::Null => {
                let kinds = ["read", "execute", "device"].into_iter();
                let named = kinds.map(|kind| &entry[kind]).find(|value| !value.is_null());
                (
                    path(named.unwrap_or_else(|| panic!("{entry} is of no kind"))),
                    None,
                )
            }
            link => (path(&link["path"]), Some(path(&link["target"]))),
        })
        .collect()
}

/// The root that it sees: the plan's paths and what they need above them, nothing of it to be written.
fn root(bare: &mut Bare, qemu: u32, planned: &Value) {
    let visible = visible(planned);
    bare.must(!visible.is_empty(), || "the plan's root is empty".to_owned());
    let places = visible.iter().filter(|(_, link)| link.is_none());
    let mut wanted: BTreeSet<PathBuf> = places.map(|(path, _)| path.clone()).collect();
    let all = wanted.clone();
    // What lies in a directory that is there already is there with it.
    wanted.retain(|path| !path.ancestors().skip(1).any(|above| all.contains(above)));
    let shown = wanted.clone();
    wanted.insert(PathBuf::from("/dev/fd"));
    wanted.insert(PathBuf::from("/"));

    let mut mounted = BTreeSet::new();
    for line in read(qemu, "mountinfo").lines() {
        // proc(5): id, parent, device, root, mount point, options, then optional fields up to a dash, and the kind.
        let (before, after) = line.split_once(" - ").expect("mountinfo has a dash");
        let fields: Vec<&str> = before.split(' ').collect();
        let (place, options) = (PathBuf::from(fields[4]), fields[5]);
        for option in ["ro", "nosuid"] {
            bare.must(options.split(',').any(|word| word == option), || {
                format!("mount {} is not {option}: {line}", place.display())
            });
        }
        bare.must(fields.len() == 6, || {
            format!("mount {} is bound to others: {line}", place.display())
        });
        if place == Path::new("/") {
            bare.must(after.starts_with("tmpfs "), || {
                format!("its root is no tmpfs: {line}")
            });
        }
        bare.must(mounted.insert(place.clone()), || {
            format!("{} is mounted twice", place.display())
        });
    }
    bare.equal("what is mounted", mounted, wanted.clone());

    // Each is what has this name on the host.
    let own = PathBuf::from(format!("/proc/{qemu}/root"));
    let within = |path: &Path| own.join(path.strip_prefix("/").unwrap_or(path));
    let identity = |path: &Path| {
        std::fs::metadata(path)
            .map(|data| (data.dev(), data.ino(), data.rdev()))
            .ok()
    };
    for path in &shown {
        let seen = identity(&within(path));
        bare.must(seen.is_some() && seen == identity(path), || {
            format!("{} is not the host's", path.display())
        });
    }

    // All else in it are the directories above those, and the links.
    let links: BTreeMap<&Path, &Path> = visible
        .iter()
        .filter_map(|(path, link)| Some((path.as_path(), link.as_deref()?)))
        .collect();
    let mut found = BTreeSet::new();
    let mut open = vec![PathBuf::from("/")];
    while let Some(directory) = open.pop() {
        let entries = std::fs::read_dir(within(&directory));
        let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", within(&directory).display()));
        for entry in entries.flatten() {
            let path = directory.join(entry.file_name());
            let kind = entry
                .file_type()
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            if wanted.contains(&path) {
                continue;
            }
            if let Some(target) = links.get(path.as_path()) {
                let seen = std::fs::read_link(entry.path()).ok();
                bare.equal(
                    &format!("link {}", path.display()),
                    seen.as_deref(),
                    Some(*target),
                );
                found.insert(path);
                continue;
            }
            let is_above = wanted.iter().any(|wanted| wanted.starts_with(&path))
                || links.keys().any(|link| link.starts_with(&path));
            bare.must(kind.is_dir() && is_above, || {
                format!("{} is in its root and not in the plan", path.display())
            });
            if kind.is_dir() {
                open.push(path);
            }
        }
    }
    let planned: BTreeSet<PathBuf> = links.keys().map(|path| path.to_path_buf()).collect();
    bare.equal("the links in its root", found, planned);
}

/// An open descriptor: its number, to what it leads, and how it was opened.
struct Open {
    number: i32,
    target: String,
    /// `r`, `w` or `rw`; an `a` behind it where every write is an addition.
    access: &'static str,
}

fn descriptors(pid: u32) -> Vec<Open> {
    let directory = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{directory}: {error}"));
    let numbers = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut open: Vec<Open> = numbers
        // One that is closed meanwhile was somebody's connection.
        .filter_map(|number: i32| {
            let target = std::fs::read_link(format!("{directory}/{number}")).ok()?;
            let information = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
            let flags = information.lines().find_map(|line| line.strip_prefix("flags:"))?;
            let flags = u32::from_str_radix(flags.trim(), 8).ok()?;
            // O_ACCMODE and O_APPEND, in octal as proc(5) has them.
            let access = match (flags & 0o3, flags & 0o2000 != 0) {
                (0, _) => "r",
                (1, false) => "w",
                (1, true) => "wa",
                (_, false) => "rw",
                (_, true) => "rwa",
            };
            let target = target.display().to_string();
            Some(Open {
                number,
                target,
                access,
            })
        })
        .collect();
    open.sort_by_key(|open| open.number);
    open
}

/// The plan's files: number, path on the host, access.
fn plan_files(plan: &Value) -> Vec<(i32, String, &'static str)> {
    let descriptors = plan["descriptors"].as_array().cloned().unwrap_or_default();
    descriptors
        .iter()
        .filter_map(|descriptor| {
            let file = descriptor["source"].get("file")?;
            let text = |key: &str| file[key].as_str().unwrap_or_default();
            let path = Path::new(text("beneath")).join(text("path"));
            let path =
                std::fs::canonicalize(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let access = match text("access") {
                "load" | "read" => "r",
                "read-write" => "rw",
                other => panic!("the plan has an access {other:?}"),
            };
            let number = descriptor["number"]
                .as_i64()
                .and_then(|number| i32::try_from(number).ok());
            Some((number?, path.display().to_string(), access))
        })
        .collect()
}

/// Local TCP and UDP ports of this host by the number of the socket.
fn ports() -> BTreeMap<String, u16> {
    let mut ports = BTreeMap::new();
    for table in ["tcp", "udp"] {
        for line in read(std::process::id(), &format!("net/{table}")).lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // proc(5): the second is the local address in hexadecimal, the tenth the inode.
            let port = fields.get(1).and_then(|address| address.split(':').nth(1));
            let port = port.and_then(|port| u16::from_str_radix(port, 16).ok());
            if let (Some(port), Some(inode)) = (port, fields.get(9)) {
                ports.insert(format!("socket:[{inode}]"), port);
            }
        }
    }
    ports
}

/// Sockets of the host that are no network's.
fn unix_sockets() -> BTreeSet<String> {
    let text = read(std::process::id(), "net/unix");
    // The seventh field is the inode.
    let inodes = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(6));
    inodes.map(|inode| format!("socket:[{inode}]")).collect()
}

fn qemu_descriptors(
    bare: &mut Bare,
    qemu: u32,
    supervisor: u32,
    plan: &Value,
    files: &[(i32, String, &'static str)],
    job: &Job<'_>,
) {
    let open = descriptors(qemu);
    let at = |number: i32| {
        let found = open.iter().find(|open| open.number == number);
        found.map(|open| (open.target.as_str(), open.access))
    };
    bare.equal("descriptor 0", at(0), Some(("/dev/null", "rw")));
    // Both ends of the pipe: nobody else reads QEMU's messages.
    let heard = descriptors(supervisor);
    let pipe = heard
        .iter()
        .find(|open| open.target.starts_with("pipe:") && open.access == "r");
    let pipe = pipe.map(|open| (open.target.as_str(), "w"));
    bare.must(pipe.is_some(), || "nobody reads its messages".to_owned());
    bare.equal("descriptor 1", at(1), pipe);
    bare.equal("descriptor 2", at(2), pipe);
    let (sockets, unix) = (ports(), unix_sockets());
    let mut explained: BTreeSet<i32> = [0, 1, 2].into();
    let words = plan["arguments"].as_array().cloned().unwrap_or_default();
    for (number, path, access) in files {
        let wanted = (path.as_str(), *access);
        // Of a descriptor that is to be opened by a name of QEMU's own, QEMU makes a copy and closes it.
        let set = format!("fd={number},set=");
        if words
            .iter()
            .any(|word| word.as_str().is_some_and(|word| word.starts_with(&set)))
        {
            let copies = open
                .iter()
                .filter(|open| (open.target.as_str(), open.access) == wanted);
            let has_copies = copies.count() > 0;
            bare.must(has_copies, || format!("it doesn't hold {path} ({access})"));
        } else {
            bare.equal(&format!("descriptor {number}"), at(*number), Some(wanted));
            explained.insert(*number);
        }
    }
    for descriptor in plan["descriptors"].as_array().into_iter().flatten() {
        if descriptor["source"] != "qmp" && descriptor["source"] != "console" {
            continue;
        }
        let number = descriptor["number"]
            .as_i64()
            .and_then(|number| i32::try_from(number).ok());
        let number = number.expect("a descriptor has a number");
        let seen = at(number)
            .map(|(target, _)| target.to_owned())
            .unwrap_or_default();
        bare.must(unix.contains(&seen), || {
            format!("descriptor {number}, {}, is {seen:?}", descriptor["name"])
        });
        explained.insert(number);
    }
    let forwarded: BTreeSet<u16> = job.ports().into_iter().collect();
    let mut listening = BTreeSet::new();
    for Open {
        number,
        target,
        access,
    } in open.iter().filter(|open| !explained.contains(&open.number))
    {
        let is_own = OWN_KINDS.iter().any(|kind| target.starts_with(kind));
        // A copy may have less access.
        let is_copy = files
            .iter()
            .any(|(_, path, most)| path == target && most.starts_with(access));
        let port = sockets.get(target).copied();
        let is_forwarded = bare.host_network && port.is_some_and(|port| forwarded.contains(&port));
        let is_kvm = target == "/dev/kvm" && plan["arguments"].to_string().contains("\"kvm\"");
        listening.extend(port);
        bare.must(is_own || is_copy || is_forwarded || is_kvm, || {
            format!("descriptor {number} ({access}) is {target}, port {port:?}, which nothing explains")
        });
    }
    bare.equal("the ports of its sockets", listening, forwarded);
}

/// What the shim's two processes have in common.
fn shim_process(bare: &mut Bare, pid: u32, vm: &Vm) {
    let [group, session, terminal] = session(pid);
    bare.equal("its process group", group, i64::from(vm.shim));
    bare.equal("its session", session, i64::from(vm.shim));
    bare.equal("its terminal", terminal, 0);
    bare.equal("its threads", process::threads(pid).len(), 1);
}

/// The first three: nothing, nothing, and the shims' log, to be added to.
fn shim_standard(bare: &mut Bare, open: &[Open], client: &Client) {
    let log = client.state_dir().join("log/shim.log").display().to_string();
    for (number, target, access) in [
        (0, "/dev/null", "r"),
        (1, "/dev/null", "w"),
        (2, log.as_str(), "wa"),
    ] {
        let seen = open.iter().find(|open| open.number == number);
        let seen = seen.map(|open| (open.target.as_str(), open.access));
        bare.equal(&format!("descriptor {number}"), seen, Some((target, access)));
    }
}

fn supervisor_descriptors(bare: &mut Bare, pid: u32, client: &Client) {
    let open = descriptors(pid);
    shim_standard(bare, &open, client);
    let unix = unix_sockets();
    for Open {
        number,
        target,
        access,
    } in open.iter().filter(|open| open.number > 2)
    {
        let is_fifo = target.ends_with(".fifo")
            && std::fs::metadata(format!("/proc/{pid}/fd/{number}")).is_ok_and(|data| {
                use std::os::unix::fs::FileTypeExt;
                data.file_type().is_fifo()
            });
        let is_known = unix.contains(target) || target.starts_with("pipe:") || is_fifo;
        bare.must(is_known, || {
            format!("descriptor {number} ({access}) is {target}, neither socket nor pipe nor FIFO")
        });
    }
}

fn monitor_descriptors(bare: &mut Bare, vm: &Vm, client: &Client) {
    let open = descriptors(vm.shim);
    shim_standard(bare, &open, client);
    let unix = unix_sockets();
    let own = |name: &str| vm.directory(client).join(name).display().to_string();
    // Its lock and the room for the exit record; signals, the link, and the two processes it waits for.
    let files = [own("shim.lock"), own("exit.json.new")];
    for Open {
        number,
        target,
        access,
    } in open.iter().filter(|open| open.number > 2)
    {
        let is_known = files.contains(target)
            || unix.contains(target)
            || ["anon_inode:[signalfd]", "anon_inode:[pidfd]"].contains(&target.as_str())
            || target.starts_with("pidfd:");
        bare.must(is_known, || {
            format!("descriptor {number} ({access}) is {target}, which nothing explains")
        });
    }
    for file in &files {
        bare.must(open.iter().any(|open| open.target == *file), || {
            format!("it doesn't hold {file}")
        });
    }
}

/// It is in its leaf of every group that Nomad made for the task, and the leaves are those of the record.
fn groups(bare: &mut Bare, client: &Client, job: &Job<'_>, inspected: &Value, pid: u32, leaf: &str) {
    let seen = process::groups(pid);
    let leaves = inspected["control_groups"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let recorded: BTreeSet<PathBuf> = leaves
        .iter()
        .filter_map(|path| path.as_str().map(PathBuf::from))
        .filter(|path| path.ends_with(leaf))
        .collect();
    bare.must(!recorded.is_empty(), || format!("the record has no leaf {leaf}"));
    for path in &recorded {
        bare.must(seen.contains(path), || {
            format!("it is not in {} but in {seen:?}", path.display())
        });
    }
    let nomads = host::task_groups(client.directory());
    let own = nomads
        .iter()
        .filter(|group| group.to_string_lossy().contains(&job.allocation));
    let mut count = 0;
    for group in own {
        count += 1;
        // On version 1, reserved processors are in a group without leaves.
        let is_reserved = group
            .parent()
            .is_some_and(|parent| parent.ends_with("cpuset/nomad/reserve"));
        let wanted = if is_reserved {
            group.clone()
        } else {
            group.join(leaf)
        };
        bare.must(seen.contains(&wanted), || {
            format!("Nomad made {}, it is in {seen:?}", group.display())
        });
    }
    bare.must(count > 0, || {
        "Nomad made no control group for its task".to_owned()
    });
}
