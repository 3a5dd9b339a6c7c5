//! How does this program look like a QEMU to whoever started it?

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::acts;
use crate::arguments::{self, Act, Arguments};
use crate::escape::{self, Targets};
use crate::system;

/// Why there is no machine.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The console, shared by all that have something to say.
#[derive(Debug, Clone)]
pub(crate) struct Console(Arc<Mutex<UnixStream>>);

impl Console {
    /// Writes a line; whoever does not read it does not miss it.
    pub(crate) fn say(&self, line: &str) {
        self.write(format!("{line}\n").as_bytes());
    }

    /// Writes bytes, as fast as they are taken.
    pub(crate) fn write(&self, bytes: &[u8]) {
        if let Ok(mut stream) = self.0.lock() {
            drop(stream.write_all(bytes));
        }
    }

    /// Writes as much as is taken at once, in one system call.
    pub(crate) fn write_some(&self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.lock() {
            Ok(mut stream) => stream.write(bytes),
            Err(_) => Ok(0),
        }
    }
}

/// One of QEMU's channels, whose number stands in the command line.
fn channel(name: &str, number: Option<i64>) -> Result<UnixStream, Error> {
    let number = number.ok_or_else(|| format!("no -chardev socket,id={name},fd=N"))?;
    let fd = system::own(number).map_err(|error| format!("descriptor {number} of {name}: {error}"))?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// What the vCPU threads do: wait, burn, or end.
const WAIT: u8 = 0;
const BURN: u8 = 1;
const END: u8 = 2;

/// The vCPU threads.
#[derive(Debug)]
struct Processors {
    /// Their ids in the kernel.
    ids: Vec<i32>,
    threads: Vec<JoinHandle<()>>,
    order: Arc<AtomicU8>,
}

impl Processors {
    fn new(count: usize) -> Result<Self, Error> {
        let order = Arc::new(AtomicU8::new(WAIT));
        let (mut ids, mut threads) = (Vec::new(), Vec::new());
        for index in 0..count {
            let (sender, receiver) = mpsc::channel();
            let order = Arc::clone(&order);
            // QEMU's names, with debug-threads=on.
            let thread = std::thread::Builder::new()
                .name(format!("CPU {index}/TCG"))
                .spawn(move || {
                    let _sent = sender.send(system::thread_id());
                    loop {
                        match order.load(Ordering::Relaxed) {
                            WAIT => std::thread::park(),
                            BURN => std::hint::spin_loop(),
                            _ => return,
                        }
                    }
                })?;
            threads.push(thread);
            ids.push(receiver.recv()?);
        }
        Ok(Self { ids, threads, order })
    }

    fn tell(&self, order: u8) {
        self.order.store(order, Ordering::Relaxed);
        self.threads.iter().for_each(|thread| thread.thread().unpark());
    }

    /// Ends them, so that this process has one thread again.
    fn end(&mut self) {
        self.tell(END);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Runs until the machine has ended.
pub(crate) fn run(given: &Arguments) -> Result<(), Error> {
    let targets = Targets::new(given, &given.words);
    let acts = arguments::acts(&given.words)?;
    let console = Console(Arc::new(Mutex::new(channel("console", given.console)?)));
    let mut qmp = Qmp::new(channel("qmp", given.qmp)?)?;
    let mut processors = Processors::new(given.vcpus)?;
    qmp.say(&json!({"QMP": {
        "version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "inmate"},
        "capabilities": ["oob"]
    }}))?;
    let mut running = false;
    while let Some(command) = qmp.hear()? {
        let id = &command["id"];
        match command["execute"].as_str().unwrap_or_default() {
            "qmp_capabilities" => qmp.answer(id, &json!({}))?,
            "query-status" => {
                let status = if running { "running" } else { "prelaunch" };
                qmp.answer(
                    id,
                    &json!({"running": running, "singlestep": false, "status": status}),
                )?;
            }
            "query-cpus-fast" => qmp.answer(id, &list(&processors.ids))?,
            "cont" => {
                let first = !running;
                running = true;
                qmp.event("RESUME", None)?;
                qmp.answer(id, &json!({}))?;
                if first && acts.contains(&Act::Escape) {
                    processors.end();
                    escape::confined(&console, &targets);
                    return qmp.shut_down(true, "guest-shutdown");
                }
                if first {
                    begin(&acts, given, &console, &processors);
                }
            }
            "stop" => {
                running = false;
                qmp.event("STOP", None)?;
                qmp.answer(id, &json!({}))?;
            }
            "system_reset" => {
                qmp.answer(id, &json!({}))?;
                qmp.event(
                    "RESET",
                    Some(&json!({"guest": false, "reason": "host-qmp-system-reset"})),
                )?;
            }
            "system_powerdown" => {
                qmp.answer(id, &json!({}))?;
                qmp.event("POWERDOWN", None)?;
                return qmp.shut_down(true, "guest-shutdown");
            }
            "quit" => {
                qmp.answer(id, &json!({}))?;
                return qmp.shut_down(false, "host-qmp-quit");
            }
            other => qmp.refuse(id, other)?,
        }
    }
    // QEMU goes on without its QMP connection; this program has no reason to.
    Ok(())
}

/// Begins everything else that was asked for, each in a thread of its own.
fn begin(acts: &[Act], given: &Arguments, console: &Console, processors: &Processors) {
    for act in acts.iter().copied() {
        if act == Act::Busy {
            processors.tell(BURN);
            continue;
        }
        let (own, disk) = (console.clone(), given.disks.first().copied());
        let begun = std::thread::Builder::new()
            .name("inmate".to_owned())
            .spawn(move || match act {
                Act::Hog(mib) => acts::hog(&own, mib),
                Act::Flood(mib) => acts::flood(&own, mib),
                Act::Fork => acts::fork(&own),
                Act::Write(mib) => acts::write(&own, disk, mib),
                Act::Busy | Act::Escape => {}
            });
        if let Err(error) = begun {
            console.say(&format!("inmate: no thread for {act:?}: {error}"));
        }
    }
}

fn list(ids: &[i32]) -> Value {
    ids.iter()
        .enumerate()
        .map(|(index, id)| {
            json!({
                "cpu-index": index, "thread-id": id, "target": "x86_64",
                "qom-path": format!("/machine/unattached/device[{index}]"),
                "props": {"socket-id": index, "core-id": 0, "thread-id": 0}
            })
        })
        .collect()
}

/// QEMU's end of the QMP connection.
#[derive(Debug)]
struct Qmp {
    lines: BufReader<UnixStream>,
    stream: UnixStream,
}

impl Qmp {
    fn new(stream: UnixStream) -> Result<Self, Error> {
        let lines = BufReader::new(stream.try_clone()?);
        Ok(Self { lines, stream })
    }

    fn say(&mut self, message: &Value) -> Result<(), Error> {
        Ok(self.stream.write_all(format!("{message}\r\n").as_bytes())?)
    }

    /// The next command; none when the connection has ended.
    fn hear(&mut self) -> Result<Option<Value>, Error> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }

    fn answer(&mut self, id: &Value, answer: &Value) -> Result<(), Error> {
        self.say(&json!({"return": answer, "id": id}))
    }

    fn refuse(&mut self, id: &Value, command: &str) -> Result<(), Error> {
        let text = format!("The command {command} has not been found");
        self.say(&json!({"id": id, "error": {"class": "CommandNotFound", "desc": text}}))
    }

    fn event(&mut self, name: &str, data: Option<&Value>) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut message = json!({
            "timestamp": {"seconds": now.as_secs(), "microseconds": now.subsec_micros()}, "event": name
        });
        if let Some(data) = data {
            message["data"] = data.clone();
        }
        self.say(&message)
    }

    /// The last event of a machine.
    fn shut_down(&mut self, guest: bool, reason: &str) -> Result<(), Error> {
        self.event("SHUTDOWN", Some(&json!({"guest": guest, "reason": reason})))
    }
}
