//! Is every line one that hosts can parse?

use std::time::Duration;

use super::*;

fn at(seconds: u64, micros: u32) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds, micros * 1000)
}

/// The shape that hosts parse. Whoever changes it breaks the log of every host.
#[test]
fn golden_line() {
    let mut fields = Fields::default();
    fields.put("alloc", "4f1c");
    fields.put("elapsed_ms", 12_u64);
    fields.put("@level", "spoofed");
    let head = Head {
        level: Level::WARN,
        message: "start \"slow\"\nindeed",
        module: "driver::task",
    };
    let line = line(&head, at(1_700_000_000, 42), fields.0);
    assert_eq!(
        String::from_utf8(line).unwrap(),
        concat!(
            r#"{"@level":"warn","@message":"start \"slow\"\nindeed","@module":"driver::task","#,
            r#""@timestamp":"2023-11-14T22:13:20.000042Z","alloc":"4f1c","elapsed_ms":12,"level":"spoofed"}"#,
            "\n"
        )
    );
}

#[test]
fn timestamps() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (951_868_799, "2000-02-29T23:59:59.000000Z"),
        (951_868_800, "2000-03-01T00:00:00.000000Z"),
        (1_709_164_800, "2024-02-29T00:00:00.000000Z"),
        (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
    ] {
        assert_eq!(timestamp(at(seconds, 0)), expected);
    }
    assert_eq!(timestamp(at(0, 999_999)), "1970-01-01T00:00:00.999999Z");
    assert_eq!(
        timestamp(UNIX_EPOCH - Duration::from_secs(1)),
        "1970-01-01T00:00:00.000000Z"
    );
}

#[test]
fn lines_are_bounded() {
    let nasty = "\u{1}".repeat(100_000); // six bytes each in JSON
    let head = Head {
        level: Level::INFO,
        message: &nasty,
        module: "m",
    };
    let mut fields = Fields::default();
    for n in 0..1000 {
        fields.put(&format!("field{n}"), nasty[..TEXT_BYTES_MAX].to_owned());
    }
    let line = line(&head, at(0, 0), fields.0);
    assert!(line.len() <= LINE_BYTES_MAX, "{}", line.len());
    let value: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(value["fields_left_out"], "line too long");
    assert_eq!(value["@level"], "info");
}

#[test]
fn long_text_is_cut_at_a_character() {
    let cut = bounded(&"ü".repeat(TEXT_BYTES_MAX));
    assert!(cut.len() <= TEXT_BYTES_MAX + '…'.len_utf8());
    assert!(cut.ends_with("ü…"));
}
