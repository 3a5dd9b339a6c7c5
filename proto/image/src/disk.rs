//! Is this file the disk image that the job says it is, and which other files does it refer to?
//!
//! The format is what the job states. A raw disk is any bytes at all: its guest may write a qcow2 header into its
//! first sector, and a host that then believed the header would open whatever file it names. So [`inspect_raw`] sees
//! only the length, and accepts a raw disk that happens to begin with another format's magic.

use std::io::{self, Read, Seek};

use crate::bytes::{self, Fields};
use crate::look::{HEAD_BYTES, Look};

/// A raw disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// The size that the guest sees: the length of the file.
    pub bytes: u64,
}

/// A qcow2 image whose header is sound. Whether a reference to another file is acceptable is the caller's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2 {
    /// The format's version, 2 or 3.
    pub version: u32,
    /// The size that the guest sees.
    pub virtual_bytes: u64,
    /// The size of a cluster.
    pub cluster_bytes: u32,
    /// The backing file that the image names, as text to show to a person (see [`Reference`]).
    pub backing: Option<Reference>,
    /// The file that holds the data in place of the image, with a name that may be empty.
    pub data_file: Option<Reference>,
    /// The image was not closed: its reference counts need a repair.
    pub dirty: bool,
    /// The image was found to be damaged, and QEMU would open it read-only.
    pub corrupt: bool,
    /// The number of snapshots inside the image.
    pub snapshots: u32,
}

/// The name of another file, as an image spells it; made fit for one line of text, so no path to open.
///
/// At most 1023 bytes of it are kept; what is no UTF-8 and every control character is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference(String);

impl Reference {
    fn new(name: &[u8]) -> Self {
        let bounded = name.get(..REFERENCE_BYTES_MAX).unwrap_or(name);
        let printable = |c: char| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        };
        Self(String::from_utf8_lossy(bounded).chars().map(printable).collect())
    }

    /// The name, to be shown.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a file cannot be used as the disk that the job says it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// Reading failed; the source says why.
    #[error("cannot be read")]
    Read(#[from] io::Error),
    /// The file has no content.
    #[error("is empty")]
    Empty,
    /// A raw disk that ends within a sector.
    #[error(
        "has {bytes} bytes, which is no multiple of a sector's 512: if it is a raw disk, lengthen it with `truncate -s %512`; if not, state its format or convert it with `qemu-img convert -O raw`"
    )]
    NotSectors {
        /// The length of the file.
        bytes: u64,
    },
    /// The file is no qcow2 image.
    #[error("is no qcow2 image: it looks like {looks}")]
    NotQcow2 {
        /// What it looks like.
        looks: Look,
    },
    /// The file ends before its header or its tables do.
    #[error("is a qcow2 image that was cut short: {needed} bytes belong to it, {bytes} are there")]
    Truncated {
        /// Where the content should end.
        needed: u64,
        /// The length of the file.
        bytes: u64,
    },
    /// The image has another version of the format.
    #[error("is a qcow image of version {version}; only 2 and 3 are known")]
    Version {
        /// The version in the header.
        version: u32,
    },
    /// The image needs a feature that is not known here.
    #[error("needs qcow2 features that are not known (bits {bits:#x})")]
    Features {
        /// The unknown ones of the incompatible feature bits.
        bits: u64,
    },
    /// The content is encrypted.
    #[error("is an encrypted qcow2 image, for which no key can be given")]
    Encrypted,
    /// A field of the header has an impossible value.
    #[error("has a damaged qcow2 header: {field} is {value}")]
    Field {
        /// The field.
        field: Qcow2Field,
        /// Its value.
        value: u64,
    },
}

/// A field of the qcow2 header that can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Qcow2Field {
    /// The exponent of the cluster size.
    #[error("the cluster size's exponent")]
    ClusterBits,
    /// The size that the guest sees.
    #[error("the virtual size")]
    VirtualSize,
    /// The length of the header.
    #[error("the header's length")]
    HeaderLength,
    /// The exponent of the width of a reference count.
    #[error("the reference count's width exponent")]
    RefcountOrder,
    /// Where the reference count table begins.
    #[error("the reference count table's offset")]
    RefcountOffset,
    /// How many clusters the reference count table takes.
    #[error("the reference count table's length")]
    RefcountClusters,
    /// The number of entries of the first-level table.
    #[error("the L1 table's length")]
    L1Entries,
    /// Where the first-level table begins.
    #[error("the L1 table's offset")]
    L1Offset,
    /// The number of snapshots.
    #[error("the number of snapshots")]
    Snapshots,
    /// Where the table of snapshots begins.
    #[error("the snapshot table's offset")]
    SnapshotsOffset,
    /// Where the name of the backing file stands.
    #[error("the backing file name's offset")]
    BackingOffset,
    /// How long the name of the backing file is.
    #[error("the backing file name's length")]
    BackingLength,
    /// How the clusters are compressed.
    #[error("the compression type")]
    Compression,
    /// How long a header extension is.
    #[error("a header extension's length")]
    ExtensionLength,
}

const SECTOR_BYTES: u64 = 512;
const MAGIC: &[u8] = b"QFI\xfb";
const V2_HEADER_BYTES: u32 = 72;
const V3_HEADER_BYTES_MIN: u32 = 104;
/// QEMU's limits: 512 bytes, for which a cluster must hold a sector, and 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// With extended L2 entries a cluster has 32 parts, each at least a sector.
const CLUSTER_BITS_EXTENDED_MIN: u32 = 14;
/// Far above every disk that exists, far below where sums of sizes could overflow.
const VIRTUAL_BYTES_MAX: u64 = 1 << 50;
/// QEMU's limit for the first-level table is 32 MiB; for the reference count table, 8 MiB.
const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// QEMU's limit.
const SNAPSHOTS_MAX: u32 = 65_536;
/// By the format's definition.
const REFERENCE_BYTES_MAX: usize = 1023;
/// QEMU writes three or so extensions.
const EXTENSIONS_MAX: usize = 64;
const EXTENSION_END: u32 = 0;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

const FEATURE_DIRTY: u64 = 1;
const FEATURE_CORRUPT: u64 = 1 << 1;
const FEATURE_DATA_FILE: u64 = 1 << 2;
const FEATURE_COMPRESSION: u64 = 1 << 3;
const FEATURE_EXTENDED_L2: u64 = 1 << 4;
const FEATURES_KNOWN: u64 =
    FEATURE_DIRTY | FEATURE_CORRUPT | FEATURE_DATA_FILE | FEATURE_COMPRESSION | FEATURE_EXTENDED_L2;

/// Checks that a file of this length can be a raw disk. Its content is the guest's own matter.
///
/// # Errors
///
/// When the length is zero or no multiple of a sector: QEMU would hide the rest from the guest.
pub fn inspect_raw(length: u64) -> Result<Raw, DiskError> {
    if length == 0 {
        return Err(DiskError::Empty);
    }
    if !length.is_multiple_of(SECTOR_BYTES) {
        return Err(DiskError::NotSectors { bytes: length });
    }
    Ok(Raw { bytes: length })
}

/// Checks the header of a file that the job states to be qcow2; reads at most about 5 KiB.
///
/// The format is described in QEMU's `docs/interop/qcow2.rst`.
///
/// # Errors
///
/// When the input is no qcow2 image, has a header that no sound image has, or cannot be read.
pub fn inspect_qcow2(input: &mut (impl Read + Seek)) -> Result<Qcow2, DiskError> {
    let length = bytes::length(input)?;
    if length == 0 {
        return Err(DiskError::Empty);
    }
    let head = bytes::read_at(input, 0, HEAD_BYTES)?;
    if !head.starts_with(MAGIC) {
        return Err(DiskError::NotQcow2 {
            looks: Look::at(&head),
        });
    }
    let header = Header::read(&head, length)?;
    header.check_tables(length)?;
    let backing = header.backing(input, length)?;
    let data_file = header.data_file(input)?;
    Ok(Qcow2 {
        version: header.version,
        virtual_bytes: header.virtual_bytes,
        cluster_bytes: 1 << header.cluster_bits,
        backing,
        data_file,
        dirty: header.features & FEATURE_DIRTY != 0,
        corrupt: header.features & FEATURE_CORRUPT != 0,
        snapshots: header.fields().u32_be(60),
    })
}

/// The fields by which the rest of the file is checked, themselves checked.
struct Header<'a> {
    head: &'a [u8],
    version: u32,
    cluster_bits: u32,
    virtual_bytes: u64,
    header_bytes: u32,
    features: u64,
}

fn wrong(field: Qcow2Field, value: impl Into<u64>) -> DiskError {
    DiskError::Field {
        field,
        value: value.into(),
    }
}

impl<'a> Header<'a> {
    fn read(head: &'a [u8], length: u64) -> Result<Self, DiskError> {
        let complete = |bytes: u32| {
            if length < u64::from(bytes) || head.len() < bytes as usize {
                return Err(DiskError::Truncated {
                    needed: bytes.into(),
                    bytes: length,
                });
            }
            Ok(())
        };
        complete(8)?;
        let fields = Fields(head);
        let version = fields.u32_be(4);
        match version {
            2 => complete(V2_HEADER_BYTES)?,
            3 => complete(V3_HEADER_BYTES_MIN)?,
            _ => return Err(DiskError::Version { version }),
        }
        let cluster_bits = fields.u32_be(20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(wrong(Qcow2Field::ClusterBits, cluster_bits));
        }
        let (header_bytes, features) = match version {
            2 => (V2_HEADER_BYTES, 0),
            _ => (fields.u32_be(100), fields.u64_be(72)),
        };
        let unknown = features & !FEATURES_KNOWN;
        if unknown != 0 {
            return Err(DiskError::Features { bits: unknown });
        }
        if fields.u32_be(32) != 0 {
            return Err(DiskError::Encrypted);
        }
        let virtual_bytes = fields.u64_be(24);
        if virtual_bytes == 0 || virtual_bytes > VIRTUAL_BYTES_MAX {
            return Err(wrong(Qcow2Field::VirtualSize, virtual_bytes));
        }
        let header = Self {
            head,
            version,
            cluster_bits,
            virtual_bytes,
            header_bytes,
            features,
        };
        header.check_version_3(length)?;
        Ok(header)
    }

    fn fields(&self) -> Fields<'a> {
        Fields(self.head)
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Checks what only version 3 has.
    fn check_version_3(&self, length: u64) -> Result<(), DiskError> {
        if self.version == 2 {
            return Ok(());
        }
        let bytes = self.header_bytes;
        if bytes < V3_HEADER_BYTES_MIN || !bytes.is_multiple_of(8) || u64::from(bytes) > self.cluster_bytes()
        {
            return Err(wrong(Qcow2Field::HeaderLength, bytes));
        }
        if u64::from(bytes) > length {
            return Err(DiskError::Truncated {
                needed: bytes.into(),
                bytes: length,
            });
        }
        let refcount_order = self.fields().u32_be(96);
        if refcount_order > 6 {
            return Err(wrong(Qcow2Field::RefcountOrder, refcount_order));
        }
        if self.has(FEATURE_EXTENDED_L2) && self.cluster_bits < CLUSTER_BITS_EXTENDED_MIN {
            return Err(wrong(Qcow2Field::ClusterBits, self.cluster_bits));
        }
        // zlib, 0, is said by the absence of the feature; zstd is 1.
        let compression = if bytes > V3_HEADER_BYTES_MIN {
            self.fields().u8(104)
        } else {
            0
        };
        if compression != u8::from(self.has(FEATURE_COMPRESSION)) {
            return Err(wrong(Qcow2Field::Compression, compression));
        }
        Ok(())
    }

    /// Checks that the tables are where a table can be, and large enough for the disk.
    fn check_tables(&self, length: u64) -> Result<(), DiskError> {
        let fields = self.fields();
        let aligned_inside = |offset: u64| {
            offset.is_multiple_of(self.cluster_bytes()) && offset >= self.cluster_bytes() && offset <= length
        };

        let l2_entry_bytes = if self.has(FEATURE_EXTENDED_L2) { 16 } else { 8 };
        let bytes_per_l1_entry = self.cluster_bytes() * (self.cluster_bytes() / l2_entry_bytes);
        let l1_entries = u64::from(fields.u32_be(36));
        let l1_bytes = l1_entries * 8;
        if l1_bytes > L1_BYTES_MAX || l1_entries < self.virtual_bytes.div_ceil(bytes_per_l1_entry) {
            return Err(wrong(Qcow2Field::L1Entries, l1_entries));
        }
        let l1_offset = fields.u64_be(40);
        if !aligned_inside(l1_offset) {
            return Err(wrong(Qcow2Field::L1Offset, l1_offset));
        }
        // No overflow: the offset is within the file, the table at most 32 MiB.
        let l1_end = l1_offset.saturating_add(l1_bytes);
        if l1_end > length {
            return Err(DiskError::Truncated {
                needed: l1_end,
                bytes: length,
            });
        }

        let refcount_offset = fields.u64_be(48);
        if !aligned_inside(refcount_offset) {
            return Err(wrong(Qcow2Field::RefcountOffset, refcount_offset));
        }
        let refcount_clusters = fields.u32_be(56);
        let refcount_bytes = u64::from(refcount_clusters) << self.cluster_bits;
        if refcount_clusters == 0 || refcount_bytes > REFCOUNT_TABLE_BYTES_MAX {
            return Err(wrong(Qcow2Field::RefcountClusters, refcount_clusters));
        }

        let snapshots = fields.u32_be(60);
        if snapshots > SNAPSHOTS_MAX {
            return Err(wrong(Qcow2Field::Snapshots, snapshots));
        }
        let snapshots_offset = fields.u64_be(64);
        if snapshots > 0 && !aligned_inside(snapshots_offset) {
            return Err(wrong(Qcow2Field::SnapshotsOffset, snapshots_offset));
        }
        Ok(())
    }

    fn backing(&self, input: &mut (impl Read + Seek), length: u64) -> Result<Option<Reference>, DiskError> {
        let (offset, size) = (self.fields().u64_be(8), self.fields().u32_be(16));
        if offset == 0 || size == 0 {
            return Ok(None);
        }
        if offset < u64::from(self.header_bytes) || offset >= self.cluster_bytes() {
            return Err(wrong(Qcow2Field::BackingOffset, offset));
        }
        let end = offset + u64::from(size);
        let size_bounded = usize::try_from(size).unwrap_or(usize::MAX);
        if size_bounded > REFERENCE_BYTES_MAX || end > self.cluster_bytes() {
            return Err(wrong(Qcow2Field::BackingLength, size));
        }
        let name = bytes::read_at(input, offset, size_bounded)?;
        if name.len() < size_bounded {
            return Err(DiskError::Truncated {
                needed: end,
                bytes: length,
            });
        }
        Ok(Some(Reference::new(&name)))
    }

    /// Looks through the header extensions for the data file's name, where the header says that there is one.
    ///
    /// The name is only for people; the feature bit alone decides.
    fn data_file(&self, input: &mut (impl Read + Seek)) -> Result<Option<Reference>, DiskError> {
        if !self.has(FEATURE_DATA_FILE) {
            return Ok(None);
        }
        let mut at = u64::from(self.header_bytes);
        for _ in 0..EXTENSIONS_MAX {
            let bytes = bytes::read_at(input, at, 8)?;
            let (kind, size) = (Fields(&bytes).u32_be(0), Fields(&bytes).u32_be(4));
            let end = at + 8 + u64::from(size);
            if kind == EXTENSION_END || at + 8 > self.cluster_bytes() {
                break;
            }
            if end > self.cluster_bytes() {
                return Err(wrong(Qcow2Field::ExtensionLength, size));
            }
            if kind == EXTENSION_DATA_FILE {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let name = bytes::read_at(input, at + 8, size.min(REFERENCE_BYTES_MAX))?;
                return Ok(Some(Reference::new(&name)));
            }
            at = end.next_multiple_of(8);
        }
        Ok(Some(Reference::new(b"")))
    }
}

#[cfg(test)]
mod tests;
