//! Why a saved VM cannot be read or written.

use std::io;

use super::wire::{MAGIC, VERSION};
use crate::limits::{
    DEVICE_STATE_BYTES_MAX, IMAGE_BYTES_MAX, RAM_BLOCK_NAME_BYTES_MAX, RAM_BLOCKS_MAX, SAVE_FILE_DATA_BYTES_MAX,
};

/// Why bytes are not a saved VM that can be packaged.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The source of the bytes failed.
    #[error("the saved state cannot be read")]
    Read(#[source] io::Error),
    /// Something else than a saved VM.
    #[error("it begins with {0:#010x}, not with {MAGIC:#010x} as QEMU's migration stream does")]
    NotAStream(u32),
    /// A stream of another version.
    #[error("the migration stream has version {0}, not {VERSION}")]
    Version(u32),
    /// The stream is shorter than it should be.
    #[error("the saved state ends at byte {at_bytes}, within {what}: it may have been cut off")]
    Truncated {
        /// What is not all there.
        what: &'static str,
        /// Bytes that are there.
        at_bytes: u64,
    },
    /// The stream contradicts itself.
    #[error("the saved state is damaged before byte {at_bytes}: {why}")]
    Damaged {
        /// What is wrong.
        why: String,
        /// Bytes read so far.
        at_bytes: u64,
    },
    /// More of something than there may be.
    #[error("the saved state has {what} of {value}, more than {max}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is, or more.
        value: u64,
        /// How much there may be.
        max: u64,
    },
    /// A good stream with something in it that a package cannot hold.
    #[error("the saved state {0}")]
    Unsupported(#[from] Unsupported),
    /// What follows guest RAM does not end in a description that fits it.
    #[error("the saved device state is damaged: {0}")]
    DeviceState(String),
}

/// What a saved VM may have that a package cannot hold, each by its name in QEMU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// Pages went over other connections.
    #[error("was sent with the capability multifd: its pages are elsewhere")]
    Multifd,
    /// Pages are zlib streams.
    #[error("has pages that the capability compress made smaller")]
    Compress,
    /// Pages are differences.
    #[error("has pages that the capability xbzrle made smaller")]
    Xbzrle,
    /// Pages went by RDMA.
    #[error("was sent over RDMA: its pages are elsewhere")]
    Rdma,
    /// The stream is that of a migration whose target asks for pages.
    #[error("was sent with the capability postcopy-ram or dirty-bitmaps")]
    Postcopy,
    /// Pages lie at fixed places of the file.
    #[error("was saved with the capability mapped-ram")]
    MappedRam,
    /// Another capability that both sides must have.
    #[error("was saved with the capability {0}, which is not known")]
    Capability(String),
    /// The guest's pages are not x86's.
    #[error("has pages of 2^{0} bytes instead of 2^12")]
    PageBits(u32),
    /// The machine type is too old to send a configuration.
    #[error("does not name its machine type, as those before 2.4 do not")]
    NoConfiguration,
    /// More in the configuration than is known.
    #[error("has a configuration with {0}, which is not known")]
    ConfigurationPart(String),
    /// Something beside RAM that is sent while the guest runs, and may change what RAM means: a disk's blocks, a
    /// passed-through device, plugged memory.
    #[error("has a section {0} before the end of guest RAM, which cannot be packaged")]
    Section(String),
    /// The section `ram` in another version.
    #[error("has guest RAM in version {0} of its section, not 4")]
    RamVersion(u32),
    /// A command that is not known.
    #[error("has a command of number {0}, which is not known")]
    Command(u16),
    /// Nothing says where the device state ends.
    #[error("has no description of its devices, as machines with suppress-vmdesc have none")]
    NoDescription,
}

impl StreamError {
    /// What the user can do, where the message does not say so.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unsupported(what) => Some(what.hint()),
            Self::NotAStream(_) => Some(
                "save with QEMU's `migrate` to a file (exec:cat>FILE), or with `virsh save`; decompress what another program compressed",
            ),
            Self::Truncated { .. } | Self::Damaged { .. } | Self::DeviceState(_) => Some("save the VM again"),
            _ => None,
        }
    }
}

impl Unsupported {
    /// What the user can do.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Multifd | Self::Compress | Self::Xbzrle | Self::Postcopy | Self::MappedRam | Self::Capability(_) => {
                "turn the capability off (migrate-set-capabilities) and save again; with libvirt, save without --image-format sparse and --parallel"
            }
            Self::Rdma => "save to a file instead: migrate to exec:cat>FILE",
            Self::PageBits(_) => "only guests of x86 can be packaged running",
            Self::NoConfiguration | Self::NoDescription => "give the VM a newer machine type, boot it anew and save it",
            Self::Section(_) => "save without block migration, and unplug passed-through devices and virtio-mem before",
            Self::ConfigurationPart(_) | Self::RamVersion(_) | Self::Command(_) => "use a newer vmnetx",
        }
    }
}

/// Why a stream cannot be written: parts that no VM has, or pages that it does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Too few or too many RAM blocks.
    #[error("a VM with {0} RAM blocks, which must be 1 to {RAM_BLOCKS_MAX}")]
    BlockCount(usize),
    /// A name that QEMU gives to no block, or that two have.
    #[error(
        "the RAM block {0:?} must have a name of its own, 1 to {RAM_BLOCK_NAME_BYTES_MAX} bytes of printable ASCII"
    )]
    BlockName(String),
    /// A size that no block has.
    #[error("the RAM block {block} has {size_bytes} bytes, which must be whole pages and at most {IMAGE_BYTES_MAX}")]
    BlockSize {
        /// The block's name.
        block: String,
        /// Its size.
        size_bytes: u64,
    },
    /// A machine type that cannot be one.
    #[error("{0:?} is no machine type")]
    Machine(String),
    /// A page or a range that is not in RAM.
    #[error("RAM block {block} has no {length_bytes} bytes of whole pages at {start_bytes:#x}")]
    NoPages {
        /// Position of the block.
        block: usize,
        /// Where the pages were to begin.
        start_bytes: u64,
        /// How long they were to be.
        length_bytes: u64,
    },
    /// A postcopy migration of a VM whose RAM is not to be sent.
    #[error("a stream without the pages of shared RAM (x-ignore-shared) cannot be one whose target asks for pages")]
    IgnoreShared,
    /// Nothing is left to be asked for, with which QEMU's loading hangs.
    #[error("a guest cannot be started by postcopy when all its pages were sent before: leave one out")]
    NothingMissing,
}

/// Why the target of a postcopy migration is not understood. The connection has to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReturnPathError {
    /// A message that nothing sent here asks for.
    #[error("QEMU sent the message {name} ({number}) on its return path, which was not asked for")]
    Unexpected {
        /// Its name in QEMU, or "of an unknown kind".
        name: &'static str,
        /// Its number.
        number: u16,
    },
    /// A message of a length that it cannot have.
    #[error("QEMU sent the message {name} with {length_bytes} bytes on its return path")]
    Length {
        /// Its name in QEMU.
        name: &'static str,
        /// Bytes behind its header.
        length_bytes: u16,
    },
    /// A request for pages of the block before, and there was none.
    #[error("QEMU asked for pages without having named a RAM block")]
    NoBlock,
    /// A request for pages of a block that the VM does not have.
    #[error("QEMU asked for pages of the RAM block {0:?}, which the saved VM does not have")]
    UnknownBlock(String),
    /// A request for what is not in the block.
    #[error(
        "QEMU asked for {length_bytes} bytes at {start_bytes:#x} of the RAM block {block}, which are no whole pages of it"
    )]
    NoPages {
        /// The block's name.
        block: String,
        /// Where the pages were to begin.
        start_bytes: u64,
        /// How long they were to be.
        length_bytes: u32,
    },
}

/// Why bytes are not the head of a file that libvirt saved a domain in.
#[derive(Debug, thiserror::Error)]
pub enum SaveFileError {
    /// The source of the bytes failed.
    #[error("the save file cannot be read")]
    Read(#[source] io::Error),
    /// Something else than a save file.
    #[error("it does not begin as libvirt's save files do")]
    NotASaveFile,
    /// The save was not ended.
    #[error("libvirt did not finish writing the save file")]
    Partial,
    /// The file ends too early.
    #[error("the save file ends within its {0}")]
    Truncated(&'static str),
    /// Written by a libvirt that is not known.
    #[error("the save file has version {0}; versions 1 and 2 are read")]
    Version(u32),
    /// The RAM lies at fixed places of the file.
    #[error("the save file has the format sparse (QEMU's mapped-ram), which is not read")]
    Sparse,
    /// Compressed by a program that is not known.
    #[error("the save file has a compression of number {0}, which is not known")]
    Compression(u32),
    /// More XML than is read.
    #[error("the save file has {0} bytes of XML, which must be 1 to {SAVE_FILE_DATA_BYTES_MAX}")]
    DataBytes(u64),
    /// The XML or the cookie are not text.
    #[error("the save file is damaged: its {0} is no text")]
    Text(&'static str),
    /// The cookie begins where it cannot.
    #[error("the save file is damaged: its cookie begins at byte {0} of its XML")]
    Cookie(u32),
}

impl SaveFileError {
    /// What the user can do, where the message does not say so.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Sparse => {
                Some("save with another --image-format, or set save_image_format in /etc/libvirt/qemu.conf")
            }
            Self::Partial | Self::Truncated(_) | Self::Text(_) | Self::Cookie(_) => Some("save the domain again"),
            Self::Version(_) | Self::Compression(_) => Some("use a newer vmnetx"),
            _ => None,
        }
    }
}

/// Says that the device state is longer than it may be.
pub(super) const fn device_state_too_large(value: u64) -> StreamError {
    StreamError::TooLarge { what: "a device state", value, max: DEVICE_STATE_BYTES_MAX }
}
