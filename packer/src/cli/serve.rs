//! `serve`: a web server for a repository.

use std::path::PathBuf;

use vmnetx_store::dir::RepositoryDir;
use vmnetx_store::interrupt;

use super::output::{put, say, start_log};
use crate::{Error, Server};

/// Serve the repository REPO over HTTP, until interrupted.
///
/// Any other web server that serves the directory's files does as well.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// Listen on this address; port 0 takes any that is free.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    listen: String,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    start_log("info");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(serve(args))
}

async fn serve(args: &Args) -> Result<(), Error> {
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    let repository = RepositoryDir::open(&args.repo)?;
    let server = Server::bind(repository.clone(), &args.listen).await?;
    let names = repository.links()?;
    for name in &names {
        put(&server.url(name));
        // A damaged link is for its readers to find: the others are served all the same.
        let Ok(Some(envelope)) = repository.link(name) else {
            say(&format!("warning: the link of {name} cannot be read"));
            continue;
        };
        if let Some(url) = envelope.link.repositories.first() {
            say(&format!("note: the link of {name} sends its readers to {url}"));
        }
    }
    if names.is_empty() {
        say(&format!("note: {} has no links yet; those that are published are served at once", args.repo.display()));
    }
    server.run(shutdown).await
}
