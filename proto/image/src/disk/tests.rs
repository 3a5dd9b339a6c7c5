//! Which disks are taken, and with which sentence is everything else refused?

use std::io::Cursor;

use super::*;

/// Each case goes through here: the input, and the image or the error's text.
fn check(input: &[u8], expected: Result<Qcow2, &str>) {
    let seen = inspect_qcow2(&mut Cursor::new(input)).map_err(|error| error.to_string());
    assert_eq!(seen, expected.map_err(str::to_owned));
}

/// Writes fields, each at its offset, over a copy of the image.
fn with(image: &[u8], fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut image = image.to_vec();
    for (at, value) in fields {
        image[*at..at + value.len()].copy_from_slice(value);
    }
    image
}

fn be32(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

fn be64(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

/// 1 GiB in clusters of 64 KiB: the header, reference counts in clusters 1 and 2, the L1 table in cluster 3.
fn image(version: u32) -> Vec<u8> {
    let plain = vec![0; 3 * 65536 + 16];
    let image = with(
        &plain,
        &[
            (0, MAGIC),
            (4, &be32(version)),
            (20, &be32(16)),
            (24, &be64(1 << 30)),
            (36, &be32(2)),
            (40, &be64(3 * 65536)),
            (48, &be64(65536)),
            (56, &be32(1)),
        ],
    );
    if version == 2 {
        image
    } else {
        with(&image, &[(96, &be32(4)), (100, &be32(112))])
    }
}

fn plain(version: u32) -> Qcow2 {
    Qcow2 {
        version,
        virtual_bytes: 1 << 30,
        cluster_bytes: 65536,
        backing: None,
        data_file: None,
        dirty: false,
        corrupt: false,
        snapshots: 0,
    }
}

#[test]
fn raw_disks() {
    assert_eq!(
        inspect_raw(1 << 20).expect("a good length"),
        Raw { bytes: 1 << 20 }
    );
    assert_eq!(inspect_raw(0).expect_err("empty").to_string(), "is empty");
    let odd = inspect_raw(513).expect_err("no multiple").to_string();
    assert!(
        odd.starts_with("has 513 bytes, which is no multiple of a sector's 512: "),
        "{odd}"
    );
    assert!(
        odd.contains("truncate") && odd.contains("qemu-img convert"),
        "{odd}"
    );
}

#[test]
fn sound_images() {
    check(&image(2), Ok(plain(2)));
    check(&image(3), Ok(plain(3)));
    let flags = with(&image(3), &[(72, &be64(3)), (60, &be32(2)), (64, &be64(65536))]);
    check(
        &flags,
        Ok(Qcow2 {
            dirty: true,
            corrupt: true,
            snapshots: 2,
            ..plain(3)
        }),
    );
    let zstd = with(&image(3), &[(72, &be64(8)), (104, &[1])]);
    check(&zstd, Ok(plain(3)));
    let extended = with(&image(3), &[(72, &be64(16)), (36, &be32(4))]);
    let longer = [extended, vec![0; 16]].concat();
    check(&longer, Ok(plain(3)));
}

#[test]
fn references() {
    let name = |text: &str| Some(Reference(text.to_owned()));
    let backed = |name: &[u8]| {
        let size = be32(u32::try_from(name.len()).expect("short"));
        with(&image(3), &[(8, &be64(200)), (16, &size), (200, name)])
    };
    check(
        &backed(b"/etc/shadow"),
        Ok(Qcow2 {
            backing: name("/etc/shadow"),
            ..plain(3)
        }),
    );
    check(
        &backed(b"json:{}"),
        Ok(Qcow2 {
            backing: name("json:{}"),
            ..plain(3)
        }),
    );
    let odd = name("a\u{fffd}b\u{fffd}");
    check(
        &backed(b"a\nb\xff"),
        Ok(Qcow2 {
            backing: odd,
            ..plain(3)
        }),
    );
    check(&backed(b""), Ok(plain(3)));

    let outside = |named: &[(usize, &[u8])]| with(&image(3), &[&[(72, &be64(4)[..])], named].concat());
    check(
        &outside(&[]),
        Ok(Qcow2 {
            data_file: name(""),
            ..plain(3)
        }),
    );
    // Another extension of 5 bytes comes first.
    let named = outside(&[
        (112, &be32(0xe279_2aca)),
        (116, &be32(5)),
        (128, &be32(EXTENSION_DATA_FILE)),
        (132, &be32(8)),
        (136, b"/dev/sda"),
    ]);
    check(
        &named,
        Ok(Qcow2 {
            data_file: name("/dev/sda"),
            ..plain(3)
        }),
    );
    let long = outside(&[(112, &be32(7)), (116, &be32(u32::MAX))]);
    check(
        &long,
        Err("has a damaged qcow2 header: a header extension's length is 4294967295"),
    );
}

#[test]
fn what_is_no_qcow2() {
    check(b"", Err("is empty"));
    check(&[0; 512], Err("is no qcow2 image: it looks like zeros"));
    check(
        b"KDMV\x01\0\0\0",
        Err("is no qcow2 image: it looks like a VMDK image"),
    );
    check(
        MAGIC,
        Err("is a qcow2 image that was cut short: 8 bytes belong to it, 4 are there"),
    );
    let image = image(3);
    check(
        &image[..80],
        Err("is a qcow2 image that was cut short: 104 bytes belong to it, 80 are there"),
    );
    check(
        &image[..110],
        Err("is a qcow2 image that was cut short: 112 bytes belong to it, 110 are there"),
    );
    check(
        &image[..3 * 65536 + 15],
        Err("is a qcow2 image that was cut short: 196624 bytes belong to it, 196623 are there"),
    );
    let v1 = "is a qcow image of version 1; only 2 and 3 are known";
    check(&with(&image, &[(4, &be32(1))]), Err(v1));
    check(
        &with(&image, &[(72, &be64(1 << 63 | 1))]),
        Err("needs qcow2 features that are not known (bits 0x8000000000000000)"),
    );
    let encrypted = "is an encrypted qcow2 image, for which no key can be given";
    check(&with(&image, &[(32, &be32(2))]), Err(encrypted));
}

#[test]
fn wrong_fields() {
    type Case<'a> = (&'a [(usize, &'a [u8])], &'a str);
    let cases: &[Case<'_>] = &[
        (&[(20, &be32(8))], "the cluster size's exponent is 8"),
        (
            &[(20, &be32(u32::MAX))],
            "the cluster size's exponent is 4294967295",
        ),
        (
            &[(20, &be32(13)), (72, &be64(16))],
            "the cluster size's exponent is 13",
        ),
        (&[(24, &be64(0))], "the virtual size is 0"),
        (
            &[(24, &be64(u64::MAX))],
            "the virtual size is 18446744073709551615",
        ),
        (&[(100, &be32(96))], "the header's length is 96"),
        (&[(100, &be32(113))], "the header's length is 113"),
        (&[(100, &be32(1 << 20))], "the header's length is 1048576"),
        (&[(96, &be32(7))], "the reference count's width exponent is 7"),
        (&[(104, &[1])], "the compression type is 1"),
        (&[(72, &be64(8))], "the compression type is 0"),
        (&[(72, &be64(8)), (104, &[2])], "the compression type is 2"),
        (&[(36, &be32(1))], "the L1 table's length is 1"),
        (&[(36, &be32(u32::MAX))], "the L1 table's length is 4294967295"),
        (&[(40, &be64(0))], "the L1 table's offset is 0"),
        (&[(40, &be64(65537))], "the L1 table's offset is 65537"),
        (&[(40, &be64(1 << 40))], "the L1 table's offset is 1099511627776"),
        (&[(48, &be64(0))], "the reference count table's offset is 0"),
        (&[(56, &be32(0))], "the reference count table's length is 0"),
        (&[(60, &be32(u32::MAX))], "the number of snapshots is 4294967295"),
        (&[(60, &be32(1))], "the snapshot table's offset is 0"),
        (
            &[(8, &be64(8)), (16, &be32(8))],
            "the backing file name's offset is 8",
        ),
        (
            &[(8, &be64(u64::MAX)), (16, &be32(8))],
            "the backing file name's offset is 18446744073709551615",
        ),
        (
            &[(8, &be64(200)), (16, &be32(1024))],
            "the backing file name's length is 1024",
        ),
        (
            &[(8, &be64(65530)), (16, &be32(8))],
            "the backing file name's length is 8",
        ),
    ];
    for (fields, expected) in cases {
        let expected = format!("has a damaged qcow2 header: {expected}");
        check(&with(&image(3), fields), Err(&expected));
    }
}
