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
use vmnetx_format::{LINK_SUFFIX, Name};
use vmnetx_store::dir::RepositoryDir;

use crate::Error;
use crate::limits::{SERVE_GRACE_S, SERVE_PIECE_BYTES};
use crate::media::Media;

/// A web server for a repository, which listens but does not answer yet.
#[derive(Debug)]
pub struct Server {
    repository: RepositoryDir,
    listener: TcpListener,
    address: SocketAddr,
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
    let Some(object) = Media::of_path(&path) else {
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
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(object.content_type()));
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
