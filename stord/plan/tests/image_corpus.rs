//! Does any file become an image that would lead elsewhere, break, or cost more than it says?

use std::collections::BTreeMap;
use std::io::Cursor;

use stord_plan::image::{Format, check};
use stord_plan::size::Size;

const CLUSTER: usize = 65536;

// Offsets of fields, from QEMU's docs/interop/qcow2.rst.
const VERSION: usize = 4;
const BACKING_OFFSET: usize = 8;
const BACKING_LENGTH: usize = 16;
const CLUSTER_BITS: usize = 20;
const VIRTUAL_SIZE: usize = 24;
const CRYPT_METHOD: usize = 32;
const L1_ENTRIES: usize = 36;
const L1_OFFSET: usize = 40;
const REFCOUNT_OFFSET: usize = 48;
const REFCOUNT_CLUSTERS: usize = 56;
const SNAPSHOTS: usize = 60;
const SNAPSHOTS_OFFSET: usize = 64;
const FEATURES: usize = 72;
const REFCOUNT_ORDER: usize = 96;
const HEADER_LENGTH: usize = 100;
const COMPRESSION: usize = 104;
const EXTENSIONS: usize = 112;

/// A good image of version 3: 1 GiB, the tables in clusters 1 to 3.
fn good() -> Vec<u8> {
    let mut image = vec![0; 4 * CLUSTER];
    image[..4].copy_from_slice(b"QFI\xfb");
    for (at, value) in [
        (VERSION, 3_u32),
        (CLUSTER_BITS, 16),
        (L1_ENTRIES, 2),
        (REFCOUNT_CLUSTERS, 1),
        (REFCOUNT_ORDER, 4),
        (HEADER_LENGTH, 112),
    ] {
        put(&mut image, at, value);
    }
    put64(&mut image, VIRTUAL_SIZE, 1 << 30);
    put64(&mut image, L1_OFFSET, 3 * 65536);
    put64(&mut image, REFCOUNT_OFFSET, 65536);
    image
}

fn put(image: &mut [u8], at: usize, value: u32) {
    image[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(image: &mut [u8], at: usize, value: u64) {
    image[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// The good one with 32-bit fields changed.
fn with(fields: &[(usize, u32)]) -> Vec<u8> {
    let mut image = good();
    fields.iter().for_each(|(at, value)| put(&mut image, *at, *value));
    image
}

/// With one of 64 bits.
fn with64(at: usize, value: u64) -> Vec<u8> {
    let mut image = good();
    put64(&mut image, at, value);
    image
}

/// With a backing file of this name.
fn backing(name: &[u8]) -> Vec<u8> {
    let mut image = good();
    put64(&mut image, BACKING_OFFSET, 512);
    put(
        &mut image,
        BACKING_LENGTH,
        u32::try_from(name.len()).expect("short"),
    );
    image[512..512 + name.len()].copy_from_slice(name);
    image
}

/// With a data file of this name, or none.
fn data_file(name: &[u8]) -> Vec<u8> {
    let mut image = with64(FEATURES, 1 << 2);
    if !name.is_empty() {
        put(&mut image, EXTENSIONS, 0x4441_5441);
        put(
            &mut image,
            EXTENSIONS + 4,
            u32::try_from(name.len()).expect("short"),
        );
        image[EXTENSIONS + 8..EXTENSIONS + 8 + name.len()].copy_from_slice(name);
    }
    image
}

fn version2(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut image = with(&[(VERSION, 2), (REFCOUNT_ORDER, 0), (HEADER_LENGTH, 0)]);
    change(&mut image);
    image
}

fn cut(length: usize) -> Vec<u8> {
    good()[..length].to_vec()
}

fn most() -> Size {
    "100GiB".parse().expect("a good size")
}

/// What is said of an image, or the size of its disk.
fn said(format: Format, bytes: &[u8]) -> Result<Size, String> {
    check(format, &mut Cursor::new(bytes), most()).map_err(|error| error.to_string())
}

#[test]
fn a_good_image_is_taken() {
    let size = "1GiB".parse::<Size>().expect("a good size");
    assert_eq!(said(Format::Qcow2, &good()), Ok(size));
    assert_eq!(said(Format::Qcow2, &version2(|_| {})), Ok(size));
    // A raw disk is any bytes, also those of another format.
    assert_eq!(said(Format::Raw, &vec![0; 1 << 20]).map(Size::bytes), Ok(1 << 20));
    let mut looks = good();
    looks.resize(1 << 20, 0);
    assert_eq!(said(Format::Raw, &looks).map(Size::bytes), Ok(1 << 20));
}

#[test]
fn image_corpus() {
    let elsewhere = "refers to the backing file";
    let other = "refers to the data file";
    let short = "was cut short";
    let damaged = "damaged qcow2 header";
    let corpus: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "is empty"),
        ("a text", b"#!/bin/sh\n".to_vec(), "is no qcow2 image"),
        (
            "an ELF program",
            b"\x7fELF\x02\x01\x01".repeat(100),
            "is no qcow2 image",
        ),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), "is no qcow2 image"),
        ("a zip file", b"PK\x03\x04".to_vec(), "is no qcow2 image"),
        ("VMDK", b"KDMV\x01\0\0\0".to_vec(), "is no qcow2 image"),
        (
            "VMDK's descriptor",
            b"# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0\n".to_vec(),
            "is no qcow2 image",
        ),
        ("VHDX", b"vhdxfile".to_vec(), "is no qcow2 image"),
        ("QED", b"QED\0".repeat(16), "is no qcow2 image"),
        ("the magic alone", cut(4), short),
        ("magic and version", cut(8), short),
        ("half a header", cut(71), short),
        ("a header of version 2 with version 3", cut(72), short),
        ("a header alone", cut(112), damaged),
        ("without its L1 table", cut(3 * CLUSTER), short),
        ("qcow, the first", with(&[(VERSION, 1)]), "version 1"),
        ("a version that is to come", with(&[(VERSION, 4)]), "version 4"),
        (
            "a host's file as backing file",
            backing(b"/etc/shadow"),
            elsewhere,
        ),
        ("a relative one", backing(b"../../etc/shadow"), elsewhere),
        ("itself", backing(b"self.qcow2"), elsewhere),
        ("a block device", backing(b"/dev/vda"), elsewhere),
        ("a network block device", backing(b"nbd://10.0.0.1/x"), elsewhere),
        (
            "a URL",
            backing(b"https://169.254.169.254/latest/meta-data"),
            elsewhere,
        ),
        (
            "JSON",
            backing(b"json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}"),
            elsewhere,
        ),
        ("a fuse", backing(b"fat:rw:/root"), elsewhere),
        (
            "escapes of a terminal",
            backing(b"\x1b]0;owned\x07\x1b[2J"),
            elsewhere,
        ),
        ("no UTF-8", backing(&[0xff; 40]), elsewhere),
        (
            "in version 2",
            version2(|image| {
                put64(image, BACKING_OFFSET, 512);
                put(image, BACKING_LENGTH, 3);
                image[512..515].copy_from_slice(b"/a\n");
            }),
            elsewhere,
        ),
        (
            "a name in the header",
            with(&[(BACKING_OFFSET + 4, 8), (BACKING_LENGTH, 4)]),
            damaged,
        ),
        (
            "a name behind the first cluster",
            with(&[(BACKING_OFFSET + 4, 70_000), (BACKING_LENGTH, 4)]),
            damaged,
        ),
        (
            "a name without end",
            with(&[(BACKING_OFFSET + 4, 512), (BACKING_LENGTH, u32::MAX)]),
            damaged,
        ),
        ("a data file", data_file(b"/dev/sda"), other),
        ("a data file without a name", data_file(b""), other),
        (
            "an extension without end",
            {
                let mut image = with64(FEATURES, 1 << 2);
                put(&mut image, EXTENSIONS, 7);
                put(&mut image, EXTENSIONS + 4, u32::MAX);
                image
            },
            damaged,
        ),
        ("dirty", with64(FEATURES, 1), "was not closed"),
        ("corrupt", with64(FEATURES, 2), "is marked as corrupt"),
        ("dirty and corrupt", with64(FEATURES, 3), "is marked as corrupt"),
        (
            "a feature that is to come",
            with64(FEATURES, 1 << 5),
            "features that are not known",
        ),
        (
            "all features",
            with64(FEATURES, u64::MAX),
            "features that are not known",
        ),
        ("AES", with(&[(CRYPT_METHOD, 1)]), "encrypted"),
        ("LUKS", with(&[(CRYPT_METHOD, 2)]), "encrypted"),
        ("no disk", with64(VIRTUAL_SIZE, 0), damaged),
        ("a disk of 512 bytes", with64(VIRTUAL_SIZE, 512), "is nothing"),
        ("a bomb of 101 GiB", with64(VIRTUAL_SIZE, 101 << 30), damaged),
        (
            "the same with its table",
            {
                let mut image = with(&[(L1_ENTRIES, 202)]);
                put64(&mut image, VIRTUAL_SIZE, 101 << 30);
                image
            },
            "images may have 100GiB at most",
        ),
        ("a bomb of 16 EiB", with64(VIRTUAL_SIZE, u64::MAX), damaged),
        ("clusters of 1 byte", with(&[(CLUSTER_BITS, 0)]), damaged),
        ("clusters of 4 GiB", with(&[(CLUSTER_BITS, 32)]), damaged),
        (
            "clusters that overflow",
            with(&[(CLUSTER_BITS, u32::MAX)]),
            damaged,
        ),
        ("too small an L1 table", with(&[(L1_ENTRIES, 1)]), damaged),
        (
            "an L1 table without end",
            with(&[(L1_ENTRIES, u32::MAX)]),
            damaged,
        ),
        ("an L1 table in the header", with64(L1_OFFSET, 0), damaged),
        (
            "an L1 table beside a cluster",
            with64(L1_OFFSET, 3 * 65536 + 512),
            damaged,
        ),
        ("an L1 table outside", with64(L1_OFFSET, 1 << 40), damaged),
        ("an L1 table that overflows", with64(L1_OFFSET, !0xffff), damaged),
        (
            "reference counts in the header",
            with64(REFCOUNT_OFFSET, 0),
            damaged,
        ),
        (
            "reference counts outside",
            with64(REFCOUNT_OFFSET, 1 << 50),
            damaged,
        ),
        ("no reference counts", with(&[(REFCOUNT_CLUSTERS, 0)]), damaged),
        (
            "reference counts without end",
            with(&[(REFCOUNT_CLUSTERS, u32::MAX)]),
            damaged,
        ),
        (
            "reference counts of 128 bits",
            with(&[(REFCOUNT_ORDER, 7)]),
            damaged,
        ),
        (
            "a snapshot inside",
            with(&[(SNAPSHOTS, 1), (SNAPSHOTS_OFFSET + 4, 65536)]),
            "has 1 snapshots inside",
        ),
        ("snapshots without end", with(&[(SNAPSHOTS, u32::MAX)]), damaged),
        ("snapshots nowhere", with(&[(SNAPSHOTS, 1)]), damaged),
        ("a header of 8 bytes", with(&[(HEADER_LENGTH, 8)]), damaged),
        (
            "a header larger than a cluster",
            with(&[(HEADER_LENGTH, 1 << 20)]),
            damaged,
        ),
        (
            "a compression that is to come",
            {
                let mut image = with64(FEATURES, 1 << 3);
                image[COMPRESSION] = 9;
                image
            },
            damaged,
        ),
        (
            "a compression that isn't said",
            {
                let mut image = good();
                image[COMPRESSION] = 1;
                image
            },
            damaged,
        ),
    ];
    assert!(corpus.len() >= 40, "{}", corpus.len());
    let mut seen = BTreeMap::new();
    for (what, bytes, why) in &corpus {
        let sentence = said(Format::Qcow2, bytes).expect_err(what);
        assert!(sentence.contains(why), "{what}: {sentence}");
        // One line that a terminal can show.
        assert!(
            !sentence.chars().any(char::is_control) && sentence.len() < 2000,
            "{what}: {sentence:?}"
        );
        assert_eq!(seen.insert(bytes.clone(), *what), None, "{what} is there twice");
    }
    for (what, length) in [
        ("empty", 0),
        ("half a sector", 256),
        ("a sector and a half", 768),
        ("too small", 512),
    ] {
        assert!(said(Format::Raw, &vec![0; length]).is_err(), "raw: {what}");
    }
    println!("{} hostile images refused", corpus.len());
}
