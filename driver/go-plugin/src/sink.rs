//! Where do log lines go?
//!
//! To stderr, for the host, and to a file, once the product has named one: after a host was restarted and took its
//! plugins back, nobody reads their stderr any more. Neither may ever stop the plugin: a broken pipe, a full disk or a
//! host that stands still costs log lines and nothing else.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;

use crate::hclog::{self, Fields, HclogLayer};

/// A pipe that polls as writable takes this much without blocking.
const PIPE_CHUNK_BYTES: usize = 4096;
/// How long a host may leave its end unread before a line is dropped. After one dropped line the next ones don't wait.
const STDERR_PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
const NO_PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// The process's log: all clones are one.
#[derive(Debug, Clone)]
pub struct LogSink(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    level: AtomicU8,
    outputs: Mutex<Outputs>,
}

#[derive(Debug, Default)]
struct Outputs {
    /// The last line could not be written to stderr: don't wait for it again.
    stderr_stuck: bool,
    /// The last line was written in part: end it before the next one.
    stderr_torn: bool,
    file: Option<LogFile>,
}

impl LogSink {
    /// A sink that writes to stderr only, and takes nothing by itself. For tests: a plugin uses what
    /// [`run`](crate::run) hands it.
    #[must_use]
    pub fn new(level: LevelFilter) -> LogSink {
        let sink = LogSink(Arc::new(Inner {
            level: AtomicU8::new(0),
            outputs: Mutex::default(),
        }));
        sink.set_level(level);
        sink
    }

    /// Makes a sink that takes all of the process's events and panics.
    pub(crate) fn install(level: LevelFilter) -> LogSink {
        let sink = LogSink::new(level);
        let subscriber = tracing_subscriber::registry().with(HclogLayer::new(sink.clone()));
        // Fails only where the product installed another subscriber before, which then is what it wants.
        drop(tracing::subscriber::set_global_default(subscriber));
        sink.catch_panics();
        sink
    }

    /// Lets events through down to `level`.
    pub fn set_level(&self, level: LevelFilter) {
        let number = LEVELS
            .iter()
            .position(|known| *known == level)
            .unwrap_or_default();
        self.0
            .level
            .store(u8::try_from(number).unwrap_or_default(), Ordering::Relaxed);
    }

    pub(crate) fn level(&self) -> LevelFilter {
        LEVELS[usize::from(self.0.level.load(Ordering::Relaxed))]
    }

    /// Writes every line from now on to a file as well. When it would grow beyond `max_bytes` it is renamed to `<path>.1`,
    /// replacing the one before, and a new one is begun: both together stay below twice that size. Several processes may
    /// share a file.
    ///
    /// # Errors
    ///
    /// When the file can't be opened; then the previous choice stays.
    pub fn set_file(&self, path: &Path, max_bytes: u64) -> io::Result<()> {
        let file = LogFile::open(path, max_bytes)?;
        self.outputs().file = Some(file);
        Ok(())
    }

    /// Writes one line wherever it can.
    pub(crate) fn write(&self, line: &[u8]) {
        let mut outputs = self.outputs();
        outputs.write_stderr(line);
        if let Some(file) = &mut outputs.file {
            // Nowhere is left to say that the disk is full.
            drop(file.write(line));
        }
    }

    /// Makes one error line of each panic. Written straight to the sink: a panic inside of tracing must get through too.
    fn catch_panics(&self) {
        let sink = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let message = panic.payload_as_str().unwrap_or("unknown payload");
            let mut fields = Fields::default();
            if let Some(location) = panic.location() {
                fields.put("location", location.to_string());
            }
            if let Some(name) = std::thread::current().name() {
                fields.put("thread", name);
            }
            let head = hclog::Head {
                level: Level::ERROR,
                message: &format!("panic: {message}"),
                module: "panic",
            };
            sink.write(&hclog::line(&head, SystemTime::now(), fields.0));
        }));
    }

    fn outputs(&self) -> std::sync::MutexGuard<'_, Outputs> {
        // Nothing under the lock can be left half done by a panic.
        self.0.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

impl Outputs {
    fn write_stderr(&mut self, line: &[u8]) {
        let newline: &[u8] = if self.stderr_torn { b"\n" } else { b"" };
        let mut written = 0;
        for chunk in newline.chunks(1).chain(line.chunks(PIPE_CHUNK_BYTES)) {
            let patience = if self.stderr_stuck {
                NO_PATIENCE
            } else {
                STDERR_PATIENCE
            };
            match write_chunk(chunk, &patience) {
                Some(count) if count == chunk.len() => written += count,
                // A short count happens on terminals and full disks, where the rest is no loss either.
                other => {
                    self.stderr_stuck = true;
                    self.stderr_torn |= written + other.unwrap_or(0) > 0;
                    return;
                }
            }
        }
        self.stderr_stuck = false;
        self.stderr_torn = false;
    }
}

/// How much was written, or nothing if the reader is gone or took too long.
fn write_chunk(chunk: &[u8], patience: &Timespec) -> Option<usize> {
    let stderr = rustix::stdio::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    match poll(&mut ready, Some(patience)) {
        Ok(count) if count > 0 => rustix::io::retry_on_intr(|| rustix::io::write(stderr, chunk)).ok(),
        _ => None,
    }
}

/// A file of bounded size, with one generation before it.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    file: OwnedFd,
}

impl LogFile {
    fn open(path: &Path, max_bytes: u64) -> io::Result<LogFile> {
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(LogFile {
            path: path.to_owned(),
            max_bytes,
            file,
        })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let stat = rustix::fs::fstat(&self.file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size > 0 && size.saturating_add(line.len() as u64) > self.max_bytes {
            // Another process may have renamed it already.
            let ours = rustix::fs::stat(&self.path)
                .is_ok_and(|at_path| (at_path.st_dev, at_path.st_ino) == (stat.st_dev, stat.st_ino));
            if ours {
                fs::rename(&self.path, old_generation(&self.path))?;
            }
            *self = LogFile::open(&self.path, self.max_bytes)?;
        }
        rustix::io::write(&self.file, line)?;
        Ok(())
    }
}

fn old_generation(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;
