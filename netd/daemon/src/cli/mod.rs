//! What is asked for on the command line?
//!
//! Every command reads the configuration; [`serve`] is the daemon, [`check`], [`list`], [`explain`] and [`purge`] are for
//! people. [`show`] is how an interface looks, [`help`] is the manual.
//!
//! # The JSON
//!
//! Version 1, as the manuals say it. Every member is always there; what is not known, or does not apply, is null. A later
//! release may add members without a new version, and takes none away.

mod help;

mod serve;

mod check;
mod explain;
mod list;
mod purge;

mod ask;
mod confine;
mod memory;
mod settings;
mod show;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::Arg;

use steppe_daemon::text::plain;

/// Version of the JSON of all commands.
const JSON_VERSION: u32 = 1;

/// Exit status for a wrong command line.
const STATUS_USAGE: u8 = 2;

/// Why a command could not do what it is there for.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{0}: see {1} --help")]
    Usage(String, String),
    /// One sentence for each thing that is wrong.
    #[error("{}", .0.join("\n"))]
    Failed(Vec<String>),
}

impl CliError {
    /// With one sentence.
    fn failed(sentence: impl Into<String>) -> Self {
        Self::Failed(vec![sentence.into()])
    }
}

/// What a command prints, and whether all is well.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    text: String,
    well: bool,
}

impl From<String> for Outcome {
    fn from(text: String) -> Self {
        Self { text, well: true }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Serve,
    Check,
    List,
    Explain,
    Purge,
}

impl Command {
    const ALL: [Self; 5] = [Self::Serve, Self::Check, Self::List, Self::Explain, Self::Purge];

    fn name(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Check => "check",
            Self::List => "list",
            Self::Explain => "explain",
            Self::Purge => "purge",
        }
    }

    fn help(self) -> &'static str {
        match self {
            Self::Serve => help::SERVE,
            Self::Check => help::CHECK,
            Self::List => help::LIST,
            Self::Explain => help::EXPLAIN,
            Self::Purge => help::PURGE,
        }
    }
}

/// A command line that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Arguments {
    command: Command,
    /// The configuration file, if one is named.
    config: Option<PathBuf>,
    /// The socket, if it is named; else the configuration does.
    socket: Option<PathBuf>,
    json: bool,
    force: bool,
    /// Of `explain` and `check`.
    identity: Option<String>,
    /// Of `explain`: only this network.
    network: Option<String>,
    /// Of `explain`: the VLAN.
    vlan: Option<String>,
    /// Of `explain` and `check`: whose, as `INSTANCE/ID`.
    owner: Option<String>,
    /// Of `check`: what would be attached.
    request: check::Wanted,
}

impl Arguments {
    fn of(command: Command) -> Self {
        Self {
            command,
            config: None,
            socket: None,
            json: false,
            force: false,
            identity: None,
            network: None,
            vlan: None,
            owner: None,
            request: check::Wanted::default(),
        }
    }
}

/// Does what the words after the program's name ask for.
pub(crate) fn run(words: Vec<OsString>) -> ExitCode {
    let done = match parse(words) {
        Ok(Parsed::Text(text)) => Ok(text.to_owned().into()),
        Ok(Parsed::Command(arguments)) => match arguments.command {
            Command::Serve => serve::run(&arguments),
            Command::Check => check::run(&arguments),
            Command::List => list::run(&arguments),
            Command::Explain => explain::run(&arguments),
            Command::Purge => purge::run(&arguments),
        },
        Err(error) => Err(error),
    };
    match done {
        Ok(outcome) => {
            // A reader that has gone needs no help.
            drop(io::stdout().write_all(outcome.text.as_bytes()));
            if outcome.well {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            for sentence in error.to_string().lines() {
                drop(writeln!(io::stderr(), "netd: {}", plain(sentence)));
            }
            match error {
                CliError::Usage(..) => ExitCode::from(STATUS_USAGE),
                CliError::Failed(_) => ExitCode::FAILURE,
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// Is printed as it is.
    Text(&'static str),
    Command(Box<Arguments>),
}

fn parse(words: Vec<OsString>) -> Result<Parsed, CliError> {
    let usage = |text: String| CliError::Usage(text, "netd".to_owned());
    let wrong = |error: lexopt::Error| usage(error.to_string());
    let mut parser = lexopt::Parser::from_args(words);
    match parser.next().map_err(wrong)? {
        Some(Arg::Long("help") | Arg::Short('h')) => Ok(Parsed::Text(help::NETD)),
        Some(Arg::Long("version") | Arg::Short('V')) => {
            Ok(Parsed::Text(concat!("netd ", env!("CARGO_PKG_VERSION"), "\n")))
        }
        Some(Arg::Value(word)) => {
            let known = Command::ALL.into_iter().find(|command| word == command.name());
            let Some(command) = known else {
                let known = Command::ALL.map(Command::name).join(", ");
                let word = word.to_string_lossy();
                return Err(usage(format!("{word:?} is none of the commands {known}")));
            };
            options(command, &mut parser)
        }
        Some(other) => Err(wrong(other.unexpected())),
        None => Err(usage("a command is missing".to_owned())),
    }
}

/// Reads a command's options, in any order.
fn options(command: Command, parser: &mut lexopt::Parser) -> Result<Parsed, CliError> {
    let usage = |text: String| CliError::Usage(text, format!("netd {}", command.name()));
    let wrong = |error: lexopt::Error| usage(error.to_string());
    let mut arguments = Arguments::of(command);
    while let Some(argument) = parser.next().map_err(wrong)? {
        let text = |parser: &mut lexopt::Parser| -> Result<String, CliError> {
            let value = parser.value().map_err(wrong)?;
            value
                .into_string()
                .map_err(|value| usage(format!("{} is no text", value.to_string_lossy())))
        };
        match (argument, command) {
            (Arg::Long("help") | Arg::Short('h'), _) => return Ok(Parsed::Text(command.help())),
            (Arg::Long("config"), _) => arguments.config = Some(parser.value().map_err(wrong)?.into()),
            (Arg::Long("socket"), _) => arguments.socket = Some(parser.value().map_err(wrong)?.into()),
            (Arg::Long("json"), Command::Check | Command::List | Command::Explain) => arguments.json = true,
            (Arg::Long("force"), Command::Purge) => arguments.force = true,
            (Arg::Long("owner"), Command::Explain | Command::Check) => arguments.owner = Some(text(parser)?),
            (Arg::Long("network"), Command::Explain) => arguments.network = Some(text(parser)?),
            (Arg::Long("vlan"), Command::Explain) => arguments.vlan = Some(text(parser)?),
            (Arg::Long("identity"), Command::Check) => arguments.identity = Some(text(parser)?),
            (Arg::Long(name), Command::Check) if check::Wanted::knows(name) => {
                let name = name.to_owned();
                let value = text(parser)?;
                arguments.request.take(&name, &value).map_err(usage)?;
            }
            (Arg::Value(word), Command::Explain) if arguments.identity.is_none() => {
                let word = word
                    .into_string()
                    .map_err(|word| usage(format!("{} is no text", word.to_string_lossy())))?;
                arguments.identity = Some(word);
            }
            (other, _) => return Err(wrong(other.unexpected())),
        }
    }
    if command == Command::Explain && arguments.identity.is_none() {
        return Err(usage("explain needs an identity".to_owned()));
    }
    if command == Command::Check && arguments.request.is_empty() {
        let lone = [
            (arguments.identity.is_some(), "--identity"),
            (arguments.owner.is_some(), "--owner"),
        ];
        if let Some((_, option)) = lone.iter().find(|(given, _)| *given) {
            return Err(usage(format!("{option} goes with --network")));
        }
    }
    Ok(Parsed::Command(Box::new(arguments)))
}

#[cfg(test)]
mod tests;
