//! How are bounded pieces of an image read?

use std::io::{self, Read, Seek, SeekFrom};

/// The length of the input in bytes.
pub(crate) fn length(input: &mut (impl Read + Seek)) -> io::Result<u64> {
    input.seek(SeekFrom::End(0))
}

/// Reads at most `bytes_max` bytes from `offset`; fewer when the input ends before.
pub(crate) fn read_at(input: &mut (impl Read + Seek), offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
    let _ = input.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    let _ = input.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A header seen as fields at fixed offsets.
///
/// A field beyond the end reads as zero, so that no offset can panic; whoever needs to tell the two apart checks the
/// header's length first.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        at.checked_add(N)
            .and_then(|end| self.0.get(at..end))
            .and_then(|slice| slice.try_into().ok())
            .unwrap_or([0; N])
    }

    pub(crate) fn u8(self, at: usize) -> u8 {
        u8::from_le_bytes(self.array(at))
    }

    pub(crate) fn u16_le(self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(crate) fn u32_le(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(crate) fn u64_le(self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    pub(crate) fn u32_be(self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }

    pub(crate) fn u64_be(self, at: usize) -> u64 {
        u64::from_be_bytes(self.array(at))
    }
}
