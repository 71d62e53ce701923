//! Starting with a cache directory that was used before.

use std::path::Path;
use std::time::Duration;

use vmnetx_store::{Error, Options, Store};

use crate::support::repository::Repository;
use crate::support::source::mixed;
use crate::within;

/// A store on the directory, as soon as the one before has let go of it.
async fn store(dir: &Path) -> Store {
    let options = Options { disk: Some((dir.to_owned(), 64 << 20)), ..Options::default() };
    within(20, async {
        loop {
            match Store::open(options.clone()) {
                Err(Error::CacheInUse { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                opened => return opened.unwrap(),
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_second_start_asks_the_origin_for_the_link_alone() {
    let source = mixed();
    let repository = Repository::of(&source);
    let dir = tempfile::tempdir().unwrap();
    for is_warm in [false, true] {
        let store = store(dir.path()).await;
        let package = store.package(&repository.location()).await.unwrap();
        package.disks()[0].read(0, source.size_bytes()).await.unwrap();
        let link_bytes = std::fs::metadata(repository.link_file()).unwrap().len();
        assert_eq!(package.origin_bytes() == link_bytes, is_warm, "{} bytes", package.origin_bytes());
        // Everything that was fetched is on the disk then.
        tokio::task::spawn_blocking(move || store.disk().unwrap().flush()).await.unwrap();
    }
    // What has been damaged there is fetched again.
    for object in std::fs::read_dir(dir.path().join("objects")).unwrap() {
        std::fs::write(object.unwrap().path(), "damaged").unwrap();
    }
    let store = store(dir.path()).await;
    let package = store.package(&repository.location()).await.unwrap();
    assert_eq!(package.version().manifest, repository.version.manifest);
}
