//! A server in this process: repository, web server, store, package, exports, socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vmnetx_nbd::{Export, Exports, Listener, serve};
use vmnetx_store::{Options, Package, Store};

use crate::raw::Raw;
use crate::support::bad_http::{Answer, Asked, BadServer};
use crate::support::repository::Repository;
use crate::support::source::Source;
use crate::within;

/// For how long failing reads are tried again.
pub(crate) const RETRY_FOR: Duration = Duration::from_secs(30);

/// A running server; it stops with this value.
pub(crate) struct Rig {
    pub(crate) source: Source,
    pub(crate) repository: Repository,
    _origin: BadServer,
    pub(crate) store: Store,
    pub(crate) package: Package,
    pub(crate) exports: Exports,
    pub(crate) shutdown: CancellationToken,
    /// Ends when the server has.
    pub(crate) serving: JoinHandle<()>,
    address: Address,
    _dir: TempDir,
}

enum Address {
    Unix(PathBuf),
    Tcp(std::net::SocketAddr),
}

impl Rig {
    /// Serves `source` as `disk0` on a Unix socket, from a good web server.
    pub(crate) async fn new(source: Source) -> Self {
        Self::with_origin(source, |_| Answer::Good).await
    }

    /// The same from a web server that answers like this.
    pub(crate) async fn with_origin(source: Source, behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let listener = Listener::unix(&path).unwrap();
        Self::start(source, behave, dir, listener, Address::Unix(path)).await
    }

    /// The same on a TCP port.
    pub(crate) async fn on_tcp(source: Source) -> Self {
        Self::on(source, Listener::tcp("127.0.0.1:0").await.unwrap()).await
    }

    /// The same on this TCP listener.
    pub(crate) async fn on(source: Source, listener: Listener) -> Self {
        let address = Address::Tcp(listener.tcp_address().unwrap());
        Self::start(source, |_| Answer::Good, tempfile::tempdir().unwrap(), listener, address).await
    }

    async fn start(
        source: Source,
        behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
        dir: TempDir,
        listener: Listener,
        address: Address,
    ) -> Self {
        let repository = Repository::of(&source);
        let origin = BadServer::start(repository.root(), behave).await;
        let options = Options { memory_bytes: 256 << 20, retry_for: RETRY_FOR, ..Options::default() };
        let store = Store::open(options).unwrap();
        let package = within(60, store.package(&origin.location())).await.unwrap();
        let exports = Exports::new();
        for disk in package.disks() {
            exports.add(Export::new(disk.name(), "a disk", Arc::clone(disk)));
        }
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, exports.clone(), shutdown.clone()));
        Self { source, repository, _origin: origin, store, package, exports, shutdown, serving, address, _dir: dir }
    }

    /// A connection on which nothing was said yet.
    pub(crate) async fn connect(&self) -> Raw {
        match &self.address {
            Address::Unix(path) => Raw::new(UnixStream::connect(path).await.unwrap()),
            Address::Tcp(address) => Raw::new(TcpStream::connect(address).await.unwrap()),
        }
    }

    /// A connection that negotiated structured replies and block status, in its transmission phase.
    pub(crate) async fn client(&self) -> Raw {
        let mut raw = self.connect().await;
        raw.negotiate(true).await;
        raw
    }

    /// The same with these metadata contexts.
    pub(crate) async fn client_of(&self, contexts: &[&str]) -> Raw {
        let mut raw = self.connect().await;
        raw.negotiate_contexts(true, contexts).await;
        raw
    }

    /// A connection with simple replies, in its transmission phase.
    pub(crate) async fn simple_client(&self) -> Raw {
        let mut raw = self.connect().await;
        raw.negotiate(false).await;
        raw
    }

    /// The Unix socket's path.
    pub(crate) fn socket(&self) -> &PathBuf {
        match &self.address {
            Address::Unix(path) => path,
            Address::Tcp(address) => panic!("listens on {address}"),
        }
    }

    /// Reads a range on a new connection and compares.
    pub(crate) async fn expect_served(&self, offset: u64, length: u32) {
        let mut client = self.client().await;
        client.read(1, offset, length).await;
        client.reply().await.expect_data(&self.source, offset, length);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
