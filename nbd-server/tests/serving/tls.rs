//! TLS on TCP (NBD test cases 18 to 20): nothing is said outside of it, everything is asked again inside, and clients without
//! a certificate stay out where one is demanded.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use vmnetx_nbd::limits::HANDSHAKE_TIMEOUT;
use vmnetx_nbd::{Listener, Tls, TlsError};

use crate::certificates::{Authority, Signed};
use crate::raw::{Raw, number};
use crate::rig::Rig;
use crate::support::source::{Source, mixed, noise};
use crate::within;

/// Certificates in files: a server's, and the authority that signed it and that clients may be asked for.
struct Files {
    dir: TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Self {
        let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new("an authority"));
        let files = Self { dir, authority };
        let signed = files.authority.sign(&["localhost"]);
        files.write("ca.pem", &files.authority.pem());
        files.write("cert.pem", &signed.certificate);
        files.write("key.pem", &signed.key);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o640)).unwrap();
    }

    fn load(&self, clients: Option<&Path>) -> Result<Tls, TlsError> {
        Tls::load(&self.path("cert.pem"), &self.path("key.pem"), clients)
    }

    /// A server that demands TLS, and clients' certificates too if it is told to.
    async fn rig(&self, source: Source, asks_clients: bool) -> Rig {
        let clients = asks_clients.then(|| self.path("ca.pem"));
        let tls = self.load(clients.as_deref()).unwrap();
        assert_eq!(tls.asks_clients(), asks_clients);
        let listener = Listener::tls("127.0.0.1:0", tls).await.unwrap();
        assert!(listener.uri("disk0").starts_with("nbds://127.0.0.1:"));
        Rig::on(source, listener).await
    }

    /// A client that believes the authority and shows this certificate.
    fn connector(&self, client: Option<&Signed>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        TlsConnector::from(Arc::new(match client {
            Some(Signed { certificate, key }) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
            None => config.with_no_client_auth(),
        }))
    }
}

/// Starts TLS on a connection.
async fn start_tls(rig: &Rig, connector: &TlsConnector) -> std::io::Result<Raw> {
    let mut raw = rig.connect().await;
    raw.greet(number::FIXED_NEWSTYLE | number::NO_ZEROES).await;
    raw.expect_option(number::STARTTLS, &[], number::ACK).await;
    raw.into_tls(connector, "localhost").await
}

/// An option without data.
fn plain_option(code: u32) -> Vec<u8> {
    [b"IHAVEOPT".as_slice(), &code.to_be_bytes(), &[0; 4]].concat()
}

#[tokio::test]
async fn nothing_is_told_without_tls() {
    let files = Files::new();
    let rig = files.rig(mixed(), false).await;
    let mut raw = rig.connect().await;
    raw.greet(number::FIXED_NEWSTYLE | number::NO_ZEROES).await;
    for option in [number::LIST, number::GO, number::INFO, number::STRUCTURED_REPLY, number::SET_META, 4711] {
        raw.expect_option(option, &[], number::TLS_REQD).await;
    }
    raw.option(number::EXPORT_NAME, b"disk0").await;
    raw.expect_closed().await;
}

#[tokio::test]
async fn inside_tls_everything_is_agreed_on_and_read() {
    let source = Source::of(noise(1, 5 << 20));
    let files = Files::new();
    let rig = files.rig(source, false).await;
    let mut raw = start_tls(&rig, &files.connector(None)).await.unwrap();
    raw.expect_option(number::STARTTLS, &[], number::INVALID).await;
    raw.agree(true, &["base:allocation"]).await;
    // More than sockets and records take at once, several at a time.
    for cookie in 0..8 {
        raw.read(cookie, cookie * 4097, 4 << 20).await;
    }
    for _ in 0..8 {
        let reply = raw.reply().await;
        reply.expect_data(&rig.source, reply.cookie * 4097, 4 << 20);
    }
    // And from memory, the small way.
    raw.read(9, 12_345, 100).await;
    raw.reply().await.expect_data(&rig.source, 12_345, 100);
    raw.request(0, number::DISC, 10, 0, 0).await;
    raw.expect_closed().await;
}

#[tokio::test]
async fn plain_bytes_behind_starttls_are_not_taken_for_protected_ones() {
    let files = Files::new();
    let rig = files.rig(mixed(), false).await;
    let mut raw = rig.connect().await;
    raw.greet(number::FIXED_NEWSTYLE | number::NO_ZEROES).await;
    let plain = [plain_option(number::STARTTLS), plain_option(number::LIST)].concat();
    raw.send(&plain).await;
    raw.send_anyway(b"IHAVEOPT, and what else a client may say in the open").await;
    // Whether they came in one piece or in several: one answer at most, that to STARTTLS.
    let answers = raw.rest().await.windows(8).filter(|bytes| *bytes == 0x0003_e889_0455_65a9_u64.to_be_bytes()).count();
    assert!(answers <= 1, "{answers} answers in the open");
}

#[tokio::test]
async fn a_client_shows_a_certificate_where_one_is_demanded() {
    let files = Files::new();
    let rig = files.rig(mixed(), true).await;
    let signed = files.authority.sign(&["a client"]);
    let mut raw = start_tls(&rig, &files.connector(Some(&signed))).await.unwrap();
    raw.agree(false, &[]).await;
    raw.read(1, 0, 5000).await;
    raw.reply().await.expect_data(&rig.source, 0, 5000);

    let foreign = Authority::new("another authority").sign(&["a client"]);
    let old = files.authority.sign_expired(&["a client"]);
    for client in [None, Some(&foreign), Some(&old)] {
        // In TLS 1.3 the client learns of it when it reads first.
        if let Ok(mut raw) = start_tls(&rig, &files.connector(client)).await {
            raw.send_anyway(&plain_option(number::LIST)).await;
            raw.expect_closed().await;
        }
    }
}

/// A client that starts TLS and says no more is dropped when the handshake's time is over.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_begin_tls_is_dropped() {
    let files = Files::new();
    let rig = files.rig(mixed(), false).await;
    let mut raw = rig.connect().await;
    raw.greet(number::FIXED_NEWSTYLE | number::NO_ZEROES).await;
    raw.expect_option(number::STARTTLS, &[], number::ACK).await;
    let start = Instant::now();
    within(60, raw.expect_closed()).await;
    assert!(start.elapsed() <= HANDSHAKE_TIMEOUT + Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn files_that_cannot_be_served_with_are_told() {
    let files = Files::new();
    files.load(None).unwrap();
    files.load(Some(&files.path("ca.pem"))).unwrap();
    // A key as authority, no file as authority.
    let error = files.load(Some(&files.path("key.pem"))).unwrap_err();
    assert!(matches!(error, TlsError::Pem { wanted: "certificate", .. }), "{error}");
    let error = files.load(Some(&files.path("none.pem"))).unwrap_err();
    assert!(matches!(error, TlsError::File { .. }) && error.to_string().contains("none.pem"), "{error}");

    std::fs::set_permissions(files.path("key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = files.load(None).unwrap_err();
    assert!(matches!(error, TlsError::OpenKey(_)), "{error}");
    files.write("key.pem", &files.authority.sign(&["localhost"]).key);
    let error = files.load(None).unwrap_err();
    assert!(matches!(error, TlsError::Certificate { .. }), "{error}");
    files.write("key.pem", "secret");
    let error = files.load(None).unwrap_err();
    assert!(matches!(error, TlsError::Pem { wanted: "private key", .. }), "{error}");
    assert!(!error.to_string().contains("secret"));
    files.write("cert.pem", &" ".repeat((1 << 20) + 1));
    assert!(matches!(files.load(None).unwrap_err(), TlsError::TooLarge(_)));
}
