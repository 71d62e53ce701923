//! The client's side of the handshake.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{ClientError, ConnectOptions, Mode, NegotiateError, RemoteExport};
use crate::handshake::{Listed, MetaContext};
use crate::limits::{MAX_OPTION_BYTES, MAX_OPTION_REPLIES, MAX_STRING_BYTES};
use crate::option::{
    Info, InfoRequest, MetaRequest, OPTION_REPLY_HEADER_BYTES, OptionHeader, OptionReply, OptionReplyHeader,
};
use crate::wire::{
    ClientFlags, EXPORT_NAME_PADDING_BYTES, HandshakeFlags, INIT_MAGIC, InfoType, OPTION_MAGIC, OptionCode,
    OptionReplyType, TransmissionFlags,
};

/// Asks a server for its exports on a fresh stream, and leaves.
pub async fn list<S>(stream: S) -> Result<Vec<Listed>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut talk = Talk::begin(stream).await?;
    let mut exports = Vec::new();
    talk.ask_plain(OptionCode::LIST, |reply| match reply {
        OptionReply::Server(listed) => {
            exports.push(listed);
            Ok(())
        }
        reply => Err(reply),
    })
    .await?;
    talk.abort().await;
    Ok(exports)
}

/// Asks a server to describe an export on a fresh stream, and leaves. The contexts are those on offer.
pub async fn info<S>(stream: S, export: &str) -> Result<RemoteExport, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    check_names([export])?;
    let mut talk = Talk::begin(stream).await?;
    let structured = talk.structured_reply().await?;
    let mut contexts = Vec::new();
    if structured {
        let option = OptionCode::LIST_META_CONTEXT;
        contexts = talk.contexts(option, export, &[]).await?;
    }
    let mut found = talk.describe(OptionCode::INFO, export).await?;
    found.structured = structured;
    found.contexts = contexts;
    talk.abort().await;
    Ok(found)
}

/// Negotiates up to the transmission phase.
pub(super) async fn enter<S>(stream: &mut S, options: &ConnectOptions) -> Result<RemoteExport, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ConnectOptions { export, mode, contexts } = options;
    check_names(contexts.iter().chain([export]).map(String::as_str))?;
    let mut talk = Talk::begin(stream).await?;
    if *mode == Mode::ExportName || !talk.fixed {
        return talk.export_name(export).await;
    }
    let mut structured = false;
    let mut selected = Vec::new();
    if *mode == Mode::Structured {
        structured = talk.structured_reply().await?;
        if structured && !contexts.is_empty() {
            let option = OptionCode::SET_META_CONTEXT;
            selected = talk.contexts(option, export, contexts).await?;
        }
    }
    let described = talk.describe(OptionCode::GO, export).await;
    let mut found = match described {
        Err(NegotiateError::Refused { kind: OptionReplyType::ERR_UNSUP, .. }) => talk.export_name(export).await?,
        Err(error @ NegotiateError::Refused { .. }) => {
            talk.abort().await;
            return Err(error);
        }
        described => described?,
    };
    found.structured = structured;
    found.contexts = selected;
    Ok(found)
}

fn check_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), NegotiateError> {
    match names.into_iter().any(|name| name.len() > MAX_STRING_BYTES) {
        true => Err(NegotiateError::NameTooLong),
        false => Ok(()),
    }
}

/// A conversation about options.
struct Talk<S> {
    stream: S,
    fixed: bool,
    no_zeroes: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    /// Reads the greeting and answers it.
    async fn begin(mut stream: S) -> Result<Self, NegotiateError> {
        match stream.read_u64().await? {
            INIT_MAGIC => {}
            magic => return Err(NegotiateError::NotNbd(magic)),
        }
        match stream.read_u64().await? {
            OPTION_MAGIC => {}
            magic => return Err(NegotiateError::NotNewstyle(magic)),
        }
        let server = HandshakeFlags(stream.read_u16().await?);
        let mut client = ClientFlags::EMPTY;
        let fixed = server.contains(HandshakeFlags::FIXED_NEWSTYLE);
        if fixed {
            client |= ClientFlags::FIXED_NEWSTYLE;
        }
        let no_zeroes = server.contains(HandshakeFlags::NO_ZEROES);
        if no_zeroes {
            client |= ClientFlags::NO_ZEROES;
        }
        stream.write_u32(client.0).await?;
        Ok(Self { stream, fixed, no_zeroes })
    }

    async fn export_name(&mut self, export: &str) -> Result<RemoteExport, NegotiateError> {
        let mut bytes = BytesMut::new();
        let code = OptionCode::EXPORT_NAME;
        let length = export.len() as u32;
        OptionHeader { code, length }.encode(&mut bytes);
        bytes.extend_from_slice(export.as_bytes());
        self.send(&bytes).await?;
        let size_bytes = self.stream.read_u64().await?;
        let flags = TransmissionFlags(self.stream.read_u16().await?);
        if !self.no_zeroes {
            let mut padding = [0; EXPORT_NAME_PADDING_BYTES];
            self.stream.read_exact(&mut padding).await?;
        }
        Ok(RemoteExport {
            name: export.to_owned(),
            description: String::new(),
            size_bytes,
            flags,
            block_size: None,
            structured: false,
            contexts: Vec::new(),
        })
    }

    /// Whether the server agrees to structured replies.
    async fn structured_reply(&mut self) -> Result<bool, NegotiateError> {
        let answer = self.ask_plain(OptionCode::STRUCTURED_REPLY, Err).await;
        unless_refused(answer.map(|()| true), false)
    }

    /// Lists or selects metadata contexts; none if the server refuses.
    async fn contexts(
        &mut self,
        option: OptionCode,
        export: &str,
        queries: &[String],
    ) -> Result<Vec<MetaContext>, NegotiateError> {
        let mut bytes = BytesMut::new();
        let queries = queries.iter().map(String::as_str).collect();
        MetaRequest { export, queries }.encode(option, &mut bytes);
        let mut contexts = Vec::new();
        let answer = self
            .ask(option, &bytes, |reply| match reply {
                OptionReply::MetaContext(context) => {
                    contexts.push(context);
                    Ok(())
                }
                reply => Err(reply),
            })
            .await;
        unless_refused(answer.map(|()| contexts), Vec::new())
    }

    /// Sends `INFO` or `GO`.
    async fn describe(&mut self, option: OptionCode, export: &str) -> Result<RemoteExport, NegotiateError> {
        let infos = vec![InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
        let mut bytes = BytesMut::new();
        InfoRequest { export, infos }.encode(option, &mut bytes);
        let mut size_and_flags = None;
        let mut found = RemoteExport {
            name: export.to_owned(),
            description: String::new(),
            size_bytes: 0,
            flags: TransmissionFlags::EMPTY,
            block_size: None,
            structured: false,
            contexts: Vec::new(),
        };
        self.ask(option, &bytes, |reply| {
            match reply {
                OptionReply::Info(Info::Export { size_bytes, flags }) => {
                    size_and_flags = Some((size_bytes, flags));
                }
                OptionReply::Info(Info::Name(name)) => found.name = name,
                OptionReply::Info(Info::Description(text)) => found.description = text,
                OptionReply::Info(Info::BlockSize(sizes)) => found.block_size = Some(sizes),
                OptionReply::Info(Info::Unknown(_)) => {}
                reply => return Err(reply),
            }
            Ok(())
        })
        .await?;
        (found.size_bytes, found.flags) = size_and_flags.ok_or(NegotiateError::NoSize)?;
        Ok(found)
    }

    /// Leaves; what the server says to it matters to nobody.
    async fn abort(&mut self) {
        let _ = self.ask_plain(OptionCode::ABORT, Err).await;
    }

    async fn ask_plain(
        &mut self,
        code: OptionCode,
        take: impl FnMut(OptionReply) -> Result<(), OptionReply>,
    ) -> Result<(), NegotiateError> {
        let mut bytes = BytesMut::new();
        OptionHeader { code, length: 0 }.encode(&mut bytes);
        self.ask(code, &bytes, take).await
    }

    /// Sends an option and reads replies up to the one that acknowledges it; `take` gives back those that do not belong
    /// there.
    async fn ask(
        &mut self,
        option: OptionCode,
        bytes: &[u8],
        mut take: impl FnMut(OptionReply) -> Result<(), OptionReply>,
    ) -> Result<(), NegotiateError> {
        if !self.fixed {
            return Err(NegotiateError::NotFixedNewstyle(option));
        }
        self.send(bytes).await?;
        for _ in 0..MAX_OPTION_REPLIES {
            let (kind, reply) = self.receive(option).await?;
            let result = match reply {
                OptionReply::Ack => return Ok(()),
                OptionReply::Error { kind, text } => {
                    return Err(NegotiateError::Refused { option, kind, text });
                }
                reply => take(reply),
            };
            if result.is_err() {
                return Err(NegotiateError::UnexpectedReply { option, kind });
            }
        }
        Err(NegotiateError::TooLong(option))
    }

    async fn receive(&mut self, option: OptionCode) -> Result<(OptionReplyType, OptionReply), NegotiateError> {
        let mut bytes = [0; OPTION_REPLY_HEADER_BYTES];
        self.stream.read_exact(&mut bytes).await?;
        let Some(header) = OptionReplyHeader::decode(&bytes)? else {
            unreachable!("the header is complete");
        };
        if header.option != option {
            let kind = header.kind;
            return Err(NegotiateError::UnexpectedReply { option, kind });
        }
        if header.length > MAX_OPTION_BYTES {
            return Err(NegotiateError::TooLong(option));
        }
        let mut payload = vec![0; header.length as usize];
        self.stream.read_exact(&mut payload).await?;
        let reply =
            OptionReply::decode(&header, &payload).map_err(|source| NegotiateError::BadReply { option, source })?;
        Ok((header.kind, reply))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), NegotiateError> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }
}

/// Does without what the server refuses.
fn unless_refused<T>(answer: Result<T, NegotiateError>, refused: T) -> Result<T, NegotiateError> {
    match answer {
        Err(NegotiateError::Refused { .. }) => Ok(refused),
        answer => answer,
    }
}
