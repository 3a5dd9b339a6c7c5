//! How did a VM end, and what does that mean to Nomad?
//!
//! The monitor writes down what it knows for certain (the wait status) and what the supervisor saw in QMP. Both are
//! facts; [`ExitRecord::cause`] draws the conclusion, so that a better conclusion needs no new format.

use serde::{Deserialize, Serialize};

/// Version written into new exit records.
pub const EXIT_VERSION: u32 = 1;

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
    /// When it ended, in nanoseconds since 1970 (UTC).
    pub ended_at_unix_ns: u64,
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
}

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
            _ => Self::Other,
        }
    }

    /// One byte for the frame between supervisor and monitor.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::None => 0,
            Self::GuestShutdown => 1,
            Self::GuestReset => 2,
            Self::GuestPanic => 3,
            Self::HostSignal => 4,
            Self::HostQuit => 5,
            Self::Other => 6,
            Self::Broken => 7,
        }
    }

    /// The reverse of [`Reason::to_byte`]; an unknown byte is [`Reason::Other`].
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::None,
            1 => Self::GuestShutdown,
            2 => Self::GuestReset,
            3 => Self::GuestPanic,
            4 => Self::HostSignal,
            5 => Self::HostQuit,
            7 => Self::Broken,
            _ => Self::Other,
        }
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
    /// The driver told QEMU to quit, because the guest ignored the power button or a hard stop was asked for.
    Quit,
    /// The driver killed QEMU, which no longer answered.
    Killed,
    /// Something outside Steppe ended QEMU by this signal (0: by one that QEMU turned into an orderly end).
    Signal(i32),
    /// QEMU ended before the guest was started.
    NotStarted(WaitStatus),
    /// QEMU broke its own protocol or fell silent, and was killed.
    Broken,
    /// QEMU crashed by this signal.
    Crashed(i32),
    /// QEMU gave up by itself with this status.
    Failed(i32),
    /// The shim is gone and left no record: QEMU is dead with it, how is not known.
    ShimLost,
}

/// What Nomad is told about the end of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code of the task.
    pub exit_code: i32,
    /// Signal that ended it, 0 if none.
    pub signal: i32,
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
            (status, _) if !self.started => Cause::NotStarted(status),
            (_, Reason::GuestPanic) => Cause::GuestPanic,
            // isa-debug-exit leaves an odd status. QEMU 7.2 ends without a SHUTDOWN event, later ones say guest-shutdown.
            (WaitStatus::Exited(1), Reason::None) if self.complained => Cause::Failed(1),
            (WaitStatus::Exited(status), Reason::None | Reason::GuestShutdown) if status & 1 == 1 => {
                u8::try_from(status >> 1).map_or(Cause::Failed(status), Cause::GuestExit)
            }
            (WaitStatus::Exited(_), Reason::GuestShutdown) => Cause::GuestPoweroff,
            (WaitStatus::Exited(_), Reason::GuestReset) => Cause::GuestReset,
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
}

impl Cause {
    /// What Nomad is told about this cause. A forced end is told apart from a clean one by code 137 and signal 9, the
    /// convention of shells and containers for a killed task.
    #[must_use]
    pub fn outcome(self, asked: Asked) -> Outcome {
        let (exit_code, signal, sentence) = match self {
            Self::GuestPoweroff if asked == Asked::Nothing => {
                (0, 0, "the guest powered itself off".to_owned())
            }
            Self::GuestPoweroff => (0, 0, "the guest powered off after the power button".to_owned()),
            Self::GuestExit(code) => (
                i32::from(code),
                0,
                format!("the guest's program ended with exit code {code}"),
            ),
            Self::GuestReset => (1, 0, "the guest reset itself".to_owned()),
            Self::GuestPanic => (1, 0, "the guest's kernel panicked".to_owned()),
            Self::Quit => (
                128 + SIGKILL,
                SIGKILL,
                "the guest did not power off in time and was switched off".to_owned(),
            ),
            Self::Killed => (
                128 + SIGKILL,
                SIGKILL,
                "QEMU did not quit in time and was killed".to_owned(),
            ),
            Self::Signal(0) => (1, 0, "a signal from outside told QEMU to quit".to_owned()),
            Self::Signal(signal) => (
                128 + signal,
                signal,
                format!("QEMU was ended from outside by signal {signal}"),
            ),
            Self::NotStarted(WaitStatus::Signaled(signal)) => (
                1,
                0,
                format!("QEMU was ended by signal {signal} before the guest was started"),
            ),
            Self::NotStarted(WaitStatus::Exited(status)) => (
                1,
                0,
                format!("QEMU ended with status {status} before the guest was started"),
            ),
            Self::NotStarted(WaitStatus::Unknown) => {
                (1, 0, "QEMU ended before the guest was started".to_owned())
            }
            Self::Broken => (
                1,
                0,
                "QEMU broke the QMP protocol or fell silent, and was killed".to_owned(),
            ),
            Self::Crashed(signal) => (128 + signal, signal, format!("QEMU crashed (signal {signal})")),
            Self::Failed(status) => (
                1,
                0,
                format!("QEMU gave up with status {status}; its message is in the stderr log"),
            ),
            Self::ShimLost => (
                1,
                0,
                "the VM's supervisor was lost, and the VM with it (shim-lost)".to_owned(),
            ),
        };
        Outcome {
            exit_code,
            signal,
            sentence,
        }
    }
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
    }

    #[test]
    fn bytes_go_there_and_back() {
        for byte in 0..=7 {
            assert_eq!(Reason::from_byte(byte).to_byte(), byte);
        }
        for byte in 0..=3 {
            assert_eq!(Asked::from_byte(byte).to_byte(), byte);
        }
        assert_eq!(Reason::from_qmp("host-qmp-quit"), Reason::HostQuit);
        assert_eq!(Reason::from_qmp("invented-later"), Reason::Other);
    }
}
