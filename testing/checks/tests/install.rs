//! Does `make uninstall` take away exactly what `make install` put there?

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("testing/checks is two levels below the root")
}

/// Runs make with somewhere else for the host's root, and programs that are none.
fn make(target: &str, directory: &Path) {
    let assign = |name: &str, path: PathBuf| format!("{name}={}", path.display());
    let output = Command::new("make")
        .arg(target)
        .arg(assign("BUILT", directory.join("built")))
        .arg(assign("DESTDIR", directory.join("root")))
        .current_dir(root())
        .output()
        .expect("make runs");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// All files beneath a directory, with their modes.
fn files(directory: &Path) -> BTreeSet<(String, u32)> {
    let mut found = BTreeSet::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).expect("a readable directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let mode = path.metadata().expect("it is there").permissions().mode() & 0o777;
            let name = path.strip_prefix(directory).expect("it was found there");
            found.insert((name.to_str().expect("our names are ASCII").to_owned(), mode));
        }
    }
    found
}

#[test]
fn install_and_uninstall() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let built = directory.join("built");
    fs::create_dir_all(&built).expect("a directory");
    for program in ["nomad-driver-microvm", "microvm-shim", "netd"] {
        fs::write(built.join(program), "").expect("a file");
        fs::set_permissions(built.join(program), PermissionsExt::from_mode(0o755)).expect("its mode");
    }
    let there = directory.join("root");

    make("install", directory);
    let wanted = [
        ("etc/NetworkManager/conf.d/netd.conf", 0o644),
        ("etc/netd/netd.toml", 0o644),
        ("opt/nomad/data/plugins/microvm-shim", 0o755),
        ("opt/nomad/data/plugins/nomad-driver-microvm", 0o755),
        ("usr/local/lib/systemd/network/05-netd.link", 0o644),
        ("usr/local/lib/systemd/network/05-netd.network", 0o644),
        ("usr/local/lib/systemd/system/netd.service", 0o644),
        ("usr/local/sbin/netd", 0o755),
        ("usr/local/share/doc/steppe/client.hcl", 0o644),
        ("usr/local/share/doc/steppe/netd.toml", 0o644),
    ];
    let wanted: BTreeSet<_> = wanted
        .map(|(name, mode)| (name.to_owned(), mode))
        .into_iter()
        .collect();
    assert_eq!(files(&there), wanted);
    make("uninstall", directory);
    assert_eq!(files(&there), BTreeSet::new());

    // What somebody wrote is neither overwritten nor removed.
    let own = there.join("etc/netd/netd.toml");
    fs::create_dir_all(own.parent().expect("it has one")).expect("a directory");
    fs::write(&own, "[network.own]\nkind = \"nat\"\n").expect("a file");
    make("install", directory);
    make("uninstall", directory);
    let left = files(&there);
    assert_eq!(
        left.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["etc/netd/netd.toml"]
    );
    assert!(fs::read_to_string(own).expect("it is there").contains("own"));
}
