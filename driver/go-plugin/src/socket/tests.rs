//! Do processes keep to their own directories, and clear up after dead ones only?

use std::os::unix::net::UnixListener as StdListener;

use super::*;

fn names(base: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(base)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn each_has_its_own_and_removes_it() {
    let base = tempfile::tempdir().unwrap();
    let (first, _listener) = listen_in(base.path()).unwrap();
    let (second, _listener) = listen_in(base.path()).unwrap();
    assert_ne!(first.path(), second.path());
    drop(first);
    assert_eq!(names(base.path()).len(), 1);
    drop(second);
    assert!(names(base.path()).is_empty());
}

#[tokio::test]
async fn leftovers_of_the_dead_go_and_nothing_else() {
    let base = tempfile::tempdir().unwrap();
    let (held, _listener) = listen_in(base.path()).unwrap();
    // What a killed process leaves: a directory with a socket that nobody holds.
    let dead = base.path().join("go-plugin-1-0");
    std::fs::create_dir(&dead).unwrap();
    drop(StdListener::bind(dead.join(SOCKET_NAME)).unwrap());
    // A directory with something that isn't ours keeps it, a file isn't looked at, a link isn't followed.
    let other = base.path().join("go-plugin-other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("file"), "").unwrap();
    std::fs::write(base.path().join("go-plugin-file"), "").unwrap();
    let target = base.path().join("target");
    std::fs::create_dir(&target).unwrap();
    std::os::unix::fs::symlink(&target, base.path().join("go-plugin-link")).unwrap();

    remove_stale(base.path());
    assert!(held.path().exists());
    let held_dir = held.dir.path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut expected = vec![
        held_dir,
        "go-plugin-file".into(),
        "go-plugin-link".into(),
        "go-plugin-other".into(),
        "target".into(),
    ];
    expected.sort();
    assert_eq!(names(base.path()), expected);
    assert!(other.join("file").exists());
}

#[tokio::test]
async fn a_path_too_long_is_said_and_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    let long = base.path().join("x".repeat(100));
    std::fs::create_dir(&long).unwrap();
    let error = listen_in(&long).unwrap_err();
    assert!(matches!(error, SocketError::PathTooLong { .. }), "{error}");
    assert!(error.to_string().contains("PLUGIN_UNIX_SOCKET_DIR"));
    assert!(names(&long).is_empty());
}

#[tokio::test]
async fn a_missing_directory_is_said() {
    let base = tempfile::tempdir().unwrap();
    let error = listen_in(&base.path().join("missing")).unwrap_err();
    assert!(matches!(error, SocketError::Directory { .. }), "{error}");
}

#[test]
fn many_at_once_never_lose_their_directory() {
    let base = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    remove_stale(base.path());
                    let dir = LockedDir::create(base.path()).unwrap();
                    assert!(dir.path.is_dir());
                    dir.remove();
                }
            });
        }
    });
    assert!(names(base.path()).is_empty());
}
