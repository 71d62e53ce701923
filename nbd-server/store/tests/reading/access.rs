//! Credentials: they go to the host that they are for, and a redirection takes none along.

use std::os::unix::fs::PermissionsExt;

use vmnetx_store::origin::Access;
use vmnetx_store::{Options, Store};

use crate::support::bad_http::{Answer, BadServer};
use crate::support::repository::Repository;
use crate::support::source::mixed;
use crate::within;

fn access(host: &str) -> Access {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("machine {host} login ann password secret")).unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    Access::from_netrc(file.path()).unwrap()
}

fn store(access: Access) -> Store {
    Store::open(Options { access, ..Options::default() }).unwrap()
}

/// base64 of `ann:secret`.
const ANN: &str = "Basic YW5uOnNlY3JldA==";

#[tokio::test(start_paused = true)]
async fn every_request_to_the_host_carries_them_and_no_other() {
    let repository = Repository::of(&mixed());
    let server = BadServer::start(repository.root(), |asked| match &asked.authorization {
        Some(authorization) if authorization == ANN => Answer::Good,
        _ => Answer::Status(401),
    })
    .await;
    let package = within(60, store(access("127.0.0.1")).package(&server.location())).await.unwrap();
    within(60, package.disks()[0].read(0, 10_000)).await.unwrap();
    assert!(server.ranges() > 0);
    let error = within(60, store(access("vms.example.org")).package(&server.location())).await.unwrap_err();
    let told = vmnetx_store::failure::tell(&error);
    assert!(told.contains("401") && told.contains("netrc") && !told.contains("secret"), "{told}");
    assert_eq!(server.log().last().unwrap().authorization, None);
}

#[tokio::test(start_paused = true)]
async fn a_redirection_takes_none_along() {
    let repository = Repository::of(&mixed());
    let other = BadServer::start(repository.root(), |_| Answer::Good).await;
    // The same server by another name is another host.
    let target = other.url().replace("127.0.0.1", "localhost");
    let redirect = move |asked: &crate::support::bad_http::Asked| Answer::Redirect(format!("{target}{}", asked.path));
    let server = BadServer::start(repository.root(), redirect).await;
    let package = within(60, store(access("127.0.0.1")).package(&server.location())).await.unwrap();
    within(60, package.disks()[0].read(0, 10_000)).await.unwrap();
    assert!(server.log().iter().all(|asked| asked.authorization.as_deref() == Some(ANN)));
    let log = other.log();
    assert!(!log.is_empty() && log.iter().all(|asked| asked.authorization.is_none()), "{log:?}");
}
