//! What does the unprivileged half of the shim do with QMP, console, stderr and control requests?
//!
//! One thread, one loop: wait for something to be ready, handle it, tell who must know. Everything QEMU or the guest says
//! is hostile input and is parsed only here.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use serde_json::Value;
use steppe_qemu::qmp::{
    CommandId, Incoming, cont, qmp_capabilities, query_cpus_fast, query_status, quit, system_powerdown,
    system_reset, vcpu_threads,
};
use steppe_vm::control::{Message, Request, State};
use steppe_vm::exit::{Asked, ExitRecord, Reason};
use steppe_vm::frame::{Fact, Seen, TAIL_BYTES, Wish};
use steppe_vm::plan::{Isolation, Ready};

use crate::confine;
use crate::console::Stream;
use crate::control::{Asking, ClientId, Control};
use crate::launch;
use crate::link;
use crate::monitor::timespec;
use crate::qmp::Qmp;
use crate::ready::Watch;

/// How long QEMU may take from its exec to its first answer. Measured: 60 ms, on a busy two-core host with forty
/// starting machines some seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the logs are held open for their reader after the end.
const LOG_HOLD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long they are held open after a start that its driver did not live to see: its successor starts the task again, and
/// Nomad's log collector would be gone for good if there were no writer meanwhile.
const LOG_HOLD_INTERRUPTED_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked whether the logs were read. A pipe says nothing when it becomes empty.
const LOG_HOLD_INTERVAL: Duration = Duration::from_millis(5);

/// So many resets of the guest within [`RESET_LOOP_PERIOD`] are a loop: a guest that reboots on purpose, such as after an
/// update, does so once or twice.
const RESET_LOOP_COUNT: usize = 3;

/// See [`RESET_LOOP_COUNT`].
const RESET_LOOP_PERIOD: Duration = Duration::from_secs(60);

/// Pause between the console's readiness and reading it. A serial port writes byte by byte; collecting for a
/// millisecond costs a quarter of the CPU time, and two milliseconds gain nothing more.
const CONSOLE_PAUSE: Duration = Duration::from_millis(1);

/// What the supervisor takes over from the monitor.
pub(crate) struct Inherited<'a> {
    pub(crate) monitor: Pid,
    pub(crate) uid: u32,
    pub(crate) link: OwnedFd,
    pub(crate) qmp: OwnedFd,
    pub(crate) console: OwnedFd,
    pub(crate) messages: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) listener: Option<OwnedFd>,
    pub(crate) client: Option<OwnedFd>,
    pub(crate) continue_at_once: bool,
    pub(crate) ready: Option<&'a Ready>,
    /// The processors for QEMU's virtual ones, where they have some to themselves.
    pub(crate) cpus: &'a [u32],
    pub(crate) isolation: Option<&'a Isolation>,
}

/// A command whose reply is waited for. The others are answered as soon as they are sent: a QEMU that stands still must
/// not keep a client from asking for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Capabilities,
    Threads,
    Continue(Option<ClientId>),
    Status,
}

struct Supervisor {
    link: OwnedFd,
    qmp: Option<Qmp>,
    console: Option<OwnedFd>,
    messages: Option<OwnedFd>,
    stdout: Stream,
    stderr: Stream,
    control: Control,
    /// The connection whose loss before the guest runs means that nobody wants this VM.
    starter: Option<ClientId>,
    continue_at_once: bool,
    pending: Vec<(CommandId, Pending)>,
    cpus: Vec<u32>,
    /// Threads that are not pinned yet, the last first.
    unpinned: Vec<i32>,
    qemu_pid: i32,
    state: State,
    reason: Reason,
    asked: Asked,
    started: bool,
    /// What the console must show, until it has.
    watch: Option<Watch>,
    /// When the guest reset itself, within the last [`RESET_LOOP_PERIOD`].
    resets: VecDeque<Instant>,
    /// Whether the driver was gone before the guest was started.
    interrupted: bool,
    /// Whether QEMU has written an error since the guest was started.
    complained: bool,
    answer_deadline: Option<Instant>,
    exit: Option<ExitRecord>,
    hold_deadline: Option<Instant>,
}

/// The supervisor's whole life. Ends the process.
pub(crate) fn main(inherited: Inherited<'_>) -> ! {
    let owner_uid = rustix::process::geteuid().as_raw();
    if let Err(error) = launch::become_unprivileged(inherited.uid, inherited.monitor) {
        crate::complain(&error);
        crate::end(1);
    }
    if let Err(error) = confine::supervisor(inherited.isolation) {
        crate::complain(&error);
        crate::end(1);
    }
    let mut supervisor = Supervisor::new(inherited, owner_uid);
    while !supervisor.is_done() {
        supervisor.turn();
    }
    crate::end(0);
}

/// What can be read or written in one turn.
#[derive(Default)]
struct Turn {
    link: bool,
    qmp_in: bool,
    qmp_out: bool,
    console: bool,
    messages: bool,
    stdout: bool,
    stderr: bool,
    listener: bool,
    clients_in: Vec<ClientId>,
    clients_out: Vec<ClientId>,
}

impl Supervisor {
    fn new(inherited: Inherited<'_>, owner_uid: u32) -> Self {
        let mut control = Control::new(inherited.listener, owner_uid);
        let starter = inherited.client.map(|client| control.add(client));
        Self {
            link: inherited.link,
            qmp: Some(Qmp::new(inherited.qmp)),
            console: Some(inherited.console),
            messages: Some(inherited.messages),
            stdout: Stream::new(inherited.stdout),
            stderr: Stream::new(inherited.stderr),
            control,
            starter,
            continue_at_once: inherited.continue_at_once,
            pending: Vec::new(),
            cpus: inherited.cpus.to_vec(),
            unpinned: Vec::new(),
            qemu_pid: 0,
            state: State::Starting,
            reason: Reason::None,
            asked: Asked::Nothing,
            started: false,
            watch: inherited.ready.map(Watch::new),
            resets: VecDeque::new(),
            interrupted: false,
            complained: false,
            answer_deadline: None,
            exit: None,
            hold_deadline: None,
        }
    }

    fn is_done(&self) -> bool {
        let Some(deadline) = self.hold_deadline else {
            return false;
        };
        let read_out = !self.interrupted && self.stdout.is_read_out() && self.stderr.is_read_out();
        read_out || Instant::now() >= deadline
    }

    /// One round: wait, then handle what is ready. QEMU's side comes before the clients', so that an answer never
    /// overtakes the event that caused it.
    fn turn(&mut self) {
        let ready = self.wait();
        if ready.link {
            self.on_link();
        }
        if ready.qmp_in {
            self.on_qmp();
        }
        if ready.qmp_out
            && let Some(qmp) = &mut self.qmp
        {
            qmp.flush();
        }
        if ready.messages {
            self.on_messages();
        }
        if ready.console {
            std::thread::sleep(CONSOLE_PAUSE);
            self.on_console();
        }
        // Only where poll said so: by hand the log may be a terminal or pipe that blocks.
        if ready.stdout {
            self.stdout.flush();
        }
        if ready.stderr {
            self.stderr.flush();
        }
        if ready.listener {
            self.control.accept();
        }
        for client in ready.clients_out {
            self.control.flush(client);
        }
        for client in ready.clients_in {
            for asking in self.control.read(client, &self.state) {
                self.on_request(asking);
            }
        }
        self.look_at_the_clock_and_the_starter();
    }

    fn wait(&self) -> Turn {
        #[derive(Clone, Copy)]
        enum What {
            Link,
            Qmp,
            Console,
            Messages,
            Stdout,
            Stderr,
            Listener,
            Client(ClientId),
        }
        let writable = |wanted: bool| {
            if wanted {
                PollFlags::IN | PollFlags::OUT
            } else {
                PollFlags::IN
            }
        };
        let mut watched: Vec<(What, BorrowedFd<'_>, PollFlags)> = Vec::with_capacity(8);
        watched.push((What::Link, self.link.as_fd(), PollFlags::IN));
        // Not before it is known who speaks there: the monitor may be slower than QEMU.
        if let Some(qmp) = &self.qmp
            && self.qemu_pid != 0
        {
            watched.push((What::Qmp, qmp.socket(), writable(qmp.is_waiting())));
        }
        if let Some(console) = &self.console {
            watched.push((What::Console, console.as_fd(), PollFlags::IN));
        }
        if let Some(messages) = &self.messages {
            watched.push((What::Messages, messages.as_fd(), PollFlags::IN));
        }
        if self.stdout.is_waiting() {
            watched.push((What::Stdout, self.stdout.sink(), PollFlags::OUT));
        }
        if self.stderr.is_waiting() {
            watched.push((What::Stderr, self.stderr.sink(), PollFlags::OUT));
        }
        if let Some(listener) = self.control.listener() {
            watched.push((What::Listener, listener, PollFlags::IN));
        }
        for (id, socket, waiting) in self.control.sockets() {
            watched.push((What::Client(id), socket, writable(waiting)));
        }
        let mut polled: Vec<PollFd<'_>> = watched
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        let timeout = self
            .next_deadline()
            .map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let mut ready = Turn::default();
        if rustix::event::poll(&mut polled, timeout.as_ref()).is_err() {
            return ready;
        }
        for ((what, ..), fd) in watched.iter().zip(&polled) {
            let input = fd
                .revents()
                .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
            let output = fd.revents().intersects(PollFlags::OUT);
            match *what {
                What::Link => ready.link = input,
                What::Qmp => (ready.qmp_in, ready.qmp_out) = (input, output),
                What::Console => ready.console = input,
                What::Messages => ready.messages = input,
                What::Stdout => ready.stdout = output,
                What::Stderr => ready.stderr = output,
                What::Listener => ready.listener = input,
                What::Client(id) => {
                    if input {
                        ready.clients_in.push(id);
                    }
                    if output {
                        ready.clients_out.push(id);
                    }
                }
            }
        }
        ready
    }

    fn next_deadline(&self) -> Option<Instant> {
        let hold = self
            .hold_deadline
            .map(|deadline| deadline.min(Instant::now() + LOG_HOLD_INTERVAL));
        let ready = self.watch.as_ref().and_then(Watch::deadline);
        [self.answer_deadline, hold, ready].into_iter().flatten().min()
    }

    fn on_link(&mut self) {
        match link::receive_fact(&self.link) {
            Ok(Some(Fact::Executed { pid })) => {
                self.qemu_pid = pid;
                self.answer_deadline = Some(Instant::now() + ANSWER_TIMEOUT);
            }
            Ok(Some(Fact::Ended {
                status,
                at_unix_ns,
                oom,
            })) => {
                self.drain();
                let seen = Seen {
                    started: self.started,
                    reason: self.reason,
                    complained: self.complained,
                    asked: self.asked,
                    console: self.stdout.tail(),
                    stderr: self.stderr.tail(),
                };
                self.exit = Some(seen.record(status, oom, at_unix_ns));
                let _ = link::send_wish(&self.link, &Wish::Seen(seen));
            }
            Ok(Some(Fact::Recorded)) => {
                if let Some(exit) = self.exit.take() {
                    let stderr = String::from_utf8_lossy(&self.stderr.tail()).into_owned();
                    self.enter(State::Exited { exit, stderr });
                }
                let hold = if self.interrupted {
                    LOG_HOLD_INTERRUPTED_TIMEOUT
                } else {
                    LOG_HOLD_TIMEOUT
                };
                self.hold_deadline = Some(Instant::now() + hold);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(Some(Fact::Pinned { errno })) => self.on_pinned(errno),
            // The monitor is gone, and the kernel is about to end this process too.
            Ok(None) | Err(_) => crate::end(1),
        }
    }

    /// QEMU is dead: what it said is in the sockets' buffers, and no more will come.
    fn drain(&mut self) {
        self.answer_deadline = None;
        self.watch = None;
        while self.qmp.is_some() && self.qmp_has_more() {
            self.on_qmp();
        }
        self.qmp = None;
        for _ in 0..DRAIN_ROUNDS_MAX {
            if self.console.is_none() && self.messages.is_none() {
                break;
            }
            let before = (self.console.is_some(), self.messages.is_some());
            let moved = self.on_console() + self.on_messages();
            self.stdout.flush();
            self.stderr.flush();
            if moved == 0 && before == (self.console.is_some(), self.messages.is_some()) {
                break;
            }
        }
        self.console = None;
        self.messages = None;
    }

    /// The guest's console.
    fn on_console(&mut self) -> usize {
        let (watch, mut found) = (&mut self.watch, false);
        let moved = pump(&mut self.console, &mut self.stdout, |bytes| {
            found = watch.as_mut().is_some_and(|watch| watch.feed(bytes));
        });
        if found {
            self.watch = None;
            if self.started {
                self.enter_running();
            }
        }
        moved
    }

    fn enter_running(&mut self) {
        self.enter(State::Running {
            qemu_pid: self.qemu_pid,
            ready: self.watch.is_none(),
        });
    }

    /// QEMU's stderr. After the guest was started, only a warning there is no sign of trouble: a guest can't write to it.
    fn on_messages(&mut self) -> usize {
        let (started, complained) = (self.started, &mut self.complained);
        pump(&mut self.messages, &mut self.stderr, |bytes| {
            *complained |= started && String::from_utf8_lossy(bytes).lines().any(is_complaint);
        })
    }

    fn qmp_has_more(&self) -> bool {
        let Some(qmp) = &self.qmp else { return false };
        let mut polled = [PollFd::from_borrowed_fd(qmp.socket(), PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&timespec(Duration::ZERO))).is_ok_and(|ready| ready > 0)
    }

    fn on_qmp(&mut self) {
        let Some(mut qmp) = self.qmp.take() else { return };
        let open = qmp.fill();
        loop {
            match qmp.take() {
                Ok(Some(Incoming::Greeting)) => {
                    if let Ok(id) = qmp.send(&qmp_capabilities { enable: None }) {
                        self.pending.push((id, Pending::Capabilities));
                    }
                }
                Ok(Some(Incoming::Reply { id, result })) => self.on_reply(&mut qmp, id, result),
                Ok(Some(Incoming::Event { name, data })) => self.on_event(&mut qmp, &name, &data),
                Ok(None) => break,
                Err(error) => {
                    // A QEMU that breaks its own protocol can't be controlled: it is ended, not trusted.
                    self.condemn(Reason::Broken, &error.to_string());
                    return;
                }
            }
        }
        if open {
            self.qmp = Some(qmp);
        }
    }

    fn on_reply(&mut self, qmp: &mut Qmp, id: CommandId, result: Result<Value, String>) {
        let Some(position) = self.pending.iter().position(|(pending, _)| *pending == id) else {
            return;
        };
        let (_, pending) = self.pending.swap_remove(position);
        let message = match &result {
            Ok(_) => Message::Done,
            Err(reason) => Message::Refused {
                reason: format!("QEMU refused: {reason}"),
            },
        };
        match (pending, result) {
            // QEMU's first answer: only now is it known to have opened all its files.
            (Pending::Capabilities, _) if self.cpus.is_empty() => self.on_prepared(qmp),
            (Pending::Capabilities, _) => {
                if let Ok(id) = qmp.send(&query_cpus_fast {}) {
                    self.pending.push((id, Pending::Threads));
                }
            }
            (Pending::Threads, result) => self.on_threads(&result.unwrap_or_default()),
            (Pending::Continue(client), Ok(_)) => self.on_started(client),
            (Pending::Continue(client), Err(_)) => {
                if let Some(client) = client {
                    self.control.answer(client, &message);
                }
            }
            (Pending::Status, result) => self.on_status(&result.unwrap_or_default()),
        }
    }

    /// The machine stands before its first instruction.
    fn on_prepared(&mut self, qmp: &mut Qmp) {
        self.answer_deadline = None;
        self.enter(State::Prepared {
            qemu_pid: self.qemu_pid,
        });
        if self.continue_at_once
            && let Ok(id) = qmp.send(&cont {})
        {
            self.pending.push((id, Pending::Continue(None)));
        }
    }

    /// QEMU has said which threads its virtual processors are: the monitor is asked to pin each.
    fn on_threads(&mut self, answer: &Value) {
        let threads = vcpu_threads(answer).unwrap_or_default();
        if threads.len() != self.cpus.len() {
            self.give_up("QEMU does not say which threads its virtual processors are");
            return;
        }
        self.unpinned = threads.into_iter().rev().collect();
        self.pin_next();
    }

    /// Asks for one thread at a time: the socket has no room for all of a large machine's.
    fn pin_next(&mut self) {
        let Some(thread) = self.unpinned.last() else {
            return;
        };
        let index = self.cpus.len() - self.unpinned.len();
        let wish = Wish::Pin {
            thread: *thread,
            index: u16::try_from(index).unwrap_or(u16::MAX),
        };
        let _ = link::send_wish(&self.link, &wish);
    }

    fn on_pinned(&mut self, errno: i32) {
        if errno != 0 {
            let error = std::io::Error::from_raw_os_error(errno);
            let cpus = &self.cpus;
            self.give_up(&format!(
                "virtual processors can't be pinned to {cpus:?}: {error}"
            ));
            return;
        }
        let _pinned = self.unpinned.pop();
        if !self.unpinned.is_empty() {
            self.pin_next();
        } else if let Some(mut qmp) = self.qmp.take() {
            self.on_prepared(&mut qmp);
            self.qmp = Some(qmp);
        }
    }

    /// Ends a start that can't go on.
    fn give_up(&mut self, reason: &str) {
        self.answer_deadline = None;
        self.reason = Reason::Broken;
        self.enter(State::Failed {
            reason: reason.to_owned(),
            retryable: true,
        });
        self.kill();
    }

    /// The guest runs, as this client asked.
    fn on_started(&mut self, client: Option<ClientId>) {
        self.started = true;
        if let Some(watch) = &mut self.watch {
            watch.start();
        }
        self.enter_running();
        if let Some(client) = client {
            self.control.answer(client, &Message::Done);
        }
    }

    /// The machine was stopped, and not by us: the guest can't go on.
    fn on_status(&mut self, status: &Value) {
        if status.get("status").and_then(Value::as_str) == Some("internal-error") {
            self.condemn(Reason::InternalError, "QEMU met an internal error");
        }
    }

    fn on_event(&mut self, qmp: &mut Qmp, name: &str, data: &Value) {
        match name {
            _ if self.reason.is_verdict() => {}
            "GUEST_PANICKED" => {
                self.reason = Reason::GuestPanic;
                self.watch = None;
            }
            // A panic is followed by a shutdown for that panic; the first word is the more exact one.
            "SHUTDOWN" if self.reason != Reason::GuestPanic => {
                let reason = data.get("reason").and_then(Value::as_str).unwrap_or_default();
                self.reason = Reason::from_qmp(reason);
                // It ends already, whatever the deadline finds.
                self.watch = None;
            }
            "RESET" if data.get("guest") == Some(&Value::Bool(true)) => self.on_reset(),
            // As good as the reply to `cont`, before which it comes: a guest that ends at once, through isa-debug-exit, ends
            // QEMU without that reply (3 of 150 times).
            "RESUME" => {
                let continues = |(_, pending): &(CommandId, Pending)| matches!(pending, Pending::Continue(_));
                if let Some(position) = self.pending.iter().position(continues)
                    && let (_, Pending::Continue(client)) = self.pending.swap_remove(position)
                {
                    self.on_started(client);
                }
            }
            // We never stop a machine.
            "STOP"
                if !self
                    .pending
                    .iter()
                    .any(|(_, pending)| *pending == Pending::Status) =>
            {
                if let Ok(id) = qmp.send(&query_status {}) {
                    self.pending.push((id, Pending::Status));
                }
            }
            _ => {}
        }
    }

    fn on_reset(&mut self) {
        let now = Instant::now();
        self.resets.push_back(now);
        self.resets
            .retain(|at| now.duration_since(*at) < RESET_LOOP_PERIOD);
        if self.watch.is_some() {
            self.condemn(Reason::ResetLoop, "the guest reset itself before it was ready");
        } else if self.resets.len() >= RESET_LOOP_COUNT {
            let text = format!(
                "the guest reset itself {RESET_LOOP_COUNT} times within {} s",
                RESET_LOOP_PERIOD.as_secs()
            );
            self.condemn(Reason::ResetLoop, &text);
        }
    }

    /// Ends a machine that is of no more use, for a reason that QMP has no word for.
    fn condemn(&mut self, reason: Reason, text: &str) {
        if !self.reason.is_verdict() {
            self.reason = reason;
            self.note(&format!("{text}, QEMU is killed"));
            self.kill();
        }
    }

    fn on_request(&mut self, Asking { client, request }: Asking) {
        let prepared = matches!(self.state, State::Prepared { .. });
        let running = matches!(self.state, State::Running { .. });
        let refused = |reason: &str| Err(reason.to_owned());
        let sent = match request {
            Request::Continue if prepared => self
                .command(&cont {})
                .map(|id| self.pending.push((id, Pending::Continue(Some(client))))),
            Request::Continue => refused("the machine is not waiting to be continued"),
            Request::PowerButton if running => {
                self.asked = self.asked.max(Asked::PowerButton);
                self.command(&system_powerdown {})
                    .map(|_| self.control.answer(client, &Message::Done))
            }
            Request::Reset if running => self
                .command(&system_reset {})
                .map(|_| self.control.answer(client, &Message::Done)),
            Request::Quit if running || prepared => {
                self.asked = self.asked.max(Asked::Quit);
                self.command(&quit {})
                    .map(|_| self.control.answer(client, &Message::Done))
            }
            Request::PowerButton | Request::Reset | Request::Quit => refused("the machine is not running"),
            Request::Kill => {
                self.asked = Asked::Kill;
                self.kill();
                self.control.answer(client, &Message::Done);
                return;
            }
            Request::Hello { .. } => refused("hello was said before"),
        };
        if let Err(reason) = sent {
            self.control.answer(client, &Message::Refused { reason });
        }
    }

    fn command<C: qapi_spec::Command>(&mut self, command: &C) -> Result<CommandId, String> {
        let qmp = self
            .qmp
            .as_mut()
            .ok_or_else(|| "QEMU has closed its QMP connection".to_owned())?;
        qmp.send(command).map_err(|error| error.to_string())
    }

    fn look_at_the_clock_and_the_starter(&mut self) {
        if self
            .answer_deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            let seconds = ANSWER_TIMEOUT.as_secs();
            self.give_up(&format!("QEMU did not answer over QMP within {seconds} s"));
        }
        let late = |watch: &Watch| watch.deadline().is_some_and(|at| Instant::now() >= at);
        if let Some(watch) = self.watch.take_if(|watch| late(watch)) {
            let text = format!("the guest was not ready within {} s", watch.timeout().as_secs());
            self.condemn(Reason::BootDeadline, &text);
        }
        let lost = self.starter.is_some_and(|starter| !self.control.has(starter));
        if lost {
            self.starter = None;
            if !self.started {
                self.note("the driver is gone before the guest was started, QEMU is killed");
                self.interrupted = true;
                self.asked = Asked::Kill;
                self.kill();
            }
        }
    }

    /// Asks the monitor, who alone has the power, to end QEMU.
    fn kill(&self) {
        let _ = link::send_wish(&self.link, &Wish::Kill);
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.control.announce(&self.state);
    }

    /// A message of our own beside QEMU's.
    fn note(&mut self, text: &str) {
        self.stderr.push(format!("microvm-shim: {text}\n").as_bytes());
    }
}

/// QEMU begins its error messages with its own name, and its warnings with `warning:` after that.
fn is_complaint(line: &str) -> bool {
    line.split_once(": ").is_some_and(|(program, text)| {
        program.contains("qemu") && !text.contains("warning:") && !text.contains("info:")
    })
}

/// Most rounds of emptying buffers at the end; each moves up to 64 KiB, and a socket holds a few hundred.
const DRAIN_ROUNDS_MAX: usize = 1000;

/// Moves what is there from a source into a stream, past somebody who looks at it; the source is closed at its end.
/// Returns the number of bytes.
fn pump(source: &mut Option<OwnedFd>, stream: &mut Stream, look: impl FnOnce(&[u8])) -> usize {
    let Some(fd) = source else { return 0 };
    let mut buffer = [0; TAIL_BYTES * 4];
    match rustix::io::read(&*fd, &mut buffer) {
        Ok(0) => {
            *source = None;
            0
        }
        Ok(n) => {
            let bytes = buffer.get(..n).unwrap_or_default();
            stream.push(bytes);
            look(bytes);
            n
        }
        Err(Errno::AGAIN | Errno::INTR) => 0,
        Err(_) => {
            *source = None;
            0
        }
    }
}
