//! How is something done in a network namespace of its own?

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::thread::LinkNameSpaceType;

use crate::{BenchError, variable};

/// A named network namespace, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct Space {
    name: String,
    file: File,
}

/// Runs a program; what it says against it is the error.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), BenchError> {
    let failed = |error| BenchError::Io(format!("{program} can't be run"), error);
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that reads nothing needs no help.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let arguments = arguments.join(" ");
    Err(BenchError::Task(format!("{program} {arguments}: {said}")))
}

impl Space {
    /// A new one, with its loopback device up. `run.sh` says how its name begins, and removes what an interrupted run leaves.
    pub(super) fn new(role: &str) -> Result<Self, BenchError> {
        let name = format!("{}-{role}", variable("STEPPE_BENCH_SPACES")?);
        run("ip", &["netns", "add", &name], "")?;
        let file = File::open(path_of(&name));
        let file =
            file.map_err(|error| BenchError::Io("a network namespace can't be opened".to_owned(), error))?;
        let space = Self { name, file };
        space.ip("link set lo up\n")?;
        Ok(space)
    }

    /// Its file, as CNI takes it.
    pub(super) fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// As `ip` calls it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Takes this thread into it, and with that whatever it starts.
    pub(super) fn enter(&self) -> Result<(), BenchError> {
        rustix::thread::move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| BenchError::Io("a network namespace can't be entered".to_owned(), errno.into()))
    }

    /// Commands of `ip` in it, a line each.
    pub(super) fn ip(&self, commands: &str) -> Result<(), BenchError> {
        run("ip", &["-n", &self.name, "-batch", "-"], commands)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(run("ip", &["netns", "del", &self.name], ""));
    }
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}
