//! The formats of disk images that can be packed.

use std::fmt;

use serde::Serialize;

/// The format of a disk image, under the name that QEMU has for it.
///
/// The list is closed: a name that comes from an image's header never reaches QEMU as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk as it is.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// The one before it.
    Qcow,
    /// QEMU's enhanced disk.
    Qed,
    /// VMware's, in one file or several.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
    /// The one before it: VHD.
    Vpc,
    /// Parallels'.
    Parallels,
    /// A compressed loop image.
    Cloop,
    /// Apple's.
    Dmg,
    /// Bochs'.
    Bochs,
}

impl DiskFormat {
    const ALL: [Self; 12] = [
        Self::Raw,
        Self::Qcow2,
        Self::Qcow,
        Self::Qed,
        Self::Vmdk,
        Self::Vdi,
        Self::Vhdx,
        Self::Vpc,
        Self::Parallels,
        Self::Cloop,
        Self::Dmg,
        Self::Bochs,
    ];

    /// The format of this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// QEMU's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Parallels => "parallels",
            Self::Cloop => "cloop",
            Self::Dmg => "dmg",
            Self::Bochs => "bochs",
        }
    }

    /// Whether an image of this format may lie over another one.
    pub(super) const fn has_backing(self) -> bool {
        matches!(self, Self::Qcow2 | Self::Qcow | Self::Qed | Self::Vmdk)
    }

    /// Whether `qemu-img check` tells a whole image from a damaged or shortened one. QEMU reads zeros behind the end of a
    /// file, so without a check a shortened image would be published with zeros in it. Of the others QEMU notices itself
    /// when it opens a shortened vpc.
    pub(super) const fn has_check(self) -> bool {
        matches!(self, Self::Qcow2 | Self::Qed | Self::Vmdk | Self::Vdi | Self::Vhdx | Self::Parallels)
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
