//! Do lines arrive, and does the file stay bounded?

use serde_json::Value;

use super::*;

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn events_and_their_spans_reach_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let sink = LogSink::new(LevelFilter::INFO);
    sink.set_file(&path, 1 << 20).unwrap();
    let subscriber = tracing_subscriber::registry().with(HclogLayer::new(sink.clone()));
    tracing::subscriber::with_default(subscriber, || {
        let outer = tracing::info_span!("start", alloc = "a1", step = tracing::field::Empty);
        outer.record("step", 3);
        let _outer = outer.enter();
        let _inner = tracing::info_span!("disk", alloc = "a2").entered();
        let cause = io::Error::new(
            io::ErrorKind::NotFound,
            ServeLike(io::Error::other("no such file")),
        );
        tracing::warn!(
            error = &cause as &dyn std::error::Error,
            yes = true,
            big = u64::MAX,
            small = -5,
            half = 0.5,
            odd = f64::NAN,
            "disk {}",
            "missing"
        );
        tracing::debug!("below the level");
        tracing::info!(target: "h2::codec", "of a library");
        sink.set_level(LevelFilter::DEBUG);
        tracing::debug!("now wanted");
    });

    let lines = lines(&path);
    assert_eq!(lines.len(), 2, "{lines:?}");
    let line = &lines[0];
    assert_eq!(line["@level"], "warn");
    assert_eq!(line["@message"], "disk missing");
    assert_eq!(line["@module"], "go_plugin::sink::tests");
    assert_eq!(line["alloc"], "a2");
    assert_eq!(line["step"], 3);
    assert_eq!(line["yes"], "true");
    assert_eq!(line["big"], u64::MAX.to_string());
    assert_eq!(line["small"], -5);
    assert_eq!(line["half"], 0.5);
    assert_eq!(line["odd"], "NaN");
    assert_eq!(line["error"], "cannot open: no such file");
    assert_eq!(lines[1]["@message"], "now wanted");
}

#[derive(Debug, thiserror::Error)]
#[error("cannot open")]
struct ServeLike(#[source] io::Error);

#[test]
fn a_file_and_its_old_generation_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let max = 1000;
    let line = [b"x".repeat(99), b"\n".to_vec()].concat();
    // Two writers, as when two plugin processes overlap.
    let mut writers = [
        LogFile::open(&path, max).unwrap(),
        LogFile::open(&path, max).unwrap(),
    ];
    for turn in 0..207 {
        writers[turn % 2].write(&line).unwrap();
        for file in [&path, &old_generation(&path)] {
            assert!(fs::metadata(file).map_or(0, |meta| meta.len()) <= max);
        }
    }
    assert_eq!(
        fs::metadata(old_generation(&path)).unwrap().len(),
        max,
        "the old generation is a whole one"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    let mode = rustix::fs::stat(&path).unwrap().st_mode & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn a_file_that_cannot_be_opened_is_said_and_a_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let sink = LogSink::new(LevelFilter::INFO);
    assert!(sink.set_file(&dir.path().join("missing/log"), 1000).is_err());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("target"), &link).unwrap();
    assert!(sink.set_file(&link, 1000).is_err());
}
