//! How do files become memory that nobody can change any more?
//!
//! QEMU opens kernel and initrd once more by their descriptors' names, for which its user needs read permission on the inode.
//! What that user may not read, and what is no file of its own on disk, it gets as a sealed copy.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, Mode, SealFlags};

/// Zeros that stand at least between two files, and before which number the next one begins. The kernel skips any number of
/// them; LZ4 has no mark of its end, and takes four for it.
const GAP_BYTES: usize = 4;

/// Copies files one behind the other.
pub(crate) fn join(name: &str, files: impl IntoIterator<Item = OwnedFd>) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut memory = File::from(memory);
    let mut length = 0;
    for file in files {
        if length > 0 {
            let gap = gap(length);
            memory.write_all(&[0; 2 * GAP_BYTES][..gap])?;
            length += gap as u64;
        }
        length += io::copy(&mut File::from(file), &mut memory)?;
    }
    let memory = OwnedFd::from(memory);
    rustix::fs::fchmod(&memory, Mode::from_raw_mode(0o444))?;
    rustix::fs::fcntl_add_seals(
        &memory,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(memory)
}

/// How many zeros follow so many bytes.
fn gap(length: u64) -> usize {
    let rest = usize::try_from(length % GAP_BYTES as u64).unwrap_or_default();
    GAP_BYTES + (GAP_BYTES - rest) % GAP_BYTES
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn joined(texts: &[&str]) -> Vec<u8> {
        let file = |text: &&str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.rewind().unwrap();
            OwnedFd::from(file)
        };
        let mut memory = File::from(join("test", texts.iter().map(file)).unwrap());
        assert!(memory.write_all(b"x").is_err(), "it can be changed");
        let mut bytes = Vec::new();
        memory.rewind().unwrap();
        memory.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn each_file_begins_at_a_multiple_of_four_with_zeros_before_it() {
        assert_eq!(joined(&["abc"]), b"abc");
        assert_eq!(joined(&["abcd", "e"]), b"abcd\0\0\0\0e");
        assert_eq!(joined(&["abcde", "f", ""]), b"abcde\0\0\0\0\0\0\0f\0\0\0\0\0\0\0");
        for length in 1..20 {
            assert!((length + gap(length) as u64).is_multiple_of(4) && (4..8).contains(&gap(length)));
        }
    }
}
