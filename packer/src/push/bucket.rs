//! A bucket as a repository: what lies in it, and how objects and links enter it.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, BackoffConfig, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, RetryConfig, StaticCredentialProvider,
};
use vmnetx_format::limits::LINK_BYTES_MAX;
use vmnetx_format::{LINK_SUFFIX, Name, link_path};

use super::http::{Failure, Transport};
use super::{Endpoint, PushError, Target, credentials};
use crate::Error;
use crate::limits::{
    PUSH_LISTED_MAX, PUSH_PAUSE_MAX, PUSH_PAUSE_MIN, PUSH_PIECE_BYTES, PUSH_RETRIES_MAX, PUSH_RETRY_FIRST,
    PUSH_RETRY_FOR,
};
use crate::media::Media;

/// The folders that hold objects.
const FOLDERS: [&str; 4] = ["packs", "orders", "layouts", "manifests"];

/// The repository in a bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    store: AmazonS3,
    /// The same, for the first question: it gives up sooner.
    first: AmazonS3,
    transport: Transport,
    target: Target,
    /// The server, to be shown.
    pub(super) server: String,
}

/// An object that is in the bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    pub(super) bytes: u64,
    pub(super) modified_unix_s: i64,
}

/// The objects in the bucket by their paths in the repository.
pub(super) type Listing = HashMap<String, Listed>;

/// A link that is in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredLink {
    pub(super) bytes: Bytes,
    pub(super) etag: Option<String>,
}

/// How a conditional put failed.
#[derive(Debug)]
pub(super) enum PutFailure {
    /// The server keeps to the condition, which is not met.
    Unmet,
    /// The server says that it has no conditional puts.
    Unsupported,
    /// The server may have done it or not.
    Unknown(PushError),
    /// The server has not done it and will not.
    Refused(PushError),
}

impl Bucket {
    /// Opens no connection yet.
    pub(super) fn open(target: &Target, endpoint: &Endpoint) -> Result<Self, Error> {
        let server = endpoint.server()?;
        let credential = credentials::find()?;
        let transport = Transport::new()?;
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&target.bucket)
            .with_region(&server.region)
            .with_http_connector(transport.clone())
            .with_credentials(std::sync::Arc::new(StaticCredentialProvider::new(credential)));
        builder = match &server.url {
            Some(url) => builder.with_endpoint(url),
            // A name with a dot does not fit Amazon's certificate.
            None => builder.with_virtual_hosted_style_request(!target.bucket.contains('.')),
        };
        let build = |retry_timeout| {
            let backoff = BackoffConfig { init_backoff: PUSH_PAUSE_MIN, max_backoff: PUSH_PAUSE_MAX, base: 2.0 };
            let retry = RetryConfig { backoff, max_retries: PUSH_RETRIES_MAX, retry_timeout };
            builder.clone().with_retry(retry).build().map_err(failed("open", &target.to_string()))
        };
        let (store, first) = (build(PUSH_RETRY_FOR)?, build(PUSH_RETRY_FIRST)?);
        Ok(Self { store, first, transport, target: target.clone(), server: server.name() })
    }

    /// Where an object lies, to be shown.
    pub(super) fn locate(&self, path: &str) -> String {
        format!("{}/{path}", self.target)
    }

    /// What the server's last answer said of the time, in seconds since 1970.
    pub(super) fn time_unix_s(&self) -> Result<i64, PushError> {
        self.transport.server_time_unix_s().ok_or_else(|| PushError::NoDate(self.server.clone()))
    }

    /// All objects of a repository that are there. Anything else is passed over.
    pub(super) async fn objects(&self) -> Result<Listing, PushError> {
        let mut listing = Listing::new();
        for folder in FOLDERS {
            let mut found = self.store.list(Some(&self.path(folder)));
            while let Some(meta) = found.next().await {
                let meta = meta.map_err(failed("list", &self.locate(folder)))?;
                let Some(path) = self.relative(&meta.location) else { continue };
                if Media::of_path(&format!("/{path}")).is_none() {
                    continue;
                }
                if listing.len() >= PUSH_LISTED_MAX {
                    return Err(PushError::TooManyObjects(self.target.to_string()));
                }
                let listed = Listed { bytes: meta.size, modified_unix_s: meta.last_modified.timestamp() };
                listing.insert(path.to_owned(), listed);
            }
        }
        Ok(listing)
    }

    /// The paths of the links that are there, whether a package can have such a name or not.
    pub(super) async fn links(&self) -> Result<Vec<String>, PushError> {
        let prefix = Some(self.path("")).filter(|path| !path.as_ref().is_empty());
        let listed = self.store.list_with_delimiter(prefix.as_ref()).await;
        let listed = listed.map_err(failed("list", &self.target.to_string()))?;
        let paths = listed.objects.iter().filter_map(|meta| self.relative(&meta.location));
        Ok(paths.filter(|path| path.ends_with(LINK_SUFFIX)).map(str::to_owned).collect())
    }

    /// A package's link, if it is there.
    pub(super) async fn link(&self, name: &Name) -> Result<Option<StoredLink>, PushError> {
        self.read_link(&self.store, name).await
    }

    /// The same as the first question to a server, which should fail soon if the server is not there.
    pub(super) async fn first_link(&self, name: &Name) -> Result<Option<StoredLink>, PushError> {
        self.read_link(&self.first, name).await
    }

    async fn read_link(&self, store: &AmazonS3, name: &Name) -> Result<Option<StoredLink>, PushError> {
        let path = link_path(name);
        let failed = failed("read", &self.locate(&path));
        match store.get(&self.path(&path)).await {
            // A bucket that is not there answers in the same way, but is told apart when it is listed.
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
            Ok(found) => {
                let etag = found.meta.e_tag.clone();
                let mut bytes = found.bytes().await.map_err(failed)?;
                // One byte more than a link may have shows that it is none.
                bytes.truncate(LINK_BYTES_MAX as usize + 1);
                Ok(Some(StoredLink { bytes, etag }))
            }
        }
    }

    /// Uploads an object that fits into one request, whatever is there.
    pub(super) async fn put(&self, path: &str, media: Media, bytes: Bytes) -> Result<(), PushError> {
        let options = PutOptions { attributes: attributes(media), ..PutOptions::default() };
        let put = self.store.put_opts(&self.path(path), payload(&bytes), options).await;
        put.map(drop).map_err(failed("upload", &self.locate(path)))
    }

    /// Uploads it only if the condition in `mode` is met. It is not tried again when an answer is lost.
    pub(super) async fn put_if(&self, path: &str, media: Media, bytes: Bytes, mode: PutMode) -> Result<(), PutFailure> {
        let options = PutOptions { mode, attributes: attributes(media), ..PutOptions::default() };
        let put = self.store.put_opts(&self.path(path), payload(&bytes), options).await;
        put.map(drop).map_err(|error| match error {
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => PutFailure::Unmet,
            error if is_not_implemented(&error) => PutFailure::Unsupported,
            error => {
                let told = failed("upload", &self.locate(path))(error);
                match told {
                    PushError::Request { denied: true, .. } => PutFailure::Refused(told),
                    told => PutFailure::Unknown(told),
                }
            }
        })
    }

    /// Begins to upload an object in parts.
    pub(super) async fn put_parts(&self, path: &str, media: Media) -> Result<Box<dyn MultipartUpload>, PushError> {
        let options = PutMultipartOptions { attributes: attributes(media), ..PutMultipartOptions::default() };
        let begun = self.store.put_multipart_opts(&self.path(path), options).await;
        begun.map_err(failed("upload", &self.locate(path)))
    }

    /// Bytes of an object, if it is there.
    pub(super) async fn bytes(&self, path: &str) -> Result<Option<u64>, PushError> {
        match self.store.head(&self.path(path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("look for", &self.locate(path))(error)),
        }
    }

    /// Deletes objects. What is not there counts as deleted.
    pub(super) async fn delete(&self, paths: &[String]) -> Result<(), PushError> {
        let locations: Vec<_> = paths.iter().map(|path| Ok(self.path(path))).collect();
        let mut deleted = self.store.delete_stream(stream::iter(locations).boxed());
        while let Some(location) = deleted.next().await {
            match location {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed("delete from", &self.target.to_string())(error)),
            }
        }
        Ok(())
    }

    /// What an error of a multipart upload means.
    pub(super) fn failed(&self, path: &str) -> impl FnOnce(object_store::Error) -> PushError + use<> {
        failed("upload", &self.locate(path))
    }

    fn path(&self, path: &str) -> Path {
        Path::from(format!("{}/{path}", self.target.prefix))
    }

    /// The path in the repository of something that lies in it.
    fn relative<'a>(&self, location: &'a Path) -> Option<&'a str> {
        let path = location.as_ref().strip_prefix(&self.target.prefix)?;
        if self.target.prefix.is_empty() { Some(path) } else { path.strip_prefix('/') }
    }
}

/// A body in pieces, so that it is seen how far it is sent.
pub(super) fn payload(bytes: &Bytes) -> PutPayload {
    let pieces = (0..bytes.len()).step_by(PUSH_PIECE_BYTES);
    pieces.map(|at| bytes.slice(at..bytes.len().min(at + PUSH_PIECE_BYTES))).collect()
}

/// What readers will be told of an object by the bucket's server.
fn attributes(media: Media) -> Attributes {
    Attributes::from_iter([(Attribute::ContentType, media.content_type()), (Attribute::CacheControl, media.caching())])
}

fn failed(action: &'static str, object: &str) -> impl FnOnce(object_store::Error) -> PushError + use<> {
    let object = object.to_owned();
    move |error| {
        use object_store::Error as Store;
        let denied = matches!(error, Store::PermissionDenied { .. } | Store::Unauthenticated { .. });
        let reason = match &error {
            Store::Generic { source, .. }
            | Store::NotFound { source, .. }
            | Store::PermissionDenied { source, .. }
            | Store::Unauthenticated { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        PushError::Request { action, object, reason, denied }
    }
}

fn is_not_implemented(error: &object_store::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(Failure::NotImplemented(_))) {
            return true;
        }
        cause = error.source();
    }
    false
}
