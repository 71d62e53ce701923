//! Repositories over https: servers are believed when somebody trusted vouches for them, and only by who trusts that one.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use vmnetx_format::Envelope;
use vmnetx_store::failure::{Class, Told, tell};
use vmnetx_store::origin::{Access, BadCertificate};
use vmnetx_store::trust::Trust;
use vmnetx_store::{Error, Location, Options, Package, Reader, Store};

use crate::certificates::{Authority, Signed};
use crate::support::bad_http::{Answer, BadServer};
use crate::support::repository::{NAME, Repository};
use crate::support::source::{Source, mixed};
use crate::within;

/// For how long failing reads are tried again: long enough to see that it is not done.
const RETRY_FOR: Duration = Duration::from_secs(60);

/// TLS before a web server; it ends with this value.
struct TlsFront {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl TlsFront {
    async fn start(before: SocketAddr, signed: &Signed) -> Self {
        let certificate = CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // Clients that do not believe it leave.
                    let Ok(mut outside) = acceptor.accept(stream).await else { return };
                    assert_eq!(outside.get_ref().1.alpn_protocol(), None);
                    let mut inside = TcpStream::connect(before).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        Self { address, task }
    }

    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/", self.address.port())
    }

    fn location(&self, host: &str) -> Location {
        format!("{}{NAME}.vmnetx", self.url(host)).parse().unwrap()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn believing(authority: &Authority) -> Access {
    let mut access = Access::default();
    access.add_authorities(file(&authority.pem()).path()).unwrap();
    access
}

fn store(access: Access) -> Store {
    Store::open(Options { access, retry_for: RETRY_FOR, ..Options::default() }).unwrap()
}

async fn read_all(package: &Package, source: &Source) {
    let size = source.size_bytes();
    let pieces = within(60, package.disks()[0].read(0, size)).await.unwrap();
    assert_eq!(pieces.iter().map(vmnetx_store::Piece::len).sum::<u64>(), size);
}

/// Why a package is not opened; that must be known at once.
async fn distrust(store: &Store, location: &Location) -> BadCertificate {
    let start = Instant::now();
    let error = within(60, store.package(location)).await.unwrap_err();
    assert!(start.elapsed() < RETRY_FOR / 2, "{:?}", start.elapsed());
    assert_eq!(error.class(), Class::Network, "{error}");
    match error {
        Error::Certificate { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

fn reader(access: Access) -> Reader {
    Reader { retry_for: RETRY_FOR, background_bytes_per_s: None, access, trust: Trust::default(), offline: false }
}

#[tokio::test]
async fn a_server_is_believed_by_who_trusts_its_authority() {
    let (source, authority) = (mixed(), Authority::new("an authority"));
    let repository = Repository::of(&source);
    let server = BadServer::start(repository.root(), |_| Answer::Good).await;
    let front = TlsFront::start(server.address(), &authority.sign(&["localhost", "127.0.0.1"])).await;
    let trusting = store(believing(&authority));
    for host in ["localhost", "127.0.0.1"] {
        read_all(&within(60, trusting.package(&front.location(host))).await.unwrap(), &source).await;
    }
    // Connections that one reader has opened are not for another, who does not believe the host.
    let other = trusting.for_reader(reader(Access::default()));
    assert_eq!(distrust(&other, &front.location("localhost")).await, BadCertificate::UnknownIssuer);
    let other = trusting.for_reader(reader(believing(&Authority::new("another"))));
    assert_eq!(distrust(&other, &front.location("localhost")).await, BadCertificate::UnknownIssuer);
    let same = trusting.for_reader(reader(believing(&authority)));
    within(60, same.package(&front.location("localhost"))).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told_with_what_helps() {
    let (repository, authority) = (Repository::of(&mixed()), Authority::new("an authority"));
    let server = BadServer::start(repository.root(), |_| Answer::Good).await;
    let trusting = store(believing(&authority));

    let expired = TlsFront::start(server.address(), &authority.sign_expired(&["localhost"])).await;
    assert_eq!(distrust(&trusting, &expired.location("localhost")).await, BadCertificate::Expired);
    let front = TlsFront::start(server.address(), &authority.sign(&["localhost", "vms.example.org"])).await;
    assert_eq!(distrust(&trusting, &front.location("127.0.0.1")).await, BadCertificate::Name);

    let error = within(60, store(Access::default()).package(&front.location("localhost"))).await.unwrap_err();
    let told = tell(&error);
    assert!(told.contains("certificate") && told.contains("--ca-file") && told.contains("localhost"), "{told}");
    assert!(server.log().is_empty(), "a server that is not believed was asked");
}

/// A mirror that is not who it says is left alone, and the others do.
#[tokio::test]
async fn a_mirror_that_is_not_believed_is_passed_over() {
    let (source, authority) = (mixed(), Authority::new("an authority"));
    let repository = Repository::of(&source);
    let server = BadServer::start(repository.root(), |_| Answer::Good).await;
    let bad = TlsFront::start(server.address(), &authority.sign_expired(&["localhost"])).await;
    let good = TlsFront::start(server.address(), &authority.sign(&["localhost"])).await;
    let mut link = repository.link();
    link.repositories = [&bad, &good].map(|front| front.url("localhost").parse().unwrap()).into();
    std::fs::write(repository.link_file(), Envelope::unsigned(link).unwrap().encode()).unwrap();
    let package = within(60, store(believing(&authority)).package(&good.location("localhost"))).await.unwrap();
    read_all(&package, &source).await;
    let states = package.mirrors();
    assert!(states[0].failures > 0 && states[1].failures == 0 && states[1].requests > 0, "{states:?}");
}

#[test]
fn files_without_certificates_are_refused() {
    let authority = Authority::new("an authority").pem();
    let cut = authority.replace("-----END CERTIFICATE-----", "");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for text in ["", "<html>", &Authority::new("an authority").sign(&["localhost"]).key, &cut, broken] {
        let error = Access::default().add_authorities(file(text).path()).unwrap_err();
        assert!(error.to_string().contains("it "), "{text:?}: {error}");
    }
    let error = Access::default().add_authorities(Path::new("/nowhere/ca.pem")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    // Several in one file, with words between them.
    let both = format!("mine\n{authority}\nyours\n{}", Authority::new("an authority").pem());
    Access::default().add_authorities(file(&both).path()).unwrap();
}
