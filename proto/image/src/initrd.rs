//! Is this file something that Linux unpacks as an initrd, and how large is it unpacked at least?

use std::io::{self, Read, Seek};

use crate::bytes::{self, Fields};
use crate::look::{HEAD_BYTES, Look};

/// An initrd that Linux can unpack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initrd {
    /// How the archive is packed; where an uncompressed archive comes first (early microcode), that one.
    pub format: InitrdFormat,
    /// A lower bound of the unpacked size, from the headers alone: never less than the length of the file, which has
    /// to be in memory too.
    pub unpacked_bytes_min: u64,
}

/// How an initrd is packed: the formats that Linux knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitrdFormat {
    /// An uncompressed cpio archive in the "newc" format.
    Cpio,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// xz.
    Xz,
    /// LZ4 in its legacy format.
    Lz4,
    /// bzip2.
    Bzip2,
    /// The old "lzma alone" format.
    Lzma,
    /// LZO as written by `lzop`.
    Lzo,
}

/// Why a file cannot be used as an initrd.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// Reading failed; the source says why.
    #[error("cannot be read")]
    Read(#[from] io::Error),
    /// The file has no content.
    #[error("is empty")]
    Empty,
    /// The file ends within its first header.
    #[error("is no initrd: it has only {bytes} bytes")]
    TooShort {
        /// The length of the file.
        bytes: u64,
    },
    /// The file is a cpio archive in a format that Linux does not unpack.
    #[error("is a cpio archive that Linux does not read; make it with `cpio -H newc`")]
    CpioFormat,
    /// The file is LZ4 in the frame format.
    #[error("is in lz4's frame format, which Linux does not read; make it with `lz4 -l`")]
    Lz4Frame,
    /// The file is something else.
    #[error("is no initrd: it looks like {looks}")]
    NotInitrd {
        /// What it looks like.
        looks: Look,
    },
}

/// The header of a cpio member in the "newc" format: a magic and thirteen numbers of eight hexadecimal digits.
const CPIO_HEADER_BYTES: usize = 110;

/// Less than this is no compressed archive of anything.
const COMPRESSED_BYTES_MIN: u64 = 18;

/// A gzip trailer that claims more than this many times the file's length is not believed: the last four bytes of a
/// gzip file followed by something else are anything. Real archives pack 2 to 5 times.
const GZIP_RATIO_MAX: u64 = 64;

/// The index at the end of an xz file takes a few bytes per block; a larger one is not read.
const XZ_INDEX_BYTES_MAX: u64 = 64 * 1024;

/// Says what initrd this is; reads at most about 65 KiB.
///
/// # Errors
///
/// When the input is nothing that Linux unpacks, or cannot be read.
pub fn inspect(input: &mut (impl Read + Seek)) -> Result<Initrd, InitrdError> {
    let length = bytes::length(input)?;
    if length == 0 {
        return Err(InitrdError::Empty);
    }
    let head = bytes::read_at(input, 0, HEAD_BYTES)?;
    let format = match Look::at(&head) {
        Look::Cpio => {
            cpio(&head, length)?;
            InitrdFormat::Cpio
        }
        Look::Gzip => InitrdFormat::Gzip,
        Look::Zstd => InitrdFormat::Zstd,
        Look::Xz => InitrdFormat::Xz,
        Look::Lz4Legacy => InitrdFormat::Lz4,
        Look::Bzip2 => InitrdFormat::Bzip2,
        Look::Lzma => InitrdFormat::Lzma,
        Look::Lzo => InitrdFormat::Lzo,
        Look::Lz4Frame => return Err(InitrdError::Lz4Frame),
        looks => return Err(InitrdError::NotInitrd { looks }),
    };
    if length < COMPRESSED_BYTES_MIN {
        return Err(InitrdError::TooShort { bytes: length });
    }
    let claimed = match format {
        InitrdFormat::Gzip => gzip(input, length)?,
        InitrdFormat::Xz => xz(input, length)?,
        InitrdFormat::Zstd => zstd(&head),
        InitrdFormat::Lzma => lzma(&head),
        InitrdFormat::Cpio | InitrdFormat::Lz4 | InitrdFormat::Bzip2 | InitrdFormat::Lzo => None,
    };
    Ok(Initrd {
        format,
        unpacked_bytes_min: claimed.unwrap_or(0).max(length),
    })
}

/// Checks the first member's header.
fn cpio(head: &[u8], length: u64) -> Result<(), InitrdError> {
    if !(head.starts_with(b"070701") || head.starts_with(b"070702")) {
        return Err(InitrdError::CpioFormat);
    }
    let header = head
        .get(..CPIO_HEADER_BYTES)
        .ok_or(InitrdError::TooShort { bytes: length })?;
    if header.iter().all(u8::is_ascii_hexdigit) {
        Ok(())
    } else {
        Err(InitrdError::CpioFormat)
    }
}

/// The unpacked size modulo 2³² at the end of a gzip file, where it is believable.
fn gzip(input: &mut (impl Read + Seek), length: u64) -> io::Result<Option<u64>> {
    let trailer = bytes::read_at(input, length.saturating_sub(4), 4)?;
    let claimed = u64::from(Fields(&trailer).u32_le(0));
    Ok((claimed <= length.saturating_mul(GZIP_RATIO_MAX)).then_some(claimed))
}

/// The sum of the blocks in the index at the end of an xz file; `None` where anything stands after the stream.
fn xz(input: &mut (impl Read + Seek), length: u64) -> io::Result<Option<u64>> {
    const FOOTER_BYTES: u64 = 12;
    let Some(footer_at) = length.checked_sub(FOOTER_BYTES) else {
        return Ok(None);
    };
    let footer = bytes::read_at(input, footer_at, 12)?;
    if !footer.ends_with(b"YZ") {
        return Ok(None);
    }
    let index_bytes = (u64::from(Fields(&footer).u32_le(4)) + 1) * 4;
    if index_bytes > XZ_INDEX_BYTES_MAX {
        return Ok(None);
    }
    let Some(index_at) = footer_at.checked_sub(index_bytes) else {
        return Ok(None);
    };
    let index = bytes::read_at(input, index_at, usize::try_from(index_bytes).unwrap_or(0))?;
    Ok(xz_index(&index))
}

fn xz_index(index: &[u8]) -> Option<u64> {
    let (&indicator, mut rest) = index.split_first()?;
    if indicator != 0 {
        return None;
    }
    // Each record takes at least two bytes of `rest`, so a false count ends the loop by itself.
    let records = xz_number(&mut rest)?;
    let mut sum: u64 = 0;
    for _ in 0..records {
        let _unpadded_bytes = xz_number(&mut rest)?;
        sum = sum.checked_add(xz_number(&mut rest)?)?;
    }
    Some(sum)
}

/// A number of seven bits per byte, lowest first.
fn xz_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The content size in the header of the first zstd frame, where the packer knew it.
fn zstd(head: &[u8]) -> Option<u64> {
    let header = Fields(head);
    let descriptor = header.u8(4);
    let single_segment = descriptor & 0x20 != 0;
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let at = 5 + usize::from(!single_segment) + dictionary_bytes;
    match descriptor >> 6 {
        0 if single_segment => Some(u64::from(header.u8(at))),
        0 => None,
        1 => Some(u64::from(header.u16_le(at)) + 256),
        2 => Some(u64::from(header.u32_le(at))),
        _ => Some(header.u64_le(at)),
    }
}

/// The unpacked size in the header of an lzma file; all ones where the packer did not know it.
fn lzma(head: &[u8]) -> Option<u64> {
    Some(Fields(head).u64_le(5)).filter(|size| *size != u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Each case goes through here: the input, and the format with its bound or the error's text.
    fn check(input: &[u8], expected: Result<(InitrdFormat, u64), &str>) {
        let seen = inspect(&mut Cursor::new(input))
            .map(|initrd| (initrd.format, initrd.unpacked_bytes_min))
            .map_err(|error| error.to_string());
        assert_eq!(seen, expected.map_err(str::to_owned));
    }

    fn file(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn cpio_archives() {
        let archive = file(&[b"070701", &[b'0'; 104], b"TRAILER!!!\0", &[0; 379]]);
        check(&archive, Ok((InitrdFormat::Cpio, 500)));
        check(b"070701", Err("is no initrd: it has only 6 bytes"));
        let other = "is a cpio archive that Linux does not read; make it with `cpio -H newc`";
        check(&file(&[b"070707", &[b'0'; 200]]), Err(other));
        check(&file(&[b"070701", &[b'x'; 200]]), Err(other));
    }

    #[test]
    fn compressed_archives() {
        let body = [7; 100];
        check(
            &file(&[&[0x1f, 0x8b, 8, 0], &body, &3000u32.to_le_bytes()]),
            Ok((InitrdFormat::Gzip, 3000)),
        );
        check(
            &file(&[&[0x1f, 0x8b, 8, 0], &body, &[0xff; 4]]),
            Ok((InitrdFormat::Gzip, 108)),
        );
        check(
            &file(&[&[0x1f, 0x8b, 8, 0], &body, &[0; 4]]),
            Ok((InitrdFormat::Gzip, 108)),
        );
        let zstd = [0x28, 0xb5, 0x2f, 0xfd];
        // Window descriptor, four bytes of size.
        check(
            &file(&[&zstd, &[0x80, 0x50], &9999u32.to_le_bytes(), &body]),
            Ok((InitrdFormat::Zstd, 9999)),
        );
        // Single segment, two bytes of size; nothing said at all.
        check(
            &file(&[&zstd, &[0x60], &1000u16.to_le_bytes(), &body]),
            Ok((InitrdFormat::Zstd, 1256)),
        );
        check(
            &file(&[&zstd, &[0x00, 0x50], &body]),
            Ok((InitrdFormat::Zstd, 106)),
        );
        check(
            &file(&[&[0x02, 0x21, 0x4c, 0x18], &body]),
            Ok((InitrdFormat::Lz4, 104)),
        );
        check(&file(&[b"BZh9", &body]), Ok((InitrdFormat::Bzip2, 104)));
        check(&file(&[&[0x89], b"LZO\0", &body]), Ok((InitrdFormat::Lzo, 105)));
        let lzma = [0x5d, 0, 0, 0x80, 0];
        check(
            &file(&[&lzma, &5000u64.to_le_bytes(), &body]),
            Ok((InitrdFormat::Lzma, 5000)),
        );
        check(&file(&[&lzma, &[0xff; 8], &body]), Ok((InitrdFormat::Lzma, 113)));
    }

    #[test]
    fn xz_archives() {
        // Two blocks of 300 and 70,000 bytes; the index padded to 8 bytes and followed by its checksum.
        let index: &[u8] = &[0, 2, 100, 0xac, 0x02, 100, 0xf0, 0xa2, 0x04, 0, 0, 0, 9, 9, 9, 9];
        let size = 3u32.to_le_bytes();
        let footer: &[&[u8]] = &[&[1; 4], &size, &[0, 4], b"YZ"];
        let archive = file(&[b"\xfd7zXZ\0", &[7; 100], index, &footer.concat()]);
        check(&archive, Ok((InitrdFormat::Xz, 70_300)));
        check(&file(&[&archive, &[0; 4]]), Ok((InitrdFormat::Xz, 138)));
        // An index that claims more records than it has.
        let lying: &[u8] = &[0, 0xff, 0xff, 0xff, 0x7f, 1, 1, 1];
        let size = 1u32.to_le_bytes();
        let footer: &[&[u8]] = &[&[1; 4], &size, &[0, 4], b"YZ"];
        check(
            &file(&[b"\xfd7zXZ\0", &[7; 100], lying, &footer.concat()]),
            Ok((InitrdFormat::Xz, 126)),
        );
    }

    #[test]
    fn what_is_no_initrd() {
        check(b"", Err("is empty"));
        check(&[0x1f, 0x8b, 8], Err("is no initrd: it has only 3 bytes"));
        check(b"hello world, hello", Err("is no initrd: it looks like text"));
        check(&[0; 100], Err("is no initrd: it looks like zeros"));
        check(b"hsqs0000", Err("is no initrd: it looks like a squashfs image"));
        let frame = "is in lz4's frame format, which Linux does not read; make it with `lz4 -l`";
        check(&[0x04, 0x22, 0x4d, 0x18, 0, 0, 0, 0], Err(frame));
    }
}
