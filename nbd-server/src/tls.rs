//! TLS on TCP: the certificate that a server shows, and the clients that it lets in.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::limits::TLS_FILE_BYTES_MAX;
use crate::listener::Stream;

/// What is put on a connection before anything is said of exports.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    asks_clients: bool,
}

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is too large to be what it should be.
    #[error("{} has more than {TLS_FILE_BYTES_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
    /// Others may read the key.
    #[error("the key {} may be read by every user: run `chmod o= FILE` on it", .0.display())]
    OpenKey(PathBuf),
    /// There is nothing in a file that can be used.
    #[error("{} has no {wanted} in PEM that can be used", file.display())]
    Pem {
        /// The file.
        file: PathBuf,
        /// What it should have.
        wanted: &'static str,
    },
    /// Certificate and key do not go together, or are of a kind that is not spoken.
    #[error("serve with the certificate {}", file.display())]
    Certificate {
        /// The certificate's file.
        file: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The authorities cannot judge clients.
    #[error("judge clients by {}", file.display())]
    Clients {
        /// The authorities' file.
        file: PathBuf,
        /// What is wrong.
        source: VerifierBuilderError,
    },
}

impl Tls {
    /// Shows the certificate in `certificate` (PEM; others of its chain may follow it), whose key is in `key`, and lets in clients
    /// that have a certificate of an authority in `clients`, or all without it.
    ///
    /// # Errors
    /// [`TlsError`] when one of the files cannot be used, or all users may read the key.
    pub fn load(certificate: &Path, key: &Path, clients: Option<&Path>) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(certificate)?;
        let private = private_key(key)?;
        let wrong = |source| TlsError::Certificate { file: certificate.to_owned(), source };
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let config = config.with_safe_default_protocol_versions().map_err(wrong)?;
        let config = match clients {
            Some(file) => {
                let roots = Arc::new(authorities(file)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                let wrong = |source| TlsError::Clients { file: file.to_owned(), source };
                config.with_client_cert_verifier(verifier.map_err(wrong)?)
            }
            None => config.with_no_client_auth(),
        };
        let config = config.with_single_cert(chain, private).map_err(wrong)?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), asks_clients: clients.is_some() })
    }

    /// Whether only clients with a certificate are let in.
    #[must_use]
    pub const fn asks_clients(&self) -> bool {
        self.asks_clients
    }

    /// Lets the client begin TLS on a connection.
    pub(crate) async fn accept(&self, stream: Box<dyn Stream>) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(self.acceptor.accept(stream).await?))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("asks_clients", &self.asks_clients).finish_non_exhaustive()
    }
}

fn authorities(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|_| TlsError::Pem { file: file.to_owned(), wanted: "authority's certificate" })?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(&open(file)?, file)?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = certificates.ok().filter(|found| !found.is_empty());
    found.ok_or_else(|| TlsError::Pem { file: file.to_owned(), wanted: "certificate" })
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let opened = open(file)?;
    let metadata = opened.metadata().map_err(|source| TlsError::File { file: file.to_owned(), source })?;
    // A group may: Debian's `ssl-cert` is for programs that serve.
    if metadata.mode() & 0o007 != 0 {
        return Err(TlsError::OpenKey(file.to_owned()));
    }
    let pem = read(&opened, file)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::Pem { file: file.to_owned(), wanted: "private key" })
}

fn open(file: &Path) -> Result<File, TlsError> {
    File::open(file).map_err(|source| TlsError::File { file: file.to_owned(), source })
}

fn read(opened: &File, file: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    // One byte more than may be shows that there is more.
    let read = opened.take(TLS_FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    let length = read.map_err(|source| TlsError::File { file: file.to_owned(), source })?;
    if length as u64 > TLS_FILE_BYTES_MAX { Err(TlsError::TooLarge(file.to_owned())) } else { Ok(bytes) }
}
