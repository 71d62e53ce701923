//! What the target of a postcopy migration sends back: answers, and requests for pages.

use super::block::{Block, PageRange};
use super::error::ReturnPathError;
use super::wire::message;
use crate::limits::RAM_BLOCK_NAME_BYTES_MAX;
use crate::name::printable;

/// Bytes of a message's head: its kind and the length of what follows, `u16` each.
const HEAD_BYTES: usize = 4;
/// Bytes of a request for pages without the block's name: `u64` start, `u32` length.
const REQUEST_BYTES: usize = 12;

/// A message of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReturnMessage {
    /// The answer to the PING of this number.
    Pong(u32),
    /// The guest waits for these pages. It may ask for pages that are under way.
    Pages(PageRange),
    /// The target closes the way back: it has everything when the status is 0, and has failed otherwise.
    Shut(u32),
}

/// Reads the messages of one migration's target.
#[derive(Debug, Clone)]
pub struct ReturnPath {
    /// Names and sizes.
    blocks: Vec<Block>,
    /// The block of the last request, which the next one may leave out.
    last_block: Option<usize>,
}

impl ReturnPath {
    /// Bytes of the longest message: no caller need keep more of what was not decoded yet.
    pub const MESSAGE_BYTES_MAX: usize = HEAD_BYTES + REQUEST_BYTES + 1 + RAM_BLOCK_NAME_BYTES_MAX;

    /// A way back from a target with these blocks, which its requests are of.
    #[must_use]
    pub const fn new(blocks: Vec<Block>) -> Self {
        Self { blocks, last_block: None }
    }

    /// Reads the message at the front of `input`, and says how many bytes it has; `None` while it is not all there.
    ///
    /// # Errors
    /// [`ReturnPathError`] for what no target of a migration written here sends.
    pub fn decode(&mut self, input: &[u8]) -> Result<Option<(ReturnMessage, usize)>, ReturnPathError> {
        let Some((&[k, l, m, n], rest)) = input.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let (kind, length) = (u16::from_be_bytes([k, l]), u16::from_be_bytes([m, n]));
        let name = check_head(kind, length)?;
        let Some(body) = rest.get(..usize::from(length)) else { return Ok(None) };
        let wrong_length = ReturnPathError::Length { name, length_bytes: length };
        let message = match (kind, body) {
            (message::SHUT, &[a, b, c, d]) => ReturnMessage::Shut(u32::from_be_bytes([a, b, c, d])),
            (message::PONG, &[a, b, c, d]) => ReturnMessage::Pong(u32::from_be_bytes([a, b, c, d])),
            _ => ReturnMessage::Pages(self.request(body, wrong_length)?),
        };
        Ok(Some((message, HEAD_BYTES + usize::from(length))))
    }

    /// Reads a request for pages, with a block's name or without.
    fn request(&mut self, body: &[u8], wrong_length: ReturnPathError) -> Result<PageRange, ReturnPathError> {
        let Some((start, rest)) = body.split_first_chunk() else { return Err(wrong_length) };
        let Some((length, rest)) = rest.split_first_chunk() else { return Err(wrong_length) };
        let (start_bytes, length_bytes) = (u64::from_be_bytes(*start), u32::from_be_bytes(*length));
        if let Some((length, name)) = rest.split_first() {
            if usize::from(*length) != name.len() {
                return Err(wrong_length);
            }
            let known = self.blocks.iter().position(|block| block.name.as_bytes() == name);
            let unknown = || ReturnPathError::UnknownBlock(printable(&String::from_utf8_lossy(name)));
            self.last_block = Some(known.ok_or_else(unknown)?);
        }
        let block = self.last_block.ok_or(ReturnPathError::NoBlock)?;
        let Some(known) = self.blocks.get(block) else { return Err(ReturnPathError::NoBlock) };
        if !known.has_range(start_bytes, length_bytes.into()) {
            return Err(ReturnPathError::NoPages { block: known.name.clone(), start_bytes, length_bytes });
        }
        Ok(PageRange { block, start_bytes, length_bytes: length_bytes.into() })
    }
}

/// The name of a message that is expected, if it has a length that it can have: nothing longer is waited for.
fn check_head(number: u16, length_bytes: u16) -> Result<&'static str, ReturnPathError> {
    let length = usize::from(length_bytes);
    let named = REQUEST_BYTES + 2..=REQUEST_BYTES + 1 + RAM_BLOCK_NAME_BYTES_MAX;
    let (name, good) = match number {
        message::SHUT => ("SHUT", length == 4),
        message::PONG => ("PONG", length == 4),
        message::REQ_PAGES_ID => ("REQ_PAGES_ID", named.contains(&length)),
        message::REQ_PAGES => ("REQ_PAGES", length == REQUEST_BYTES),
        message::RECV_BITMAP => return Err(ReturnPathError::Unexpected { name: "RECV_BITMAP", number }),
        message::RESUME_ACK => return Err(ReturnPathError::Unexpected { name: "RESUME_ACK", number }),
        message::SWITCHOVER_ACK => return Err(ReturnPathError::Unexpected { name: "SWITCHOVER_ACK", number }),
        _ => return Err(ReturnPathError::Unexpected { name: "of an unknown kind", number }),
    };
    if good { Ok(name) } else { Err(ReturnPathError::Length { name, length_bytes }) }
}
