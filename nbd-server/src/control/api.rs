//! What is said over the control socket: the types of version 1, closed both ways, so that a misspelt field is an error and
//! not a default.

mod keep;
mod mapped;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use vmnetx_format::{Digest, Name, PublicKey, Purpose, Title};
use vmnetx_store::failure::{Class, Told, describe};
use vmnetx_store::origin::{MirrorState, OriginCounts};
use vmnetx_store::trust::Notice;
use vmnetx_store::{Counts, LinkArgs, OrderCounts, Package, Place};

pub use self::keep::{CacheReport, PruneRequest, PullProgress, UnpinRequest, Unpinned, VerifyProgress};
pub use self::mapped::{MapProgress, MapRequest};

use crate::Error;
use crate::limits::{ATTACHMENT_ID_BYTES_MAX, CONTROL_EXPORTS_MAX, CONTROL_KEYS_MAX, RANDOM_ID_BYTES};

/// The version of the control interface that this program speaks, as it stands in paths.
pub const API_VERSION: u32 = 1;

/// What every version of the server answers to `GET /version`, and to `POST /drain`. It may gain fields, so unknown ones are
/// no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Versions {
    /// The versions of the control interface that it speaks.
    pub api: Vec<u32>,
    /// The version of the program.
    pub program: String,
    /// Its process id.
    pub pid: u32,
    /// Whether it takes no more attachments and ends when the last one has gone.
    pub draining: bool,
}

/// What a client calls its attachment: 1 to [`ATTACHMENT_ID_BYTES_MAX`] letters, digits, `-` and `_`. The path of the
/// attachment's socket follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,40}$")]
pub struct AttachmentId(String);

/// A text that names no attachment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an attachment is called by 1 to {ATTACHMENT_ID_BYTES_MAX} letters, digits, '-' and '_'")]
pub struct BadId;

/// Which package is wanted, and how it is to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// An http(s) URL; or the absolute path of a link file, from who may use the server's files. `#b3=DIGEST` asks for one
    /// version.
    #[schema(max_length = 4096)]
    pub link: String,
    /// The digest of the manifest that is wanted, as `#b3=DIGEST`: whoever attaches again wants what it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub version: Option<Digest>,
    /// Take only a link that is signed with one of these keys; without any, as it was when it was first read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, max_items = 64)]
    pub trust_keys: Vec<PublicKey>,
    /// Take a link that is not signed where a signed one was read before.
    #[serde(default)]
    pub accept_unsigned: bool,
    /// Tokens for hosts, from who may use the server's files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub token_files: Vec<TokenFile>,
    /// The absolute path of a file with authorities (PEM) whose https servers are believed too, from who may use the
    /// server's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Seconds for which a read is tried again when the origin fails; absent for the server's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 600)]
    pub retry_for_s: Option<u64>,
    /// Bytes a second that pulls and clients' prefetching (CACHE) may fetch for it; absent for the server's own limit, which
    /// it never exceeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub background_bytes_per_s: Option<u64>,
    /// Send no request to any host for it: what is in the cache directory must do.
    #[serde(default)]
    pub offline: bool,
    /// Whether the package's recorded order is replayed.
    #[serde(default)]
    pub order: OrderUse,
    /// Whether the VM is to be resumed: its memory is served beside its disks, if it was saved, and of its recorded orders the
    /// one of a resume is meant.
    #[serde(default)]
    pub memory: bool,
    /// Whether first touches are recorded.
    #[serde(default)]
    pub record: bool,
    /// The images to serve; none for all disks, and all of memory if that is wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub exports: Vec<String>,
}

/// A host and the file with the bearer token for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenFile {
    /// The host.
    pub host: String,
    /// The file's absolute path.
    pub file: String,
}

/// Whether a recorded order is replayed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderUse {
    /// As far as one is known: recorded with the package, or of the last time here.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// What a client gets to know of its attachment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// What the client calls it.
    pub id: AttachmentId,
    /// The package's name.
    #[schema(value_type = String)]
    pub name: Name,
    /// The package's title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub title: Option<Title>,
    /// The digest of the manifest.
    #[schema(value_type = String)]
    pub version: Digest,
    /// The key that signed the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub signer: Option<PublicKey>,
    /// What the user should know about the link.
    pub notices: Vec<NoticeText>,
    /// The manifest, as docs/format.md describes it.
    #[schema(value_type = Object)]
    pub manifest: Box<RawValue>,
    /// The Unix socket that has this attachment's exports and no others.
    pub socket: String,
    /// The exports; the first one is also the default export.
    pub exports: Vec<ExportSize>,
}

/// Something that a user should know about a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoticeText {
    /// Whether something may be wrong.
    pub warning: bool,
    /// In words.
    pub text: String,
}

/// An export and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportSize {
    /// Its name.
    pub name: String,
    /// The image's true size.
    pub size_bytes: u64,
}

/// What a server did so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// For how long it has run.
    pub uptime_s: u64,
    /// Bytes of plain chunks in the memory tier.
    pub memory_bytes: u64,
    /// Bytes of stored chunks in the disk tier.
    pub disk_bytes: u64,
    /// Bytes of saved RAM that are held to be mapped by VMs; what several share is counted once.
    pub mapped_bytes: u64,
    /// The attachments that the asker may see.
    pub attachments: Vec<AttachmentStats>,
}

/// What was done for one attachment so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachmentStats {
    /// What its client calls it.
    pub id: AttachmentId,
    /// The user whose it is.
    pub uid: u32,
    /// The package's name.
    pub package: String,
    /// The digest of the version that is served.
    pub version: String,
    /// Where it is served: a Unix socket's path, or a TCP address.
    pub socket: String,
    /// Leases that are held and NBD connections that are open.
    pub holders: u64,
    /// Whether all of the version is in the cache directory and kept there: no request is needed to read it.
    pub complete: bool,
    /// How far it is being made so; absent if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullProgress>,
    /// Bytes of its saved RAM that are held to be mapped, zero pages not counted; absent if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped_bytes: Option<u64>,
    /// Bytes of bodies that came from the origin: link, manifest, layout, index and chunks.
    pub origin_bytes: u64,
    /// What these requests were for, which of them went out again, and what came of it.
    pub origin: OriginCounts,
    /// The places of the package's repository, in its link's order, and how they do.
    pub mirrors: Vec<MirrorState>,
    /// What came of the package's recorded order; absent if it has none or none is replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderCounts>,
    /// First touches that were recorded, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_touches: Option<u64>,
    /// The exports.
    pub exports: Vec<ExportStats>,
}

/// What clients did with an export, and what that cost, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportStats {
    /// The export's name.
    pub name: String,
    /// The image's true size.
    pub size_bytes: u64,
    /// Connections that reached the export so far.
    pub connections: u64,
    /// Requests of all kinds.
    pub requests: u64,
    /// Reads among them that the memory tier answered at once.
    pub inline_reads: u64,
    /// Requests that the protocol or the read-only export does not allow.
    pub refused: u64,
    /// Requests that failed for want of a chunk.
    pub failed: u64,
    /// What was read of the image, and from where.
    pub counts: Counts,
}

/// One line of a lease: the server says now and then that it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Beat {
    /// The attachment that is held.
    pub id: AttachmentId,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// What kind of failure it is.
    pub class: Class,
    /// What happened.
    pub message: String,
    /// What can be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl AttachmentId {
    /// One that nobody else has.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; RANDOM_ID_BYTES];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AttachmentId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        text.to_owned().try_into()
    }
}

impl TryFrom<String> for AttachmentId {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let right = (1..=ATTACHMENT_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed);
        if right { Ok(Self(text)) } else { Err(BadId) }
    }
}

impl From<AttachmentId> for String {
    fn from(id: AttachmentId) -> Self {
        id.0
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AttachRequest {
    /// Asks for all disks of the package that a link names, to be read as is usual.
    #[must_use]
    pub fn new(link: impl Into<String>) -> Self {
        Self {
            link: link.into(),
            version: None,
            trust_keys: Vec::new(),
            accept_unsigned: false,
            token_files: Vec::new(),
            ca_file: None,
            retry_for_s: None,
            background_bytes_per_s: None,
            offline: false,
            order: OrderUse::default(),
            memory: false,
            record: false,
            exports: Vec::new(),
        }
    }

    /// Asks for the package that a user's arguments name, as [`Self::new`]. The version that the link asks for becomes a
    /// field.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a path that cannot be told.
    pub fn of(args: &LinkArgs) -> Result<Self, Error> {
        let LinkArgs { link, trust, access } = args;
        let text = match &link.place {
            Place::Url(url) => url.to_string(),
            Place::Path(path) => told(path)?,
        };
        let trust = trust.trust();
        let token = |(host, file): &(String, PathBuf)| Ok(TokenFile { host: host.clone(), file: told(file)? });
        Ok(Self {
            version: link.version,
            trust_keys: trust.keys,
            accept_unsigned: trust.accept_unsigned,
            token_files: access.token_files().iter().map(token).collect::<Result<_, Error>>()?,
            ca_file: access.ca_file().map(told).transpose()?,
            ..Self::new(text)
        })
    }

    /// What the package is opened for.
    pub(crate) const fn purpose(&self) -> Purpose {
        if self.memory { Purpose::Resume } else { Purpose::Boot }
    }

    /// Whether its lists are within their limits.
    pub(crate) fn is_bounded(&self) -> bool {
        self.trust_keys.len().max(self.token_files.len()) <= CONTROL_KEYS_MAX
            && self.exports.len() <= CONTROL_EXPORTS_MAX
    }
}

/// A path as a server is told of it, which has another working directory.
fn told(path: &Path) -> Result<String, Error> {
    let whole = std::path::absolute(path).ok().and_then(|path| path.into_os_string().into_string().ok());
    whole.ok_or_else(|| Error::BadRequest(format!("path {} cannot be told to a server", path.display())))
}

impl Attached {
    /// What is said of a package that `socket` serves.
    pub(crate) fn of(
        id: &AttachmentId,
        package: &Package,
        socket: &str,
        exports: Vec<ExportSize>,
    ) -> Result<Self, Error> {
        let manifest =
            String::from_utf8(package.manifest().encode()).ok().and_then(|text| RawValue::from_string(text).ok());
        Ok(Self {
            id: id.clone(),
            name: package.link().name.clone(),
            title: package.link().title.clone(),
            version: package.version().manifest,
            signer: package.signer(),
            notices: package.notices().iter().map(NoticeText::from).collect(),
            // What was decoded encodes again.
            manifest: manifest.ok_or(Error::Unspeakable("the manifest"))?,
            socket: socket.to_owned(),
            exports,
        })
    }
}

impl NoticeText {
    /// Logs it.
    pub fn log(&self) {
        let Self { warning, text } = self;
        if *warning { tracing::warn!("{text}") } else { tracing::info!("{text}") }
    }
}

impl From<&Notice> for NoticeText {
    fn from(notice: &Notice) -> Self {
        Self { warning: notice.is_warning(), text: notice.to_string() }
    }
}

impl Problem {
    /// Tells an error.
    #[must_use]
    pub fn of(error: &dyn Told) -> Self {
        Self { class: error.class(), message: describe(error), hint: error.hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_lead_nowhere() {
        for id in ["a", "0f3-_Z", &"x".repeat(ATTACHMENT_ID_BYTES_MAX)] {
            assert_eq!(id.parse::<AttachmentId>().unwrap().as_str(), id);
        }
        for id in ["", ".", "..", "a/b", "a.sock", "a b", "é", "a\0", &"x".repeat(ATTACHMENT_ID_BYTES_MAX + 1)] {
            assert_eq!(id.parse::<AttachmentId>(), Err(BadId), "{id:?}");
        }
    }

    #[test]
    fn what_is_misspelt_is_an_error() {
        let parse = |text: &str| serde_json::from_str::<AttachRequest>(text);
        assert_eq!(parse(r#"{"link":"http://h/a.vmnetx"}"#).unwrap(), AttachRequest::new("http://h/a.vmnetx"));
        assert!(parse(r#"{"link":"http://h/a.vmnetx","ordre":"off"}"#).is_err());
        assert!(parse(r#"{"link":"http://h/a.vmnetx","link":"http://h/b.vmnetx"}"#).is_err());
        assert!(parse("{}").is_err());
    }
}
