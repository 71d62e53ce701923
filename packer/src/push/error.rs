//! Why a repository cannot be pushed to a bucket.

use std::path::PathBuf;

use vmnetx_format::{Link, LinkError, Name};
use vmnetx_store::failure::{Class, Told};

/// Why a push fails. Nothing here ever holds a credential.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The text names no bucket.
    #[error("{text:?} is not a bucket: {reason}")]
    Target {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The endpoint or its region cannot be used.
    #[error("{endpoint} {reason}")]
    Endpoint {
        /// Its URL, without secrets, or where it was read.
        endpoint: String,
        /// Why not.
        reason: String,
    },
    /// Credentials would cross a network unencrypted.
    #[error("the endpoint {0} is not encrypted")]
    PlainHttp(String),
    /// There are no credentials.
    #[error("no credentials: neither the environment nor profile {profile:?} of {} has them", path.display())]
    NoCredentials {
        /// The profile that was looked for.
        profile: String,
        /// The shared credentials file.
        path: PathBuf,
    },
    /// A part of the credentials is missing, or is no text that a header can hold.
    #[error("the credentials of {place} cannot be used: {reason}")]
    Credentials {
        /// Where they come from.
        place: String,
        /// Which part is missing or wrong.
        reason: &'static str,
    },
    /// The server cannot be reached, or does not do what it is asked for.
    #[error("{action} {object}: {reason}")]
    Request {
        /// What was tried, as a verb: "upload", "list".
        action: &'static str,
        /// Which object or folder.
        object: String,
        /// What the server or the network says, without secrets.
        reason: String,
        /// Whether the server says that this is not allowed.
        denied: bool,
    },
    /// An object in the bucket is not the one that its name promises.
    #[error("{object} has {remote} bytes in the bucket and {local} here")]
    Size {
        /// The object.
        object: String,
        /// Its bytes in the bucket.
        remote: u64,
        /// Its bytes in the repository.
        local: u64,
    },
    /// The bucket holds more objects than are listed.
    #[error("{0} has too many objects")]
    TooManyObjects(String),
    /// The link was replaced while the repository was read.
    #[error("another publisher replaced the link of {0} while it was read")]
    Changed(Name),
    /// The bucket's link cannot be read.
    #[error("the link of {name} in the bucket cannot be read")]
    RemoteLink {
        /// The package.
        name: Name,
        /// What is wrong with it.
        #[source]
        source: LinkError,
    },
    /// The bucket's link is not an earlier one of ours.
    #[error("{name} in the bucket is no earlier state of {name} here: there it has {theirs}, here {ours}")]
    Foreign {
        /// The package.
        name: Name,
        /// What the bucket's link says.
        theirs: String,
        /// What the repository's link says.
        ours: String,
    },
    /// Somebody else replaced the link meanwhile.
    #[error(
        "another publisher replaced the link of {name} in the bucket meanwhile: there it has {theirs}, here {ours}"
    )]
    Raced {
        /// The package.
        name: Name,
        /// What the bucket's link says.
        theirs: String,
        /// What the repository's link says.
        ours: String,
    },
    /// The server cannot replace a link without the risk of losing another publisher's.
    #[error("the server {server} does not support conditional puts ({header})")]
    Unconditional {
        /// The server.
        server: String,
        /// The header that it does not respect.
        header: &'static str,
    },
    /// What was uploaded does not show up.
    #[error("{server} does not list {object}, which was uploaded")]
    NotListed {
        /// The server.
        server: String,
        /// One of the objects.
        object: String,
    },
    /// A link in the bucket may need objects that the repository does not have.
    #[error("nothing is pruned: {object} in the bucket {reason}")]
    Prune {
        /// The link.
        object: String,
        /// In which way it is not the repository's.
        reason: &'static str,
    },
    /// A link was replaced while objects were deleted that it may need.
    #[error("another publisher replaced {0} in the bucket while objects were deleted")]
    Overtaken(String),
    /// Nothing is known of the time at which objects were uploaded.
    #[error("nothing is pruned: the server {0} does not say what time it is")]
    NoDate(String),
    /// The user ended it.
    #[error("interrupted")]
    Interrupted,
}

/// A link in a few words, for telling two apart.
pub(super) fn words(link: &Link) -> String {
    format!("serial {} with version {}", link.serial, link.current.manifest)
}

impl Told for PushError {
    fn class(&self) -> Class {
        match self {
            Self::Target { .. } | Self::Endpoint { .. } | Self::PlainHttp(_) => Class::Usage,
            Self::NoCredentials { .. } | Self::Credentials { .. } => Class::Usage,
            Self::Request { .. } | Self::NotListed { .. } | Self::NoDate(_) => Class::Network,
            Self::Size { .. } | Self::RemoteLink { .. } => Class::Integrity,
            Self::Changed(_) | Self::Foreign { .. } | Self::Raced { .. } | Self::Unconditional { .. } => Class::Failure,
            Self::Prune { .. } | Self::Overtaken(_) => Class::Failure,
            Self::TooManyObjects(_) | Self::Interrupted => Class::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Target { .. } => "give s3://BUCKET or s3://BUCKET/PREFIX".into(),
            Self::PlainHttp(_) => "use https, or say --allow-http if the network up to it is trusted".into(),
            Self::NoCredentials { .. } => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of that file".into()
            }
            Self::Request { denied: true, .. } => {
                "check the credentials, the region, and that they may list, read and write this bucket".into()
            }
            Self::Request { .. } => {
                "check bucket, region and network, then run it again: what has been uploaded stays".into()
            }
            Self::Size { .. } => "delete it from the bucket, then run this again".into(),
            Self::Changed(_) => "run it again".into(),
            Self::RemoteLink { .. } | Self::Foreign { .. } => {
                "pull the bucket's state and publish on top of it, or overwrite its link with --force-link".into()
            }
            Self::Raced { .. } => "look at what it published; what has been uploaded stays".into(),
            Self::Unconditional { .. } => {
                "say --no-conditional-put if nobody else publishes there at the same time".into()
            }
            Self::Prune { .. } => "push all links first, and remove those that are no longer wanted".into(),
            Self::Overtaken(_) => "whoever replaced it should push again, which brings back what it needs".into(),
            _ => return None,
        })
    }
}
