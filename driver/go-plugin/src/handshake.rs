//! How do host and plugin recognise each other?
//!
//! The host shows itself by a cookie in the environment. The plugin answers with one line on stdout that says where it
//! listens. This is the only file that may write to stdout, and it does so once: right after the line, stdout becomes
//! the null device. So nothing that prints by mistake can break the protocol, and a child that inherits stdout against
//! the rules doesn't hold the host's pipe. Hosts read the pipe only for the line and let it end when it likes: they
//! judge whether a plugin lives by its stderr and its process.

use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::{ServeConfig, ServeError};

/// Version of go-plugin's own protocol, the first field of the line.
const CORE_PROTOCOL_VERSION: u32 = 1;

/// The program was started by a person or a script, not by a host.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name} is a plugin: a host program starts it and talks to it, it does nothing when started by hand. {usage}"
)]
pub struct NotStartedByHost {
    name: &'static str,
    usage: &'static str,
}

/// Did a host start this process?
pub(crate) fn check_cookie(config: &ServeConfig) -> Result<(), NotStartedByHost> {
    if std::env::var_os(config.magic_cookie_key).is_some_and(|value| value == config.magic_cookie_value) {
        return Ok(());
    }
    Err(NotStartedByHost {
        name: config.name,
        usage: config.usage,
    })
}

/// Does the host ask for a connection that we can give? Without this, one that wants TLS would only see garbage.
pub(crate) fn check_transport() -> Result<(), ServeError> {
    match std::env::var_os("PLUGIN_CLIENT_CERT") {
        Some(certificate) if !certificate.is_empty() => Err(ServeError::MutualTls),
        _ => Ok(()),
    }
}

/// Tells the host where the plugin listens; must already be listening, since the host connects at once.
pub(crate) fn announce(app_protocol_version: u32, socket: &Path) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(line(app_protocol_version, socket).as_bytes())?;
    stdout.flush()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

/// The sixth field would be a certificate; empty, as Go's own servers send it.
fn line(app_protocol_version: u32, socket: &Path) -> String {
    format!(
        "{CORE_PROTOCOL_VERSION}|{app_protocol_version}|unix|{}|grpc|\n",
        socket.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_six_fields() {
        assert_eq!(
            line(2, Path::new("/tmp/x/socket")),
            "1|2|unix|/tmp/x/socket|grpc|\n"
        );
    }
}
