//! Does the tree keep its own rules: arrows between crates, paths in documents, what a file may know?

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which crate of ours may depend on which. Everything in `testing/` may depend on everything.
const ARROWS: &[(&str, &[&str])] = &[
    ("nomad-proto", &[]),
    ("steppe-image", &[]),
    ("steppe-proto", &[]),
    ("steppe-daemon", &[]),
    ("steppe-config", &[]),
    ("netd-plan", &["steppe-config"]),
    ("stord-plan", &["steppe-config", "steppe-image"]),
    (
        "netd",
        &["netd-plan", "steppe-proto", "steppe-daemon", "steppe-points"],
    ),
    ("go-plugin", &[]),
    ("steppe-vm", &[]),
    ("steppe-qemu", &["steppe-vm"]),
    ("steppe-points", &[]),
    ("microvm-shim", &["steppe-vm", "steppe-qemu", "steppe-points"]),
    (
        "nomad-driver-microvm",
        &[
            "steppe-vm",
            "steppe-qemu",
            "go-plugin",
            "nomad-proto",
            "steppe-image",
            "steppe-points",
            "steppe-proto",
            "steppe-daemon",
        ],
    ),
];

/// The same for tests alone.
const DEV_ARROWS: &[(&str, &[&str])] = &[("nomad-proto", &["go-plugin"])];

/// Crates that decide and never do, and what would let them do.
const PURE: &[&str] = &[
    "steppe-config",
    "steppe-image",
    "steppe-vm",
    "steppe-qemu",
    "netd-plan",
    "stord-plan",
];
const IMPURE: &[&str] = &[
    "tokio",
    "tonic",
    "rustix",
    "libc",
    "nix",
    "hyper",
    "mio",
    "tracing",
    "kvm-ioctls",
];

/// Files that may know both Nomad and QEMU, each with the reason.
const NOMAD_AND_QEMU: &[(&str, &str)] = &[];

/// Folders of the tree, by which a path in a document is known.
const FOLDERS: &[&str] = &[
    "proto", "driver", "netd", "stord", "jobs", "testing", "dist", ".ci",
];
const DOCUMENTS: &[&str] = &["README.md", "ARCHITECTURE.md", "CHANGELOG.md"];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("testing/checks is two levels below the root")
        .to_owned()
}

/// The paths of all Rust files of ours, relative to the root, in order.
fn rust_files() -> Vec<String> {
    let mut files = BTreeSet::new();
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let entry = entry.expect("a readable directory");
            let path = entry.path();
            let kind = entry.file_type().expect("a file type");
            if kind.is_dir() && entry.file_name() != "target" {
                folders.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root()).expect("it was found beneath the root");
                files.insert(relative.to_str().expect("our names are ASCII").to_owned());
            }
        }
    }
    assert!(
        files.contains("testing/checks/tests/tidy.rs"),
        "the search does not even find this file"
    );
    files.into_iter().collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn holds(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn allowed(table: &[(&str, &[&str])], from: &str, to: &str) -> bool {
    table
        .iter()
        .any(|(name, targets)| *name == from && targets.contains(&to))
}

/// What is wrong with the dependencies that `cargo metadata` tells of.
fn arrow_faults(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"]
        .as_array()
        .expect("cargo metadata lists packages");
    let name_of = |value: &Value| value["name"].as_str().expect("it has a name").to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name_of).collect();
    let mut faults = Vec::new();
    for package in packages {
        let from = name_of(package);
        let manifest = package["manifest_path"]
            .as_str()
            .expect("a package has a manifest");
        if manifest.contains("/testing/") {
            continue;
        }
        if !ARROWS.iter().any(|(name, _)| *name == from) {
            faults.push(format!("{from} is in no table of arrows"));
        }
        for dependency in package["dependencies"]
            .as_array()
            .expect("a package lists dependencies")
        {
            let to = name_of(dependency);
            let development = dependency["kind"] == "dev";
            let listed = allowed(ARROWS, &from, &to) || (development && allowed(DEV_ARROWS, &from, &to));
            if ours.contains(&to) && !listed {
                faults.push(format!("{from} may not depend on {to}"));
            }
            if PURE.contains(&from.as_str()) && !development && IMPURE.contains(&to.as_str()) {
                faults.push(format!("{from} is pure and may not depend on {to}"));
            }
        }
    }
    faults
}

#[test]
fn tidy_crate_arrows() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    holds(&arrow_faults(
        &serde_json::from_slice(&output.stdout).expect("JSON"),
    ));
}

#[test]
fn arrow_faults_are_found() {
    let package = |name: &str, dependencies: &[(&str, Value)]| {
        let dependencies: Vec<Value> = dependencies
            .iter()
            .map(|(name, kind)| serde_json::json!({"name": name, "kind": kind}))
            .collect();
        serde_json::json!({"name": name, "manifest_path": "/x/driver/Cargo.toml", "dependencies": dependencies})
    };
    let packages = [
        package(
            "steppe-vm",
            &[
                ("tokio", Value::Null),
                ("serde", Value::Null),
                ("libc", "dev".into()),
            ],
        ),
        package("steppe-qemu", &[("steppe-vm", Value::Null)]),
        package(
            "microvm-shim",
            &[("nomad-proto", "build".into()), ("tokio", Value::Null)],
        ),
        package(
            "nomad-proto",
            &[("go-plugin", "dev".into()), ("steppe-vm", "dev".into())],
        ),
        package("go-plugin", &[]),
        package("unknown", &[]),
    ];
    assert_eq!(
        arrow_faults(&serde_json::json!({ "packages": packages })),
        [
            "steppe-vm is pure and may not depend on tokio",
            "microvm-shim may not depend on nomad-proto",
            "nomad-proto may not depend on steppe-vm",
            "unknown is in no table of arrows",
        ]
    );
}

/// The words in backticks that look like paths of this tree; code blocks are left alone.
fn paths_in(document: &str) -> Vec<&str> {
    let mut paths = Vec::new();
    let mut in_block = false;
    for line in document.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            // Every second piece stands between two backticks; the last piece does not.
            let pieces: Vec<&str> = line.split('`').collect();
            paths.extend(pieces.chunks_exact(2).filter_map(|pair| path_in(pair[1])));
        }
    }
    paths
}

fn path_in(code: &str) -> Option<&str> {
    let pattern = |c: char| c.is_whitespace() || "<>*?${}…|\"".contains(c);
    if code.contains(pattern) {
        return None;
    }
    let path = code
        .strip_prefix("./")
        .unwrap_or(code)
        .split([':', '#'])
        .next()?
        .trim_end_matches('/');
    let first = path.split('/').next()?;
    let at_top = [".md", ".toml", ".lock"].iter().any(|end| path.ends_with(end)) || path == "Makefile";
    let inside = path.contains('/') || code.ends_with('/');
    ((FOLDERS.contains(&first) && inside) || (at_top && !path.contains('/'))).then_some(path)
}

#[test]
fn tidy_documents_paths() {
    let mut faults = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        let missing = paths_in(&text)
            .into_iter()
            .filter(|path| !root().join(path).exists());
        faults.extend(missing.map(|path| format!("{document} names {path}, which does not exist")));
    }
    holds(&faults);
}

#[test]
fn paths_in_documents_are_found() {
    let text = "See `driver/vm/src/lib.rs:12`, `jobs/`, `jobs`, `Makefile` and `README.md`.\n```\n`driver/no`\n```\n\
        But `driver/*/src`, `make demo`, `state_dir/log`, `/run/x`, `testing/<name>` and `target/x` are none.";
    assert_eq!(
        paths_in(text),
        ["driver/vm/src/lib.rs", "jobs", "Makefile", "README.md"]
    );
}

/// Whether a file's code, comments left out, knows both sides.
fn knows_both(text: &str) -> bool {
    let code = || text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code().any(|line| line.contains("nomad_proto")) && code().any(|line| line.contains("steppe_qemu"))
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

#[test]
fn tidy_no_file_knows_nomad_and_qemu() {
    let mut faults = Vec::new();
    for path in rust_files()
        .iter()
        .filter(|path| path.starts_with("driver/") && !is_test(path))
    {
        let excused = NOMAD_AND_QEMU.iter().any(|(file, _)| file == path);
        match (knows_both(&read(path)), excused) {
            (true, false) => faults.push(format!("{path} knows both Nomad and QEMU")),
            (false, true) => faults.push(format!("{path} is excused, but needs no excuse")),
            _ => {}
        }
    }
    holds(&faults);
}

#[test]
fn knowing_both_is_found() {
    assert!(knows_both("use nomad_proto::a;\nuse steppe_qemu::b;"));
    assert!(!knows_both("use nomad_proto::a;\n// as steppe_qemu::b does"));
}

#[test]
fn tidy_first_line() {
    let mut faults = Vec::new();
    for path in rust_files() {
        let text = read(&path);
        let first = text.lines().next().unwrap_or_default();
        let generated =
            path.contains("/generated/") || text.lines().take(3).any(|l| l.contains("@generated"));
        if !generated && !first.starts_with("//! ") {
            faults.push(format!(
                "{path} does not begin with the question that it answers (`//! …`)"
            ));
        }
        if first == "//! Placeholder." {
            faults.push(format!("{path} is a placeholder"));
        }
    }
    holds(&faults);
}
