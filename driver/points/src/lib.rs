//! Where may a test stop a program, to kill it or its neighbours just there?
//!
//! A crash point is a name before or after a step that is written down or leaves something on the host. Built without
//! the feature `crash-points`, as every release is, [`reach`] does nothing and the variable below is unknown. Built with
//! it, and with [`VARIABLE`] naming a unix stream socket, each point connects there, says its name, the task and the
//! process, and waits until the other side writes something or closes. A socket that can't be reached is no obstacle.

/// The environment variable that names the socket.
pub const VARIABLE: &str = "STEPPE_POINTS";

/// Stops at a point of a task if a test wants that.
#[cfg(not(feature = "crash-points"))]
pub fn reach(_point: &str, _task: &str) {}

/// Stops at a point of a task if a test wants that.
#[cfg(feature = "crash-points")]
pub fn reach(point: &str, task: &str) {
    use std::io::{Read, Write};
    let Some(path) = std::env::var_os(VARIABLE) else {
        return;
    };
    let Ok(mut socket) = std::os::unix::net::UnixStream::connect(path) else {
        return;
    };
    let line = format!("{point} {task} {}\n", std::process::id());
    if socket.write_all(line.as_bytes()).is_ok() {
        // Whatever comes, or the end: both mean "go on".
        let _answer = socket.read(&mut [0]);
    }
}

/// The variable and its value for a program that is started with an empty environment.
#[must_use]
pub fn environment() -> Option<(&'static str, std::ffi::OsString)> {
    if cfg!(feature = "crash-points") {
        std::env::var_os(VARIABLE).map(|path| (VARIABLE, path))
    } else {
        None
    }
}
