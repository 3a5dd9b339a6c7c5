//! How did a VM end, and what does that mean to Nomad?
//!
//! The monitor writes down what it knows for certain (the wait status) and what the supervisor saw in QMP. Both are
//! facts; [`ExitRecord::cause`] draws the conclusion, so that a better conclusion needs no new format.

use serde::{Deserialize, Serialize};

/// Version written into new exit records. Version 2 added [`ExitRecord::oom`] and the reasons from
/// [`Reason::HostReset`] on.
pub const EXIT_VERSION: u32 = 2;

/// Oldest version that is read.
pub const EXIT_VERSION_MIN: u32 = 1;

/// What is durably written when a VM ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// [`EXIT_VERSION`].
    pub version: u32,
    /// How the hypervisor process ended.
    pub status: WaitStatus,
    /// Whether the guest had been started (the machine was told to continue).
    pub started: bool,
    /// The last reason that QMP gave.
    pub reason: Reason,
    /// Whether QEMU wrote an error message after the guest was started: its own status 1 is then no word of the guest's.
    pub complained: bool,
    /// The strongest stop that the driver had asked for by then.
    pub asked: Asked,
    /// Whether the kernel killed something in QEMU's control group for want of memory.
    #[serde(default)]
    pub oom: Oom,
    /// When it ended, in nanoseconds since 1970 (UTC).
    pub ended_at_unix_ns: u64,
}

/// Whose want of memory made the kernel kill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Oom {
    /// Nobody's: it did not kill.
    #[default]
    None,
    /// The VM's own control group had reached its limit.
    Limit,
    /// The host's, or a group's above the VM's.
    Host,
}

impl Oom {
    /// One byte for the frame between monitor and supervisor.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Limit => 1,
            Self::Host => 2,
        }
    }

    /// The reverse of [`Oom::to_byte`]; an unknown byte is [`Oom::None`].
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Limit,
            2 => Self::Host,
            _ => Self::None,
        }
    }
}

/// How a process ended (wait(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitStatus {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// It could not be waited for.
    Unknown,
}

/// The reason in QMP's last `SHUTDOWN` event, or the panic before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No `SHUTDOWN` event was seen.
    #[default]
    None,
    /// `guest-shutdown`.
    GuestShutdown,
    /// `guest-reset` where resets end the machine.
    GuestReset,
    /// `GUEST_PANICKED`, or `guest-panic`.
    GuestPanic,
    /// `host-signal`: a signal that QEMU handles.
    HostSignal,
    /// `host-qmp-quit`.
    HostQuit,
    /// A reason that this release doesn't know.
    Other,
    /// QEMU broke the protocol or fell silent, and the supervisor had it killed.
    Broken,
    /// `host-qmp-system-reset` where resets end the machine.
    HostReset,
    /// `host-error`, or QEMU stopped the machine in its state `internal-error`, and the supervisor had it killed.
    InternalError,
    /// The guest reset itself over and over, and the supervisor had it killed.
    ResetLoop,
    /// The guest was not ready in time, and the supervisor had it killed.
    BootDeadline,
}

/// Reasons by their byte in the frame between supervisor and monitor.
const REASONS: [Reason; 12] = [
    Reason::None,
    Reason::GuestShutdown,
    Reason::GuestReset,
    Reason::GuestPanic,
    Reason::HostSignal,
    Reason::HostQuit,
    Reason::Other,
    Reason::Broken,
    Reason::HostReset,
    Reason::InternalError,
    Reason::ResetLoop,
    Reason::BootDeadline,
];

impl Reason {
    /// Reads the `reason` member of QMP's `SHUTDOWN` event (`ShutdownCause` in QEMU's run-state schema).
    #[must_use]
    pub fn from_qmp(reason: &str) -> Self {
        match reason {
            "guest-shutdown" => Self::GuestShutdown,
            "guest-reset" | "subsystem-reset" => Self::GuestReset,
            "guest-panic" => Self::GuestPanic,
            "host-signal" => Self::HostSignal,
            "host-qmp-quit" => Self::HostQuit,
            "host-qmp-system-reset" => Self::HostReset,
            "host-error" => Self::InternalError,
            _ => Self::Other,
        }
    }

    /// One byte for the frame between supervisor and monitor.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        let byte = REASONS.iter().position(|reason| *reason == self);
        byte.and_then(|byte| u8::try_from(byte).ok()).unwrap_or(u8::MAX)
    }

    /// The reverse of [`Reason::to_byte`]; an unknown byte is [`Reason::Other`].
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        REASONS.get(usize::from(byte)).copied().unwrap_or(Self::Other)
    }

    /// Whether the supervisor itself came to it and had QEMU killed for it: QMP has no later word on that.
    #[must_use]
    pub fn is_verdict(self) -> bool {
        matches!(
            self,
            Self::Broken | Self::InternalError | Self::ResetLoop | Self::BootDeadline
        )
    }
}

/// How far the driver had gone in stopping the VM. Later ones are stronger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// Nothing was asked.
    #[default]
    Nothing,
    /// The power button was pressed.
    PowerButton,
    /// QEMU was told to quit.
    Quit,
    /// QEMU was killed.
    Kill,
}

impl Asked {
    /// One byte for the frame between supervisor and monitor.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::PowerButton => 1,
            Self::Quit => 2,
            Self::Kill => 3,
        }
    }

    /// The reverse of [`Asked::to_byte`]; an unknown byte is the strongest.
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Nothing,
            1 => Self::PowerButton,
            2 => Self::Quit,
            _ => Self::Kill,
        }
    }
}

/// First line of the file that a shim leaves in its task's directory, `exit.json`. What the console showed last follows as
/// it was, and then what QEMU wrote to stderr last: bytes that nobody with privilege looks into. Version 1 has neither.
#[derive(Serialize, Deserialize)]
struct FirstLine {
    #[serde(flatten)]
    record: ExitRecord,
    /// How many of the bytes after this line are the console's.
    #[serde(default)]
    console_bytes: usize,
}

/// The bytes of `exit.json`.
#[must_use]
pub fn file(record: ExitRecord, console: &[u8], stderr: &[u8]) -> Vec<u8> {
    let first = FirstLine {
        record,
        console_bytes: console.len(),
    };
    let mut bytes = crate::record::line(&first).into_bytes();
    bytes.extend_from_slice(console);
    bytes.extend_from_slice(stderr);
    bytes
}

/// The record in `exit.json`, and the last bytes of console and stderr. `None` if it isn't one, or of a version that this
/// release doesn't read.
#[must_use]
pub fn parse_file(bytes: &[u8]) -> Option<(ExitRecord, &[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, tails) = bytes.split_at_checked(end + 1)?;
    let first: FirstLine = serde_json::from_slice(line).ok()?;
    let known = (EXIT_VERSION_MIN..=EXIT_VERSION).contains(&first.record.version);
    let (console, stderr) = tails.split_at_checked(first.console_bytes)?;
    known.then_some((first.record, console, stderr))
}

/// Why a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The guest powered itself off, by its own wish or after the power button.
    GuestPoweroff,
    /// The guest's program ended with this code, through QEMU's `isa-debug-exit` device.
    GuestExit(u8),
    /// The guest reset itself where a reset ends the machine.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest reset itself over and over.
    ResetLoop,
    /// The guest was not ready in time.
    BootDeadline,
    /// The reset button was pressed where a reset ends the machine.
    HostReset,
    /// The driver told QEMU to quit, because the guest ignored the power button or a hard stop was asked for.
    Quit,
    /// The driver killed QEMU, which no longer answered.
    Killed,
    /// Something outside Steppe ended QEMU by this signal (0: by one that QEMU turned into an orderly end).
    Signal(i32),
    /// The kernel killed QEMU because its control group's memory limit was reached.
    OutOfMemory,
    /// The kernel killed QEMU because the host's memory, or that of a group above the VM's, was used up.
    HostOutOfMemory,
    /// QEMU met an error in executing the guest and stopped it for good.
    InternalError,
    /// QEMU crashed by this signal.
    Crashed(i32),
    /// QEMU gave up by itself with this status.
    Failed(i32),
    /// QEMU broke its own protocol or fell silent, and was killed.
    Broken,
    /// QEMU ended before the guest was started.
    NotStarted(WaitStatus),
    /// The shim is gone and left no record: QEMU is dead with it, how is not known.
    ShimLost,
}

/// What Nomad is told about the end of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The cause's word, see [`Cause::name`].
    pub name: &'static str,
    /// Exit code of the task.
    pub exit_code: i32,
    /// Signal that ended it, 0 if none.
    pub signal: i32,
    /// Whether the kernel ended it for want of memory, the VM's own or the host's.
    pub oom_killed: bool,
    /// One sentence for the task's events.
    pub sentence: String,
}

/// SIGKILL's number on every Linux.
const SIGKILL: i32 = 9;

/// Signals by which a program ends itself: SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS.
const CRASH_SIGNALS: [i32; 7] = [4, 5, 6, 7, 8, 11, 31];

/// Largest code a guest can return: isa-debug-exit turns v into the process status 2v+1, of which 8 bits remain.
pub const GUEST_EXIT_MAX: i32 = 127;

impl ExitRecord {
    /// Draws the conclusion from what was recorded.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match (self.status, self.reason) {
            (WaitStatus::Unknown, _) => Cause::ShimLost,
            (_, Reason::Broken) => Cause::Broken,
            // The kernel's kill leaves no event. The driver's own kill may come on top of it, and so may the supervisor's.
            (WaitStatus::Signaled(SIGKILL), reason)
                if self.oom != Oom::None && self.asked != Asked::Kill && !reason.is_verdict() =>
            {
                match self.oom {
                    Oom::Limit => Cause::OutOfMemory,
                    Oom::None | Oom::Host => Cause::HostOutOfMemory,
                }
            }
            (status, _) if !self.started => Cause::NotStarted(status),
            (_, Reason::ResetLoop) => Cause::ResetLoop,
            (_, Reason::BootDeadline) => Cause::BootDeadline,
            (_, Reason::InternalError) => Cause::InternalError,
            (_, Reason::GuestPanic) => Cause::GuestPanic,
            // isa-debug-exit leaves an odd status. QEMU 7.2 ends without a SHUTDOWN event, later ones say guest-shutdown.
            (WaitStatus::Exited(1), Reason::None) if self.complained => Cause::Failed(1),
            (WaitStatus::Exited(status), Reason::None | Reason::GuestShutdown) if status & 1 == 1 => {
                u8::try_from(status >> 1).map_or(Cause::Failed(status), Cause::GuestExit)
            }
            (WaitStatus::Exited(_), Reason::GuestShutdown) => Cause::GuestPoweroff,
            (WaitStatus::Exited(_), Reason::GuestReset) => Cause::GuestReset,
            (WaitStatus::Exited(_), Reason::HostReset) => Cause::HostReset,
            (WaitStatus::Exited(_), Reason::HostQuit) => Cause::Quit,
            (WaitStatus::Exited(_), Reason::HostSignal) => Cause::Signal(0),
            (WaitStatus::Signaled(SIGKILL), _) if self.asked == Asked::Kill => Cause::Killed,
            (WaitStatus::Signaled(signal), _) if CRASH_SIGNALS.contains(&signal) => Cause::Crashed(signal),
            (WaitStatus::Signaled(signal), _) => Cause::Signal(signal),
            (WaitStatus::Exited(status), Reason::None | Reason::Other) => Cause::Failed(status),
        }
    }

    /// What Nomad is told.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.cause().outcome(self.asked)
    }

    /// The record in the words of a version, for a plugin of that time: version 1 has fewer reasons.
    #[must_use]
    pub fn in_version(self, version: u32) -> Self {
        if version >= 2 {
            return self;
        }
        let reason = match self.reason {
            Reason::HostReset => Reason::Other,
            verdict if verdict.is_verdict() => Reason::Broken,
            known => known,
        };
        Self {
            version: 1,
            reason,
            ..self
        }
    }
}

impl Cause {
    /// One of each, for the table that people read.
    pub const EXAMPLES: [Self; 19] = [
        Self::GuestPoweroff,
        Self::GuestExit(3),
        Self::GuestReset,
        Self::GuestPanic,
        Self::ResetLoop,
        Self::BootDeadline,
        Self::HostReset,
        Self::Quit,
        Self::Killed,
        Self::Signal(0),
        Self::Signal(SIGKILL),
        Self::OutOfMemory,
        Self::HostOutOfMemory,
        Self::InternalError,
        Self::Crashed(11),
        Self::Failed(2),
        Self::Broken,
        Self::NotStarted(WaitStatus::Exited(1)),
        Self::ShimLost,
    ];

    /// The cause's word in events, logs and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GuestPoweroff => "guest-poweroff",
            Self::GuestExit(_) => "guest-exit",
            Self::GuestReset => "guest-reset",
            Self::GuestPanic => "guest-panic",
            Self::ResetLoop => "reset-loop",
            Self::BootDeadline => "boot-deadline",
            Self::HostReset => "host-reset",
            Self::Quit => "quit",
            Self::Killed => "killed",
            Self::Signal(_) => "signal",
            Self::OutOfMemory => "out-of-memory",
            Self::HostOutOfMemory => "host-out-of-memory",
            Self::InternalError => "internal-error",
            Self::Crashed(_) => "qemu-crash",
            Self::Failed(_) => "qemu-failed",
            Self::Broken => "qmp-broken",
            Self::NotStarted(_) => "not-started",
            Self::ShimLost => "shim-lost",
        }
    }

    /// What Nomad is told about this cause. A forced end is told apart from a clean one by 128 and the signal's number,
    /// the convention of shells and containers for a killed task.
    #[must_use]
    pub fn outcome(self, asked: Asked) -> Outcome {
        let (exit_code, signal) = match self {
            Self::GuestPoweroff => (0, 0),
            Self::GuestExit(code) => (i32::from(code), 0),
            Self::Quit | Self::Killed | Self::OutOfMemory | Self::HostOutOfMemory => (128 + SIGKILL, SIGKILL),
            // wait(2) has seven bits for it; a record that says more was written by nobody of ours.
            Self::Signal(signal @ 1..=127) | Self::Crashed(signal @ 1..=127) => (128 + signal, signal),
            _ => (1, 0),
        };
        Outcome {
            name: self.name(),
            exit_code,
            signal,
            oom_killed: matches!(self, Self::OutOfMemory | Self::HostOutOfMemory),
            sentence: self.sentence(asked),
        }
    }

    fn sentence(self, asked: Asked) -> String {
        let fixed = match self {
            Self::GuestPoweroff if asked == Asked::Nothing => "the guest powered itself off",
            Self::GuestPoweroff => "the guest powered off after the power button",
            Self::GuestReset => "the guest reset itself, and the job says reboot = \"shutdown\"",
            Self::GuestPanic => "the guest's kernel panicked",
            Self::ResetLoop => "the guest reset itself over and over and was killed",
            Self::BootDeadline => "the guest was not ready within ready_timeout and was killed",
            Self::HostReset => "the reset button was pressed, and the job says reboot = \"shutdown\"",
            Self::Quit => "the guest did not power off in time and was switched off",
            Self::Killed => "QEMU did not quit in time and was killed",
            Self::Signal(0) => "a signal from outside told QEMU to quit",
            Self::OutOfMemory => {
                "QEMU needed more than the VM's memory limit and was killed by the kernel; raise resources.memory"
            }
            Self::HostOutOfMemory => "the host ran out of memory, and its kernel killed QEMU",
            Self::InternalError => "QEMU could not go on executing the guest (internal error) and was killed",
            Self::Broken => "QEMU broke the QMP protocol or fell silent, and was killed",
            Self::NotStarted(WaitStatus::Unknown) => "QEMU ended before the guest was started",
            Self::ShimLost => "the VM's supervisor was lost, and the VM with it (shim-lost)",
            Self::GuestExit(code) => return format!("the guest's program ended with exit code {code}"),
            Self::Signal(signal) => return format!("QEMU was ended from outside by signal {signal}"),
            Self::NotStarted(WaitStatus::Signaled(signal)) => {
                return format!("QEMU was ended by signal {signal} before the guest was started");
            }
            Self::NotStarted(WaitStatus::Exited(status)) => {
                return format!("QEMU ended with status {status} before the guest was started");
            }
            Self::Crashed(signal) => return format!("QEMU crashed (signal {signal})"),
            Self::Failed(status) => {
                return format!("QEMU gave up with status {status}; its message is in the stderr log");
            }
        };
        fixed.to_owned()
    }
}

/// All causes as a Markdown table: what `nomad alloc status` shows for each.
#[must_use]
pub fn reference() -> String {
    let mut text =
        String::from("| cause | exit code | signal | OOM killed | event |\n|---|---|---|---|---|\n");
    for cause in Cause::EXAMPLES {
        let Outcome {
            name,
            exit_code,
            signal,
            oom_killed,
            sentence,
        } = cause.outcome(Asked::Nothing);
        let exit_code = match cause {
            Cause::GuestExit(_) => "the program's, 0 to 127".to_owned(),
            Cause::Signal(1..) | Cause::Crashed(_) => "128 + signal".to_owned(),
            _ => exit_code.to_string(),
        };
        let signal = match (cause, signal) {
            (Cause::Signal(1..) | Cause::Crashed(_), _) => "the signal".to_owned(),
            (_, 0) => String::new(),
            (_, signal) => signal.to_string(),
        };
        let oom = if oom_killed { "yes" } else { "" };
        text.push_str(&format!(
            "| `{name}` | {exit_code} | {signal} | {oom} | {sentence} |\n"
        ));
    }
    text
}

/// Most lines of a console that an event shows.
const LAST_LINES: usize = 3;

/// Most characters of a line that an event shows.
const LAST_LINE_CHARS: usize = 120;

/// What Linux says when it panics (`kernel/panic.c`); the reason follows on the same line.
const PANIC: &str = "Kernel panic - not syncing";

/// The last lines of a console or a message log, fit for one line of an event: the last few that aren't empty, joined by
/// " | ", without control characters. Empty where there are none. The bytes may be anything.
#[must_use]
pub fn last_lines(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    let clean = |line: &str| -> String {
        let mut kept: String = line
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(LAST_LINE_CHARS + 1)
            .collect();
        if kept.chars().count() > LAST_LINE_CHARS {
            kept.pop();
            kept.push('…');
        }
        kept.trim().to_owned()
    };
    let mut lines: Vec<String> = text.lines().map(clean).filter(|line| !line.is_empty()).collect();
    let mut last = lines.split_off(lines.len().saturating_sub(LAST_LINES));
    // What follows a panic's reason is registers.
    if let Some(reason) = lines.into_iter().rev().find(|line| line.contains(PANIC))
        && let Some(oldest) = last.first_mut()
    {
        *oldest = reason;
    }
    last.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(status: WaitStatus, reason: Reason, asked: Asked) -> ExitRecord {
        ExitRecord {
            version: EXIT_VERSION,
            status,
            started: true,
            reason,
            complained: false,
            asked,
            oom: Oom::None,
            ended_at_unix_ns: 1,
        }
    }

    #[test]
    fn every_pair_has_its_cause() {
        use Cause as C;
        use WaitStatus::{Exited, Signaled, Unknown};
        let table = [
            (
                Exited(0),
                Reason::GuestShutdown,
                Asked::Nothing,
                C::GuestPoweroff,
                0,
            ),
            (
                Exited(0),
                Reason::GuestShutdown,
                Asked::PowerButton,
                C::GuestPoweroff,
                0,
            ),
            (Exited(1), Reason::None, Asked::Nothing, C::GuestExit(0), 0),
            (Exited(43), Reason::None, Asked::Nothing, C::GuestExit(21), 21),
            (
                Exited(43),
                Reason::GuestShutdown,
                Asked::Nothing,
                C::GuestExit(21),
                21,
            ),
            (Exited(255), Reason::None, Asked::Nothing, C::GuestExit(127), 127),
            (Exited(1), Reason::GuestPanic, Asked::Nothing, C::GuestPanic, 1),
            (Exited(0), Reason::GuestReset, Asked::Nothing, C::GuestReset, 1),
            (Exited(0), Reason::HostQuit, Asked::Quit, C::Quit, 137),
            (Exited(0), Reason::HostSignal, Asked::Nothing, C::Signal(0), 1),
            (Signaled(9), Reason::None, Asked::Kill, C::Killed, 137),
            (Signaled(9), Reason::None, Asked::PowerButton, C::Signal(9), 137),
            (Signaled(11), Reason::None, Asked::Nothing, C::Crashed(11), 139),
            (Signaled(9), Reason::Broken, Asked::Nothing, C::Broken, 1),
            (Signaled(9), Reason::ResetLoop, Asked::Nothing, C::ResetLoop, 1),
            (
                Signaled(9),
                Reason::BootDeadline,
                Asked::Nothing,
                C::BootDeadline,
                1,
            ),
            (
                Signaled(9),
                Reason::InternalError,
                Asked::Nothing,
                C::InternalError,
                1,
            ),
            (Exited(0), Reason::HostReset, Asked::Nothing, C::HostReset, 1),
            (Signaled(15), Reason::None, Asked::Nothing, C::Signal(15), 143),
            (Exited(2), Reason::None, Asked::Nothing, C::Failed(2), 1),
            (Exited(0), Reason::Other, Asked::Nothing, C::Failed(0), 1),
            (Unknown, Reason::None, Asked::Nothing, C::ShimLost, 1),
        ];
        for (status, reason, asked, cause, code) in table {
            let record = record(status, reason, asked);
            assert_eq!(record.cause(), cause, "{record:?}");
            assert_eq!(record.outcome().exit_code, code, "{record:?}");
        }
        let early = ExitRecord {
            started: false,
            ..record(Exited(1), Reason::None, Asked::Nothing)
        };
        assert_eq!(early.cause(), C::NotStarted(Exited(1)));
        let fatal = ExitRecord {
            complained: true,
            ..record(Exited(1), Reason::None, Asked::Nothing)
        };
        assert_eq!(fatal.cause(), C::Failed(1));
        let oom = |asked| ExitRecord {
            oom: Oom::Limit,
            ..record(Signaled(9), Reason::None, asked)
        };
        assert_eq!(oom(Asked::PowerButton).cause(), C::OutOfMemory);
        assert!(oom(Asked::Nothing).outcome().oom_killed);
        assert_eq!(oom(Asked::Kill).cause(), C::Killed);
        let late = ExitRecord {
            reason: Reason::GuestShutdown,
            oom: Oom::Host,
            ..oom(Asked::Quit)
        };
        assert_eq!(late.cause(), C::HostOutOfMemory);
    }

    #[test]
    fn the_table_has_every_cause() {
        let table = reference();
        // A cause without a row would have to be added to the examples: one name per variant of the enum.
        let names: std::collections::BTreeSet<_> = Cause::EXAMPLES.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), 18);
        for name in names {
            assert!(table.contains(&format!("| `{name}` |")), "{table}");
        }
    }

    #[test]
    fn fixtures_of_each_version_are_read() {
        let (old, console, stderr) = parse_file(include_bytes!("fixtures/exit.v1.json")).unwrap();
        assert_eq!((old.version, old.cause()), (1, Cause::GuestPoweroff));
        assert_eq!((console, stderr), (&b""[..], &b""[..]));
        let (new, console, stderr) = parse_file(include_bytes!("fixtures/exit.v2.json")).unwrap();
        assert_eq!((new.version, new.cause()), (2, Cause::OutOfMemory));
        assert_eq!((console, stderr), (&b"login: \r\n"[..], &b"qemu: bye\n"[..]));
        assert_eq!(
            file(new, console, stderr),
            include_bytes!("fixtures/exit.v2.json")
        );
    }

    /// What this release writes for a plugin of the previous one, which knows fewer words, is read by that one.
    #[test]
    fn an_older_plugin_is_told_in_its_words() {
        const KNOWN: [&str; 8] = [
            "none",
            "guest-shutdown",
            "guest-reset",
            "guest-panic",
            "host-signal",
            "host-quit",
            "other",
            "broken",
        ];
        for reason in REASONS {
            let old = record(WaitStatus::Signaled(9), reason, Asked::Nothing).in_version(1);
            let word = serde_json::to_value(old.reason).unwrap();
            assert!(KNOWN.contains(&word.as_str().unwrap()), "{reason:?}");
            assert_eq!(old.version, 1);
        }
    }

    #[test]
    fn what_is_no_exit_file_is_none() {
        let whole = file(
            record(WaitStatus::Exited(0), Reason::None, Asked::Nothing),
            b"c\n\xff",
            b"s",
        );
        assert_eq!(parse_file(&whole).unwrap().1, b"c\n\xff");
        for cut in 0..whole.len() {
            // The last byte alone is stderr's, whose length nobody states.
            assert_eq!(
                parse_file(&whole[..cut]).is_some(),
                cut == whole.len() - 1,
                "{cut}"
            );
        }
        let newer = String::from_utf8_lossy(&whole).replacen("\"version\":2", "\"version\":3", 1);
        assert!(parse_file(newer.as_bytes()).is_none());
    }

    #[test]
    fn last_lines_fit_an_event() {
        assert_eq!(last_lines(b""), "");
        assert_eq!(last_lines(b"a\r\nb\r\n\r\nc\td\x1b[0m\r\ne"), "b | c d [0m | e");
        assert_eq!(
            last_lines(b"Kernel panic - not syncing: why\nRAX\nRBX\nRCX\nRDX\n"),
            "Kernel panic - not syncing: why | RCX | RDX"
        );
        assert_eq!(last_lines(b"\xff\xfe\x00\n"), "\u{fffd}\u{fffd}");
        assert_eq!(
            last_lines("é".repeat(500).as_bytes()).chars().count(),
            LAST_LINE_CHARS + 1
        );
    }

    #[test]
    fn bytes_go_there_and_back() {
        for byte in 0..=11 {
            assert_eq!(Reason::from_byte(byte).to_byte(), byte);
        }
        for byte in 0..=3 {
            assert_eq!(Asked::from_byte(byte).to_byte(), byte);
        }
        assert_eq!(Reason::from_qmp("host-qmp-quit"), Reason::HostQuit);
        assert_eq!(Reason::from_byte(12), Reason::Other);
        assert_eq!(Reason::from_qmp("invented-later"), Reason::Other);
    }
}
