//! What can an operator see of a host's VMs, without the agent and without the plugin?
//!
//! `list`, `inspect` and `bundle` read a state directory and ask the shims that live; they lock nothing and change
//! nothing. [`ask`] is the question to a shim; [`seen`] what is known of a task; [`list`], [`inspect`] and [`bundle`] what
//! is made of it; [`leave_out`] keeps a job's secrets; [`text`] keeps others' words from the terminal; [`help`] is the
//! manual.
//!
//! # The JSON
//!
//! Version 1. Every member is always there; what is not known, or does not apply, is null. Times are RFC 3339 in UTC with
//! milliseconds. A later release may add members without a new version, and takes none away.
//!
//! `list --json` is `{ version, state_dir, tasks }`, and each of the tasks is
//!
//! | member | type | meaning |
//! |---|---|---|
//! | `key` | string | name of the task's directory: allocation id, a dot, eight digits of the task id's hash |
//! | `alloc_id`, `task`, `task_id`, `job`, `namespace` | string | whose it is |
//! | `state` | string | `starting`, `interrupted`, `running`, `running not ready`, `shim silent`, `ended`, `being taken back`, `other boot` or `unreadable` |
//! | `cause` | string | the end's word, as `--exit-causes` has them |
//! | `since` | time | when the state began |
//! | `uid` | number | QEMU's user id |
//! | `qemu_pid`, `shim_pid` | number | process ids, while they live |
//! | `interfaces` | list | what netd made for it: `{ network, kind, tap, queues, mac, ipv4, ipv4_gateway, ipv6, ipv6_gateway, dns, mtu, vlan, trunk }`; a text is empty, and `vlan` 0, where there is none |
//! | `directory` | string | the task's directory |
//! | `problem` | string | one sentence about what is not as it should be |
//!
//! `inspect --json` is one object with `version`, `state_dir`, all members of such a task, and
//!
//! | member | type | meaning |
//! |---|---|---|
//! | `record_version` | number | version of the record's format |
//! | `instance` | string | random id of the driver instance that wrote it |
//! | `boot_id`, `this_boot` | string, bool | the kernel's boot then, and whether it is today's |
//! | `created_at`, `started_at` | time | when the record was begun, and when the guest was told to run |
//! | `supervisor_uid` | number | user id of the shim's supervisor |
//! | `run_directory` | string | the directory of its sockets |
//! | `control_groups` | list of strings | leaves that were made for it |
//! | `memory_limit_bytes` | number | limit of QEMU's leaf |
//! | `steps` | list | `{ line, at, step, details }`: line of the record, time, word, and a text for people |
//! | `undo_failures` | list | `{ line, at, what, reason }` |
//! | `end` | object | `{ cause, sentence, exit_code, signal, oom_killed, at, qemu_status, qmp_reason, asked, guest_started }`; from `at` on null where the shim was lost |
//! | `console_tail`, `qemu_messages` | string | the last bytes of both, written down when the VM ends |
//! | `plan` | object | the launch plan as `plan.json` has it, with a version of its own |
//! | `plan_problem` | string | why it can't be shown |

mod help;

mod bundle;
mod inspect;
mod list;

mod leave_out;
mod seen;
mod text;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::Arg;

use crate::host::chain;

/// Exit status for a wrong command line (sysexits' EX_USAGE).
const STATUS_USAGE: u8 = 64;

/// Why nothing could be shown.
#[derive(Debug, thiserror::Error)]
enum PageError {
    #[error("{0}: see nomad-driver-microvm {1} --help")]
    Usage(String, &'static str),
    #[error("{path} can't be read: only root may look into a driver's state directory, use sudo")]
    NotRoot { path: PathBuf },
    #[error("there is no state directory of a driver at {path}: name the plugin option's with --state-dir")]
    NoStateDir { path: PathBuf },
    #[error("{path} can't be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no task in {state_dir} is called {words:?}: `nomad-driver-microvm list` shows them all")]
    NoTask { words: String, state_dir: PathBuf },
    #[error("{words:?} may be any of these, so write more of it: {matches}")]
    Ambiguous { words: String, matches: String },
    #[error("{path} is there already, and is not overwritten: move it away, or choose another name with -o")]
    Exists { path: PathBuf },
    #[error("{path} can't be written")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl PageError {
    /// Why a state directory can't be looked through.
    fn state_dir(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NotRoot { path },
            io::ErrorKind::NotFound => Self::NoStateDir { path },
            _ => Self::Read { path, source },
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    List,
    Inspect,
    Bundle,
}

impl Command {
    fn named(word: &str) -> Option<Self> {
        [Self::List, Self::Inspect, Self::Bundle]
            .into_iter()
            .find(|command| command.name() == word)
    }

    fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Inspect => "inspect",
            Self::Bundle => "bundle",
        }
    }

    fn help(self) -> &'static str {
        match self {
            Self::List => help::LIST,
            Self::Inspect => help::INSPECT,
            Self::Bundle => help::BUNDLE,
        }
    }
}

/// A command line that was understood.
#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    command: Command,
    state_dir: PathBuf,
    json: bool,
    task: String,
    output: Option<PathBuf>,
}

/// Does what the words after the program's name ask for; `None` where they are none of these commands.
pub(crate) fn run(words: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let mut words = words;
    let command = Command::named(words.next()?.to_str()?)?;
    let done = match parse(command, words) {
        Ok(Some(arguments)) => show(&arguments),
        Ok(None) => Ok(command.help().to_owned()),
        Err(error) => Err(error),
    };
    Some(match done {
        Ok(text) => {
            // A reader that has gone needs no help.
            drop(io::stdout().write_all(text.as_bytes()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            drop(writeln!(
                io::stderr(),
                "nomad-driver-microvm: {}",
                text::plain(&chain(&error))
            ));
            match error {
                PageError::Usage(..) => ExitCode::from(STATUS_USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    })
}

/// Reads a command's options, in any order; `None` where its help is wanted. A library does it, because people write
/// `--state-dir=DIR`, `-oFILE` and `--` as well, and paths need not be UTF-8.
fn parse(command: Command, words: impl Iterator<Item = OsString>) -> Result<Option<Arguments>, PageError> {
    let usage = |text: String| PageError::Usage(text, command.name());
    let wrong = |error: lexopt::Error| usage(error.to_string());
    let mut parser = lexopt::Parser::from_args(words.collect::<Vec<_>>());
    let mut tasks: Vec<String> = Vec::new();
    let mut arguments = Arguments {
        command,
        state_dir: default_state_dir(),
        json: false,
        task: String::new(),
        output: None,
    };
    while let Some(argument) = parser.next().map_err(wrong)? {
        match (argument, command) {
            (Arg::Long("help") | Arg::Short('h'), _) => return Ok(None),
            (Arg::Long("state-dir"), _) => arguments.state_dir = parser.value().map_err(wrong)?.into(),
            (Arg::Long("json"), Command::List | Command::Inspect) => arguments.json = true,
            (Arg::Long("output") | Arg::Short('o'), Command::Bundle) => {
                arguments.output = Some(parser.value().map_err(wrong)?.into());
            }
            (Arg::Value(task), Command::Inspect | Command::Bundle) if tasks.is_empty() => {
                tasks.push(task.to_string_lossy().into_owned());
            }
            (other, _) => return Err(wrong(other.unexpected())),
        }
    }
    match (command, tasks.pop()) {
        (Command::List, _) => {}
        (_, Some(task)) => arguments.task = task,
        (_, None) => return Err(usage(format!("{} needs the name of a task", command.name()))),
    }
    Ok(Some(arguments))
}

/// The state directory where the operator's configuration names none.
fn default_state_dir() -> PathBuf {
    // No options at all are a configuration that can be read.
    crate::config::options(&[])
        .map(|options| options.state_dir)
        .unwrap_or_default()
}

/// Looks, and gives what is to be printed.
fn show(arguments: &Arguments) -> Result<String, PageError> {
    let state_dir = &arguments.state_dir;
    if arguments.command == Command::List {
        let all = seen::look_at_all(state_dir)?;
        return Ok(if arguments.json {
            list::json(state_dir, &all)
        } else {
            list::table(state_dir, &all)
        });
    }
    let directory = inspect::find(state_dir, &arguments.task)?;
    let inspection = inspect::look(state_dir, &directory).ok_or_else(|| PageError::NoTask {
        words: text::plain(&arguments.task),
        state_dir: state_dir.clone(),
    })?;
    if arguments.command == Command::Inspect {
        return Ok(if arguments.json {
            inspect::json(state_dir, &inspection)
        } else {
            inspect::page(&inspection)
        });
    }
    let name = bundle::name(&inspection.seen.key);
    let path = arguments
        .output
        .clone()
        .unwrap_or_else(|| format!("{name}.tar").into());
    bundle::write(&path, &name, &bundle::collect(state_dir, &inspection))?;
    Ok(format!("{}\n", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Option<Arguments>, String> {
        let command = Command::named(words[0]).unwrap();
        let rest = words[1..].iter().map(OsString::from);
        parse(command, rest).map_err(|error| error.to_string())
    }

    #[test]
    fn command_lines_are_understood() {
        let arguments = |command, task: &str| Arguments {
            command,
            state_dir: "/var/lib/steppe/driver".into(),
            json: false,
            task: task.into(),
            output: None,
        };
        assert_eq!(parsed(&["list"]), Ok(Some(arguments(Command::List, ""))));
        let json = Arguments {
            json: true,
            state_dir: "/s".into(),
            ..arguments(Command::List, "")
        };
        assert_eq!(parsed(&["list", "--state-dir=/s", "--json"]), Ok(Some(json)));
        assert_eq!(
            parsed(&["inspect", "b2f8/vm"]),
            Ok(Some(arguments(Command::Inspect, "b2f8/vm")))
        );
        assert_eq!(
            parsed(&["inspect", "--", "--json"]),
            Ok(Some(arguments(Command::Inspect, "--json")))
        );
        for output in [
            ["-o", "/f"].as_slice(),
            &["-o/f"],
            &["--output", "/f"],
            &["--output=/f"],
        ] {
            let wanted = Arguments {
                output: Some("/f".into()),
                ..arguments(Command::Bundle, "x")
            };
            assert_eq!(
                parsed(&[["bundle", "x"].as_slice(), output].concat()),
                Ok(Some(wanted))
            );
        }
        for help in [&["list", "-h"], &["inspect", "--help"], &["bundle", "--help"]] {
            assert_eq!(parsed(help), Ok(None));
        }
    }

    #[test]
    fn wrong_command_lines_are_refused_with_a_sentence() {
        for (words, wanted) in [
            (
                ["list", "x"].as_slice(),
                "unexpected argument \"x\": see nomad-driver-microvm list --help",
            ),
            (&["list", "--jsn"], "--jsn"),
            (&["list", "-o", "f"], "-o"),
            (&["list", "--state-dir"], "--state-dir"),
            (&["list", "--json=yes"], "--json"),
            (&["inspect"], "inspect needs the name of a task"),
            (&["inspect", "a", "b"], "\"b\""),
            (&["bundle", "a", "--json"], "--json"),
            (&["bundle", "a", "-o"], "-o"),
        ] {
            let error = parsed(words).unwrap_err();
            assert!(
                error.contains(wanted) && error.contains("--help") && !error.contains('\n'),
                "{error}"
            );
        }
        assert!(run([OsString::from("--version")].into_iter()).is_none());
        assert!(run(std::iter::empty()).is_none());
    }

    #[test]
    fn a_state_directory_that_can_not_be_read_is_said_in_one_sentence() {
        let arguments = |state_dir: &Path| Arguments {
            command: Command::List,
            state_dir: state_dir.to_owned(),
            json: false,
            task: String::new(),
            output: None,
        };
        let root = tempfile::tempdir().unwrap();
        let error = show(&arguments(root.path())).unwrap_err();
        assert!(matches!(error, PageError::NoStateDir { .. }), "{error}");
        std::fs::write(root.path().join("tasks"), "").unwrap();
        let error = show(&arguments(root.path())).unwrap_err();
        assert!(matches!(error, PageError::Read { .. }), "{error}");
        let denied = PageError::state_dir(root.path(), io::ErrorKind::PermissionDenied.into());
        assert!(denied.to_string().contains("use sudo"), "{denied}");
    }

    #[test]
    fn the_manuals_say_what_is_there() {
        let state_dir = default_state_dir();
        for command in [Command::List, Command::Inspect, Command::Bundle] {
            let help = command.help();
            for wanted in [
                format!("nomad-driver-microvm {}", command.name()),
                format!("default {}", state_dir.display()),
                "EXIT STATUS".to_owned(),
                "EXAMPLES".to_owned(),
            ] {
                assert!(help.contains(&wanted), "{wanted}: {help}");
            }
            assert!(help.lines().all(|line| line.chars().count() <= 110), "{help}");
        }
        for word in seen::State::WORDS {
            assert!(help::LIST.contains(&format!("  {word} ")), "{word}");
        }
    }
}
