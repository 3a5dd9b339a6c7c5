//! What does a daemon say on stderr?
//!
//! One line per event, whatever is in it: control characters are escaped, since texts of others (a link's alias, a file's
//! name) are logged. The journal gets the level as its prefix and keeps the time itself; a terminal or file gets both.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::SystemTime;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// From the least said to the most.
pub const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Why nothing is logged.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No such level.
    #[error("log level {0:?} is not known: one of error, warn, info, debug, trace")]
    Level(String),
    /// The process logs already.
    #[error("logging is set up already")]
    Twice,
}

/// The level, which may change while the daemon runs.
#[derive(Debug, Clone)]
pub struct Log {
    program: &'static str,
    filter: reload::Handle<Targets, Registry>,
}

impl Log {
    /// Begins to log. `program` is how the names of the daemon's own crates begin; of other crates only warnings are of use.
    ///
    /// # Errors
    ///
    /// [`LogError`]
    pub fn start(program: &'static str, level: &str) -> Result<Self, LogError> {
        let (filter, handle) = reload::Layer::new(targets(program, level)?);
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Lines {
                journal: is_journal(&io::stderr()),
            })
            .with_ansi(false)
            .with_writer(io::stderr)
            .log_internal_errors(false);
        tracing_subscriber::registry()
            .with(filter)
            .with(layer)
            .try_init()
            .map_err(|_| LogError::Twice)?;
        Ok(Self {
            program,
            filter: handle,
        })
    }

    /// Changes the level.
    ///
    /// # Errors
    ///
    /// An unknown level; the old one stays.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        let targets = targets(self.program, level)?;
        // Fails only when the subscriber is gone, which lives as long as the process.
        let _changed = self.filter.reload(targets);
        Ok(())
    }
}

fn targets(program: &'static str, level: &str) -> Result<Targets, LogError> {
    if !LEVELS.contains(&level) {
        return Err(LogError::Level(level.to_owned()));
    }
    let level = LevelFilter::from_str(level).map_err(|_| LogError::Level(level.to_owned()))?;
    Ok(Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_targets([(program, level), ("steppe", level)]))
}

/// Whether a descriptor leads to the journal: the variable says which file that is (systemd.exec(5)).
fn is_journal(fd: &impl AsFd) -> bool {
    let Some(named) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    rustix::fs::fstat(fd).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[derive(Debug)]
struct Lines {
    journal: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.journal {
            write!(writer, "<{}>", priority(level))?;
        } else {
            let now = humantime::format_rfc3339_millis(SystemTime::now());
            write!(writer, "{now} {level:<5} ")?;
        }
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        for c in text.chars() {
            if c.is_control() {
                write!(writer, "{}", c.escape_default())?;
            } else {
                writer.write_char(c)?;
            }
        }
        writer.write_char('\n')
    }
}

/// The level as syslog numbers it.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(journal: bool, level: &str) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Lines { journal })
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry()
            .with(targets("netd", level).unwrap())
            .with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "netd::state", alias = "a\n<0>forged\u{9b}", "link is not ours");
            tracing::debug!(target: "netd_plan", "detail");
            tracing::info!(target: "h2::codec", "noise");
            tracing::error!(target: "h2::codec", "trouble");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_journal_gets_levels_and_one_line_per_event() {
        let first = "<4>link is not ours alias=\"a\\n<0>forged\\u{9b}\"\n";
        assert_eq!(logged(true, "info"), format!("{first}<3>trouble\n"));
        assert_eq!(logged(true, "debug"), format!("{first}<7>detail\n<3>trouble\n"));
        assert_eq!(logged(true, "error"), "<3>trouble\n");
    }

    #[test]
    fn others_get_time_and_level() {
        let text = logged(false, "info");
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{text}");
        assert!(rest.starts_with("WARN  link is not ours"), "{text}");
    }

    #[test]
    fn unknown_levels_are_refused() {
        for level in ["", "off", "INFO", "loud", "2"] {
            assert!(targets("netd", level).is_err(), "{level}");
        }
    }
}
