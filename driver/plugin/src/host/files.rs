//! Which file does a job's name mean, and is it what it is said to be?

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use steppe_image::{disk, initrd, kernel};
use steppe_vm::Vm;
use steppe_vm::vm::{Disk, DiskFormat, FileName, FileRoot};

/// Where named files are looked up.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    pub(crate) task: PathBuf,
    pub(crate) alloc: PathBuf,
    pub(crate) images: Vec<PathBuf>,
}

/// Where each named file of a machine was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    task: PathBuf,
    alloc: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    kernel_name: FileName,
    /// Largest size in bytes that a disk of the machine may need on this host.
    pub(crate) file_bytes: u64,
}

impl Places {
    /// The directory beneath which a file was found.
    pub(crate) fn of(&self, file: &FileName) -> PathBuf {
        match file.root {
            FileRoot::Task => self.task.clone(),
            FileRoot::Alloc => self.alloc.clone(),
            FileRoot::Images if *file == self.kernel_name => self.kernel.clone(),
            FileRoot::Images => self.initrd.clone(),
        }
    }
}

/// Why a file can't be used: one sentence with its role and name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("{role} {name:?} does not exist: {remedy}")]
    Missing {
        role: String,
        name: String,
        remedy: String,
    },
    #[error("{role} {name:?} leaves its directory through a symbolic link: put the file itself there")]
    Outside { role: String, name: String },
    #[error("{role} {name:?} is not a regular file")]
    NotAFile { role: String, name: String },
    #[error("{role} {name:?} can't be opened")]
    Open {
        role: String,
        name: String,
        #[source]
        source: Errno,
    },
    #[error("{role} {name:?} can't be read")]
    Read {
        role: String,
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("kernel {name:?} {error}")]
    Kernel {
        name: String,
        error: kernel::KernelError,
    },
    #[error("initrd {name:?} {error}")]
    Initrd {
        name: String,
        error: initrd::InitrdError,
    },
    #[error("disk {disk:?}: {name:?} {error}")]
    Disk {
        disk: String,
        name: String,
        error: disk::DiskError,
    },
    #[error(
        "disk {disk:?}: {name:?} refers to another file ({what} {other:?}), which is not allowed: flatten it with qemu-img convert"
    )]
    Refers {
        disk: String,
        name: String,
        what: &'static str,
        other: String,
    },
    #[error(
        "memory = {memory} MiB is too little: kernel and unpacked initrd alone take {needed} MiB; raise resources.memory"
    )]
    Memory { memory: u32, needed: u64 },
    #[error("cmdline has {length} bytes, kernel {name:?} takes {limit}: shorten it")]
    Cmdline { length: usize, name: String, limit: u32 },
}

/// Finds and checks every file that a machine names. Nothing is changed.
pub(crate) fn check(vm: &Vm, roots: &Roots) -> Result<Places, FileError> {
    let (kernel_place, mut file) = open("kernel", &vm.kernel, roots, false)?;
    let name = vm.kernel.to_string();
    let found = kernel::inspect(&mut file).map_err(|error| FileError::Kernel {
        name: name.clone(),
        error,
    })?;
    // The limit counts the final NUL in older headers and not in newer ones: at the limit, the kernel decides.
    if vm.cmdline.len() > found.cmdline_bytes_max as usize {
        return Err(FileError::Cmdline {
            length: vm.cmdline.len(),
            name,
            limit: found.cmdline_bytes_max,
        });
    }
    let mut needed_bytes = found.memory_bytes;
    let mut initrd_place = PathBuf::new();
    if let Some(initrd) = &vm.initrd {
        let (place, mut file) = open("initrd", initrd, roots, false)?;
        let found = initrd::inspect(&mut file).map_err(|error| FileError::Initrd {
            name: initrd.to_string(),
            error,
        })?;
        needed_bytes = needed_bytes.saturating_add(found.unpacked_bytes_min);
        initrd_place = place;
    }
    let needed = needed_bytes.div_ceil(1 << 20);
    if needed > u64::from(vm.memory_mib) {
        return Err(FileError::Memory {
            memory: vm.memory_mib,
            needed,
        });
    }
    let mut file_bytes = 0;
    for disk in &vm.disks {
        file_bytes = file_bytes.max(check_disk(disk, roots)?);
    }
    Ok(Places {
        task: roots.task.clone(),
        alloc: roots.alloc.clone(),
        kernel: kernel_place,
        initrd: initrd_place,
        kernel_name: vm.kernel.clone(),
        file_bytes,
    })
}

/// Room for the tables of a qcow2 file besides its data: QEMU takes one part in 8000 for a disk that is written in order, and
/// more for one whose clusters come and go.
const QCOW2_TABLES_SHARE: u64 = 8;

/// The same for a small one.
const QCOW2_TABLES_MIN_BYTES: u64 = 64 << 20;

/// Checks a disk; says how large its file may become.
fn check_disk(disk: &Disk, roots: &Roots) -> Result<u64, FileError> {
    let role = format!("disk {:?}:", disk.name);
    let (_, mut file) = open(&role, &disk.file, roots, !disk.read_only)?;
    let name = disk.file.to_string();
    let wrong = |error| FileError::Disk {
        disk: disk.name.clone(),
        name: name.clone(),
        error,
    };
    let length = file
        .metadata()
        .map_err(|source| FileError::Read {
            role,
            name: name.clone(),
            source,
        })?
        .len();
    match disk.format {
        DiskFormat::Raw => disk::inspect_raw(length).map(|raw| raw.bytes).map_err(wrong),
        DiskFormat::Qcow2 => {
            let header = disk::inspect_qcow2(&mut file).map_err(wrong)?;
            let other = [("backing file", header.backing), ("data file", header.data_file)];
            if let Some((what, Some(other))) = other.into_iter().find(|(_, other)| other.is_some()) {
                let other = other.as_str().to_owned();
                return Err(FileError::Refers {
                    disk: disk.name.clone(),
                    name,
                    what,
                    other,
                });
            }
            let tables = header.virtual_bytes / QCOW2_TABLES_SHARE + QCOW2_TABLES_MIN_BYTES;
            Ok(header.virtual_bytes.max(length).saturating_add(tables))
        }
    }
}

/// Opens a named file without leaving its directory; says beneath which directory it was found.
fn open(role: &str, name: &FileName, roots: &Roots, write: bool) -> Result<(PathBuf, File), FileError> {
    let directories = match name.root {
        FileRoot::Task => std::slice::from_ref(&roots.task),
        FileRoot::Alloc => std::slice::from_ref(&roots.alloc),
        FileRoot::Images => roots.images.as_slice(),
    };
    let (role, shown) = (role.to_owned(), name.to_string());
    for directory in directories {
        match open_beneath(directory, &name.path, write) {
            Ok(file) => {
                let data = file.metadata().map_err(|source| FileError::Read {
                    role: role.clone(),
                    name: shown.clone(),
                    source,
                })?;
                if !data.is_file() {
                    return Err(FileError::NotAFile { role, name: shown });
                }
                return Ok((directory.clone(), file));
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::XDEV | Errno::LOOP) => return Err(FileError::Outside { role, name: shown }),
            Err(Errno::ISDIR) => return Err(FileError::NotAFile { role, name: shown }),
            Err(source) => {
                return Err(FileError::Open {
                    role,
                    name: shown,
                    source,
                });
            }
        }
    }
    let remedy = match name.root {
        FileRoot::Task | FileRoot::Alloc => {
            "fetch it with an artifact block or write it with a template block".to_owned()
        }
        FileRoot::Images if directories.is_empty() => {
            "a name without local/ or alloc/ is looked up in the plugin option image_paths, which is empty"
                .to_owned()
        }
        FileRoot::Images => {
            let list: Vec<_> = directories
                .iter()
                .map(|directory| directory.display().to_string())
                .collect();
            format!(
                "it was looked up in the operator's image_paths, {}",
                list.join(" and ")
            )
        }
    };
    Err(FileError::Missing {
        role,
        name: shown,
        remedy,
    })
}

fn open_beneath(directory: &Path, path: &str, write: bool) -> Result<File, Errno> {
    let root = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    // NONBLOCK: a FIFO in a file's place must not hang us.
    let flags = access | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve).map(File::from)
}
