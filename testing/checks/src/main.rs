//! What does the command line ask of the check runner?

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use steppe_checks::judge::{Check, judge, summary};
use steppe_checks::lines::Outcome;
use steppe_checks::list::{self, ListError, Listed};
use steppe_checks::run;
use steppe_checks::suites::{self, Suite};

const LIST: &str = "testing/checks.txt";
const USAGE: &str = "\
Usage: steppe-checks [--only SUITE[,SUITE]...] [--list]

Runs the suites that testing/checks.txt names, with their logs in target/logs, and judges the checks.
Writes target/checks.json and ends with one line: N passed, N failed, N skipped.
Exit status: 0 if something passed and nothing failed, 1 otherwise, 2 for a wrong command line or list.

  --only SUITE[,SUITE]  run these suites, and miss only their listed checks
  --list                print suites and listed checks, and run nothing
  --help, --version     print this text, or the version
";

#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error("{0}; see --help")]
    Usage(String),
    #[error("no {LIST} here or in a directory above")]
    NoTree,
    #[error("{LIST}")]
    List(#[from] ListError),
    #[error("{path}")]
    File { path: PathBuf, source: io::Error },
    #[error("running the suites")]
    Run(#[source] io::Error),
    #[error("printing")]
    Print(#[source] io::Error),
}

enum Request {
    Help,
    Version,
    List,
    Run { only: Option<Vec<String>> },
}

fn main() -> ExitCode {
    match work() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let mut text = format!("steppe-checks: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            // Nothing is left to do where even stderr is gone.
            drop(writeln!(io::stderr(), "{text}"));
            ExitCode::from(2)
        }
    }
}

fn work() -> Result<bool, MainError> {
    let request = parse(env::args().skip(1))?;
    let mut out = io::stdout();
    let only = match request {
        Request::Help => return write!(out, "{USAGE}").map(|()| true).map_err(MainError::Print),
        Request::Version => {
            let line = concat!("steppe-checks ", env!("CARGO_PKG_VERSION"));
            return writeln!(out, "{line}").map(|()| true).map_err(MainError::Print);
        }
        Request::List => None,
        Request::Run { ref only } => only.clone(),
    };
    let root = root()?;
    let suites = suites::table();
    let path = root.join(LIST);
    let text = fs::read_to_string(&path).map_err(|source| MainError::File { path, source })?;
    let listed = list::parse(&text, &suites)?;
    if matches!(request, Request::List) {
        return print_list(&mut out, &suites, &listed)
            .map(|()| true)
            .map_err(MainError::Print);
    }
    let chosen = choose(&suites, &listed, only.as_deref())?;
    let target = root.join("target");
    let runs = run::run(&root, &chosen, &target.join("logs"), &mut out).map_err(MainError::Run)?;
    let checks = judge(&listed, &runs);
    let path = target.join("checks.json");
    write_json(&path, &checks).map_err(|source| MainError::File { path, source })?;
    print_result(&mut out, &checks).map_err(MainError::Print)
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Request, MainError> {
    let mut only: Option<Vec<String>> = None;
    let mut list = false;
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => return Ok(Request::Help),
            "--version" | "-V" => return Ok(Request::Version),
            "--list" => list = true,
            "--only" => {
                let names = arguments
                    .next()
                    .ok_or_else(|| MainError::Usage("--only needs suites".to_owned()))?;
                only.get_or_insert_default()
                    .extend(names.split(',').map(str::to_owned));
            }
            _ => return Err(MainError::Usage(format!("unknown argument `{argument}`"))),
        }
    }
    Ok(if list {
        Request::List
    } else {
        Request::Run { only }
    })
}

/// The root of the tree, from the working directory upwards.
fn root() -> Result<PathBuf, MainError> {
    let here = env::current_dir().map_err(|source| MainError::File {
        path: ".".into(),
        source,
    })?;
    here.ancestors()
        .find(|path| path.join(LIST).is_file())
        .map(Path::to_owned)
        .ok_or(MainError::NoTree)
}

/// Without a choice, the suites in which a check is listed.
fn choose(suites: &[Suite], listed: &[Listed], only: Option<&[String]>) -> Result<Vec<Suite>, MainError> {
    let Some(only) = only else {
        let has_checks = |suite: &&Suite| listed.iter().any(|listed| listed.suite == suite.name);
        return Ok(suites.iter().filter(has_checks).cloned().collect());
    };
    if let Some(name) = only
        .iter()
        .find(|name| !suites.iter().any(|suite| suite.name == **name))
    {
        return Err(MainError::Usage(format!("there is no suite `{name}`")));
    }
    Ok(suites
        .iter()
        .filter(|suite| only.contains(&suite.name))
        .cloned()
        .collect())
}

fn print_list(out: &mut impl Write, suites: &[Suite], listed: &[Listed]) -> io::Result<()> {
    for suite in suites {
        let minutes = suite.time_limit.as_secs() / 60;
        writeln!(
            out,
            "{} (stage {}, at most {minutes} min): {}",
            suite.name,
            suite.stage,
            suite.command.join(" ")
        )?;
        for listed in listed.iter().filter(|listed| listed.suite == suite.name) {
            writeln!(out, "  {}", listed.name)?;
        }
    }
    Ok(())
}

/// Whoever reads the file meets the old or the new one, never half of it.
fn write_json(path: &Path, checks: &[Check]) -> io::Result<()> {
    let part = path.with_extension("json.part");
    fs::write(&part, serde_json::to_string_pretty(checks)? + "\n")?;
    fs::rename(&part, path)
}

fn print_result(out: &mut impl Write, checks: &[Check]) -> Result<bool, io::Error> {
    for (result, word) in [(Outcome::Skipped, "skipped"), (Outcome::Failed, "FAILED")] {
        for check in checks.iter().filter(|check| check.result == result) {
            writeln!(out, "{word}: {} {}", check.name, check.reason)?;
        }
    }
    let (line, well) = summary(checks);
    writeln!(out, "{line}")?;
    Ok(well)
}
