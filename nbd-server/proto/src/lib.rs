//! The NBD protocol, without I/O.
//!
//! Fixed newstyle negotiation with structured replies and metadata contexts, as `doc/proto.md` of the project
//! NetworkBlockDevice/nbd defines it ("NBD spec" in this documentation). Bytes are decoded from slices and encoded into
//! buffers of the caller; whoever has sockets moves them.
//!
//! - A server advances a [`handshake::Handshake`], takes requests from a [`request::Requests`], checks each against its
//!   [`request::Geometry`], and writes replies with the functions of [`reply`].
//! - A client is in the module `client`, behind the feature of that name; the codec for both sides is in [`option`],
//!   [`request`] and [`reply`].
//! - The numbers of the protocol are in [`wire`], the limits of this crate in [`limits`].
//!
//! Nothing here panics on bytes of the other side, and no size that the other side sends is allocated unchecked.

#[cfg(feature = "client")]
pub mod client;
mod cursor;
pub mod handshake;
pub mod limits;
pub mod option;
pub mod reply;
pub mod request;
mod text;
pub mod wire;
