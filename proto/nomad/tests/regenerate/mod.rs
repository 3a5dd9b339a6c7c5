//! Is the committed code what today's generator makes of the .proto files?
//!
//! Shared by every crate that holds generated code (the others reach it by `#[path]`). Generated code is committed, so
//! that a build needs no generator and a reader finds the types; this test keeps the two from drifting apart. With
//! `UPDATE=1` in the environment it writes instead of comparing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Generates code from each `<crate_dir>/proto/*.proto` and compares it with `<crate_dir>/src/generated`.
pub(crate) fn check(crate_dir: &Path) {
    let protos = crate_dir.join("proto");
    let committed = crate_dir.join("src/generated");
    let scratch = tempfile::tempdir().expect("a temporary directory can be made");

    let mut files: Vec<_> = fs::read_dir(&protos)
        .expect("the crate has a directory `proto`")
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    files.sort();
    let descriptors = protox::Compiler::new([&protos])
        .and_then(|mut compiler| {
            compiler
                .include_source_info(true)
                .include_imports(true)
                .open_files(&files)?;
            Ok(compiler.file_descriptor_set())
        })
        .unwrap_or_else(|error| panic!("{error:?}"));
    tonic_prost_build::configure()
        .build_transport(false)
        .include_file("mod.rs")
        .out_dir(scratch.path())
        .compile_fds(descriptors)
        .expect("code can be generated");

    if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
        if committed.exists() {
            fs::remove_dir_all(&committed).expect("the old code can be removed");
        }
        fs::create_dir_all(&committed).expect("the directory can be made");
        for (name, text) in read(scratch.path()) {
            fs::write(committed.join(name), text).expect("the file can be written");
        }
        return;
    }
    let (fresh, committed) = (read(scratch.path()), read(&committed));
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&fresh),
        names(&committed),
        "files differ; run this test once with UPDATE=1"
    );
    for (name, text) in &fresh {
        assert!(
            committed[name] == *text,
            "src/generated/{name} differs; run this test once with UPDATE=1"
        );
    }
}

fn read(dir: &Path) -> BTreeMap<String, String> {
    fs::read_dir(dir)
        .expect("the directory can be listed")
        .map(|entry| {
            let entry = entry.expect("it can be listed");
            let name = entry
                .file_name()
                .into_string()
                .expect("generated names are UTF-8");
            (
                name,
                fs::read_to_string(entry.path()).expect("generated files are text"),
            )
        })
        .collect()
}
