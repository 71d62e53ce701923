//! Answers to the options (NBD spec, "Option types").

use bytes::{BufMut, BytesMut};

use super::{
    ExportInfo, Exports, Handshake, HandshakeError, Listed, MetaContext, Progress, Selection, Session, Step, refuse,
};
use crate::limits::MAX_STRING_BYTES;
use crate::option::{Info, InfoRequest, MetaRequest, OptionError, OptionReply};
use crate::text;
use crate::wire::{ClientFlags, EXPORT_NAME_PADDING_BYTES, InfoType, OptionCode, OptionReplyType, TransmissionFlags};

impl Handshake {
    /// Answers any option but `STARTTLS`.
    pub(super) fn answer<E: Exports>(
        &mut self,
        option: OptionCode,
        payload: &[u8],
        exports: &E,
        output: &mut BytesMut,
    ) -> Step<E::Handle> {
        if let Some(step) = self.refuse_for_tls(option, output) {
            return step;
        }
        let result = match option {
            OptionCode::EXPORT_NAME => return self.export_name(payload, exports, output),
            OptionCode::ABORT => {
                OptionReply::Ack.encode(option, output);
                return Ok(Some(Progress::Aborted));
            }
            OptionCode::GO => match self.describe(option, payload, exports, output) {
                Ok(session) => return Ok(Some(Progress::Transmission(session))),
                Err(refusal) => Err(refusal),
            },
            OptionCode::INFO => self.describe(option, payload, exports, output).map(drop),
            OptionCode::LIST => list(payload, exports, output),
            OptionCode::STRUCTURED_REPLY => self.structured_reply(payload, output),
            OptionCode::LIST_META_CONTEXT => self.meta_context(option, payload, exports, output).map(drop),
            OptionCode::SET_META_CONTEXT => {
                // A failing option unselects too.
                self.selected = None;
                self.meta_context(option, payload, exports, output).map(|selection| self.selected = Some(selection))
            }
            option => Err(Refusal::new(OptionReplyType::ERR_UNSUP, format!("option {option} is not supported"))),
        };
        if let Err(refusal) = result {
            refuse(option, refusal.kind, &refusal.text, output);
        }
        Ok(None)
    }

    fn export_name<E: Exports>(&mut self, payload: &[u8], exports: &E, output: &mut BytesMut) -> Step<E::Handle> {
        let name = text::parse(payload).map_err(HandshakeError::BadExportName)?;
        let Some(found) = exports.find(name) else {
            return Err(HandshakeError::UnknownExport(name.to_owned()));
        };
        let session = self.session(name, found);
        output.put_u64(session.export.size_bytes);
        output.put_u16(session.export.flags.0);
        if !self.client.contains(ClientFlags::NO_ZEROES) {
            output.put_bytes(0, EXPORT_NAME_PADDING_BYTES);
        }
        Ok(Some(Progress::Transmission(session)))
    }

    /// Answers `INFO` or `GO`; the session is what `GO` begins.
    fn describe<E: Exports>(
        &self,
        option: OptionCode,
        payload: &[u8],
        exports: &E,
        output: &mut BytesMut,
    ) -> Result<Session<E::Handle>, Refusal> {
        let request = InfoRequest::decode(payload)?;
        let found = exports.find(request.export).ok_or_else(Refusal::unknown)?;
        let session = self.session(request.export, found);
        let export = &session.export;
        let mut tell = |info| OptionReply::Info(info).encode(option, output);
        tell(Info::Export { size_bytes: export.size_bytes, flags: export.flags });
        if request.infos.contains(&InfoType::NAME) {
            tell(Info::Name(export.name.clone()));
        }
        if request.infos.contains(&InfoType::DESCRIPTION) && !export.description.is_empty() {
            tell(Info::Description(export.description.clone()));
        }
        if request.infos.contains(&InfoType::BLOCK_SIZE) {
            tell(Info::BlockSize(export.block_size));
        }
        OptionReply::Ack.encode(option, output);
        Ok(session)
    }

    fn structured_reply(&mut self, payload: &[u8], output: &mut BytesMut) -> Result<(), Refusal> {
        let option = OptionCode::STRUCTURED_REPLY;
        no_data(option, payload)?;
        self.structured = true;
        OptionReply::Ack.encode(option, output);
        Ok(())
    }

    /// Answers `LIST_META_CONTEXT` or `SET_META_CONTEXT`; the selection is what the latter makes.
    fn meta_context<E: Exports>(
        &self,
        option: OptionCode,
        payload: &[u8],
        exports: &E,
        output: &mut BytesMut,
    ) -> Result<Selection, Refusal> {
        if !self.structured {
            return Err(Refusal::new(OptionReplyType::ERR_INVALID, "negotiate structured replies first".to_owned()));
        }
        let request = MetaRequest::decode(payload)?;
        let (export, _) = exports.find(request.export).ok_or_else(Refusal::unknown)?;
        let listing = option == OptionCode::LIST_META_CONTEXT;
        let contexts = matching(&export.contexts, &request.queries, listing);
        for context in &contexts {
            let mut context = context.clone();
            if listing {
                // Reserved in a list (NBD spec, NBD_OPT_LIST_META_CONTEXT).
                context.id = 0;
            }
            OptionReply::MetaContext(context).encode(option, output);
        }
        OptionReply::Ack.encode(option, output);
        Ok(Selection { export: request.export.to_owned(), contexts })
    }

    fn session<H>(&self, requested_name: &str, (mut export, handle): (ExportInfo, H)) -> Session<H> {
        export.flags |= TransmissionFlags::HAS_FLAGS;
        if !self.structured {
            export.flags = export.flags.without(TransmissionFlags::SEND_DF);
        }
        // Contexts are selected for one export name; for another they do not count.
        let contexts = match &self.selected {
            Some(selection) if selection.export == requested_name => {
                selection.contexts.iter().filter(|context| export.contexts.contains(&context.name)).cloned().collect()
            }
            _ => Vec::new(),
        };
        Session {
            handle,
            export,
            requested_name: requested_name.to_owned(),
            structured: self.structured,
            contexts,
            tls: self.tls,
        }
    }
}

/// An error reply in the making.
struct Refusal {
    kind: OptionReplyType,
    text: String,
}

impl Refusal {
    const fn new(kind: OptionReplyType, text: String) -> Self {
        Self { kind, text }
    }

    fn unknown() -> Self {
        let text = "there is no export of this name";
        Self::new(OptionReplyType::ERR_UNKNOWN, text.to_owned())
    }
}

impl From<OptionError> for Refusal {
    fn from(error: OptionError) -> Self {
        Self::new(error.reply_type(), error.to_string())
    }
}

fn list<E: Exports>(payload: &[u8], exports: &E, output: &mut BytesMut) -> Result<(), Refusal> {
    let option = OptionCode::LIST;
    no_data(option, payload)?;
    for Listed { name, description } in exports.list() {
        // A longer name could not be asked for.
        if name.len() <= MAX_STRING_BYTES {
            OptionReply::Server(Listed { name, description }).encode(option, output);
        }
    }
    OptionReply::Ack.encode(option, output);
    Ok(())
}

fn no_data(option: OptionCode, payload: &[u8]) -> Result<(), Refusal> {
    match payload {
        [] => Ok(()),
        _ => Err(OptionError::UnexpectedData(option).into()),
    }
}

/// The contexts on offer that a query names. In a list, no query at all asks for all, and a bare namespace (`base:`)
/// for all of it; when selecting neither selects any (NBD spec, "Metadata querying").
fn matching(offered: &[String], queries: &[&str], listing: bool) -> Vec<MetaContext> {
    let asked = |name: &str| {
        let in_namespace =
            |query: &str| query.find(':') == Some(query.len().wrapping_sub(1)) && name.starts_with(query);
        listing && queries.is_empty() || queries.iter().any(|query| *query == name || listing && in_namespace(query))
    };
    (1..)
        .zip(offered)
        .filter(|(_, name)| asked(name))
        .map(|(id, name)| MetaContext { id, name: name.clone() })
        .collect()
}
