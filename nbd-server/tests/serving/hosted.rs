//! A server in this process to which packages are attached: repository, web server, store, host, control socket.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vmnetx_format::PublicKey;
use vmnetx_nbd::control::api::{AttachRequest, Attached, AttachmentId};
use vmnetx_nbd::control::{Control, serve_control};
use vmnetx_nbd::{Host, HostOptions, Listener};
use vmnetx_store::trust::Trust;
use vmnetx_store::{Options, Store};

use crate::raw::Raw;
use crate::support::bad_http::{Answer, Asked, BadServer};
use crate::support::repository::Repository;
use crate::support::source::Source;
use crate::within;

/// The folder of the cache directory.
const CACHE: &str = "cache";

/// A running server; it stops with this value.
pub(crate) struct Hosted {
    pub(crate) source: Source,
    pub(crate) repository: Repository,
    pub(crate) origin: BadServer,
    pub(crate) host: Host,
    pub(crate) control: Control,
    pub(crate) shutdown: CancellationToken,
    pub(crate) serving: JoinHandle<()>,
    pub(crate) dir: TempDir,
}

impl Hosted {
    /// Serves `source` as `disk0` of the package `vm`; attachments are kept for `grace`.
    pub(crate) async fn new(source: Source, grace: Duration) -> Self {
        Self::with_origin(source, grace, |_| Answer::Good).await
    }

    /// The same from a web server that answers like this.
    pub(crate) async fn with_origin(
        source: Source,
        grace: Duration,
        behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start(source, None, HostOptions { grace, ..HostOptions::default() }, behave).await
    }

    /// A server that takes only links which are signed with one of these keys.
    pub(crate) async fn demanding(source: Source, keys: Vec<PublicKey>) -> Self {
        let trust = Trust { keys, ..Trust::default() };
        Self::start(source, None, HostOptions { trust, ..HostOptions::default() }, |_| Answer::Good).await
    }

    /// A server that keeps up to so many bytes in a cache directory.
    pub(crate) async fn keeping(
        source: Source,
        disk_bytes: u64,
        behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start(source, Some(disk_bytes), HostOptions::default(), behave).await
    }

    async fn start(
        source: Source,
        disk_bytes: Option<u64>,
        options: HostOptions,
        behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let repository = Repository::of(&source);
        Self::serving(source, repository, disk_bytes, options, behave).await
    }

    /// The same of a repository that is there, with `source` as `disk0`.
    pub(crate) async fn serving(
        source: Source,
        repository: Repository,
        disk_bytes: Option<u64>,
        options: HostOptions,
        behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users may go through.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let origin = BadServer::start(repository.root(), behave).await;
        let disk = disk_bytes.map(|bytes| (dir.path().join(CACHE), bytes));
        let store = Store::open(Options { disk, retry_for: Duration::from_secs(1), ..Options::default() }).unwrap();
        let path = dir.path().join("control.sock");
        let listener = Listener::unix(&path).unwrap();
        let options = HostOptions { sockets: Some(dir.path().join("control.d")), ..options };
        let host = Host::new(store, options).unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve_control(listener, host.clone(), shutdown.clone()));
        Self { source, repository, origin, host, control: Control::new(path), shutdown, serving, dir }
    }

    /// The cache directory of a server that is keeping.
    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.dir.path().join(CACHE)
    }

    /// What a client asks for.
    pub(crate) fn request(&self) -> AttachRequest {
        AttachRequest::new(self.link())
    }

    /// The URL of the link.
    pub(crate) fn link(&self) -> String {
        format!("{}vm.vmnetx", self.origin.url())
    }

    pub(crate) async fn attach(&self, id: &str) -> Attached {
        within(60, self.control.attach(&id.parse().unwrap(), &self.request())).await.unwrap()
    }

    /// What the server tells of its attachments.
    pub(crate) async fn ids(&self) -> Vec<String> {
        let stats = within(20, self.control.stats()).await.unwrap();
        stats.attachments.into_iter().map(|one| one.id.to_string()).collect()
    }

    /// Waits until nothing is attached.
    pub(crate) async fn until_empty(&self) {
        within(60, async {
            while !self.ids().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(crate) fn id(text: &str) -> AttachmentId {
    text.parse().unwrap()
}

/// A client in the transmission phase on an attachment's socket.
pub(crate) async fn client(attached: &Attached) -> Raw {
    let mut raw = Raw::new(UnixStream::connect(&attached.socket).await.unwrap());
    raw.negotiate(true).await;
    raw
}

/// A command as the user `nobody`.
pub(crate) fn as_nobody(program: &str) -> Command {
    let become_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program];
    let mut words = become_nobody.iter();
    // Whoever is not root must be allowed to become another user, as in CI.
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(words.next().unwrap())
    } else {
        let mut command = Command::new("sudo");
        command.arg("-n");
        command
    };
    command.args(words);
    command
}

/// Asks a control socket with curl, as `nobody`; gives the status and the answer.
pub(crate) async fn ask_as_nobody(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut command = as_nobody("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "30",
        "--write-out",
        "\n%{http_code}",
        "--request",
        method,
    ]);
    command.arg("--unix-socket").arg(socket).args(["--data", body, &format!("http://localhost{path}")]);
    let output = within(60, command.output()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (answer, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(answer).unwrap())
}

/// Whether a file is there.
pub(crate) fn exists(path: &str) -> bool {
    PathBuf::from(path).exists()
}
