//! What does CNI's bridge plugin do for a container?

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::BenchError;

/// Debian's place of the plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// No addresses, no filter: a pair of links, one of them a port of the bridge.
const CONFIG: &str = r#"{"cniVersion":"0.4.0","name":"bench","type":"bridge","bridge":"cni0"}"#;

/// A container that has, or will have, an interface; several share a namespace, each with another interface in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Container<'a> {
    pub(super) namespace: &'a Path,
    pub(super) number: usize,
}

impl Container<'_> {
    /// Gives it its interface; how long that took, from the plugin's start to its end.
    pub(super) fn add(&self) -> Result<Duration, BenchError> {
        self.run("ADD")
    }

    /// Takes it back.
    pub(super) fn del(&self) -> Result<Duration, BenchError> {
        self.run("DEL")
    }

    fn run(&self, verb: &str) -> Result<Duration, BenchError> {
        let failed = |error| BenchError::Io("CNI's bridge plugin can't be run".to_owned(), error);
        let began = Instant::now();
        let mut child = Command::new(Path::new(PLUGINS).join("bridge"))
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("bench-{}", self.number))
            .env("CNI_NETNS", self.namespace)
            .env("CNI_IFNAME", format!("eth{}", self.number))
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(CONFIG.as_bytes()).map_err(failed)?;
        }
        let output = child.wait_with_output().map_err(failed)?;
        let took = began.elapsed();
        if output.status.success() {
            Ok(took)
        } else {
            // The plugins write their errors to stdout, as JSON.
            let said = String::from_utf8_lossy(&output.stdout);
            Err(BenchError::Task(format!("CNI's bridge plugin, {verb}: {said}")))
        }
    }
}
