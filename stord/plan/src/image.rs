//! Which disk can become an image that machines share?
//!
//! An image stands alone: it names no other file, is whole, and is no larger than the operator allows, so that copies of it cost what
//! is said. What is in it is its guest's own affair.

use std::io::{Read, Seek};

use steppe_image::disk::{self, DiskError, Reference};

use crate::size::{Size, SizeError};

/// How a disk is written. It is said by whoever imports it, or known from the image that was imported: a guest that writes another
/// format's header into its raw disk changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// The disk's bytes.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// Why a disk can't become an image: the rest of a sentence that begins with its name.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is no such disk, or a damaged one.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It needs another file.
    #[error(
        "refers to the {what} {name:?}, and an image must stand alone: flatten it with `qemu-img convert -O qcow2`"
    )]
    Refers {
        /// Which kind of file.
        what: &'static str,
        /// Its name, as the image spells it.
        name: String,
    },
    /// Somebody was still writing, or died while writing.
    #[error("was not closed: repair a copy of it with `qemu-img check -r all`")]
    Dirty,
    /// QEMU found that before.
    #[error("is marked as corrupt: take it from its source again")]
    Corrupt,
    /// States that nobody sees and everybody pays for.
    #[error("has {0} snapshots inside: leave them out with `qemu-img convert -O qcow2`")]
    Snapshots(u32),
    /// A disk of this size is none.
    #[error("has a disk that {0}")]
    Size(#[from] SizeError),
    /// Larger than the operator allows.
    #[error("has a disk of {size}, and images may have {most} at most: raise images.size_max")]
    Large {
        /// The size that the guest sees.
        size: Size,
        /// The operator's limit.
        most: Size,
    },
}

/// The size of the disk that a file holds, if it can become an image.
///
/// # Errors
///
/// Why it can't.
pub fn check(format: Format, input: &mut (impl Read + Seek), most: Size) -> Result<Size, ImageError> {
    let bytes = match format {
        Format::Raw => {
            let length = input.seek(std::io::SeekFrom::End(0)).map_err(DiskError::Read)?;
            disk::inspect_raw(length)?.bytes
        }
        Format::Qcow2 => {
            let found = disk::inspect_qcow2(input)?;
            let refers = |what, name: &Reference| ImageError::Refers {
                what,
                name: name.as_str().to_owned(),
            };
            if let Some(name) = &found.backing {
                return Err(refers("backing file", name));
            }
            if let Some(name) = &found.data_file {
                return Err(refers("data file", name));
            }
            if found.corrupt {
                return Err(ImageError::Corrupt);
            }
            if found.dirty {
                return Err(ImageError::Dirty);
            }
            if found.snapshots > 0 {
                return Err(ImageError::Snapshots(found.snapshots));
            }
            found.virtual_bytes
        }
    };
    let size = Size::new(bytes)?;
    if size > most {
        return Err(ImageError::Large { size, most });
    }
    Ok(size)
}
