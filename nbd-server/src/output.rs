//! Replies that wait to be written: headers and small payloads in one buffer, large payloads shared with the caches.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use vmnetx_nbd_proto::reply;
use vmnetx_nbd_proto::wire::{ChunkFlags, Cookie};
use vmnetx_store::Piece;

use crate::limits::COPY_BYTES_MAX;

/// Slices of one vectored write.
const SLICES_MAX: usize = 64;

/// Collects replies and writes them in as few system calls as will do.
#[derive(Debug, Default)]
pub(crate) struct Output {
    ready: VecDeque<Bytes>,
    tail: BytesMut,
    ready_bytes: usize,
}

impl Output {
    /// Where headers are put.
    pub(crate) fn header(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.ready_bytes + self.tail.len()
    }

    /// Answers a read with structured chunks: data as data, holes as holes. With `whole` it is one data chunk.
    pub(crate) fn structured_read(&mut self, cookie: Cookie, offset: u64, pieces: &mut Vec<Piece>, whole: bool) {
        let total: u64 = pieces.iter().map(Piece::len).sum();
        if whole && total > 0 {
            reply::data_header(&mut self.tail, cookie, ChunkFlags::DONE, offset, total as u32);
            self.payload(pieces.drain(..));
            return;
        }
        let mut at = offset;
        let mut rest = &pieces[..];
        while let Some(first) = rest.first() {
            let run = match first {
                Piece::Zeros(_) => 1,
                Piece::Data(_) => rest.iter().take_while(|piece| matches!(piece, Piece::Data(_))).count(),
            };
            let (now, later) = rest.split_at(run);
            let flags = if later.is_empty() { ChunkFlags::DONE } else { ChunkFlags::EMPTY };
            let length: u64 = now.iter().map(Piece::len).sum();
            match first {
                Piece::Zeros(_) => reply::hole(&mut self.tail, cookie, flags, at, length as u32),
                Piece::Data(_) => {
                    reply::data_header(&mut self.tail, cookie, flags, at, length as u32);
                    self.payload(now.iter().cloned());
                }
            }
            at += length;
            rest = later;
        }
        if pieces.is_empty() {
            reply::done(&mut self.tail, cookie);
        }
        pieces.clear();
    }

    /// Answers a read with a simple reply, holes written out.
    pub(crate) fn simple_read(&mut self, cookie: Cookie, pieces: &mut Vec<Piece>) {
        reply::simple(&mut self.tail, cookie, None);
        self.payload(pieces.drain(..));
    }

    fn payload(&mut self, pieces: impl Iterator<Item = Piece>) {
        for piece in pieces {
            match piece {
                Piece::Zeros(zeros) if zeros <= COPY_BYTES_MAX as u64 => self.tail.put_bytes(0, zeros as usize),
                Piece::Zeros(zeros) => self.zeros(zeros),
                Piece::Data(data) if data.len() <= COPY_BYTES_MAX => self.tail.extend_from_slice(&data),
                Piece::Data(data) => {
                    self.close_tail();
                    self.ready_bytes += data.len();
                    self.ready.push_back(data);
                }
            }
        }
    }

    /// Adds many zeros without having them all in memory: a request of 28 bytes must not cost megabytes.
    fn zeros(&mut self, mut zeros: u64) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        self.close_tail();
        while zeros > 0 {
            let part = zeros.min(ZEROS.len() as u64) as usize;
            self.ready_bytes += part;
            self.ready.push_back(Bytes::from_static(&ZEROS[..part]));
            zeros -= part as u64;
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.ready_bytes += self.tail.len();
            self.ready.push_back(self.tail.split().freeze());
        }
    }

    /// Writes everything.
    pub(crate) async fn write_to(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        if self.ready.is_empty() {
            stream.write_all_buf(&mut self.tail).await?;
            return stream.flush().await;
        }
        self.close_tail();
        while !self.ready.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(&self.ready) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            let mut written = stream.write_vectored(&slices[..count]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.ready_bytes -= written;
            while let Some(part) = self.ready.front_mut() {
                if written < part.len() {
                    part.advance(written);
                    break;
                }
                written -= part.len();
                self.ready.pop_front();
            }
        }
        // TLS keeps what the socket did not take at once.
        stream.flush().await
    }
}
