//! Does a plugin process behave as its host needs, from the handshake to its end?
//!
//! Starts `examples/sample-plugin.rs` as a host would and talks to it through its socket.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use go_plugin::proto::grpc_broker_client::GrpcBrokerClient;
use go_plugin::proto::grpc_controller_client::GrpcControllerClient;
use go_plugin::proto::grpc_stdio_client::GrpcStdioClient;
use go_plugin::proto::{ConnInfo, Empty};
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

/// Cargo builds examples before it runs a package's tests, beside them.
fn sample_plugin() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples/sample-plugin");
    assert!(
        path.exists(),
        "{} is missing: run all tests of the package once",
        path.display()
    );
    path
}

fn command(sockets: &Path) -> Command {
    let mut command = Command::new(sample_plugin());
    command
        .env_remove("PLUGIN_CLIENT_CERT")
        .env("SAMPLE_COOKIE", "oats")
        .env("PLUGIN_UNIX_SOCKET_DIR", sockets)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A started plugin; killed when a test fails.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    line: String,
    socket: PathBuf,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let socket = PathBuf::from(line.split('|').nth(3).unwrap_or_default());
        Running {
            child,
            stdout,
            line,
            socket,
        }
    }

    async fn connect(&self) -> Channel {
        let address = format!("unix:{}", self.socket.display());
        Endpoint::from_shared(address).unwrap().connect().await.unwrap()
    }

    async fn assert_healthy(&self) {
        let request = HealthCheckRequest {
            service: "plugin".into(),
        };
        let mut client = HealthClient::new(self.connect().await);
        let answer = tokio::time::timeout(Duration::from_secs(5), client.check(request)).await;
        assert_eq!(
            answer.expect("in time").unwrap().into_inner().status(),
            ServingStatus::Serving
        );
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the plugin is still there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[tokio::test]
async fn handshake_health_and_shutdown() {
    let sockets = tempfile::tempdir().unwrap();
    let mut plugin = Running::start(&mut command(sockets.path()));
    assert_eq!(
        plugin.line,
        format!("1|7|unix|{}|grpc|\n", plugin.socket.display())
    );
    assert!(plugin.socket.starts_with(sockets.path()));
    plugin.assert_healthy().await;

    // A Go host opens these two streams and leaves them open.
    let channel = plugin.connect().await;
    let offers = tokio_stream::pending::<ConnInfo>();
    let _broker = GrpcBrokerClient::new(channel.clone())
        .start_stream(offers)
        .await
        .unwrap();
    let _stdio = GrpcStdioClient::new(channel.clone())
        .stream_stdio(())
        .await
        .unwrap();

    let asked = Instant::now();
    GrpcControllerClient::new(channel)
        .shutdown(Empty {})
        .await
        .expect("the answer comes before the end");
    assert!(plugin.ended().await.success());
    assert!(
        asked.elapsed() < Duration::from_secs(1),
        "hosts kill after two: {:?}",
        asked.elapsed()
    );
    assert!(is_empty(sockets.path()));
}

#[tokio::test]
async fn stdout_is_let_go_after_the_line() {
    let sockets = tempfile::tempdir().unwrap();
    let mut plugin = Running::start(&mut command(sockets.path()));
    let mut rest = String::new();
    plugin.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    plugin.assert_healthy().await;
}

#[tokio::test]
async fn three_at_once_and_leftovers() {
    let sockets = tempfile::tempdir().unwrap();
    let mut plugins: Vec<_> = (0..3)
        .map(|_| Running::start(&mut command(sockets.path())))
        .collect();
    for plugin in &plugins {
        plugin.assert_healthy().await;
    }
    assert_eq!(fs::read_dir(sockets.path()).unwrap().count(), 3);

    // Killed, a plugin leaves its socket behind; the next one removes it, and no other.
    let mut killed = plugins.remove(0);
    killed.signal(Signal::KILL);
    killed.ended().await;
    assert!(killed.socket.exists());
    plugins.push(Running::start(&mut command(sockets.path())));
    assert!(!killed.socket.exists());
    for plugin in &mut plugins {
        plugin.assert_healthy().await;
        plugin.signal(Signal::TERM);
        assert!(plugin.ended().await.success(), "SIGTERM is an orderly end");
    }
    assert!(is_empty(sockets.path()));
}

#[tokio::test]
async fn interrupt_is_swallowed() {
    let sockets = tempfile::tempdir().unwrap();
    let plugin = Running::start(&mut command(sockets.path()));
    for _ in 0..3 {
        plugin.signal(Signal::INT);
        plugin.assert_healthy().await;
    }
}

#[tokio::test]
async fn stopper_ends_the_process() {
    let sockets = tempfile::tempdir().unwrap();
    let mut plugin = Running::start(command(sockets.path()).env("SAMPLE_STOP", "1"));
    plugin.assert_healthy().await;
    assert!(plugin.ended().await.success());
    assert!(is_empty(sockets.path()));
}

/// The host was killed: nobody holds the other end of stderr any more.
#[tokio::test]
async fn a_broken_stderr_costs_nothing_but_lines() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut plugin = Running::start(
        command(dir.path())
            .env("SAMPLE_CHATTY", "1")
            .env("SAMPLE_LOG_FILE", &log),
    );
    drop(plugin.child.stderr.take());
    assert_still_logs(&plugin, &log).await;
}

/// The host stands still: its end of stderr is open and nobody reads.
#[tokio::test]
async fn a_stuck_stderr_costs_nothing_but_lines() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut plugin = Running::start(
        command(dir.path())
            .env("SAMPLE_CHATTY", "1")
            .env("SAMPLE_LOG_FILE", &log),
    );
    assert_still_logs(&plugin, &log).await;
    plugin.signal(Signal::KILL);
    plugin.ended().await;
    // What did get through are whole lines, the last one perhaps excepted.
    let text = plugin.stderr();
    let lines: Vec<_> = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .collect();
    assert!(lines.len() > 3);
    for line in lines {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}

async fn assert_still_logs(plugin: &Running, log: &Path) {
    // Twice what a pipe holds.
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::metadata(log).map_or(0, |meta| meta.len()) < 128 * 1024 {
        assert!(Instant::now() < deadline, "the log stopped");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    plugin.assert_healthy().await;
}

#[tokio::test]
async fn a_panic_is_one_error_line() {
    let sockets = tempfile::tempdir().unwrap();
    let mut plugin = Running::start(command(sockets.path()).env("SAMPLE_PANIC", "1"));
    plugin.assert_healthy().await;
    plugin.signal(Signal::TERM);
    plugin.ended().await;
    let text = plugin.stderr();
    let line = text
        .lines()
        .find(|line| line.contains("panic"))
        .expect("the panic is there");
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(value["@level"], "error");
    assert_eq!(value["@message"], "panic: out of oats");
    assert_eq!(value["thread"], "unlucky");
    assert!(value["location"].as_str().unwrap().contains("sample-plugin.rs:"));
    for line in text.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok(),
            "every line is hclog's: {line}"
        );
    }
}

#[tokio::test]
async fn started_by_hand() {
    let sockets = tempfile::tempdir().unwrap();
    for cookie in [None, Some("barley")] {
        let mut command = command(sockets.path());
        match cookie {
            None => command.env_remove("SAMPLE_COOKIE"),
            Some(value) => command.env("SAMPLE_COOKIE", value),
        };
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(output.stdout, b"");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("sample-plugin is a plugin: "), "{text}");
        assert!(text.ends_with("Run this crate's tests instead.\n"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
    assert!(is_empty(sockets.path()));
}

#[tokio::test]
async fn a_host_that_wants_tls_is_refused_by_name() {
    let sockets = tempfile::tempdir().unwrap();
    let output = command(sockets.path())
        .env("PLUGIN_CLIENT_CERT", "-----BEGIN")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let line: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(
        line["error"].as_str().unwrap().contains("PLUGIN_CLIENT_CERT"),
        "{line}"
    );
}

/// Something that leaked into the host must not live on in the plugin.
#[tokio::test]
async fn foreign_descriptors_are_closed() {
    let sockets = tempfile::tempdir().unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap(); // inheritable
    let plugin = Running::start(&mut command(sockets.path()));
    drop::<OwnedFd>(write);
    // Ends only when nobody holds the other side any more.
    let end = tokio::task::spawn_blocking(move || rustix::io::read(&read, &mut [0_u8; 1]));
    let end = tokio::time::timeout(Duration::from_secs(5), end)
        .await
        .expect("the pipe ends")
        .unwrap();
    assert_eq!(end, Ok(0));
    plugin.assert_healthy().await;
}
