//! How does a file get into a guest's initrd?
//!
//! The kernel unpacks several archives one behind the other. Ours is small, and the same for the same file.

use std::io::{self, Cursor};

use cpio::{NewcBuilder, write_cpio};

/// Modes of what is in an archive: directories, and files that everybody may read.
const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;

/// An archive with one file, and the directories above it.
pub(crate) fn of_file(path: &str, content: &str) -> io::Result<Vec<u8>> {
    let above = path.match_indices('/').filter_map(|(end, _)| path.get(..end));
    let mut entries: Vec<_> = above
        .map(|directory| (NewcBuilder::new(directory).mode(DIRECTORY), Cursor::new("")))
        .collect();
    entries.push((NewcBuilder::new(path).mode(FILE), Cursor::new(content)));
    write_cpio(entries.into_iter(), Vec::new())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use cpio::NewcReader;

    use super::*;

    #[test]
    fn an_archive_has_its_file_and_is_always_the_same() {
        let archive = of_file("etc/steppe/network", "NICS=0\n").unwrap();
        assert_eq!(archive, of_file("etc/steppe/network", "NICS=0\n").unwrap());
        let mut rest = archive.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut text = String::new();
            let _length = reader.read_to_string(&mut text).unwrap();
            let entry = reader.entry();
            assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 0));
            found.push((entry.name().to_owned(), entry.mode(), text));
            rest = reader.finish().unwrap();
        }
        let directory = |path: &str| (path.to_owned(), DIRECTORY, String::new());
        let file = ("etc/steppe/network".to_owned(), FILE, "NICS=0\n".to_owned());
        assert_eq!(found, [directory("etc"), directory("etc/steppe"), file]);
    }
}
