//! Does a socket behave when others are there?

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StdStream;

use tokio_stream::StreamExt;

use super::*;
use crate::chain;

fn refused(path: &Path) -> String {
    chain(&Socket::bind(path, "netd").unwrap_err())
}

#[tokio::test]
async fn a_path_is_one_daemons() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/netd.sock");
    let socket = Socket::bind(&path, "netd").unwrap();
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o666);
    let parent = path.parent().unwrap().metadata().unwrap();
    assert_eq!(parent.mode() & 0o777, 0o755);
    assert_eq!(
        refused(&path),
        format!(
            "socket path {} is in use by another netd, pid {}: stop that one, or name another path",
            path.display(),
            std::process::id()
        )
    );
    assert!(matches!(reserve(&path, "netd"), Err(SocketError::InUse { .. })));
    drop(socket);
    assert!(!path.exists());
    let reserved = reserve(&path, "netd").unwrap();
    assert!(refused(&path).contains("is in use by another netd"));
    drop(reserved);
    let elsewhere = directory.path().join("other.sock");
    let _reserved = reserve(&elsewhere, "netd").unwrap();
    assert_eq!(
        directory.path().read_dir().unwrap().count(),
        1,
        "nothing was made"
    );
    drop(Socket::bind(&path, "netd").unwrap());
}

#[tokio::test]
async fn a_killed_daemons_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    std::fs::write(directory.path().join("netd.sock.lock"), "4194305\nrubbish").unwrap();
    let _socket = Socket::bind(&path, "netd").unwrap();
    StdStream::connect(&path).unwrap();
    let lock = std::fs::read_to_string(directory.path().join("netd.sock.lock")).unwrap();
    assert_eq!(lock, format!("{}\n", std::process::id()));
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.sock");
    std::fs::write(&path, "mine").unwrap();
    let said = refused(&path);
    assert_eq!(
        said,
        format!(
            "{} is there and no socket: remove it, or name another path",
            path.display()
        )
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");

    std::fs::remove_file(&path).unwrap();
    let foreign = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(refused(&path).contains("is in use by another program"));
    foreign.set_nonblocking(true).unwrap();
    assert!(foreign.accept().is_ok(), "it was looked at, and is there still");

    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/nowhere", &path).unwrap();
    assert!(refused(&path).contains("no socket"));
}

#[tokio::test]
async fn paths_that_cant_be_are_said() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("n".repeat(120));
    assert!(refused(&long).contains("is longer than 107 bytes"));
    std::fs::write(directory.path().join("file"), "").unwrap();
    let said = refused(&directory.path().join("file/netd.sock"));
    assert!(said.starts_with("can't make directory "), "{said}");
}

#[tokio::test]
async fn strangers_share_few_connections() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.sock");
    let me = rustix::process::geteuid().as_raw();
    // With no table at all even root is a stranger.
    let roles = Roles::default();
    let socket = Socket::bind(&path, "netd").unwrap();
    let mut connections = socket.connections(roles.clone());
    let mut others = Vec::new();
    let mut held = Vec::new();
    for _ in 0..STRANGERS_MAX {
        others.push(StdStream::connect(&path).unwrap());
        held.push(connections.next().await.unwrap().unwrap());
    }
    assert_eq!(held[0].connect_info().uid, me);
    assert_eq!(
        held[0].connect_info().pid,
        Some(std::process::id().try_into().unwrap())
    );

    let mut one_more = StdStream::connect(&path).unwrap();
    let wait = Duration::from_millis(50);
    assert!(tokio::time::timeout(wait, connections.next()).await.is_err());
    assert_eq!(
        io::Read::read(&mut one_more, &mut [0]).unwrap(),
        0,
        "it was closed"
    );

    roles.set(&[me.to_string()], &[]).unwrap();
    others.push(StdStream::connect(&path).unwrap());
    held.push(connections.next().await.unwrap().unwrap());
    roles.set(&["1".to_owned()], &[]).unwrap();
    if me != 0 {
        held.remove(0);
        others.push(StdStream::connect(&path).unwrap());
        held.push(connections.next().await.unwrap().unwrap());
    }
}
