//! The versions that a link names: which is current, which are retained, what each added.

mod diff;
mod history;
mod log;
mod version_name;

use std::path::PathBuf;

use serde::Serialize;
use vmnetx_format::{Digest, Envelope, Link, Name, link_path};
use vmnetx_store::dir::{Publisher, RepositoryDir, Wait};

pub(crate) use self::history::{keep, succeed};

pub use self::diff::{DiffReport, DiskDiff, Part, diff};
pub use self::log::{LogEntry, LogReport, State, log};
pub use self::version_name::VersionName;

use crate::{Error, Signing};

/// The link whose versions are to be changed.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// The directory of the repository.
    pub repository: PathBuf,
    /// The package's name.
    pub name: Name,
    /// Who signs the link.
    pub signing: Signing,
    /// Whether to wait for another publisher.
    pub wait: Wait,
}

/// Which versions are to be retained.
#[derive(Debug, Clone, Default)]
pub struct RetainOptions {
    /// How many of the retained versions that are not pinned stay, newest first; nothing for all.
    pub keep: Option<usize>,
    /// Versions that stay until they are unpinned.
    pub pin: Vec<VersionName>,
    /// Versions that are no longer pinned.
    pub unpin: Vec<VersionName>,
    /// Versions that are given up.
    pub give_up: Vec<VersionName>,
}

/// What a link names after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkReport {
    /// The package's name.
    pub name: Name,
    /// The link file.
    pub link: PathBuf,
    /// Whether the link was replaced; if not, it said all of this already.
    pub published: bool,
    /// The link's serial number.
    pub serial: u64,
    /// The current version.
    pub current: Digest,
    /// The retained versions.
    pub retained: Vec<Digest>,
    /// Versions that the link named before and names no more. `prune` frees their space.
    pub given_up: Vec<Digest>,
}

/// Makes an earlier version current again, under a higher serial number; the version that was current is retained.
///
/// # Errors
/// [`Error`] when there is no such link or version, or the repository cannot be written.
pub fn roll_back(options: &LinkOptions, to: &VersionName) -> Result<LinkReport, Error> {
    change(options, |link| Ok(history::roll_back(link, &to.find(link)?.manifest)))
}

/// Changes which versions are retained.
///
/// # Errors
/// [`Error`] when there is no such link or version, a version to be given up is current or pinned, or the repository
/// cannot be written.
pub fn retain(options: &LinkOptions, wishes: &RetainOptions) -> Result<LinkReport, Error> {
    change(options, |link| {
        let find = |names: &[VersionName]| -> Result<Vec<Digest>, Error> {
            names.iter().map(|name| Ok(name.find(link)?.manifest)).collect()
        };
        let [pin, unpin, give_up] = [&wishes.pin, &wishes.unpin, &wishes.give_up].map(|names| find(names));
        let pinned = history::pin(link.clone(), &pin?, &unpin?);
        let left = history::give_up(pinned, &give_up?)?;
        Ok(match wishes.keep {
            Some(count) => keep(left, count),
            None => left,
        })
    })
}

/// Reads the link, changes it and publishes it under the next serial number, unless that changes nothing.
fn change(options: &LinkOptions, make: impl FnOnce(&Link) -> Result<Link, Error>) -> Result<LinkReport, Error> {
    let publisher = RepositoryDir::open(&options.repository)?.lock(options.wait)?;
    let before = publisher.repository().link(&options.name)?;
    let before = before
        .ok_or_else(|| Error::NoSuchPackage { repository: options.repository.clone(), name: options.name.clone() })?;
    let new = make(&before.link)?;
    replace(&publisher, &options.signing, &before, new)
}

/// Publishes `new` in place of `before`, under the next serial number, unless it says the same.
pub(crate) fn replace(
    publisher: &Publisher,
    signing: &Signing,
    before: &Envelope,
    mut new: Link,
) -> Result<LinkReport, Error> {
    let says_more = new != before.link;
    if says_more {
        new.serial = before.link.serial.saturating_add(1);
    }
    let after = signing.successor(Some(before), new.clone())?;
    let published = says_more || after.signature != before.signature;
    if published {
        publisher.replace_link(&after)?;
    }
    let named = |link: &Link| link.versions().map(|version| version.manifest).collect::<Vec<_>>();
    let versions = named(&new);
    Ok(LinkReport {
        link: publisher.repository().root().join(link_path(&new.name)),
        published,
        serial: new.serial,
        current: new.current.manifest,
        retained: versions.iter().skip(1).copied().collect(),
        given_up: named(&before.link).into_iter().filter(|version| !versions.contains(version)).collect(),
        name: new.name,
    })
}
