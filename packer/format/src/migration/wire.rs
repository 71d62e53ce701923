//! The numbers of the stream, and the primitives that it is written with. Integers are big-endian.

/// `QEMU_VM_FILE_MAGIC`: "QEVM".
pub(super) const MAGIC: u32 = 0x5145_564d;
/// `QEMU_VM_FILE_VERSION`.
pub(super) const VERSION: u32 = 3;

/// What a byte between the parts of a stream announces (`migration/savevm.h`).
pub(super) mod part {
    pub(in super::super) const EOF: u8 = 0x00;
    pub(in super::super) const SECTION_START: u8 = 0x01;
    pub(in super::super) const SECTION_PART: u8 = 0x02;
    pub(in super::super) const SECTION_END: u8 = 0x03;
    pub(in super::super) const SECTION_FULL: u8 = 0x04;
    pub(in super::super) const SUBSECTION: u8 = 0x05;
    pub(in super::super) const DESCRIPTION: u8 = 0x06;
    pub(in super::super) const CONFIGURATION: u8 = 0x07;
    pub(in super::super) const COMMAND: u8 = 0x08;
    pub(in super::super) const FOOTER: u8 = 0x7e;
}

/// The low bits of the word that a record of the section `ram` begins with (`RAM_SAVE_FLAG_*`).
pub(super) mod flag {
    pub(in super::super) const ZERO: u64 = 0x02;
    pub(in super::super) const MEM_SIZE: u64 = 0x04;
    pub(in super::super) const PAGE: u64 = 0x08;
    pub(in super::super) const EOS: u64 = 0x10;
    pub(in super::super) const CONTINUE: u64 = 0x20;
    pub(in super::super) const XBZRLE: u64 = 0x40;
    pub(in super::super) const HOOK: u64 = 0x80;
    pub(in super::super) const COMPRESS_PAGE: u64 = 0x100;
    pub(in super::super) const MULTIFD_FLUSH: u64 = 0x200;
    /// All bits that are flags; the others are the address of a page.
    pub(in super::super) const MASK: u64 = 0xfff;
}

/// Commands to the target (`MIG_CMD_*`).
pub(super) mod command {
    pub(in super::super) const OPEN_RETURN_PATH: u16 = 1;
    pub(in super::super) const PING: u16 = 2;
    pub(in super::super) const POSTCOPY_ADVISE: u16 = 3;
    pub(in super::super) const POSTCOPY_LISTEN: u16 = 4;
    pub(in super::super) const POSTCOPY_RUN: u16 = 5;
    pub(in super::super) const POSTCOPY_RAM_DISCARD: u16 = 6;
    pub(in super::super) const PACKAGED: u16 = 7;
    /// Sent by machine types of QEMU 10.0 and later; only VFIO devices take notice of it.
    pub(in super::super) const SWITCHOVER_START: u16 = 11;
}

/// Messages of the target (`MIG_RP_MSG_*`).
pub(super) mod message {
    pub(in super::super) const SHUT: u16 = 1;
    pub(in super::super) const PONG: u16 = 2;
    pub(in super::super) const REQ_PAGES_ID: u16 = 3;
    pub(in super::super) const REQ_PAGES: u16 = 4;
    pub(in super::super) const RECV_BITMAP: u16 = 5;
    pub(in super::super) const RESUME_ACK: u16 = 6;
    pub(in super::super) const SWITCHOVER_ACK: u16 = 7;
}

/// The only section that is taken apart, and its version.
pub(super) const RAM_SECTION: &str = "ram";
pub(super) const RAM_VERSION: u32 = 4;

/// Subsections of the configuration.
pub(super) const CAPABILITIES: &str = "configuration/capabilities";
pub(super) const TARGET_PAGE_BITS: &str = "configuration/target-page-bits";
pub(super) const UUID: &str = "configuration/uuid";
pub(super) const SUBSECTION_VERSION: u32 = 1;

pub(super) const IGNORE_SHARED: &str = "x-ignore-shared";
pub(super) const MAPPED_RAM: &str = "mapped-ram";

pub(super) fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend(value.to_be_bytes());
}

pub(super) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_be_bytes());
}

pub(super) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_be_bytes());
}

/// A text behind its length in one byte. Whoever made the text has seen to it that it is no longer than that.
pub(super) fn put_name(out: &mut Vec<u8>, name: &str) {
    let bytes = name.as_bytes();
    debug_assert!(bytes.len() <= usize::from(u8::MAX), "{} bytes of name", bytes.len());
    out.push(bytes.len() as u8);
    out.extend(bytes);
}

/// A command with data that the caller has kept below the limit of its length.
pub(super) fn put_command(out: &mut Vec<u8>, command: u16, data: &[u8]) {
    debug_assert!(data.len() <= usize::from(u16::MAX), "{} bytes of command", data.len());
    out.push(part::COMMAND);
    put_u16(out, command);
    put_u16(out, data.len() as u16);
    out.extend(data);
}

/// The end of a section.
pub(super) fn put_footer(out: &mut Vec<u8>, section: u32) {
    out.push(part::FOOTER);
    put_u32(out, section);
}

/// A name as QEMU gives them: printable ASCII without spaces.
pub(super) fn is_graphic(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
}
