//! An image behind an NBD server: where it has data, and several reads under way.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::runtime::Runtime;
use vmnetx_nbd_proto::client::{Client, ConnectOptions, ContextStatus};
use vmnetx_nbd_proto::wire::{BASE_ALLOCATION, StatusFlags};

use super::error::NbdError;
use crate::Error;
use crate::limits::{NBD_NEGOTIATE_S, NBD_READ_BYTES, NBD_READS, NBD_REPLY_S, NBD_STATUS_BYTES};

/// QEMU's context that tells how far down the chain of overlays a cluster lies: 0 where none of them has it, else its
/// number from the top (docs/interop/nbd.txt).
pub(super) const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";

/// An image behind an NBD server.
#[derive(Debug)]
pub(super) struct NbdImage {
    /// Runs the connection's task whenever a thread waits for an answer, and only then.
    runtime: Runtime,
    client: Client,
    has_depth: bool,
}

/// What a run of bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not in the image: it is what the image lies over. Only of images with an allocation depth.
    Below,
    Zeros,
    Data,
}

impl NbdImage {
    /// Negotiates on `stream`, with allocation depth if it is wanted.
    ///
    /// # Errors
    /// [`Error::Runtime`]; else, why the server is of no use.
    pub(super) fn connect(stream: UnixStream, with_depth: bool) -> Result<Result<Self, NbdError>, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
        let negotiated = runtime.block_on(async {
            stream.set_nonblocking(true)?;
            let stream = tokio::net::UnixStream::from_std(stream)?;
            let contexts = if with_depth { &[BASE_ALLOCATION, ALLOCATION_DEPTH][..] } else { &[BASE_ALLOCATION] };
            let mut options = ConnectOptions::new("");
            options.contexts = contexts.iter().map(|context| (*context).to_owned()).collect();
            let connecting = Client::connect(stream, &options);
            let client = tokio::time::timeout(Duration::from_secs(NBD_NEGOTIATE_S), connecting).await;
            Ok::<_, std::io::Error>(match client {
                Err(_) => Err(NbdError::Silent),
                Ok(client) => client.map_err(NbdError::from).and_then(|client| with_contexts(client, contexts)),
            })
        });
        let client = negotiated.map_err(Error::Runtime)?;
        Ok(client.map(|client| Self { runtime, client, has_depth: with_depth }))
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.client.export().size_bytes
    }

    /// What the image is from its first byte to its last, in order and without gaps.
    pub(super) fn runs(&self) -> impl Iterator<Item = Result<(Range<u64>, State), NbdError>> {
        let mut waiting = VecDeque::new();
        let (mut at, size) = (0, self.size_bytes());
        std::iter::from_fn(move || {
            if waiting.is_empty() && at < size {
                match self.status(at, size) {
                    Ok(runs) => waiting = runs,
                    Err(error) => {
                        at = size;
                        return Some(Err(error));
                    }
                }
            }
            let (range, state): (Range<u64>, State) = waiting.pop_front()?;
            at = range.end;
            Some(Ok((range, state)))
        })
    }

    /// Reads `ranges` one after the other into the front of `buffer`.
    pub(super) fn read(&self, ranges: impl Iterator<Item = Range<u64>>, buffer: &mut [u8]) -> Result<(), NbdError> {
        let limit = self.client.export().max_read_bytes().clamp(1, NBD_READ_BYTES);
        let pieces = ranges.flat_map(|range| {
            range.clone().step_by(limit as usize).map(move |at| (at, (range.end - at).min(limit.into()) as u32))
        });
        let mut rest = buffer;
        self.runtime.block_on(async {
            let reads = stream::iter(pieces).map(|(at, length)| answered(self.client.read(at, length)));
            let mut reads = std::pin::pin!(reads.buffered(NBD_READS));
            while let Some(data) = reads.try_next().await? {
                let (place, behind) = std::mem::take(&mut rest).split_at_mut(data.len());
                place.copy_from_slice(&data);
                rest = behind;
            }
            Ok(())
        })
    }

    /// At least one run from the byte `at` on.
    fn status(&self, at: u64, size: u64) -> Result<VecDeque<(Range<u64>, State)>, NbdError> {
        let length = (size - at).min(NBD_STATUS_BYTES.into()) as u32;
        let told = self.runtime.block_on(answered(self.client.block_status(at, length, false)))?;
        let ends = |name: &'static str| {
            let context = told.iter().find(|status| status.context == name).ok_or(NbdError::NoContext(name))?;
            Ok::<_, NbdError>(ends(context, at, size))
        };
        let mut zeros = ends(BASE_ALLOCATION)?;
        let mut depths = if self.has_depth { ends(ALLOCATION_DEPTH)? } else { [(size, StatusFlags(1))].into() };
        let mut runs = VecDeque::new();
        let mut start = at;
        // The contexts may be told in other pieces, and up to other places.
        while let (Some(&(zeros_end, flags)), Some(&(depth_end, depth))) = (zeros.front(), depths.front()) {
            let end = zeros_end.min(depth_end);
            let state = match (depth.0, flags.contains(StatusFlags::ZERO)) {
                (0, _) => State::Below,
                (_, true) => State::Zeros,
                (_, false) => State::Data,
            };
            if end > start {
                runs.push_back((start..end, state));
                start = end;
            }
            if zeros_end == end {
                zeros.pop_front();
            }
            if depth_end == end {
                depths.pop_front();
            }
        }
        if runs.is_empty() { Err(NbdError::NoExtent(at)) } else { Ok(runs) }
    }
}

/// The end of each extent of a context from the byte `at` on. Only the last may lie behind what was asked for.
fn ends(context: &ContextStatus, at: u64, size: u64) -> VecDeque<(u64, StatusFlags)> {
    let mut end = at;
    let extents = context.extents.iter().map(|extent| {
        end = end.saturating_add(extent.length.into()).min(size);
        (end, extent.flags)
    });
    extents.collect()
}

fn with_contexts(client: Client, wanted: &[&'static str]) -> Result<Client, NbdError> {
    let has = |name: &str| client.export().contexts.iter().any(|context| context.name == name);
    match wanted.iter().find(|name| !has(name)) {
        Some(missing) => Err(NbdError::NoContext(missing)),
        None => Ok(client),
    }
}

async fn answered<T>(
    request: impl Future<Output = Result<T, vmnetx_nbd_proto::client::ClientError>>,
) -> Result<T, NbdError> {
    match tokio::time::timeout(Duration::from_secs(NBD_REPLY_S), request).await {
        Err(_) => Err(NbdError::Stalled),
        Ok(answer) => Ok(answer?),
    }
}
