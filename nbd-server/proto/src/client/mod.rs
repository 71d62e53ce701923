//! An async NBD client on tokio: many requests in flight on one connection, of any stream.
//!
//! ```no_run
//! # use vmnetx_nbd_proto::client::{Client, ConnectOptions};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = tokio::net::UnixStream::connect("/run/nbd.sock").await?;
//! let client = Client::connect(stream, &ConnectOptions::new("disk0")).await?;
//! let (first, second) = tokio::try_join!(client.read(0, 4096), client.read(1 << 20, 4096))?;
//! # drop((first, second));
//! client.disconnect().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A task of the current tokio runtime owns the stream. It writes the requests that have been queued since it last ran
//! in one go, and hands replies to whoever waits for them by their cookies. When the connection dies every request
//! fails with the cause. Futures may be dropped at any time: the reply is then thrown away. Nothing here has a deadline
//! of its own, as only the caller knows how long its server may take; the caller wraps what it awaits in a timeout. A
//! TCP stream should have `nodelay` set.

mod driver;
mod error;
mod negotiate;
mod pending;
mod shared;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use self::driver::Driver;
pub use self::error::{ClientError, ConnectionError, NegotiateError};
pub use self::negotiate::{info, list};
use self::pending::{Assembly, Job, Outcome};
use self::shared::Shared;
use crate::handshake::{BlockSize, MetaContext};
use crate::limits::MAX_READ_BYTES;
use crate::reply::Extent;
use crate::wire::{BASE_ALLOCATION, Command, CommandFlags, TransmissionFlags};

/// How a client negotiates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// The export; empty for the server's default.
    pub export: String,
    /// How much of the protocol is used.
    pub mode: Mode,
    /// Metadata contexts to select. Those that the server lacks are missing in [`RemoteExport::contexts`].
    pub contexts: Vec<String>,
}

impl ConnectOptions {
    /// All that the server can do, with `base:allocation`.
    pub fn new(export: impl Into<String>) -> Self {
        Self { export: export.into(), mode: Mode::Structured, contexts: vec![BASE_ALLOCATION.to_owned()] }
    }

    /// The same with these metadata contexts instead.
    pub fn with_contexts<'a>(mut self, contexts: impl IntoIterator<Item = &'a str>) -> Self {
        self.contexts = contexts.into_iter().map(str::to_owned).collect();
        self
    }

    /// The same in another mode.
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }
}

/// How much of the protocol a client uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Structured replies and metadata contexts where the server has them, `GO`, else `EXPORT_NAME`.
    Structured,
    /// `GO` with simple replies.
    Simple,
    /// `EXPORT_NAME` alone, as old clients do.
    ExportName,
}

/// An export as the server described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteExport {
    /// The server's name for it, or the one that was asked for.
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
    /// Its size.
    pub size_bytes: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// Its block sizes, if the server told them.
    pub block_size: Option<BlockSize>,
    /// Whether structured replies were agreed on.
    pub structured: bool,
    /// The metadata contexts: of a connection those selected, of [`info`] those on offer (whose ids mean nothing).
    pub contexts: Vec<MetaContext>,
}

impl RemoteExport {
    /// The longest READ that may be sent.
    pub fn max_read_bytes(&self) -> u32 {
        let told = self.block_size.map(|sizes| sizes.maximum_bytes);
        told.unwrap_or(MAX_READ_BYTES).min(MAX_READ_BYTES)
    }
}

/// The bytes of a READ, and which of them the server sent as holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseData {
    /// All bytes; those of holes are zeros.
    pub data: Vec<u8>,
    /// What the bytes came as: in order, without gaps.
    pub pieces: Vec<Piece>,
}

/// A piece of a READ's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// Where in the export.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// Sent as a hole.
    pub hole: bool,
}

/// The extents that a server told of one metadata context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextStatus {
    /// The context's name.
    pub context: String,
    /// At least one; from the request's offset on, perhaps less or more than was asked for.
    pub extents: Vec<Extent>,
}

/// A connection to an export. Clones share it; when the last is dropped, it is closed.
#[derive(Clone, Debug)]
pub struct Client {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    export: RemoteExport,
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

impl Client {
    /// Negotiates on a fresh stream and starts the connection's task on the current tokio runtime.
    pub async fn connect<S>(mut stream: S, options: &ConnectOptions) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let export = negotiate::enter(&mut stream, options).await?;
        let context_ids = export.contexts.iter().map(|context| context.id).collect();
        let shared = Arc::new(Shared::new());
        let driver = Driver::new(stream, Arc::clone(&shared), export.structured, context_ids);
        tokio::spawn(driver.run());
        let handle = Arc::new(Handle { export, shared });
        Ok(Self { handle })
    }

    /// The export.
    pub fn export(&self) -> &RemoteExport {
        &self.handle.export
    }

    /// Reads bytes; holes are zeros.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, ClientError> {
        self.read_with_holes(offset, length).await.map(|read| read.data)
    }

    /// Reads bytes and tells which of them came as holes.
    pub async fn read_with_holes(&self, offset: u64, length: u32) -> Result<SparseData, ClientError> {
        let limit_bytes = self.export().max_read_bytes();
        if length > limit_bytes {
            return Err(ClientError::TooLong { length, limit_bytes });
        }
        let assembly = Assembly::read(length);
        match self.submit(Command::READ, offset, length, assembly).await? {
            Outcome::Read(read) => Ok(read),
            outcome => unreachable!("a READ ended as {outcome:?}"),
        }
    }

    /// Asks for the extents of a range in every selected context. With `one_extent` the server tells one per context.
    pub async fn block_status(
        &self,
        offset: u64,
        length: u32,
        one_extent: bool,
    ) -> Result<Vec<ContextStatus>, ClientError> {
        let contexts = &self.export().contexts;
        if contexts.is_empty() {
            return Err(ClientError::NoContext);
        }
        let flags = match one_extent {
            true => CommandFlags::REQ_ONE,
            false => CommandFlags::EMPTY,
        };
        let job = Job { command: Command::BLOCK_STATUS, flags, offset, length };
        let found = match self.handle.shared.submit(job, Assembly::status()).await? {
            Outcome::Status(found) => found,
            outcome => unreachable!("a BLOCK_STATUS ended as {outcome:?}"),
        };
        let name = |id| contexts.iter().find(|context| context.id == id);
        Ok(found
            .into_iter()
            .filter_map(|(id, extents)| {
                let context = name(id)?.name.clone();
                Some(ContextStatus { context, extents })
            })
            .collect())
    }

    /// Asks the server to have a range at hand, which may be longer than a READ. When servers answer differs: some at once,
    /// some when they have it; `export().flags` tells whether they take it at all (`SEND_CACHE`).
    pub async fn cache(&self, offset: u64, length: u32) -> Result<(), ClientError> {
        self.submit(Command::CACHE, offset, length, Assembly::Plain).await.map(drop)
    }

    /// Asks the server to bring what was written to stable storage.
    pub async fn flush(&self) -> Result<(), ClientError> {
        self.submit(Command::FLUSH, 0, 0, Assembly::Plain).await.map(drop)
    }

    /// Ends the connection for all clones: new requests fail, those in flight are awaited, then the server is told.
    pub async fn disconnect(self) -> Result<(), ClientError> {
        self.handle.shared.close().await
    }

    async fn submit(
        &self,
        command: Command,
        offset: u64,
        length: u32,
        assembly: Assembly,
    ) -> Result<Outcome, ClientError> {
        let job = Job { command, flags: CommandFlags::EMPTY, offset, length };
        self.handle.shared.submit(job, assembly).await
    }
}
