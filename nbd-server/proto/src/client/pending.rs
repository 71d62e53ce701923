//! A request that waits for its reply, and the reply as it comes in.

use std::mem;
use std::ops::Range;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{ClientError, ConnectionError, Piece, SparseData};
use crate::reply::{Chunk, Extent};
use crate::wire::{Command, CommandFlags, ErrorCode};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// A request that was sent.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) job: Job,
    assembly: Assembly,
    error: Option<(ErrorCode, String)>,
    waiter: oneshot::Sender<Result<Outcome, ClientError>>,
    /// Its place among the requests in flight.
    _place: OwnedSemaphorePermit,
}

/// What has come of a reply.
#[derive(Debug)]
pub(super) enum Assembly {
    Read {
        data: Vec<u8>,
        pieces: Vec<Piece>,
        covered: u64,
    },
    Status(Vec<(u32, Vec<Extent>)>),
    /// Success or failure is all.
    Plain,
}

impl Assembly {
    pub(super) fn read(length: u32) -> Self {
        Self::Read { data: vec![0; length as usize], pieces: Vec::new(), covered: 0 }
    }

    pub(super) const fn status() -> Self {
        Self::Status(Vec::new())
    }
}

/// A reply that succeeded.
#[derive(Debug)]
pub(super) enum Outcome {
    Read(SparseData),
    Status(Vec<(u32, Vec<Extent>)>),
    Plain,
}

impl Pending {
    pub(super) const fn new(
        job: Job,
        assembly: Assembly,
        waiter: oneshot::Sender<Result<Outcome, ClientError>>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { job, assembly, error: None, waiter, _place: place }
    }

    /// Notes a piece of a READ; its place in [`data`](Self::data).
    pub(super) fn piece(&mut self, offset: u64, length: u32, hole: bool) -> Result<Range<usize>, ConnectionError> {
        let Assembly::Read { data, pieces, covered } = &mut self.assembly else {
            return Err(ConnectionError::WrongReply(self.job.command));
        };
        let start = offset
            .checked_sub(self.job.offset)
            .and_then(|start| usize::try_from(start).ok())
            .ok_or(ConnectionError::BadCover)?;
        let end =
            start.checked_add(length as usize).filter(|end| *end <= data.len()).ok_or(ConnectionError::BadCover)?;
        // Overlaps are looked for at the end, but there can never be more pieces than bytes.
        *covered += u64::from(length);
        if *covered > data.len() as u64 {
            return Err(ConnectionError::BadCover);
        }
        pieces.push(Piece { offset, length, hole });
        Ok(start..end)
    }

    /// The bytes of a READ at a place that [`piece`](Self::piece) gave.
    pub(super) fn data(&mut self, range: Range<usize>) -> &mut [u8] {
        match &mut self.assembly {
            Assembly::Read { data, .. } => data.get_mut(range).unwrap_or_default(),
            _ => &mut [],
        }
    }

    /// Notes the extents of a context.
    fn status(&mut self, context_id: u32, extents: Vec<Extent>) -> Result<(), ConnectionError> {
        match &mut self.assembly {
            Assembly::Status(found) if found.iter().all(|(id, _)| *id != context_id) => {
                found.push((context_id, extents));
                Ok(())
            }
            Assembly::Status(_) => Err(ConnectionError::BadContexts),
            _ => Err(ConnectionError::WrongReply(self.job.command)),
        }
    }

    /// Notes an error; the first one counts.
    pub(super) fn error(&mut self, error: ErrorCode, text: String) {
        self.error.get_or_insert((error, text));
    }

    /// Takes a chunk of the reply.
    pub(super) fn chunk(&mut self, chunk: Chunk<'_>) -> Result<(), ConnectionError> {
        match chunk {
            Chunk::None => {}
            Chunk::Data { offset, data } => {
                let length = u32::try_from(data.len()).map_err(|_| ConnectionError::BadCover)?;
                let place = self.piece(offset, length, false)?;
                self.data(place).copy_from_slice(data);
            }
            Chunk::Hole { offset, length } => {
                self.piece(offset, length, true)?;
            }
            Chunk::BlockStatus { context_id, extents } => self.status(context_id, extents)?,
            Chunk::Error { error, text, .. } => self.error(error, text),
        }
        Ok(())
    }

    /// What came of the request, now that the reply is complete. An error means that the reply breaks the protocol.
    pub(super) fn result(&mut self, context_ids: &[u32]) -> Result<Result<Outcome, ClientError>, ConnectionError> {
        if let Some((error, text)) = self.error.take() {
            let Job { command, offset, length, .. } = self.job;
            return Ok(Err(ClientError::Server { command, offset, length, error, text }));
        }
        Ok(Ok(match mem::replace(&mut self.assembly, Assembly::Plain) {
            Assembly::Read { data, mut pieces, .. } => {
                pieces.sort_unstable();
                if !covers(&pieces, self.job.offset, data.len()) {
                    return Err(ConnectionError::BadCover);
                }
                Outcome::Read(SparseData { data, pieces })
            }
            Assembly::Status(found) => {
                let told = |id| found.iter().any(|(found, _)| found == id);
                if found.len() != context_ids.len() || !context_ids.iter().all(told) {
                    return Err(ConnectionError::BadContexts);
                }
                Outcome::Status(found)
            }
            Assembly::Plain => Outcome::Plain,
        }))
    }

    /// Hands over what came of it; nobody may be waiting any more.
    pub(super) fn wake(self, result: Result<Outcome, ClientError>) {
        let _ = self.waiter.send(result);
    }
}

/// Whether sorted pieces follow on each other from `offset` for `length` bytes.
fn covers(pieces: &[Piece], offset: u64, length: usize) -> bool {
    let end = pieces
        .iter()
        .try_fold(offset, |next, piece| (piece.offset == next).then(|| next.checked_add(u64::from(piece.length)))?);
    end.and_then(|end| end.checked_sub(offset)) == Some(length as u64)
}
