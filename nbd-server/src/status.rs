//! BLOCK_STATUS: what is told of a range in each metadata context that the client selected.

use bytes::BytesMut;
use vmnetx_nbd_proto::handshake::MetaContext;
use vmnetx_nbd_proto::reply::{self, Extent};
use vmnetx_nbd_proto::wire::{BASE_ALLOCATION, ChunkFlags, Cookie, RESIDENCY, StatusFlags};
use vmnetx_store::{Error, Image};

use crate::limits::EXTENTS_MAX;

/// The ids under which contexts were selected on a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contexts {
    allocation: Option<u32>,
    residency: Option<u32>,
}

/// The extents of one context, under its id.
#[derive(Debug)]
pub(crate) struct Status {
    context_id: u32,
    extents: Vec<Extent>,
}

impl Contexts {
    pub(crate) fn new(selected: &[MetaContext]) -> Self {
        let id = |name| selected.iter().find(|context| context.name == name).map(|context| context.id);
        Self { allocation: id(BASE_ALLOCATION), residency: id(RESIDENCY) }
    }
}

/// Answers for every selected context.
pub(crate) async fn ask(
    image: &Image,
    contexts: Contexts,
    offset: u64,
    length: u32,
    one_extent: bool,
) -> Result<Vec<Status>, Error> {
    let extents_max = if one_extent { 1 } else { EXTENTS_MAX };
    let mut told = Vec::new();
    // No extent is longer than the request, whose length has 32 bits.
    let extent = |length: u64, flags| Extent { length: length as u32, flags };
    // The first, for it may fetch a part of the index that the other then knows.
    if let Some(context_id) = contexts.allocation {
        let extents = image.extents(offset, length.into(), extents_max).await?;
        let flags = |hole| if hole { StatusFlags::HOLE | StatusFlags::ZERO } else { StatusFlags::EMPTY };
        let extents = extents.iter().map(|run| extent(run.length, flags(run.hole))).collect();
        told.push(Status { context_id, extents });
    }
    if let Some(context_id) = contexts.residency {
        let runs = image.residency(offset, length.into(), extents_max).await?;
        let flags = |remote| if remote { StatusFlags::REMOTE } else { StatusFlags::EMPTY };
        let extents = runs.iter().map(|run| extent(run.length, flags(run.remote))).collect();
        told.push(Status { context_id, extents });
    }
    Ok(told)
}

/// Appends the reply: a chunk for each context, and for a range of no bytes, of which there is nothing to tell, none.
pub(crate) fn reply(output: &mut BytesMut, cookie: Cookie, told: &[Status]) {
    let mut told = told.iter().filter(|status| !status.extents.is_empty()).peekable();
    if told.peek().is_none() {
        return reply::done(output, cookie);
    }
    while let Some(Status { context_id, extents }) = told.next() {
        let flags = if told.peek().is_none() { ChunkFlags::DONE } else { ChunkFlags::EMPTY };
        reply::block_status(output, cookie, flags, *context_id, extents);
    }
}
