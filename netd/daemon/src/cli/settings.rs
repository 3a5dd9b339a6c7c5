//! What does the configuration say?

use std::path::{Path, PathBuf};

use netd_plan::{Config, Problem, Settings};
use steppe_daemon::peer::Roles;
use steppe_daemon::{chain, config_files};

use super::{Arguments, CliError};

/// Where the configuration is unless somebody names another file.
pub(super) const FILE: &str = "/etc/netd/netd.toml";

/// A configuration without problems, and where it stands.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) config: Config,
    pub(super) settings: Settings,
    /// The files that were read; none where what netd brings along holds.
    pub(super) files: Vec<String>,
}

impl Loaded {
    /// The socket: the command line's, else the configuration's.
    pub(super) fn socket(&self, arguments: &Arguments) -> PathBuf {
        let said = arguments.socket.clone();
        said.unwrap_or_else(|| PathBuf::from(&self.settings.socket))
    }
}

/// What is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Wrong {
    /// File and line, as far as they are known.
    pub(super) place: Option<String>,
    pub(super) sentence: String,
}

impl From<Problem> for Wrong {
    fn from(problem: Problem) -> Self {
        Self {
            place: Some(problem.place).filter(|place| !place.is_empty()),
            sentence: problem.sentence,
        }
    }
}

impl Wrong {
    /// What an error says, with its causes.
    pub(super) fn of(error: &(impl std::error::Error + 'static)) -> Self {
        Self {
            place: None,
            sentence: chain(error),
        }
    }

    /// In one line.
    pub(super) fn line(&self) -> String {
        match &self.place {
            Some(place) => format!("{place}: {}", self.sentence),
            None => self.sentence.clone(),
        }
    }
}

/// Reads the configuration that the command line names, or the usual one.
pub(super) fn load(arguments: &Arguments) -> Result<Loaded, Vec<Wrong>> {
    let named = arguments.config.is_some();
    let file = arguments.config.as_deref().unwrap_or(Path::new(FILE));
    let texts =
        config_files::read(file, named).map_err(|errors| errors.iter().map(Wrong::of).collect::<Vec<_>>())?;
    let (config, settings) = Config::parse(&texts)
        .map_err(|problems| problems.into_iter().map(Wrong::from).collect::<Vec<_>>())?;
    // Which users there are only the host knows.
    Roles::resolve(&settings.drivers, &settings.readers)
        .map_err(|errors| errors.iter().map(Wrong::of).collect::<Vec<_>>())?;
    Ok(Loaded {
        config,
        settings,
        files: texts.into_iter().map(|(place, _)| place).collect(),
    })
}

/// The same for a command that needs it to be right.
pub(super) fn needed(arguments: &Arguments) -> Result<Loaded, CliError> {
    load(arguments).map_err(|wrong| CliError::Failed(wrong.iter().map(Wrong::line).collect()))
}
