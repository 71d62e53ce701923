//! A small web server for a repository: what any other web server does with its files, without setting one up.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::services::ServeDir;
use vmnetx_format::{Digest, LINK_SUFFIX, Name, layout_path, manifest_path, pack_path};
use vmnetx_store::dir::RepositoryDir;

use crate::Error;
use crate::limits::{SERVE_GRACE_S, SERVE_PIECE_BYTES};

/// A web server for a repository, which listens but does not answer yet.
#[derive(Debug)]
pub struct Server {
    repository: RepositoryDir,
    listener: TcpListener,
    address: SocketAddr,
}

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    Link,
    Manifest,
    /// A pack, a layout object or an order.
    Binary,
}

impl Server {
    /// Listens at `address`, such as `127.0.0.1:8080`.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub async fn bind(repository: RepositoryDir, address: &str) -> Result<Self, Error> {
        let failed = |source| Error::Listen { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { repository, listener, address })
    }

    /// The URL of a package's link here.
    #[must_use]
    pub fn url(&self, name: &Name) -> String {
        format!("http://{}/{name}{LINK_SUFFIX}", self.address)
    }

    /// Answers requests until `shutdown`, then lets those under way end for at most [`SERVE_GRACE_S`].
    ///
    /// # Errors
    /// [`Error::Listen`] when connections cannot be accepted any more.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let files = ServeDir::new(self.repository.root())
            .append_index_html_on_directories(false)
            .with_buf_chunk_size(SERVE_PIECE_BYTES);
        let router = Router::new().fallback(move |request| answer(files.clone(), request));
        let grace = async {
            shutdown.cancelled().await;
            tokio::time::sleep(Duration::from_secs(SERVE_GRACE_S)).await;
        };
        let serving = axum::serve(self.listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
        tokio::select! {
            served = async { serving.await } => {
                served.map_err(|source| Error::Listen { address: self.address.to_string(), source })
            }
            () = grace => Ok(()),
        }
    }
}

async fn answer(mut files: ServeDir, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let Some(object) = classify(&path) else {
        tracing::info!(path, "refused: not an object of the repository");
        return refuse(
            StatusCode::NOT_FOUND,
            "this is not the path of a link or of an object of a VMNetX repository\n",
        );
    };
    match files.try_call(request).await {
        Ok(response) if response.status() == StatusCode::NOT_FOUND => absent(&path),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => absent(&path),
        Ok(response) => {
            let mut response = response.map(Body::new);
            if response.status().is_success() || response.status() == StatusCode::NOT_MODIFIED {
                let headers = response.headers_mut();
                headers.insert(CACHE_CONTROL, HeaderValue::from_static(object.caching()));
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(object.media_type()));
            } else {
                tracing::info!(path, status = %response.status(), "refused");
            }
            response
        }
        Err(error) => {
            tracing::warn!(path, %error, "cannot read");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the object cannot be read\n")
        }
    }
}

fn absent(path: &str) -> Response {
    tracing::info!(path, "refused: not in the repository");
    refuse(StatusCode::NOT_FOUND, "the repository does not have this object\n")
}

fn refuse(status: StatusCode, text: &'static str) -> Response {
    (status, [(CACHE_CONTROL, "no-cache")], text).into_response()
}

/// What lies at a path of a URL, or nothing if no object can: hidden files, `tmp/` and strangers are not served.
fn classify(path: &str) -> Option<Object> {
    let path = path.strip_prefix('/')?;
    let Some((folder, file)) = path.split_once('/') else {
        let name: Result<Name, _> = path.strip_suffix(LINK_SUFFIX)?.parse();
        return name.ok().map(|_| Object::Link);
    };
    let (stem, suffix) = path.rsplit_once('/')?.1.split_once('.')?;
    let digest: Digest = stem.parse().ok()?;
    match folder {
        "manifests" => (path == manifest_path(&digest)).then_some(Object::Manifest),
        "layouts" => (path == layout_path(&digest)).then_some(Object::Binary),
        "packs" => (path == pack_path(&digest)).then_some(Object::Binary),
        "orders" => (file == format!("{digest}.{suffix}")).then_some(Object::Binary),
        _ => None,
    }
}

impl Object {
    /// Objects never change, because their digest names them; a link may change at any time.
    const fn caching(self) -> &'static str {
        match self {
            Self::Link => "no-cache",
            Self::Manifest | Self::Binary => "public, max-age=31536000, immutable",
        }
    }

    const fn media_type(self) -> &'static str {
        match self {
            Self::Link => "application/x-vmnetx-link+json",
            Self::Manifest => "application/json",
            Self::Binary => "application/octet-stream",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_are_served() {
        let digest = Digest::of(b"x");
        for (path, object) in [
            (manifest_path(&digest), Object::Manifest),
            (layout_path(&digest), Object::Binary),
            (pack_path(&digest), Object::Binary),
            (format!("orders/{digest}.order"), Object::Binary),
            ("debian.vmnetx".to_owned(), Object::Link),
        ] {
            assert_eq!(classify(&format!("/{path}")), Some(object), "{path}");
            assert_eq!(classify(&path), None, "{path}");
            assert_eq!(classify(&format!("//{path}")), None, "{path}");
            assert_eq!(classify(&format!("/../{path}")), None, "{path}");
        }
        let pack = pack_path(&digest);
        let file = pack.rsplit('/').next().unwrap();
        for path in [
            "/".to_owned(),
            "/.lock".to_owned(),
            "/.vmnetx".to_owned(),
            "/index.html".to_owned(),
            "/tmp/1-1".to_owned(),
            format!("/packs/{file}"),
            format!("/packs/zz/{file}"),
            format!("/packs/../{pack}"),
            format!("/orders/../{pack}"),
            format!("/tmp/{digest}.pack"),
            format!("/manifests/{digest}.json.bak"),
            format!("/manifests/{}.json", digest.to_string().to_uppercase()),
        ] {
            assert_eq!(classify(&path), None, "{path}");
        }
    }
}
