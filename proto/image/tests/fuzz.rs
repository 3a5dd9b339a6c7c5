//! Does any input at all make an inspection panic, or read without end?

use std::io::{Cursor, Read, Seek, SeekFrom};

use proptest::prelude::*;
use steppe_image::{disk, initrd, kernel};

/// More than any inspection says that it reads.
const READ_BYTES_MAX: u64 = 512 * 1024;

/// An input that counts what is read.
struct Counted {
    inner: Cursor<Vec<u8>>,
    read_bytes: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read_bytes += read as u64;
        Ok(read)
    }
}

impl Seek for Counted {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.inner.seek(to)
    }
}

/// Each case goes through here: every inspection, an answer from each, and a text that is one bounded line.
fn check(input: &[u8]) {
    let counted = || Counted {
        inner: Cursor::new(input.to_vec()),
        read_bytes: 0,
    };
    let (mut a, mut b, mut c) = (counted(), counted(), counted());
    let texts = [
        kernel::inspect(&mut a)
            .map(|k| format!("{k:?}"))
            .unwrap_or_else(|e| e.to_string()),
        initrd::inspect(&mut b)
            .map(|i| format!("{i:?}"))
            .unwrap_or_else(|e| e.to_string()),
        disk::inspect_qcow2(&mut c)
            .map(|d| d.backing.map(|name| name.to_string()).unwrap_or_default())
            .unwrap_or_else(|e| e.to_string()),
    ];
    for text in texts {
        assert!(!text.contains(char::is_control) && text.len() < 4096, "{text:?}");
    }
    for counted in [a, b, c] {
        assert!(
            counted.read_bytes <= READ_BYTES_MAX,
            "read {} bytes",
            counted.read_bytes
        );
    }
    if let Ok(raw) = disk::inspect_raw(input.len() as u64) {
        assert_eq!(raw.bytes, input.len() as u64);
    }
}

/// Beginnings that lead each inspection past its first question: magic and offset.
const SEEDS: &[&[(usize, &[u8])]] = &[
    &[],
    &[
        (0, b"\x7fELF\x02\x01\x01"),
        (16, &[2, 0, 62, 0]),
        (32, &[64]),
        (54, &[56, 0, 3, 0]),
        (64, &[1]),
        (104, &[0, 16]),
        (120, &[4]),
        (128, &[0, 3]),
        (152, &[200]),
        (176, &[4]),
        (184, &[0, 4]),
    ],
    &[
        (0x1f1, &[1]),
        (0x1fe, &[0x55, 0xaa]),
        (0x202, b"HdrS\0\0\x0f\x02"),
        (0x211, &[1]),
        (0x236, &[1]),
        (0x260, &[0, 0, 0x10]),
    ],
    &[
        (0, b"QFI\xfb\0\0\0\x03"),
        (20, &[0, 0, 0, 9]),
        (30, &[1, 0]),
        (36, &[0, 0, 0, 1]),
        (46, &[2, 0]),
        (54, &[2, 0]),
        (56, &[0, 0, 0, 1]),
        (99, &[4]),
        (100, &[0, 0, 0, 104]),
    ],
    &[(0, b"QFI\xfb\0\0\0\x02"), (20, &[0, 0, 0, 16]), (30, &[1, 0])],
    &[(0, b"\xfd7zXZ\0"), (2038, b"\0\0\0\0\x02\0\0\0\0\x04YZ")],
    &[(0, &[0x28, 0xb5, 0x2f, 0xfd])],
    &[(0, &[0x1f, 0x8b])],
    &[(0, &[0x5d, 0, 0])],
    &[(0, b"070701")],
];

fn seeded(seed: &[(usize, &[u8])], length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (at, value) in seed {
        bytes[*at..at + value.len()].copy_from_slice(value);
    }
    bytes
}

/// More than proptest's default of 256; `make soak` asks for more still, by PROPTEST_CASES.
const CASES: u32 = 2000;

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.max(CASES),
        failure_persistence: None,
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_bytes(input in proptest::collection::vec(any::<u8>(), 0..3000)) {
        check(&input);
    }

    #[test]
    fn mutated_headers(
        seed in 0..SEEDS.len(),
        // Most header fields stand in the first bytes.
        changes in proptest::collection::vec((prop_oneof![0usize..256, 0usize..2050], any::<u8>()), 0..12),
        length in prop_oneof![Just(2050usize), 0usize..2050],
    ) {
        let mut input = seeded(SEEDS[seed], 2050);
        for (at, value) in changes {
            if let Some(byte) = input.get_mut(at) {
                *byte = value;
            }
        }
        input.truncate(length);
        check(&input);
    }

    #[test]
    fn random_tails(seed in 0..SEEDS.len(), tail in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut input = seeded(SEEDS[seed], 2050);
        let at = input.len() - tail.len();
        input[at..].copy_from_slice(&tail);
        check(&input);
        // And the same behind an intact magic.
        let mut input = seeded(SEEDS[seed], 2050);
        let end = (16 + tail.len()).min(input.len());
        input[16..end].copy_from_slice(&tail[..end - 16]);
        check(&input);
    }
}
