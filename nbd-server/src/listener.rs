//! Where clients connect: a Unix socket that only its owner may use, or a TCP address, with TLS or without.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::limits::SOCKET_PATH_BYTES_MAX;
use crate::{Error, Tls};

/// The mask of modes is the process's: two sockets that are made at once must not restore it for each other.
static UMASK: Mutex<()> = Mutex::new(());

/// A socket on which connections are accepted. A Unix socket's file is removed with it.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener, SocketFile),
    /// A TCP socket, and what is put on its connections.
    Tcp(TcpListener, Option<Tls>),
}

/// The file of a Unix socket; dropping it removes the file, unless another server has put its own there meanwhile.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file that was made.
    identity: Option<(u64, u64)>,
}

/// A folder in which each attachment has a socket of its own.
#[derive(Debug)]
pub(crate) struct SocketFolder {
    path: PathBuf,
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
        let bound = {
            let _alone = UMASK.lock().unwrap_or_else(PoisonError::into_inner);
            let before = umask(Mode::RWXG | Mode::RWXO);
            let bound = UnixListener::bind(path);
            umask(before);
            bound
        };
        let bound = bound.map_err(listen)?;
        Ok(Self::Unix(bound, SocketFile { path: path.to_owned(), identity: identity(path) }))
    }

    /// Listens on a Unix socket that the service manager has made, and which it keeps.
    ///
    /// # Errors
    /// [`Error::Listen`] when it cannot be used, or has no path.
    pub fn inherited(socket: std::os::unix::net::UnixListener) -> Result<Self, Error> {
        let listen = |source| Error::Listen { address: "the socket from the service manager".to_owned(), source };
        socket.set_nonblocking(true).map_err(listen)?;
        let address = socket.local_addr().map_err(listen)?;
        let path = address.as_pathname().ok_or_else(|| listen(io::ErrorKind::AddrNotAvailable.into()))?.to_owned();
        Ok(Self::Unix(UnixListener::from_std(socket).map_err(listen)?, SocketFile { path, identity: None }))
    }

    /// The path of the Unix socket that is listened on.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(_, file) => Some(&file.path),
            Self::Tcp(..) => None,
        }
    }

    /// Listens on a TCP address, HOST:PORT.
    ///
    /// # Errors
    /// [`Error::Listen`] when the system refuses.
    pub async fn tcp(address: &str) -> Result<Self, Error> {
        Ok(Self::Tcp(bind(address).await?, None))
    }

    /// Listens on a TCP address for clients who speak TLS; others are told to.
    ///
    /// # Errors
    /// As [`Self::tcp`].
    pub async fn tls(address: &str, tls: Tls) -> Result<Self, Error> {
        Ok(Self::Tcp(bind(address).await?, Some(tls)))
    }

    /// What clients must put on their connections, if anything.
    #[must_use]
    pub const fn tls_in_use(&self) -> Option<&Tls> {
        match self {
            Self::Unix(..) => None,
            Self::Tcp(_, tls) => tls.as_ref(),
        }
    }

    /// The TCP address that is listened on.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(..) => None,
            Self::Tcp(listener, _) => listener.local_addr().ok(),
        }
    }

    /// What an NBD client is given to connect to `export`: a URI.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        match self {
            Self::Unix(_, file) => format!("nbd+unix:///{export}?socket={}", file.path.display()),
            Self::Tcp(listener, tls) => {
                let scheme = if tls.is_some() { "nbds" } else { "nbd" };
                match listener.local_addr() {
                    Ok(address) => format!("{scheme}://{address}/{export}"),
                    Err(_) => format!("{scheme}:///{export}"),
                }
            }
        }
    }

    /// A connection and, on a Unix socket, the user who made it, as the kernel says.
    pub(crate) async fn accept(&self) -> io::Result<(Box<dyn Stream>, Option<u32>)> {
        Ok(match self {
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                (Box::new(stream), uid)
            }
            Self::Tcp(listener, _) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                (Box::new(stream), None)
            }
        })
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(_, file) => write!(f, "{}", file.path.display()),
            Self::Tcp(listener, _) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(_) => f.write_str("TCP"),
            },
        }
    }
}

impl SocketFolder {
    /// Opens a folder, which is made if it is absent, and removes the sockets that a killed server left there.
    ///
    /// # Errors
    /// [`Error::Sockets`] when it cannot be made, or could be changed by others.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let cannot = |source| Error::Sockets { folder: path.to_owned(), source };
        // Others find the socket that they were told of, and cannot list the folder.
        match std::fs::DirBuilder::new().mode(0o711).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(cannot(error)),
            _ => {}
        }
        let metadata = std::fs::symlink_metadata(path).map_err(cannot)?;
        let is_ours = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
        if !is_ours || metadata.mode() & 0o022 != 0 {
            return Err(cannot(io::Error::other("it is no folder that its owner, this user, alone may change")));
        }
        for entry in std::fs::read_dir(path).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
                std::fs::remove_file(entry.path()).map_err(cannot)?;
            }
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Listens on the socket of this name, which belongs to `owner`. A server that is not root cannot give files away; its
    /// sockets are open to whoever knows their names, and the peer of each connection is looked at.
    ///
    /// # Errors
    /// [`Error::SocketPath`], [`Error::InUse`], [`Error::Listen`].
    pub(crate) fn listen(&self, name: &str, owner: u32) -> Result<Listener, Error> {
        let path = self.path.join(name);
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX || path.to_str().is_none() {
            return Err(Error::SocketPath(path));
        }
        let listener = Listener::unix(&path)?;
        if owner != rustix::process::geteuid().as_raw() {
            let given = std::os::unix::fs::chown(&path, Some(owner), None);
            let opened = given.or_else(|_| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)));
            opened.map_err(|source| Error::Listen { address: path.display().to_string(), source })?;
        }
        Ok(listener)
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        // It is empty unless something is amiss, and then it stays.
        let _ = std::fs::remove_dir(&self.path);
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

async fn bind(address: &str) -> Result<TcpListener, Error> {
    let listen = |source| Error::Listen { address: address.to_owned(), source };
    TcpListener::bind(address).await.map_err(listen)
}

/// Device and inode of a file, if it is there.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
