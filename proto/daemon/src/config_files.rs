//! What is written in a daemon's configuration file and its drop-ins?

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most drop-ins that are read.
const DROP_INS_MAX: usize = 256;

/// Why a file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("{path} can't be read")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It isn't text.
    #[error("{path} is not UTF-8 text at byte {byte}")]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where, from 0.
        byte: usize,
    },
    /// It is too large to be a configuration.
    #[error("{path} is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// There are too many.
    #[error("{path} has more than {DROP_INS_MAX} drop-ins")]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
}

/// Reads a configuration file, and then the files `*.toml` of the directory `conf.d` beside it by the order of their names.
/// Each comes with its path, as the place that problems name. Missing files are no error, except one that somebody `named`.
///
/// # Errors
///
/// Every file that can't be read.
pub fn read(file: &Path, named: bool) -> Result<Vec<(String, String)>, Vec<FileError>> {
    let mut texts = Vec::new();
    let mut errors = Vec::new();
    let mut take = |path: &Path, required: bool| match read_one(path) {
        Ok(text) => texts.push((path.to_string_lossy().into_owned(), text)),
        Err(FileError::Read { source, .. }) if !required && source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => errors.push(error),
    };
    take(file, named);
    match drop_ins(&file.with_file_name("conf.d")) {
        Ok(paths) => paths.iter().for_each(|path| take(path, true)),
        Err(error) => errors.push(error),
    }
    if errors.is_empty() { Ok(texts) } else { Err(errors) }
}

fn read_one(path: &Path) -> Result<String, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
        });
    }
    String::from_utf8(bytes).map_err(|error| FileError::NotText {
        path: path.to_owned(),
        byte: error.utf8_error().valid_up_to(),
    })
}

/// The drop-ins of a directory; hidden files, such as an editor's, are none.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |source| FileError::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_bytes().starts_with(b"."));
        if !hidden && path.extension() == Some(OsStr::new("toml")) {
            paths.push(path);
        }
        if paths.len() > DROP_INS_MAX {
            return Err(FileError::TooMany {
                path: directory.to_owned(),
            });
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_comes_first_and_drop_ins_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("netd.toml");
        assert_eq!(read(&path, false).unwrap(), []);
        let said: Vec<String> = read(&path, true)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(said, [format!("{} can't be read", path.display())]);

        let conf_d = directory.path().join("conf.d");
        std::fs::create_dir(&conf_d).unwrap();
        for (name, text) in [
            ("20-b.toml", "b"),
            ("10-a.toml", "a"),
            (".x.toml", "x"),
            ("30-c.bak", "c"),
        ] {
            std::fs::write(conf_d.join(name), text).unwrap();
        }
        std::fs::write(&path, "main").unwrap();
        let texts = read(&path, true).unwrap();
        let names: Vec<&str> = texts
            .iter()
            .map(|(place, _)| place.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(names, ["netd.toml", "10-a.toml", "20-b.toml"]);
        assert_eq!(texts[0].1, "main");
    }

    #[test]
    fn every_file_that_cant_be_read_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("netd.toml");
        std::fs::write(&path, b"ok = \"\xff\"").unwrap();
        let conf_d = directory.path().join("conf.d");
        std::fs::create_dir_all(conf_d.join("dir.toml")).unwrap();
        std::os::unix::fs::symlink("nowhere", conf_d.join("gone.toml")).unwrap();
        std::fs::write(conf_d.join("large.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
        let said: Vec<String> = read(&path, false)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect();
        let conf_d = conf_d.display();
        assert_eq!(
            said,
            [
                format!("{} is not UTF-8 text at byte 6", path.display()),
                format!("{conf_d}/dir.toml can't be read"),
                format!("{conf_d}/gone.toml can't be read"),
                format!("{conf_d}/large.toml is larger than 1048576 bytes"),
            ]
        );
    }

    #[test]
    fn too_many_drop_ins_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let conf_d = directory.path().join("conf.d");
        std::fs::create_dir(&conf_d).unwrap();
        for n in 0..=DROP_INS_MAX {
            std::fs::write(conf_d.join(format!("{n}.toml")), "").unwrap();
        }
        let errors = read(&directory.path().join("netd.toml"), false).unwrap_err();
        assert!(
            matches!(errors.as_slice(), [FileError::TooMany { .. }]),
            "{errors:?}"
        );
    }
}
