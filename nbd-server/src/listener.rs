//! Where clients connect: a Unix socket that only its owner may use, or a TCP address.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::Error;

/// A socket on which connections are accepted. A Unix socket's file is removed with it.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener, SocketFile),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// The file of a Unix socket; dropping it removes the file, unless another server has put its own there meanwhile.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file that was made.
    identity: Option<(u64, u64)>,
}

/// A client's connection of either kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

impl Listener {
    /// Listens on the Unix socket `path`, which only its owner may use. A socket file that nobody listens on any more is
    /// replaced.
    ///
    /// # Errors
    /// [`Error::InUse`] when another server listens there, [`Error::Listen`] when the system refuses.
    pub fn unix(path: &Path) -> Result<Self, Error> {
        let address = || path.display().to_string();
        let listen = |source| Error::Listen { address: address(), source };
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(listen)?;
                }
                _ => return Err(Error::InUse { address: address() }),
            },
            Ok(_) => return Err(listen(io::ErrorKind::AlreadyExists.into())),
            Err(_) => {}
        }
        // From its first moment on, nobody else may connect: a chmod afterwards would come too late.
        let before = umask(Mode::RWXG | Mode::RWXO);
        let bound = UnixListener::bind(path);
        umask(before);
        let bound = bound.map_err(listen)?;
        Ok(Self::Unix(bound, SocketFile { path: path.to_owned(), identity: identity(path) }))
    }

    /// Listens on a TCP address, HOST:PORT.
    ///
    /// # Errors
    /// [`Error::Listen`] when the system refuses.
    pub async fn tcp(address: &str) -> Result<Self, Error> {
        let bound = TcpListener::bind(address).await;
        Ok(Self::Tcp(bound.map_err(|source| Error::Listen { address: address.to_owned(), source })?))
    }

    /// The TCP address that is listened on.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(..) => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    /// What an NBD client is given to connect to `export`: a URI.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        match self {
            Self::Unix(_, file) => format!("nbd+unix:///{export}?socket={}", file.path.display()),
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("nbd://{address}/{export}"),
                Err(_) => format!("nbd:///{export}"),
            },
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already, together with its directory.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of a file, if it is there.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
